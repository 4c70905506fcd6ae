"""The loader with sets of captions: whose they are, how often each is read, and that nothing else is moved by them."""

import collections
import dataclasses
import itertools
from typing import Any

import chex
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fgclip_jax.data.caption_sampling import CaptionSampling
from fgclip_jax.data.caption_set import ALT_TEXT, Caption
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.dataset_folder import write_info
from fgclip_jax.data.examples import LoadExample
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import NONE, Layout, assemble, captions_per_image, geometric_row_buckets
from fgclip_jax.data.record import MAX_NEGATIVES, Record, Region, tokenize
from fgclip_jax.data.tokenizers import get_tokenizer
from tests.helpers.toy import assert_same, concatenate, examples, make_loader, picture, read_ids, take, write_shards

TOKENIZER: Any = get_tokenizer()
COUNT = 13
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NAMES = "alder birch cedar elder elm fir hazel larch maple oak pine spruce willow".split()


def record_with_set(number: int) -> Record:
  """A record whose texts all name it, and no other one: with 2 to 6 captions, or none but the short one."""
  name = NAMES[number]
  if number % 4 == 3:
    return Record(str(number), picture(number), f"plain {name}")
  sentences = [f"Of {name} this is sentence {WORDS[i]}." for i in range(number)]
  captions = (
    Caption(f"first {name}", weight=2.0),
    Caption(f"alt text of {name}", source=ALT_TEXT),
    *(Caption(f"more {WORDS[i]} of {name}", source="model") for i in range(number % 3)),
    *((Caption(" ".join(sentences), "long", weight=3.0),) if sentences else ()),
    *((Caption(f"图片 {name} 。", "long", "zh"),) if number % 2 else ()),
  )
  regions = tuple(
    Region(
      (0.1, 0.1 * k, 0.9, 1.0),
      f"region {WORDS[k]} of {name}",
      captions=(Caption(f"region {WORDS[k]} of {name}"), Caption(f"again region {WORDS[k]} of {name}"))
      if k < 2
      else (),
      negatives=tuple(f"wrong {word} of {name}" for word in WORDS[: (0, 4, 13)[number % 3]]) if k == 1 else (),
    )
    for k in range(number % 4)
  )
  long = next((caption.text for caption in captions if caption.kind == "long"), "")
  return Record(str(number), picture(number), captions[0].text, long, regions, captions=captions)


