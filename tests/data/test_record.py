"""The record: what is written is read back, and what the schema forbids is an error."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data import record
from fgclip_jax.data.dataset_folder import find_shards, shard_path
from fgclip_jax.data.record import Record, Region, Tokens
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.storage.errors import RecordError

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_fractions = st.floats(0, 1, width=32)
_boxes = st.tuples(_fractions, _fractions, _fractions, _fractions).map(
  lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
_regions = st.tuples(_boxes, _texts, _texts, st.lists(_texts, max_size=record.MAX_NEGATIVES).map(tuple))
_ids = st.lists(st.integers(0, 49407), max_size=5).map(tuple)
_sizes = st.integers(0, 2**31 - 1)


@st.composite
def _parts(draw):
  """What records are made of: of every kind, with the tokens of all their captions or without any."""
  regions = draw(st.lists(_regions, max_size=6))
  tokens = None
  if draw(st.booleans()):
    negatives = tuple(tuple(draw(_ids) for _ in region[3]) for region in regions)
    tokens = ((49406, *draw(_ids)), draw(_ids), *(tuple(draw(_ids) for _ in regions) for _ in range(2)), negatives)
  texts, image = (draw(_texts) for _ in range(3)), draw(st.binary(max_size=99))
  return tuple(texts), image, regions, (draw(_sizes), draw(_sizes)), tokens, draw(st.sampled_from(["", "en", "zh"]))


def build(parts):
  (identity, short, long), image, regions, size, tokens, language = parts
  regions = tuple(Region(*region) for region in regions)
  return Record(identity, image, short, long, regions, *size, tokens=tokens and Tokens(*tokens), language=language)


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
  assert found.language == example.language
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
  assert found["region/negative_count"].tolist() == [len(region.negatives) for region in regions]
  for row, region in zip(found["region/negatives"], regions, strict=True):
    padding = [""] * (record.MAX_NEGATIVES - len(region.negatives))
    assert [text.decode() for text in row] == [*region.negatives, *padding]
  assert found["tokens/short"].tolist() == list(tokens.short)
  assert found["tokens/region_long"].tolist() == [number for ids in tokens.region_long for number in ids]
  assert found["tokens/region_long_length"].tolist() == [len(ids) for ids in tokens.region_long]
  assert found["tokens/negative_length"].tolist() == [len(ids) for region in tokens.negatives for ids in region]
  # a field that is not there, as in data sets of earlier versions, is None
  assert ([text.decode() for text in found["language"]] if example.language else found["language"]) == (
    [example.language] if example.language else None
  )
  if not example.language:
    found["language"] = []
  # what it would have written itself, it reads no otherwise
  again = record.features().serialize_example(record.features().encode_example(found))
  assert record.decode(again) == example


@given(_texts, _texts, st.lists(_regions, max_size=3))
def test_tokens_are_those_of_each_caption_on_its_own(short, long, regions):
  regions, tokenizer = tuple(Region(*region) for region in regions), Tokenizer()
  tokens = record.tokenize(Record("a", b"", short, long, regions), tokenizer)

  def ids(text, optional=False):
    return () if optional and not text else tuple(tokenizer.encode(text))

  assert (tokens.short, tokens.long) == (ids(short), ids(long, optional=True))
  assert tokens.region_short == tuple(ids(region.short) for region in regions)
  assert tokens.region_long == tuple(ids(region.long, optional=True) for region in regions)
  assert tokens.negatives == tuple(tuple(map(ids, region.negatives)) for region in regions)


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
  with pytest.raises(RecordError, match=r"regions\[0\]\.negatives: holds 11, at most 10"):
    record.encode(Record("a", b"", "a", regions=(Region((0.0, 0.0, 1.0, 1.0), "a", negatives=("b",) * 11),)))


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

  region = Region((0.0, 0.0, 1.0, 1.0), "a", "b", ("c", "d"))
  tokens = Tokens((1, 2), (1,), ((1,),), ((1, 3),), (((1,), (2, 3)),))
  example = tf_example_pb2.Example.FromString(record.encode(Record("a", b"p", "a", "b", (region,), 1, 1, tokens)))
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
