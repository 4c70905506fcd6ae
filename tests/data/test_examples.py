"""Records to examples: stored token ids give what the texts give, and crops take boxes along."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data import examples as module
from fgclip_jax.data.dataset_folder import write_info
from fgclip_jax.data.examples import LoadExample, Prefix
from fgclip_jax.data.loader import DataConfig
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import Layout
from fgclip_jax.data.record import Record, Region, tokenize
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.models.pixel_spec import PixelSpec
from tests.helpers.toy import BOXES, COUNT, RECORDS, assert_same, make_loader, take, write_shards

TOKENIZER = Tokenizer()
PIECES = ["a cat", " ", "'s", "&amp;", "<|endoftext|>", "2", "\n", "é", "Ã©", "\ufeff"]
TEXTS = st.one_of(
  st.text(max_size=30),
  st.text(st.characters(codec="ascii"), max_size=30),
  st.lists(st.sampled_from(["a cat", " ", "'s", "&amp;", "<|endoftext|>", "2", "\n", "é", "Ã©", "\ufeff"])).map(
    "".join
  ),
)


@given(st.one_of(TEXTS, TEXTS.map(lambda text: text + " ")), TEXTS)
@example("a photo of ", "a cat")
@example("a photo of ", "\ufeffcat")
@example("a photo of ", "'s")
@example("photo", "graph")
@example("a &", "amp; b")
@example("<|endof", "text|>")
@example("<|endoftext|> ", " a")
def test_ids_behind_a_prefix_are_those_of_the_joined_text(prefix, text):
  found = Prefix(prefix, TOKENIZER).before(text, tuple(TOKENIZER.encode(text)))
  assert found == tuple(TOKENIZER.encode(prefix + text))


def with_tokens(record):
  return dataclasses.replace(record, tokens=tokenize(record, TOKENIZER))


@pytest.fixture(scope="module")
def tokenised(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp("tokenised")
  write_shards(folder, [with_tokens(record) for record in RECORDS], shards=3)
  write_info(str(folder), {"tokenizer": Tokenizer.name})
  return str(folder)


class NoTokenizer(Tokenizer):
  """Refuses to encode."""

  def encode_batch(self, *_):
    raise AssertionError("stored ids were not used")


@pytest.mark.parametrize(
  "options", [{}, {"region_text": "long"}, {"short_prefix": "a photo of "}, {"layout": Layout(boxes=2, row_length=10)}]
)
def test_stored_ids_give_the_batches_that_the_texts_give(toy, tokenised, options):
  assert_same(take(make_loader(toy, **options), 4), take(make_loader(tokenised, **options), 4))


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_do_not_depend_on_how_many_records_are_read_ahead(toy, ahead, monkeypatch):
  expected = take(make_loader(toy, crop="random"), 3)
  monkeypatch.setattr(module, "_READ_AHEAD", ahead)
  assert_same(take(make_loader(toy, crop="random"), 3), expected)


def load(folder: str, number: int, seed: int = 0, boxes: int = BOXES, image_size: int | None = 16, **options):
  mixture = Mixture([DataSet(folder, "train")])
  transform = LoadExample(mixture, DataConfig(path=folder, **options), Layout(boxes=boxes), image_size)
  return transform, lambda: transform.random_map(number, np.random.default_rng(seed))


def test_stored_ids_are_used(tokenised):
  transform, run = load(tokenised, 6)
  expected = run().example
  transform._tokenizer = NoTokenizer()
  assert run().example.regions == expected.regions and run().example.negatives == expected.negatives


@pytest.mark.parametrize("name", ["another tokenizer", None])
def test_ids_of_another_tokenizer_are_not_used(tmp_path, name):
  wrong = [dataclasses.replace(with_tokens(RECORDS[1]), short="another text")]
  write_shards(tmp_path, wrong)
  write_info(str(tmp_path), {"tokenizer": name} if name else {})
  _, run = load(str(tmp_path), 0)
  assert TOKENIZER.decode(run().example.short.ids) == "another text"


def test_a_crop_takes_boxes_along_and_counts_those_it_loses(toy, tokenised):
  """Regions, negatives and texts stay with their boxes; what a crop loses, a later region makes up for."""
  lost = 0
  for folder in (toy, tokenised):
    for number, seed in ((6, 0), (6, 1), (19, 2), (20, 3), (13, 4)):
      options = {"crop": "random", "crop_area": (0.3, 0.5), "region_text": "short"}
      _, run = load(folder, number, seed, boxes=6, **options)
      found = run()
      regions = RECORDS[number].regions
      texts = [TOKENIZER.encode(region.short) for region in regions]
      kept = [texts.index(list(caption.ids)) for caption in found.example.regions]
      assert kept == sorted(kept) and found.boxes_lost == len(regions) - len(kept)
      assert [group is not None for group in found.example.negatives] == [bool(regions[k].negatives) for k in kept]
      _, fewer = load(folder, number, seed, boxes=2, **options)
      assert len(fewer().example.regions) == min(len(kept), 2)
      assert fewer().boxes_lost == min(len(regions), 2) - min(len(kept), 2)
      np.testing.assert_array_equal(fewer().example.boxes, found.example.boxes[:2])
      lost += found.boxes_lost
  assert lost > 0


def test_cropped_batches_are_the_same_for_any_number_of_workers(toy):
  options = {"crop": "random", "crop_area": (0.3, 0.5)}
  loader = make_loader(toy, **options)
  expected = take(loader, 5)
  assert loader.boxes_lost > 0
  assert_same(expected[2:], take(make_loader(toy, workers=2, start=2, threads=2, **options), 3))
  assert any((one["image"] != two["image"]).any() for one, two in zip(expected, take(make_loader(toy), 5), strict=True))


def test_a_record_is_cropped_differently_each_time(toy):
  """23 records in an unshuffled batch of two epochs."""
  (batch,) = take(make_loader(toy, batch_size=2 * COUNT, shuffle=False, crop="random_square", repeat_in_batch=True), 1)
  first, second = np.split(batch["image"][0], 2)
  assert (first != second).any(axis=(1, 2, 3)).mean() > 0.5


@pytest.mark.parametrize("crop", ["none", "random"])
@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("resize", ["squash", "center_crop", "pad"])
def test_boxes_follow_what_the_models_pictures_do(tmp_path, resize, decode, crop):
  """A white rectangle and its box stay together, whether the middle is cut out or the picture is padded."""
  canvas = np.zeros((40, 80, 3), np.uint8)
  canvas[8:24, 30:50] = 255
  box, outside = (30 / 80, 8 / 40, 50 / 80, 24 / 40), (0.0, 0.0, 0.2, 1.0)
  file = io.BytesIO()
  Image.fromarray(canvas).save(file, "PNG")
  regions = (Region(outside, "black"), Region(box, "white"))
  write_shards(tmp_path, [Record("a", file.getvalue(), "a rectangle", "", regions)])
  source, layout = Mixture([DataSet(str(tmp_path), "train")]), Layout(boxes=2)
  config = DataConfig(path=str(tmp_path), decode=decode, crop=crop, crop_area=(0.9, 0.9), region_text="short")
  load = LoadExample(source, config, layout, 80, PixelSpec(resize=resize, fill=(9, 9, 9)))
  found = load.random_map(0, np.random.default_rng(3))
  rows, columns = np.nonzero(found.example.image[..., 0] > 127)
  seen = np.asarray([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 80
  np.testing.assert_allclose(found.example.boxes[-1], seen, atol=1.5 / 80)
  assert TOKENIZER.decode(found.example.regions[-1].ids) == "white"
  if crop == "none":
    expected = {
      "squash": [[0, 0, 0.2, 1], box],
      "center_crop": [[0.25, 0.2, 0.75, 0.6]],  # the middle half of the width; the other box is gone
      "pad": [[0, 0.25, 0.2, 0.75], [0.375, 0.35, 0.625, 0.55]],  # a quarter of the square above and below
    }[resize]
    np.testing.assert_allclose(found.example.boxes, expected, atol=1e-6)
    assert found.boxes_lost == (resize == "center_crop")
    assert (found.example.image == 9).all(axis=(1, 2)).sum() == (40 if resize == "pad" else 0)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"decode": "quick"}, "data.decode must be one of"),
    ({"crop": "centre"}, "data.crop must be one of"),
    ({"crop_area": (0.0, 1.0)}, "data.crop_area must be two ascending shares"),
    ({"crop_area": (0.9, 0.8)}, "data.crop_area must be two ascending shares"),
    ({"crop_keep": 1.5}, "data.crop_keep must lie in 0..1"),
    ({"threads": -2}, "data.threads must be -1"),
  ],
)
def test_impossible_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    DataConfig(**changes)
