"""The loader for models that take patches and read padding: what a batch holds, and the published loader's batches."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data.caption_sampling import CaptionSampling
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.decode import decode_patches
from fgclip_jax.data.examples import LoadExample
from fgclip_jax.data.loader import Loader
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import NONE, Layout, assemble
from fgclip_jax.data.patches import PatchLayout, fit_grid
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.models.pixel_spec import SIGLIP_PIXELS
from fgclip_jax.prepare.sources import finehard
from tests.helpers.gemma import find_gemma
from tests.helpers.toy import take, write_shards

SIZES = [(40, 40), (64, 24), (24, 64), (200, 40), (48, 48), (16, 90), (33, 47), (90, 30), (60, 61), (20, 20)]
PATCHES = PatchLayout(16, patch_size=8)
LAYOUT = Layout(
  boxes=2, row_length=64, short_length=16, long_length=48, tokenizer="clip_padded", pad_id=0, patches=PATCHES
)


def picture(width: int, height: int) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)).save(file, "png")
  return file.getvalue()


RECORDS = [
  Record(
    str(number), picture(*size), f"Picture {number}", f"picture {number}, {'very ' * 9 * number} long",
    (Region((0.1, 0.2, 0.9, 0.8), f"region of {number}", negatives=("wrong",) * (number % 2)),) * (number % 3),
  )
  for number, size in enumerate(SIZES)
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("shapes")
  write_shards(path, RECORDS, shards=2)
  return str(path)


def make_loader(folder: str, layout: Layout = LAYOUT, **changes) -> Loader:
  places = {key: changes.pop(key) for key in ("shards", "local_shards", "start") if key in changes}
  changes = {"workers": 0, "batch_size": 4, "boxes": 2, "decode": "exact"} | changes
  return Loader(DataConfig(path=folder, **changes), layout, None, seed=0, pixels=SIGLIP_PIXELS, **places)


def of_shard(batch: dict, shard: int) -> list[dict]:
  """A shard's pictures and captions, looked up as a model does."""
  values = batch["patches"].shape[-1]
  patches, tokens = batch["patches"][shard].reshape(-1, values), batch["tokens"][shard].reshape(-1)
  segment = batch["segment"][shard].reshape(-1)
  found = []
  for image, number in enumerate(batch["record"][shard]):
    slots = batch["patch_slot"][shard, image]
    texts = {}
    for kind in ("short", "long"):
      last = batch[f"{kind}_eot"][shard, image]
      length = LAYOUT.max_length(kind == "long")
      texts[kind] = tokens[last + 1 - length : last + 1].tolist()
      assert len(set(segment[last + 1 - length : last + 1])) == 1
    grid = tuple(batch["image_grid"][shard, image].tolist())
    found.append({"record": int(number), "grid": grid, "patches": patches[slots[slots != NONE]], **texts})
  return found


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_holds_every_picture_and_every_caption_whole(folder, packed):
  tokenizer, seen = get_tokenizer("clip_padded"), set()
  layout = Layout(**{**vars(LAYOUT), "packed": packed})
  for batch in take(make_loader(folder, layout, shards=2, packed=packed), 5):
    assert "image" not in batch and batch["patch_slot"].shape == (2, 2, 16)
    if not packed:
      assert batch["patches"].shape == (2, 2, 16, 192)
    for shard in range(2):
      for one in of_shard(batch, shard):
        record = RECORDS[one["record"]]
        expected, grid, _ = decode_patches(record.image, PATCHES, "exact", pixels=SIGLIP_PIXELS)
        assert one["grid"] == grid == fit_grid(*SIZES[one["record"]], 16, 8)
        np.testing.assert_array_equal(one["patches"], expected)
        assert one["short"] == tokenizer(record.short, 16)[0].tolist()
        assert one["long"] == tokenizer(record.long, 48)[0].tolist()
        seen.add(one["record"])
  assert len(seen) == len(RECORDS)


