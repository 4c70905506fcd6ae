"""The record: what is written is read back, and what the schema forbids is an error."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data import record
from fgclip_jax.data.caption_set import ALT_TEXT, Caption, plain
from fgclip_jax.data.dataset_folder import find_shards, shard_path
from fgclip_jax.data.record import Record, Region, Tokens
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.storage.errors import RecordError

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_fractions = st.floats(0, 1, width=32)
_boxes = st.tuples(_fractions, _fractions, _fractions, _fractions).map(
  lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
_captions = st.tuples(
  _texts.filter(str.strip),
  st.sampled_from(["short", "long"]),
  st.sampled_from(["", "zh"]),
  st.sampled_from(["", ALT_TEXT]) | _texts,
  st.floats(0, width=32, exclude_min=True, allow_infinity=False),
)
_sets = st.just([]) | st.lists(_captions, max_size=4)
_regions = st.tuples(_boxes, _texts, _texts, st.lists(_texts, max_size=record.MAX_NEGATIVES + 3), _sets)
_ids = st.lists(st.integers(0, 49407), max_size=5).map(tuple)
_sizes = st.integers(0, 2**31 - 1)


@st.composite
def _parts(draw):
  """What records are made of: of every kind, with the tokens of all their captions or without any."""
  regions, captions = draw(st.lists(_regions, max_size=4)), draw(_sets)
  tokens = None

  def ids(texts):
    return tuple(draw(_ids) for _ in texts)

  if draw(st.booleans()):
    negatives, sets = (tuple(ids(region[part]) for region in regions) for part in (3, 4))
    sets = sets if any(sets) else ()
    tokens = ((49406, *draw(_ids)), draw(_ids), ids(regions), ids(regions), negatives, ids(captions), sets)
  texts, image = [draw(_texts) for _ in range(3)], draw(st.binary(max_size=99))
  return texts, image, regions, (draw(_sizes), draw(_sizes)), tokens, draw(st.sampled_from(["", "en", "zh"])), captions


def build(parts):
  (identity, short, long), image, regions, size, tokens, language, captions = parts
  regions, tokens = tuple(map(build_region, regions)), tokens and Tokens(*tokens)
  return Record(identity, image, short, long, regions, *size, tokens, language, build_set(captions))


def build_region(parts):
  box, short, long, negatives, captions = parts
  return Region(box, short, long, tuple(negatives), build_set(captions))


def build_set(captions):
  return tuple(Caption(*caption) for caption in captions)


@given(_parts())
def test_a_record_is_read_back_as_it_was_written(parts):
  example = build(parts)
  assert record.decode(record.encode(example)) == example


@given(_parts())
def test_a_loader_is_given_what_the_record_holds_where_there_are_tokens(parts):
  example = build(parts)
  found = record.decode_inputs(record.encode(example))
  if example.tokens is None:
    assert found is None
    return
  assert (found.image, found.short, found.tokens) == (example.image, example.short, example.tokens)
  assert (found.language, found.long, found.captions) == (example.language, example.long, example.captions)
  sets = tuple(region.captions for region in example.regions)
  assert found.region_captions == (sets if any(sets) else ())
  assert found.boxes.dtype == np.float32
  np.testing.assert_array_equal(found.boxes, np.float32([region.box for region in example.regions]).reshape(-1, 4))


@given(_parts())
def test_tensorflow_datasets_reads_and_writes_the_same(parts):
  example = build(parts)
  data = record.encode(example)
  found = record.features().deserialize_example_np(data)
  regions, tokens = example.regions, example.tokens or Tokens(())
  texts = {"id": example.id, "short": example.short, "long": example.long}
  assert {key: found[key].decode() for key in texts} == texts
  assert (found["image"], found["width"], found["height"]) == (example.image, example.width, example.height)
  np.testing.assert_array_equal(found["region/box"], np.float32([region.box for region in regions]).reshape(-1, 4))
  assert found["region/negatives"].shape == (len(regions), record.MAX_NEGATIVES)
  first = [region.negatives[: record.MAX_NEGATIVES] for region in regions]
  assert found["region/negative_count"].tolist() == list(map(len, first))
  for row, negatives in zip(found["region/negatives"], first, strict=True):
    padding = [""] * (record.MAX_NEGATIVES - len(negatives))
    assert [text.decode() for text in row] == [*negatives, *padding]
  assert found["tokens/short"].tolist() == list(tokens.short)
  assert found["tokens/region_long"].tolist() == [number for ids in tokens.region_long for number in ids]
  assert found["tokens/region_long_length"].tolist() == [len(ids) for ids in tokens.region_long]
  first = [len(ids) for region in tokens.negatives for ids in region[: record.MAX_NEGATIVES]]
  assert found["tokens/negative_length"].tolist() == first
  # a field that is not there, as in data sets of earlier versions, is None
  if example.captions:
    assert [text.decode() for text in found["caption/text"]] == [caption.text for caption in example.captions]
    assert found["caption/weight"].tolist() == [caption.weight for caption in example.captions]
    if example.tokens:
      assert found["tokens/caption"].tolist() == [number for ids in tokens.captions for number in ids]
  else:
    assert found["caption/text"] is None and found["tokens/caption"] is None
  if any(region.captions for region in regions):
    assert found["region/caption_count"].tolist() == [len(region.captions) for region in regions]
  assert ([text.decode() for text in found["language"]] if example.language else found["language"]) == (
    [example.language] if example.language else None
  )
  # what it would have written itself, it reads no otherwise
  found = {key: [] if value is None else value for key, value in found.items()}
  again = record.features().serialize_example(record.features().encode_example(found))
  assert record.decode(again) == example


@given(_texts, _texts, st.lists(_regions, max_size=3), _sets)
def test_tokens_are_those_of_each_caption_on_its_own(short, long, regions, captions):
  regions, captions, tokenizer = tuple(map(build_region, regions)), build_set(captions), Tokenizer()
  tokens = record.tokenize(Record("a", b"", short, long, regions, captions=captions), tokenizer)

  def ids(text, optional=False):
    return () if optional and not text else tuple(tokenizer.encode(text))

  assert (tokens.short, tokens.long) == (ids(short), ids(long, optional=True))
  assert tokens.region_short == tuple(ids(region.short) for region in regions)
  assert tokens.region_long == tuple(ids(region.long, optional=True) for region in regions)
  assert tokens.negatives == tuple(tuple(map(ids, region.negatives)) for region in regions)
  assert tokens.captions == tuple(ids(caption.text) for caption in captions)
  sets = tuple(tuple(ids(caption.text) for caption in region.captions) for region in regions)
  assert tokens.region_captions == (sets if any(sets) else ())


def test_a_record_without_a_set_has_the_bytes_that_it_had_before_there_were_sets():
  first = Region((0.25, 0.0, 0.5, 1.0), "a brown dog", "A brown dog that jumps.", ("a white dog", "a brown cat"))
  regions = (first, Region((0.0, 0.5, 1.0, 1.0), "a lawn"))
  made = Record("a/1.jpg", b"\xff\xd8picture", "two dogs", "Two dogs play on a lawn.", regions, 640, 480, language="zh")
  recorded = {
    "0db00ebbef090c6f04b26672e72f228752d3e01ef7d4dc896819c9e6587e06bb": Record("a", b"p", "a"),
    "d2b709dd6f0c2bfef0b5b5435aff07e95e7fc29b11264a21ef2b3876f05f2b7e": made,
    "08408f18f8777d826a17867acce427ab47c9718b0c483a32dc0d409b2058b043": dataclasses.replace(
      made, tokens=record.tokenize(made, Tokenizer())
    ),
  }
  assert {hashlib.sha256(record.encode(each)).hexdigest(): each for each in recorded.values()} == recorded


def test_without_a_set_the_captions_are_the_short_and_the_long_one():
  region = Region((0.0, 0.0, 1.0, 1.0), "a", "a long one")
  made = Record("a", b"", "b", regions=(region,))
  assert made.caption_set() == (Caption("b"),)
  assert region.caption_set() == plain("a", "a long one") == (Caption("a"), Caption("a long one", "long"))
  captions = (Caption("c", source=ALT_TEXT), Caption("b", weight=2.0))
  assert dataclasses.replace(made, captions=captions).caption_set() == captions
  assert dataclasses.replace(region, captions=captions).caption_set() == captions


@pytest.mark.parametrize(
  ("box", "kind"),
  [
    ([0, 0, 1], "box_not_four_numbers"),
    ([0, 0, 1, 1, 0.9], "box_not_four_numbers"),
    (None, "box_not_four_numbers"),
    ("1234", "box_not_four_numbers"),
    ([0, 0, "1", 1], "box_not_four_numbers"),
    ([0, 0, None, 1], "box_not_four_numbers"),
    ([0, 0, True, 1], "box_not_four_numbers"),
    ([0, 0, math.nan, 1], "box_not_finite"),
    ([0, 0, math.inf, 1], "box_not_finite"),
    ([0, 0, 1.01, 1], "box_outside"),
    ([-0.01, 0, 1, 1], "box_outside"),
    ([10, 20, 100, 200], "box_outside"),
    ([0.6, 0, 0.5, 1], "box_swapped"),
    ([0, 0.6, 1, 0.5], "box_swapped"),
  ],
)
def test_a_bad_box_is_named(box, kind):
  with pytest.raises(RecordError, match="bbox") as caught:
    record.check_box(box, "bbox")
  assert caught.value.kind == kind
  assert caught.value.field == "bbox"


def test_a_box_a_rounding_error_outside_is_clipped():
  assert record.check_box([-0.0005, 0, 1.0005, np.float32(0.5)]) == (0.0, 0.0, 1.0, 0.5)


def test_encode_refuses_what_the_schema_forbids():
  with pytest.raises(RecordError, match=r"regions\[0\]\.box"):
    record.encode(Record("a", b"", "a", regions=(Region((0.0, 0.0, 2.0, 1.0), "a"),)))
  bad = (Caption("a"), Caption("b", weight=0.0))
  with pytest.raises(RecordError, match=r"^captions\[1\]\.weight: must be a finite number above 0, got 0.0"):
    record.encode(Record("a", b"", "a", captions=bad))
  with pytest.raises(RecordError, match=r"^regions\[0\]\.captions\[1\]\.weight: must be"):
    record.encode(Record("a", b"", "a", regions=(Region((0.0, 0.0, 1.0, 1.0), "a", captions=bad),)))


def test_encode_refuses_tokens_of_other_captions():
  region = Region((0.0, 0.0, 1.0, 1.0), "a", negatives=("b",))
  one = ((1,),)
  good = Tokens((1,), region_short=one, region_long=one, negatives=(one,))
  assert record.decode(record.encode(Record("a", b"", "a", regions=(region,), tokens=good))).tokens == good
  for bad in (
    Tokens(()),
    Tokens((1,)),
    dataclasses.replace(good, negatives=((),)),
    dataclasses.replace(good, short=()),
    dataclasses.replace(good, captions=((1,),)),
    dataclasses.replace(good, region_captions=(((1,),),)),
  ):
    with pytest.raises(RecordError) as caught:
      record.encode(Record("a", b"", "a", regions=(region,), tokens=bad))
    assert caught.value.kind == "tokens_disagree"


@pytest.mark.parametrize("data", [b"not a record", b"", record.encode(Record("a", b"picture", "a"))[:-4]])
def test_decode_refuses_what_is_no_record(data):
  assert record.decode_inputs(data) is None
  with pytest.raises(RecordError) as caught:
    record.decode(data)
  assert caught.value.kind == "record_unreadable"


def test_decode_refuses_a_record_of_another_version():
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example.FromString(record.encode(Record("a", b"picture", "a")))
  del example.features.feature["width"]
  with pytest.raises(RecordError, match="run `prepare` again"):
    record.decode(example.SerializeToString())


@given(st.data())
def test_decode_refuses_a_record_whose_parts_disagree(data):
  from tensorflow_datasets.proto import tf_example_pb2

  captions = (Caption("e"), Caption("f", "long"))
  region = Region((0.0, 0.0, 1.0, 1.0), "a", "b", ("c", "d") * 6, captions)
  tokens = Tokens((1, 2), (1,), ((1,),), ((1, 3),), (((1,), (2, 3)) * 6,), ((1,), (2, 3)), (((4, 5), (1,)),))
  made = Record("a", b"p", "a", "b", (region,), 1, 1, tokens, captions=captions)
  example = tf_example_pb2.Example.FromString(record.encode(made))
  names = sorted(set(example.features.feature) - {"tokens/short", "tokens/long"})
  feature = example.features.feature[data.draw(st.sampled_from(names))]
  values = getattr(feature, feature.WhichOneof("kind")).value
  if data.draw(st.booleans()):
    values.append(values[0])
  else:
    del values[0]
  with pytest.raises(RecordError) as caught:
    record.decode(example.SerializeToString())
  assert caught.value.kind == "record_unreadable"
  assert record.decode_inputs(example.SerializeToString()) is None


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0005, 1.0), (0.0, 0.5, 1.0, 0.25), (0.0, 0.0, math.nan, 1.0)])
def test_an_unusual_box_is_left_to_decode(box):
  from tensorflow_datasets.proto import tf_example_pb2

  made = Record(
    "a", b"p", "a", regions=(Region((0.0, 0.0, 1.0, 1.0), "a"),), tokens=Tokens((1,), (), ((1,),), ((),), ((),))
  )
  example = tf_example_pb2.Example.FromString(record.encode(made))
  assert record.decode_inputs(example.SerializeToString())
  example.features.feature["region/box"].float_list.value[:] = box
  assert record.decode_inputs(example.SerializeToString()) is None


def test_shards_are_found_in_order_and_missing_ones_are_named(tmp_path):
  folder = str(tmp_path)
  paths = [shard_path(folder, "a-b", "train", index, 3) for index in range(3)]
  for path in reversed(paths):
    open(path, "wb").close()
  open(paths[0] + ".tmp", "wb").close()
  assert find_shards(folder, "train") == paths
  with pytest.raises(FileNotFoundError, match=r"no shard of split 'test'.*\['train'\]"):
    find_shards(folder, "test")
  (tmp_path / paths[1]).unlink()
  with pytest.raises(ValueError, match=r"shards \[1\] of 3 are missing"):
    find_shards(folder, "train")
  open(shard_path(folder, "other", "train", 0, 1), "wb").close()
  with pytest.raises(ValueError, match="several sets"):
    find_shards(folder, "train")
  with pytest.raises(FileNotFoundError, match="prepare"):
    find_shards(str(tmp_path / "nowhere"), "train")
