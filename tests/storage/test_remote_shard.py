"""Records from object storage, for which a file system stands in that maps to a temporary folder."""

import itertools
import os
import pickle
import threading
import typing

import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.shards import Records
from fgclip_jax.storage import remote_shard, riegeli
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.remote_shard import RemoteShard, index_path, write_index
from tests.helpers.toy import assert_same, make_loader, take

SIZES = st.lists(st.sampled_from([0, 1, 5, 127, 128, 3000, 65_000, 65_512, 65_536, 140_000]), min_size=1, max_size=6)


class Storage(LocalFileSystem):
  """Files under `folder` as `storage://...`; a request is logged, and passes through `meddle` if that is set."""

  protocol = "storage"
  folder = ""
  requests: typing.ClassVar[list[tuple[str, int, int]]] = []
  meddle = None

  @classmethod
  def _strip_protocol(cls, path):
    path = os.fspath(path)
    if path.startswith("storage://"):
      path = os.path.join(cls.folder, path.removeprefix("storage://"))
    return super()._strip_protocol(path)

  def cat_file(self, path, start=None, end=None, **options):
    Storage.requests.append((os.path.basename(path), start, end))
    data = super().cat_file(path, start=start, end=end, **options)
    return data if Storage.meddle is None else Storage.meddle(data)


@pytest.fixture
def storage(tmp_path, monkeypatch):
  fsspec.register_implementation("storage", Storage, clobber=True)
  monkeypatch.setattr(Storage, "folder", str(tmp_path))
  monkeypatch.setattr(Storage, "requests", [])
  monkeypatch.setattr(Storage, "meddle", None)
  monkeypatch.setattr(remote_shard, "FIRST_WAIT", 0.0)
  return Storage


def write(path, records, options="group_size:1") -> str:
  writer = ArrayRecordWriter(str(path), options)
  for record in records:
    writer.write(record)
  writer.close()
  return str(path)


def make(sizes) -> list[bytes]:
  """Records of these sizes; every other one does not compress."""
  random = np.random.default_rng(0)
  return [random.bytes(size) if number % 2 else bytes(size) for number, size in enumerate(sizes)]


COUNTS = (40, 41)


@pytest.fixture
def stored(tmp_path) -> list[list[bytes]]:
  """Two shards with indices, of records that do not compress."""
  random = np.random.default_rng(1)
  shards = [[random.bytes(3000) for _ in range(count)] for count in COUNTS]
  for number, shard in enumerate(shards):
    write_index(write(shard_path(str(tmp_path), "toy", "train", number, len(shards)), shard))
  return shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("shards")


# ---- one shard


@given(SIZES, st.sampled_from(["group_size:1", "group_size:1,uncompressed"]), st.booleans())
def test_every_record_with_and_without_an_index(folder, sizes, options, indexed):
  records = make(sizes)
  path = write(folder / "shard", records, options)
  if indexed:
    write_index(path)
  elif os.path.exists(index_path(path)):
    os.remove(index_path(path))
  shard = RemoteShard(path)
  assert [shard[number] for number in range(len(shard))] == records


def test_a_record_is_one_request_of_its_bytes(storage, tmp_path):
  records = make([3000] * 20)
  path = write(tmp_path / "shard", records)
  write_index(path)
  shard = RemoteShard("storage://shard")
  assert [name for name, _, _ in storage.requests] == ["shard.npy"]
  storage.requests.clear()
  assert shard[7] == records[7]
  ((name, start, end),) = storage.requests
  assert name == "shard" and 3000 < end - start < 3100


@pytest.mark.parametrize("tail", [riegeli.BLOCK, 5 * riegeli.BLOCK])
def test_the_index_at_the_end_of_a_file_takes_two_requests_at_most(storage, tmp_path, monkeypatch, tail):
  monkeypatch.setattr(remote_shard, "_TAIL", tail)
  records = make([30] * 500)
  write(tmp_path / "shard", records)
  shard = RemoteShard("storage://shard")
  requests = [request for request in storage.requests if request[0] == "shard"]
  assert len(requests) == (1 if tail > riegeli.BLOCK else 2)
  assert [shard[number] for number in range(500)] == records


def test_files_that_are_not_read(storage, tmp_path):
  write(tmp_path / "groups", make([3] * 6), "group_size:2")
  with pytest.raises(riegeli.FormatError, match="hold 2 records; only files written with group_size:1"):
    RemoteShard("storage://groups")
  (tmp_path / "short").write_bytes(b"no ArrayRecord file")
  with pytest.raises(riegeli.FormatError, match="shorter than any ArrayRecord file"):
    RemoteShard("storage://short")
  (tmp_path / "zeros").write_bytes(bytes(200_000))
  with pytest.raises(riegeli.FormatError, match="expected a chunk of records here"):
    RemoteShard("storage://zeros")
  with pytest.raises(FileNotFoundError):
    RemoteShard("storage://missing")


def test_a_few_bytes_that_unpack_to_more_than_is_read(storage, tmp_path, monkeypatch):
  write(tmp_path / "shard", [bytes(1 << 20)])
  shard = RemoteShard("storage://shard")
  monkeypatch.setattr(riegeli, "MAX_BYTES", 1 << 19)
  with pytest.raises(riegeli.FormatError, match="unpacks to more than 524,288 bytes"):
    shard[0]


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_an_index_that_is_none(storage, tmp_path, content):
  path = write(tmp_path / "shard", make([5]))
  write_index(path)
  with open(index_path(path), "wb") as file:
    file.write(content)
  with pytest.raises(riegeli.FormatError, match=r"index/shard.npy cannot be used"):
    RemoteShard("storage://shard")