RECORDS = [record_with_set(number) for number in range(COUNT)]
WITHOUT_SETS = [
  dataclasses.replace(
    record,
    captions=(),
    regions=tuple(
      dataclasses.replace(region, captions=(), negatives=region.negatives[:MAX_NEGATIVES]) for region in record.regions
    ),
  )
  for record in RECORDS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("sets")
  write_shards(path, [dataclasses.replace(record, tokens=tokenize(record, TOKENIZER)) for record in RECORDS], shards=2)
  write_info(str(path), {"tokenizer": TOKENIZER.name})
  return str(path)


def load(folder: str, layout: Layout, sampling: CaptionSampling, seed: int = 0, **changes):
  """The examples of all records, without their pictures."""
  config = DataConfig(path=folder, captions=sampling, **changes)
  loading = LoadExample(Mixture([DataSet(folder, "train")]), config, layout, None)
  return [loading.random_map(number, np.random.default_rng((seed, number))).example for number in range(COUNT)]


def sets_of(batch, shard: int, image: int) -> list[tuple[list[int], float, int, bool]]:
  """The captions of a picture's set as the batch has them: ids, weight, number, and whether it is a long one."""
  ends = batch["caption_eot"][shard, image]
  assert (ends[np.argmin(ends != NONE) if NONE in ends else len(ends) :] == NONE).all()  # the absent ones are the last
  absent = ends == NONE
  assert not batch["caption_weight"][shard, image][absent].any() and not batch["caption_id"][shard, image][absent].any()
  rows = [batch[f"caption_{key}"][shard, image].tolist() for key in ("weight", "id", "long")]
  return [(read_ids(batch, shard, end) or [], *each) for end, *each in zip(ends, *rows, strict=True) if end != NONE]


SAMPLINGS = st.builds(
  lambda draw, size, sentences, share: CaptionSampling(
    draw, size, sentences if size else 0, share if size or draw == "weighted" else None
  ),
  st.sampled_from(["first", "weighted"]),
  st.integers(0, 6),
  st.integers(0, 3),
  st.sampled_from([None, 0.0, 0.3, 1.0]),
)


@settings(max_examples=12)
@given(SAMPLINGS, st.integers(0, 9), st.booleans(), st.sampled_from(["short", "random"]))
@example(CaptionSampling("weighted", 6, 2), 0, True, "random")
def test_captions_are_those_of_their_picture_alone(folder, sampling, seed, packed, region_text):
  layout = Layout(boxes=3, set_size=sampling.set_size, packed=packed)
  batch = assemble(load(folder, layout, sampling, seed, region_text=region_text, boxes=3) * 2, 2, layout)
  for image, found in enumerate(examples(batch)):
    record, shard = RECORDS[found["record"]], image // COUNT
    drawn = sets_of(batch, shard, image % COUNT) if sampling.set_size else []
    texts = [
      found["short"],
      found["long"],
      *found["regions"],
      *itertools.chain.from_iterable(found["hard"].values()),
      *(one[0] for one in drawn),
    ]
    for ids in texts:
      assert set(TOKENIZER.decode(ids).split()) & set(NAMES) == {NAMES[int(record.id)]}
    captions = record.caption_set()
    known = {tuple(TOKENIZER.encode(caption.text)) for caption in captions}
    assert tuple(found["short"]) in known and tuple(found["long"]) in known
    assert len({(tuple(ids), long) for ids, *_, long in drawn}) == len(drawn), "drawn without replacement"
    if not sampling.sentences and sampling.alt_text_share is None:
      assert len(drawn) == min(sampling.set_size, len(captions))
      assert {tuple(ids) for ids, *_ in drawn} <= known
    if drawn:
      assert sum(one[1] for one in drawn) == pytest.approx(len(drawn), rel=1e-6)
    whole = " ".join(caption.text.lower() for caption in captions).replace(" ", "")
    assert all(TOKENIZER.decode(ids).replace(" ", "") in whole for ids, *_ in drawn)  # parts of what the set says
    for k, texts in found["hard"].items():
      wrong = record.regions[k].negatives
      assert texts[0] == TOKENIZER.encode(record.regions[k].short)
      assert len({tuple(ids) for ids in texts[1:]}) == min(len(wrong), MAX_NEGATIVES)
      if sampling.draw == "first":
        assert texts[1:] == [TOKENIZER.encode(text) for text in wrong[:MAX_NEGATIVES]]


@settings(max_examples=8)
@given(SAMPLINGS.filter(lambda sampling: sampling.set_size), st.integers(0, 9))
def test_the_packed_form_says_what_the_padded_one_says(folder, sampling, seed):
  said = []
  for packed in (True, False):
    layout = Layout(boxes=2, set_size=sampling.set_size, packed=packed, caption_ids=True)
    batch = assemble(load(folder, layout, sampling, seed, boxes=2), 1, layout)
    rows = [{key: value for key, value in found.items() if key != "image"} for found in examples(batch)]
    keys = ("caption_weight", "caption_id", "caption_long", "short_caption", "long_caption")
    said.append((rows, [sets_of(batch, 0, image) for image in range(COUNT)], {key: batch[key] for key in keys}))
  chex.assert_trees_all_equal(*said)


# ---- frequencies


def test_short_long_and_regions_are_drawn_by_their_weights(folder):
  number, draws = 10, 150
  loading = LoadExample(
    Mixture([DataSet(folder, "train")]),
    DataConfig(path=folder, captions=CaptionSampling("weighted"), region_text="short"),
    Layout(boxes=3),
    None,
  )
  rng, found = np.random.default_rng(0), collections.Counter()
  for _ in range(draws):
    made = loading.random_map(number, rng).example
    found["short", TOKENIZER.decode(made.short.ids)] += 1
    found["region", TOKENIZER.decode(made.regions[0].ids)] += 1
    for caption in (made.negatives[1] or ((), ()))[1]:
      found["wrong", TOKENIZER.decode(caption.ids)] += 1
  short = [caption for caption in RECORDS[number].captions if caption.kind == "short"]
  total = sum(caption.weight for caption in short)
  for caption in short:
    assert found["short", caption.text] / draws == pytest.approx(caption.weight / total, abs=0.15)
  assert found["region", "again region zero of pine"] / draws == pytest.approx(0.5, abs=0.15)
  assert {text for kind, text in found if kind == "wrong"} == set(RECORDS[number].regions[1].negatives)


# ---- the same batches, whoever makes them


SAMPLING = CaptionSampling("weighted", 3, 2, 0.4)
LAYOUT = Layout(boxes=3, set_size=3, caption_ids=True)


def test_batches_with_drawn_captions_depend_on_seed_and_step_alone(folder):
  start = 2
  options = {"batch_size": 4, "layout": LAYOUT, "captions": SAMPLING, "shards": 2}
  whole = take(make_loader(folder, **options), 6)
  assert any((one["caption_eot"] != two["caption_eot"]).any() for one, two in itertools.pairwise(whole))
  assert_same(whole[start:], take(make_loader(folder, start=start, workers=2, threads=2, **options), 6 - start))
  parts = [take(make_loader(folder, start=start, local_shards=[shard], **options), 6 - start) for shard in (0, 1)]
  assert_same(
    [concatenate([batch]) for batch in whole[start:]], [concatenate(list(each)) for each in zip(*parts, strict=True)]
  )
  other = take(make_loader(folder, seed=1, **options), 6)
  assert any((one["caption_id"] != two["caption_id"]).any() for one, two in zip(whole, other, strict=True))


def test_ids_made_of_texts_give_the_batches_of_stored_ones(folder, tmp_path):
  write_shards(tmp_path, [*RECORDS], shards=2)
  options = {"batch_size": 4, "layout": LAYOUT, "captions": SAMPLING, "short_prefix": "a photo of "}
  assert_same(take(make_loader(folder, **options), 4), take(make_loader(str(tmp_path), **options), 4))


@pytest.mark.parametrize("crop", ["none", "random"])
def test_by_default_a_set_changes_nothing(folder, tmp_path, crop):
  write_shards(tmp_path, [*WITHOUT_SETS], shards=2)
  plain = take(make_loader(str(tmp_path), batch_size=4, crop=crop), 4)
  assert not any(key.startswith("caption_") for key in plain[0])
  assert_same(plain, take(make_loader(folder, batch_size=4, crop=crop), 4))
  # and where nothing can be drawn, nothing is taken from the generator
  assert_same(plain, take(make_loader(str(tmp_path), batch_size=4, crop=crop, captions=CaptionSampling("weighted")), 4))


def test_what_the_recipe_sees_is_not_moved_by_sets(folder):
  plain = take(make_loader(folder, batch_size=4, crop="random"), 4)
  more = take(
    make_loader(folder, batch_size=4, crop="random", layout=LAYOUT, captions=CaptionSampling("first", 3, 2)), 4
  )
  for one, two in zip(plain, more, strict=True):
    chex.assert_trees_all_equal(list(examples(one)), [{**found, "boxes": found["boxes"]} for found in examples(two)])


# ---- tables, prefixes, shapes


def test_parts_are_short_captions_where_they_fit(folder):
  layout = Layout(boxes=0, row_length=64, short_length=16, long_length=48, set_size=9)
  made = load(folder, layout, CaptionSampling("first", 9, 3))[12]  # of twelve sentences of nine tokens
  lengths = {
    (caption.long, len(caption.ids))
    for caption in made.captions
    if b"sentence" in TOKENIZER.decode(caption.ids).encode()
  }
  assert all(long == (length > 16) for long, length in lengths) and {long for long, _ in lengths} == {True, False}
  short_only = dataclasses.replace(layout, long_length=None)
  assert not any(caption.long for caption in load(folder, short_only, CaptionSampling("first", 9, 3))[12].captions)
  whole = load(folder, layout, CaptionSampling("first", 9))[12].captions
  assert [caption.long for caption in whole] == [caption.kind == "long" for caption in RECORDS[12].captions]


def test_the_prefix_is_put_before_english_short_captions_of_sets(folder):
  layout = Layout(boxes=0, set_size=9)
  for number, made in enumerate(load(folder, layout, CaptionSampling("first", 9), short_prefix="a photo of ")):
    texts = [TOKENIZER.decode(caption.ids) for caption in made.captions]
    kinds = [caption.kind for caption in RECORDS[number].caption_set()]
    assert [text.startswith("a photo of ") for text in texts] == [kind == "short" for kind in kinds]


def test_long_captions_of_sets_alone(folder):
  """The long table is read for sets, and a picture has no long caption of its own."""
  layout = Layout(boxes=0, set_size=4, long_per_image=False)
  batch = assemble(load(folder, layout, CaptionSampling("first", 4)), 1, layout)
  assert (batch["long_eot"] == NONE).all() and batch["caption_long"].any()
  assert captions_per_image(layout) == (1, 4)


@settings(max_examples=10)
@given(st.integers(0, 4), st.integers(0, 3), st.booleans(), st.booleans())
def test_the_last_row_bucket_holds_sets_of_the_longest_captions(set_size, boxes, packed, long):
  from fgclip_jax.data.packing import Caption as Tokens
  from fgclip_jax.data.packing import Example

  layout = Layout(boxes, 24, 10, 20 if long else None, packed=packed, set_size=set_size)
  images, numbers = 3, iter(range(10**6))

  def caption(is_long: bool) -> Tokens:
    length = layout.max_length(is_long)
    return Tokens((97, next(numbers), *[1] * (length - 3), 98), is_long)

  made = [
    Example(
      np.zeros((2, 2, 3), np.uint8), caption(False), caption(True) if long else None,
      np.zeros((boxes, 4), np.float32), tuple(caption(False) for _ in range(boxes)),
      tuple((caption(False), tuple(caption(False) for _ in range(MAX_NEGATIVES))) for _ in range(boxes)),
      captions=tuple(caption(long) for _ in range(set_size)), caption_weights=(1.0,) * set_size,
    )
    for _ in range(images)
  ]  # fmt: skip
  worst = geometric_row_buckets(layout, images)[-1]
  assert assemble(made, 1, layout)["tokens"].shape[1] <= worst


def test_equal_captions_have_equal_numbers(folder):
  made = load(folder, LAYOUT, CaptionSampling("first", 3))
  batch = assemble([made[1], made[1], made[2], made[3]], 2, LAYOUT)
  for key in ("short_caption", "long_caption", "caption_id"):
    assert batch[key].dtype == np.int32 and (batch[key] >= 0).all()
    assert (batch[key][0, 0] == batch[key][0, 1]).all() and not np.intersect1d(
      batch[key][0], batch[key][1, 0][batch[key][1, 0] > 0]
    ).size
  assert batch["caption_id"][0, 0, 0] == batch["short_caption"][0, 0]
  assert batch["caption_weight"].dtype == np.float32 and batch["caption_long"].dtype == np.bool_