@pytest.mark.parametrize("packed", [True, False])
def test_captions_of_sets_are_padded_to_their_tables(folder, packed):
  """Records without sets have their short and long caption as one; packed, these are the same places in the rows."""
  layout = Layout(**{**vars(LAYOUT), "packed": packed, "set_size": 3})
  sampling = CaptionSampling(set_size=3)
  (batch,) = take(make_loader(folder, layout, shards=2, packed=packed, captions=sampling), 1)
  assert (batch["caption_long"] == [False, True, False]).all() and (batch["caption_eot"][..., 2] == NONE).all()
  for place, kind in enumerate(("short", "long")):
    ends = batch["caption_eot"][..., place], batch[f"{kind}_eot"]
    assert (ends[0] == ends[1]).all() == packed
    length = LAYOUT.max_length(kind == "long")
    for shard in range(2):
      tokens = batch["tokens"][shard].reshape(-1)
      for one, other in zip(*(each[shard] for each in ends), strict=True):
        np.testing.assert_array_equal(tokens[one + 1 - length : one + 1], tokens[other + 1 - length : other + 1])


def test_batches_do_not_depend_on_workers_or_processes(folder):
  batches = take(make_loader(folder, shards=2), 3)
  others = take(make_loader(folder, shards=2, workers=2, threads=1), 3)
  parts = [take(make_loader(folder, shards=2, local_shards=[shard], start=1), 2) for shard in range(2)]
  for step, batch in enumerate(batches):
    assert {key: value.tolist() for key, value in batch.items()} == {
      key: value.tolist() for key, value in others[step].items()
    }
    for shard in range(2 if step else 0):
      (here,), there = (of_shard(parts[shard][step - 1], 0),), of_shard(batch, shard)
      assert [str(one) for one in here] == [str(one) for one in there]


def test_dynamic_budgets_are_those_of_a_group(folder, tmp_path):
  sizes = [(640, 480), (100, 100), (300, 300), (120, 90)]
  write_shards(tmp_path, [Record(str(number), picture(*size), "a") for number, size in enumerate(sizes)])
  found = {}
  for policy, group, shards in (
    ("dynamic", 0, 1), ("dynamic", 2, 1), ("dynamic", 0, 2), ("dynamic_each", 0, 1), ("200", 0, 1)
  ):  # fmt: skip
    config = DataConfig(path=str(tmp_path), patch_budget=policy, patch_group=group, shuffle=False)
    layout = Layout(boxes=0, long_length=None, patches=config.patch_layout(16, 256))
    load = LoadExample(Mixture(config.sets()), config, layout, 16, SIGLIP_PIXELS)
    examples = load.load(range(4), [np.random.default_rng(0)] * 4, None, shards)
    found[policy, group, shards] = [one.example.grid for one in examples]
  expected = {
    ("dynamic", 0, 1): [1024] * 4, ("dynamic", 2, 1): [1024, 1024, 576, 576], ("dynamic", 0, 2): [1024, 1024, 576, 576],
    ("dynamic_each", 0, 1): [1024, 128, 576, 128], ("200", 0, 1): [200] * 4,
  }  # fmt: skip
  assert found == {
    key: [fit_grid(*size, budget) for size, budget in zip(sizes, budgets, strict=True)]
    for key, budgets in expected.items()
  }
  assert DataConfig(path="x").patch_layout(16, 256) == PatchLayout(256)
  with pytest.raises(ValueError, match="data.patch_group 3 must divide the 4 images of a data shard"):
    make_loader(str(tmp_path), patch_budget="dynamic", patch_group=3)


def test_rows_that_cannot_hold_a_padded_caption_are_refused():
  with pytest.raises(ValueError, match="row_length 40 cannot hold a caption of 48 tokens"):
    Layout(**{**vars(LAYOUT), "row_length": 40})


# ---- the published loader


class Alternating(np.random.Generator):
  """Regions take their short caption, then the long one, and so on, as in the recording."""

  def __init__(self):
    super().__init__(np.random.PCG64(0))
    self._taken = 0

  def integers(self, high, size):
    taken = np.arange(self._taken, self._taken + size) % high
    self._taken += size
    return taken


