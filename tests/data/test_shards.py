"""Records by number over several shards. (Damaged shards: see test_loader.py and test_salvage.py.)"""

import os

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.shards import Records
from fgclip_jax.storage.errors import RecordError

COUNTS = (5, 6, 6, 6)


@pytest.fixture
def paths(tmp_path) -> list[str]:
  paths = [shard_path(str(tmp_path), "toy", "train", number, len(COUNTS)) for number in range(len(COUNTS))]
  for path, count in zip(paths, COUNTS, strict=True):
    writer = ArrayRecordWriter(path, "group_size:1")
    for number in range(count):
      writer.write(f"{os.path.basename(path)} {number}".encode())
    writer.close()
  return paths


def test_records_and_where_they_lie(tmp_path, paths):
  source = Records(str(tmp_path), "train")
  assert len(source) == sum(COUNTS) and source.damage == []
  for index, (shard, number) in {0: (0, 0), 4: (0, 4), 5: (1, 0), 10: (1, 5), 11: (2, 0), 22: (3, 5)}.items():
    assert source.where(index) == f"{paths[shard]}, record {number}"
    assert source[index] == f"{os.path.basename(paths[shard])} {number}".encode()


def test_a_shard_that_goes_away(tmp_path, paths):
  source = Records(str(tmp_path), "train")
  os.remove(paths[1])
  assert source[4].endswith(b" 4")
  with pytest.raises(RecordError, match="its shard cannot be read") as error:
    source[5]
  assert error.value.kind == "shard_lost"
