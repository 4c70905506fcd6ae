"""A damaged shard gives the records it still holds whole."""

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage.damaged_shard import DamagedShard

SIZES = st.lists(st.sampled_from([0, 1, 5, 127, 128, 3000, 65_000, 65_512, 65_536, 140_000]), min_size=1, max_size=6)


def write(path, sizes, options) -> list[bytes]:
  # some compress well, some not at all
  records = [(bytes(range(256)) * (size // 256 + 1))[:size] for size in sizes]
  writer = ArrayRecordWriter(str(path), options)
  for record in records:
    writer.write(record)
  writer.close()
  return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("shards")


@given(SIZES, st.sampled_from(["group_size:1", "group_size:1,uncompressed"]), st.floats(0, 1))
def test_every_whole_record_before_the_cut(folder, sizes, options, share):
  path = folder / "shard"
  records = write(path, sizes, options)
  whole = path.read_bytes()
  assert [*map(DamagedShard(str(path)).__getitem__, range(len(records)))] == records  # nothing cut off
  ends = []  # a cut right before a record's last byte loses it
  for length in sorted({int(share * len(whole)), len(whole) - 1}):
    path.write_bytes(whole[:length])
    shard = DamagedShard(str(path))
    found = [shard[number] for number in range(len(shard))]
    assert found == records[: len(found)]
    ends.append(len(found))
  assert ends == sorted(ends)
  assert ends[-1] == len(records)  # the index stands after all of them


def test_a_cut_in_a_record_loses_that_one_alone(folder):
  path = folder / "shard"
  records = write(path, [3000] * 4, "group_size:1,uncompressed")
  data = path.read_bytes()
  last = data.rindex(records[0])
  for length, held in ((last + 3000, 4), (last + 2999, 3), (last, 3)):
    path.write_bytes(data[:length])
    assert len(DamagedShard(str(path))) == held


def test_damaged_bytes_are_an_error_of_their_record(folder):
  path = folder / "shard"
  records = write(path, [5, 3000, 7], "group_size:1")
  data = bytearray(path.read_bytes()[:60_000])
  magic = [i for i in range(len(data)) if data[i : i + 4] == b"\x28\xb5\x2f\xfd"]
  place = magic[3]  # each chunk compresses its sizes and its record apart
  data[place] ^= 255
  path.write_bytes(data)
  shard = DamagedShard(str(path))
  assert shard[0] == records[0] and shard[2] == records[2]
  with pytest.raises(ValueError, match="its bytes are damaged"):
    shard[1]


@pytest.mark.parametrize("content", [b"", b"no ArrayRecord file", bytes(100_000)])
def test_a_file_that_holds_none(folder, content):
  (folder / "other").write_bytes(content)
  assert len(DamagedShard(str(folder / "other"))) == 0


def test_the_largest_record_is_known_from_its_header(tmp_path):
  records = write(tmp_path / "shard", [5, 1 << 20, 0], "group_size:1")
  shard = DamagedShard(str(tmp_path / "shard"))
  assert shard.largest == 1 << 20 and (tmp_path / "shard").stat().st_size < 1 << 18 and shard[1] == records[1]
