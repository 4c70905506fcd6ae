"""Whatever becomes of a record's or a shard's bytes: nothing crashes the loader, and what it leaves out is counted."""

import io

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from fgclip_jax.data import record as records
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.loader import DataConfig, Loader
from fgclip_jax.data.packing import Layout
from fgclip_jax.data.record import Record, Region

COUNT, MUTATED = 4, 1
KINDS = ("box_", "image_", "record_", "too_many_")  # the first words of the classes of faults


def toy_record(number: int) -> Record:
  file = io.BytesIO()
  pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
  Image.fromarray(pixels).save(file, "PNG" if number % 2 else "JPEG")
  regions = (
    Region((0.0, 0.0, 0.5, 1.0), "a region", "a region at length", ("wrong", "wrong as well")),
    Region((0.25, 0.5, 1.0, 1.0), "another one"),
  )
  return Record(str(number), file.getvalue(), f"picture {number}", f"picture {number} at length", regions)


ENCODED = [records.encode(toy_record(number)) for number in range(COUNT)]
FIELDS = sorted(records.features())
_numbers = st.one_of(st.integers(-3, 12), st.integers(-(2**63), 2**63 - 1))
CONTENT = st.one_of(
  st.tuples(st.just("bytes_list"), st.lists(st.binary(max_size=9), max_size=3)),
  st.tuples(st.just("float_list"), st.lists(st.floats(width=32), max_size=9)),
  st.tuples(st.just("int64_list"), st.lists(_numbers, max_size=3)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
  return str(tmp_path_factory.mktemp("mutated"))


def write(folder: str, encoded: list[bytes]) -> str:
  path = shard_path(folder, "toy", "train", 0, 1)
  writer = ArrayRecordWriter(path, "group_size:1")
  for data in encoded:
    writer.write(data)
  writer.close()
  return path


def load(folder: str, steps: int = 1) -> tuple[list[np.ndarray], dict[str, int]]:
  """The record numbers of some batches of all records in their order, and what was counted."""
  config = DataConfig(path=folder, batch_size=COUNT, boxes=3, workers=0, threads=1, shuffle=False, max_bad_share=1.0)
  loader = Loader(config, Layout(boxes=3), 8, seed=0)
  batches = [next(loader)["record"].ravel() for _ in range(steps)]
  loader.close()
  return batches, loader.bad


def assert_counted(folder: str, encoded: bytes) -> None:
  """A mutated record is used, or is counted once, under a class that has a name, and the next one stands for it."""
  write(folder, [encoded if number == MUTATED else ENCODED[number] for number in range(COUNT)])
  (batch,), bad = load(folder)
  assert sum(bad.values()) == (batch[MUTATED] != MUTATED)
  assert all(kind.startswith(KINDS) for kind in bad)
  expected = np.arange(COUNT)
  expected[MUTATED] += sum(bad.values())
  np.testing.assert_array_equal(batch, expected)


@given(st.lists(st.integers(0, 8 * len(ENCODED[MUTATED]) - 1), min_size=1, max_size=20))
def test_flipped_bits(folder, places):
  data = bytearray(ENCODED[MUTATED])
  for place in places:
    data[place // 8] ^= 1 << place % 8
  assert_counted(folder, bytes(data))


@given(st.integers(0, len(ENCODED[MUTATED]) - 1), st.binary(max_size=20))
def test_cut_off_and_something_else_behind(folder, length, tail):
  assert_counted(folder, ENCODED[MUTATED][:length] + tail)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@example({"image": ("float_list", [1.0])})
@example({"image": None})
@example({"language": None})
@example({"region/negative_count": ("int64_list", [-1, 3])})
@example({"region/negative_count": ("int64_list", [0, 2])})
@given(st.dictionaries(st.sampled_from(FIELDS), st.none() | CONTENT, min_size=1, max_size=3))
def test_fields_of_another_type_and_number(folder, changes):
  record = tf_example_pb2.Example.FromString(ENCODED[MUTATED])
  for name, content in changes.items():
    if content is None:
      record.features.feature.pop(name, None)  # a language is only there where a source knows one
    else:
      kind, values = content
      record.features.feature[name].Clear()
      getattr(record.features.feature[name], kind).value.extend(values)
  assert_counted(folder, record.SerializeToString())


@given(st.data())
def test_damage_anywhere_in_a_shard(folder, data):
  path = write(folder, ENCODED)
  with open(path, "rb+") as file:
    content = bytearray(file.read())
    # half of the places among the records: most of a file as small as this is its index
    places = st.one_of(st.integers(0, sum(map(len, ENCODED))), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=5)):
      content[place] ^= data.draw(st.integers(1, 255))
    file.seek(0)
    file.write(content)
  try:
    (batch,), bad = load(folder)
  except ValueError as error:
    assert "has no record that can be read" in str(error) or "records in a row are bad" in str(error)
    return
  # a damaged index hides the records after the damage, so there may be fewer, which then come again
  assert set(batch) <= set(range(COUNT)) and all(kind.startswith((*KINDS, "shard_")) for kind in bad)
  if not bad:
    assert batch.tolist() == [number % (batch.max() + 1) for number in range(COUNT)]