@pytest.fixture(scope="module")
def published(shared):
  folder = shared / "oracle_fgclip2" / "loader"
  if not folder.is_dir():
    pytest.skip(f"no recordings at {folder}")
  return folder


def read_records(folder, file: str) -> list[Record]:
  records = []
  for value in json.loads((folder / file).read_text()):
    record, (name, *_) = finehard.parse(value, lambda *_: None)
    image = (folder / "images" / name).read_bytes()
    records.append(Record(**{**vars(record), "image": image}))
  return records


def assemble_as_published(records: list[Record], folder, tokenizer: str) -> dict[str, np.ndarray]:
  """One batch of all records, padded, with the published loader's settings."""
  write_shards(folder, records)
  config = DataConfig(
    path=str(folder), packed=False, decode="exact", patch_budget="dynamic", squash_small=512,
    short_prefix="a photo of ", region_languages=("en",), hard_positive_as_written=tokenizer.startswith("gemma"),
  )  # fmt: skip
  layout = Layout(
    boxes=4, row_length=260, short_length=64, long_length=196, packed=False, tokenizer=tokenizer, pad_id=0,
    patches=config.patch_layout(16, 256),
  )  # fmt: skip
  load = LoadExample(Mixture([DataSet(str(folder), "train")]), config, layout, 16, SIGLIP_PIXELS)
  rngs = [Alternating()] * len(records)
  return assemble([one.example for one in load.load(range(len(records)), rngs, None)], 1, layout)


@pytest.mark.parametrize("language", ["en", "cn"])
def test_pictures_and_boxes_are_the_published_loaders(published, tmp_path, language):
  recorded = np.load(published / f"batch_{language}.npz")
  records = read_records(published, "records_en.json" if language == "en" else "records_cn/records.json")
  assert {record.language for record in records} == {"" if language == "en" else "zh"}
  batch = assemble_as_published(records, tmp_path, "clip_padded")
  np.testing.assert_array_equal(batch["patches"][0], recorded["patches_uint8"])
  np.testing.assert_array_equal(batch["patch_segment"][0] > 0, recorded["pixel_attention_mask"] > 0)
  np.testing.assert_array_equal(batch["image_grid"][0], recorded["spatial_shapes"])
  np.testing.assert_array_equal(batch["boxes"][0].reshape(-1, 4), recorded["box_infos"])
  np.testing.assert_array_equal(batch["box_count"][0], recorded["box_nums"])
  hard = batch["hard_box"][0]
  np.testing.assert_array_equal(np.bincount(hard[hard != NONE] // 4, minlength=len(records)), recorded["hard_nums"])
  places = [image * 4 + place for image, count in enumerate(recorded["hard_nums"]) for place in range(count)]
  boxes = batch["boxes"][0].reshape(-1, 4)[hard[hard != NONE]]
  np.testing.assert_array_equal(boxes, recorded["hard_infos"][places])


@pytest.mark.parametrize("language", ["en", "cn"])
def test_texts_are_the_published_loaders(published, tmp_path, language):
  recorded = np.load(published / f"batch_{language}.npz")
  records = read_records(published, "records_en.json" if language == "en" else "records_cn/records.json")
  batch = assemble_as_published(records, tmp_path, f"gemma:{find_gemma()}")
  tokens = batch["tokens"][0].reshape(-1)

  def rows(ends: np.ndarray, length: int) -> np.ndarray:
    return np.stack([tokens[end + 1 - length : end + 1] for end in ends.reshape(-1)])

  np.testing.assert_array_equal(rows(batch["short_eot"][0], 64), recorded["text_short"])
  np.testing.assert_array_equal(rows(batch["long_eot"][0], 196), recorded["text_long"])
  there = batch["region_eot"][0].reshape(-1) != NONE
  if there.any():
    np.testing.assert_array_equal(rows(batch["region_eot"][0].reshape(-1)[there], 64), recorded["box_texts"][there])
    hard = batch["hard_eot"][0]
    np.testing.assert_array_equal(rows(hard[hard[:, 0] != NONE], 64), recorded["hard_texts"])
  else:
    assert not recorded["box_nums"].any()
