"""The loader: what a batch holds, and its settings."""

import collections
import subprocess
import sys

import numpy as np
import pytest

from fgclip_jax.data.image import open_image, to_square
from fgclip_jax.data.loader import DataConfig
from fgclip_jax.data.packing import NONE, Layout
from fgclip_jax.data.tokenizers.clip import Tokenizer
from tests.helpers.toy import BOXES, COUNT, RECORDS, SIZE, examples, make_loader, take

# ---- what a batch holds


def test_a_batch_holds_what_its_records_hold(toy):
  tokenizer = Tokenizer()
  seen = {}
  for batch in take(make_loader(toy, region_text="short", shards=2, decode="exact"), 4):
    for example in examples(batch):
      record = RECORDS[example["record"]]
      seen[example["record"]] = record
      regions = record.regions[:BOXES]  # boxes beyond K are ignored
      np.testing.assert_array_equal(example["image"], to_square(open_image(record.image), SIZE))
      np.testing.assert_allclose(
        example["boxes"], np.asarray([region.box for region in regions]).reshape(-1, 4), atol=1e-7
      )
      end = tokenizer.encode(record.short).index(tokenizer.end_id)
      assert example["short"] == tokenizer.encode(record.short)[: end + 1]
      # a record without a long caption trains the long path on its short one
      assert example["long"] == tokenizer.encode(record.long or record.short, 248)
      assert example["regions"] == [tokenizer.encode(region.short) for region in regions]
      assert example["hard"] == {
        k: [tokenizer.encode(text) for text in (region.short, *region.negatives)]
        for k, region in enumerate(regions)
        if region.negatives
      }
  assert len(seen) == COUNT, "four batches of eight are more than an epoch"
  assert {len(record.regions) for record in seen.values()} == {0, 1, 2, 3, 4, 5, 6}
  assert any(not record.long for record in seen.values())


def test_a_caption_ends_at_the_first_end_of_text_in_its_text(toy):
  loader = make_loader(toy, batch_size=COUNT, shuffle=False)
  five = list(examples(take(loader, 1)[0]))[5]
  assert Tokenizer().decode(five["short"]) == "five"


def test_layout_without_long_text_and_regions_leaves_them_out(toy):
  loader = make_loader(toy, layout=Layout(boxes=0, long_length=None))
  (batch,) = take(loader, 1)
  assert (batch["long_eot"] == NONE).all()
  assert batch["boxes"].shape == (1, 8, 0, 4) and batch["region_eot"].shape == (1, 8, 0)
  assert (batch["short_eot"] != NONE).all()


@pytest.mark.parametrize("wanted", ["short", "long", "random"])
def test_region_text(toy, wanted):
  tokenizer = Tokenizer()
  kinds = collections.Counter()
  for batch in take(make_loader(toy, region_text=wanted), 9):
    for example in examples(batch):
      for ids, region in zip(example["regions"], RECORDS[example["record"]].regions, strict=False):
        kind = {tuple(tokenizer.encode(region.short)): "short"}
        if region.long:
          kind[tuple(tokenizer.encode(region.long))] = "long"
        kinds[bool(region.long), kind[tuple(ids)]] += 1
  assert kinds[False, "short"] and not kinds[False, "long"]  # where there is no long caption, the short one is taken
  assert bool(kinds[True, "short"]) == (wanted != "long")
  assert bool(kinds[True, "long"]) == (wanted != "short")


def test_short_prefix_goes_before_short_captions_only(toy):
  (batch,) = take(make_loader(toy, short_prefix="a photo of ", region_text="short", shuffle=False), 1)
  decode = Tokenizer().decode
  for example in examples(batch):
    assert decode(example["short"]).startswith("a photo of ")
    assert all(decode(ids).startswith("region ") for ids in example["regions"])
    assert example["record"] == 2 or decode(example["long"]).startswith("picture ")


def test_padded_form_gives_each_caption_a_row(toy):
  (batch,) = take(make_loader(toy, packed=False, layout=Layout(boxes=BOXES, packed=False)), 1)
  assert all(len(set(row[row > 0])) <= 1 for row in batch["segment"][0])
  assert len(list(examples(batch))) == 8


# ---- settings


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"region_text": "both"}, "data.region_text must be one of"),
    ({"batch_size": 0}, "data.batch_size must be at least 1"),
    ({"boxes": -1}, "data.boxes must be at least 0"),
    ({"threads": 0}, "data.threads must be -1"),
    ({"prefetch": 0}, "data.prefetch must be at least 1"),
    ({"workers": -2}, "data.workers must be -1"),
    ({"max_bad_share": 1.5}, "data.max_bad_share must lie in 0..1"),
  ],
)
def test_impossible_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    DataConfig(**changes)


def test_a_batch_that_does_not_divide(toy):
  with pytest.raises(ValueError, match="data.batch_size 8 must divide over 3 data shards"):
    make_loader(toy, shards=3)


@pytest.mark.slow
def test_workers_load_nothing_but_data():
  code = (
    "import sys, fgclip_jax.main, fgclip_jax.data.loader\n"  # a worker process imports the command and the loader
    "names = {name for name in sys.modules if name.startswith('fgclip_jax.')}\n"
    "names -= {'fgclip_jax.' + name for name in ('main', 'cli', 'models', 'models.config', 'storage')}\n"
    "names -= {'fgclip_jax.models.pixel_spec', 'fgclip_jax.train', 'fgclip_jax.train.config_flags'}\n"
    "names = [name for name in names if not name.startswith(('fgclip_jax.data', 'fgclip_jax.storage.'))]\n"
    "sys.exit(names + list({'flax', 'ftfy'} & set(sys.modules)) or None)"
  )
  process = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