# ---- all shards of a split


def test_records_are_those_of_local_shards(storage, stored, tmp_path):
  source, local = Records("storage://", "train"), Records(str(tmp_path), "train")
  expected = [*itertools.chain(*stored)]
  assert len(source) == len(local) == sum(COUNTS)
  assert [source[number] for number in range(len(source))] == expected
  assert [local[number] for number in range(len(local))] == expected
  assert source.where(45) == f"storage://{os.path.basename(local.paths[1])}, record 5"
  again = pickle.loads(pickle.dumps(source))
  assert again[80] == expected[80]


def test_many_requests_at_once(storage, stored):
  source = Records("storage://", "train")
  source[0], source[60]  # both shards are open
  together = threading.Barrier(8, timeout=20)

  def wait(data):
    together.wait()
    return data

  storage.meddle = staticmethod(wait)
  numbers = [3, 77, 0, 40, 39, 12, 41, 3]
  source.prefetch(numbers)
  assert [source[number] for number in numbers[:7]] == [[*itertools.chain(*stored)][number] for number in numbers[:7]]


def test_what_is_fetched_ahead_is_forgotten_when_it_was_asked_for(storage, stored):
  source = Records("storage://", "train")
  source.prefetch(range(80))
  first = [source[number] for number in range(80)]
  storage.requests.clear()
  assert [source[number] for number in range(80)] == first
  assert len(storage.requests) == 80


def test_the_loader_makes_the_same_batches(storage, toy):
  storage.folder = toy
  local = take(make_loader(storage.folder, shards=2), 5)
  assert_same(local, take(make_loader("storage://", shards=2), 5))
  assert any(name.startswith("toy-train") for name, _, _ in storage.requests)


# ---- faults


class Flaky:
  """Fails the first `failures` requests, each in another way."""

  def __init__(self, failures: int):
    self.left, self.lock = failures, threading.Lock()

  def __call__(self, data):
    with self.lock:
      self.left -= 1
      left = self.left
    if left < 0:
      return data
    if left % 3 == 0:
      return data[: len(data) // 2]
    raise (ConnectionResetError, RuntimeError)[left % 3 - 1]("the line went dead")


def test_failed_requests_are_repeated(storage, stored):
  source = Records("storage://", "train")
  source[60]
  storage.meddle = Flaky(remote_shard.RETRIES)
  assert source[41] == stored[1][1]
  assert storage.meddle.left == -1


def test_a_storage_that_is_gone(storage, stored):
  source = Records("storage://", "train")
  source[3]
  storage.meddle = Flaky(1000)
  with pytest.raises(
    RecordError, match=rf"its shard cannot be read .*{remote_shard.RETRIES + 1} requests failed"
  ) as error:
    source[4]
  assert error.value.kind == "shard_lost"
  source.prefetch([5])
  with pytest.raises(RecordError, match="the line went dead|of .* bytes"):
    source[5]
  storage.meddle = None
  assert source[5] == stored[0][5]


def test_a_shard_that_is_gone_is_asked_for_once(storage, stored):
  source = Records("storage://", "train")
  os.remove(os.path.join(storage.folder, os.path.basename(source.paths[1])))
  source = pickle.loads(pickle.dumps(source))
  with pytest.raises(RecordError, match="its shard cannot be read") as error:
    source[50]
  assert error.value.kind == "shard_lost"
  assert source[39] == stored[0][39]


def test_a_changed_byte_costs_its_record_alone(storage, stored):
  source = Records("storage://", "train")
  path = os.path.join(storage.folder, os.path.basename(source.paths[0]))
  with open(path, "rb") as file:
    data = bytearray(file.read())
  place = data.index(stored[0][7][:100])  # within the record, which is stored as it is
  data[place + 50] ^= 1
  with open(path, "wb") as file:
    file.write(data)
  with pytest.raises(RecordError, match="checksum") as error:
    source[7]
  assert error.value.kind == "record_corrupt"
  assert [source[number] for number in (6, 8)] == [stored[0][6], stored[0][8]]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_cut_short_gives_what_it_still_holds(storage, stored, indexed):
  shard = shard_path(storage.folder, "toy", "train", 0, 2)
  os.truncate(shard, 60_000)
  if not indexed:
    os.remove(index_path(shard))
  source = Records("storage://", "train")
  (line,) = source.damage
  held = len(source) - COUNTS[1]
  assert 0 < held < COUNTS[0] and f"its first {held} records can be read" in line
  assert [source[number] for number in range(len(source))] == [*stored[0][:held], *stored[1]]


def test_records_keep_their_numbers_where_their_count_is_known(storage, stored, monkeypatch):
  monkeypatch.setattr("fgclip_jax.data.dataset_folder.read_splits", lambda folder: {"train": list(COUNTS)})
  os.truncate(shard_path(storage.folder, "toy", "train", 0, 2), 60_000)
  source = Records("storage://", "train")
  assert [name for name, *_ in storage.requests] == ["info.json"] and len(source) == sum(COUNTS)
  assert source[0] == stored[0][0] and source[COUNTS[0] + 2] == stored[1][2]
  with pytest.raises(RecordError, match="cut off before it.*its index says that records end at") as error:
    source[COUNTS[0] - 1]
  assert error.value.kind == "shard_lost"
