"""The record: what is written is read back, and what the schema forbids is an error."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data import record
from fgclip_jax.data.record import Record, RecordError, Region

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_fractions = st.floats(0, 1, width=32)
_boxes = st.tuples(_fractions, _fractions, _fractions, _fractions).map(
  lambda box: (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
)
_regions = st.tuples(_boxes, _texts, _texts, st.lists(_texts, max_size=record.MAX_NEGATIVES).map(tuple))


@given(image=st.binary(max_size=99), texts=st.tuples(_texts, _texts, _texts), regions=st.lists(_regions, max_size=6))
def test_a_record_is_read_back_as_it_was_written(image, texts, regions):
  identity, short, long = texts
  example = Record(identity, image, short, long, tuple(Region(*region) for region in regions))
  assert record.decode(record.encode(example)) == example


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


@pytest.mark.parametrize("data", [b"not a record", b"", record.encode(Record("a", b"picture", "a"))[:-4]])
def test_decode_refuses_what_is_no_record(data):
  with pytest.raises(RecordError) as caught:
    record.decode(data)
  assert caught.value.kind == "record_unreadable"


def test_shards_are_found_in_order_and_missing_ones_are_named(tmp_path):
  folder = str(tmp_path)
  paths = [record.shard_path(folder, "a-b", "train", index, 3) for index in range(3)]
  for path in reversed(paths):
    open(path, "wb").close()
  open(paths[0] + ".tmp", "wb").close()
  assert record.find_shards(folder, "train") == paths
  with pytest.raises(FileNotFoundError, match=r"no shard of split 'test'.*\['train'\]"):
    record.find_shards(folder, "test")
  (tmp_path / paths[1]).unlink()
  with pytest.raises(ValueError, match=r"shards \[1\] of 3 are missing"):
    record.find_shards(folder, "train")
  open(record.shard_path(folder, "other", "train", 0, 1), "wb").close()
  with pytest.raises(ValueError, match="several sets"):
    record.find_shards(folder, "train")
  with pytest.raises(FileNotFoundError, match="prepare"):
    record.find_shards(str(tmp_path / "nowhere"), "train")
