"""Reads single records of shards in object storage by range requests, without copying whole shards.

The places of a shard's records are read once: from the index that `prepare` wrote beside the shards, or, if there is
none, from the end of the shard itself. They take 12 bytes of memory a record in every process that reads the shard.
"""

import io
import itertools
import os
import random
import time
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from fgclip_jax.storage import paths, riegeli
from fgclip_jax.storage.riegeli import FormatError

Result = TypeVar("Result")

RETRIES = 6  # after a failed request; with the waits below, half a minute in all
FIRST_WAIT = 0.5  # seconds, doubled after each try
_TAIL = 5 * riegeli.BLOCK  # read at once from a shard's end: enough for the index of 8192 records
_INDEX = np.dtype([("start", "<u8"), ("sum", "<u4")])
# errors that another try would not change
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)


def repeat(function: Callable[..., Result], path: str, *arguments) -> Result:
  """Calls a function of `paths`, and repeats the call while a request to remote storage fails.

  Raises:
    OSError: there is no such file, or all tries failed.
    ValueError: the path names no storage that can be read here.
  """
  attempt = 0
  while True:
    try:
      return function(path, *arguments)
    except _FINAL:
      raise
    except Exception as error:  # the library of each storage has error types of its own
      if not paths.is_remote(path):
        raise
      if attempt == RETRIES:
        raise OSError(f"{path}: {attempt + 1} requests failed, the last with {error!r}") from error
    time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.0))  # at random: not all at once
    attempt += 1


class RemoteShard:
  """The records of a shard by number, each read by one request.

  A record is checked against its checksum in the index. Without an index only lengths and compression are checked, and
  damage to pixels may go unnoticed.

  Raises:
    FormatError: the file is cut off, or is no ArrayRecord file with one record in each chunk.
    OSError: it cannot be read.
  """

  def __init__(self, path: str):
    self.path = path
    size = repeat(paths.size, path)
    try:
      self._starts, self._sums = _load_index(path)
    except FileNotFoundError:
      self._starts, self._sums = np.asarray(_find_starts(path, size), np.uint64), None
    # After the last record come the index of the chunks and a block that says where that begins.
    if size < self._starts[-1] + riegeli.BLOCK:
      raise FormatError(f"it has {size} bytes, its index says that records end at {self._starts[-1]}")

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int) -> bytes:
    """A record.

    Raises:
      FormatError: its bytes are damaged.
      OSError: it cannot be read.
    """
    start, stop = (int(place) for place in self._starts[index : index + 2])
    data = repeat(_read_all, self.path, start, stop - start)
    if self._sums is not None and zlib.crc32(data) != self._sums[index]:
      raise FormatError("its bytes are damaged: their checksum is another than when it was written")
    return riegeli.decode_record(riegeli.strip(data, start))


def index_path(shard: str) -> str:
  """Returns the path of a shard's index: in a folder of its own, so that `*.array_record*` matches only shards."""
  name = shard.rpartition("/")[2]
  return f"{shard.removesuffix(name)}index/{name}.npy"


def write_index(shard: str) -> str:
  """Writes the index of a complete local shard, and returns the index's path.

  The index is a NumPy array with an entry for each record: the byte at which its chunk begins in the file, and the
  CRC-32 of the bytes from there to the next chunk. A last entry holds the end of the last chunk.
  """
  starts = _find_starts(shard, os.path.getsize(shard))
  index = np.zeros(len(starts), _INDEX)
  index["start"] = starts
  with open(shard, "rb") as file:
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
      file.seek(start)
      index["sum"][number] = zlib.crc32(file.read(stop - start))
  path = index_path(shard)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(f"{path}.tmp", "wb") as file:
    np.save(file, index)
  os.replace(f"{path}.tmp", path)
  return path


def _load_index(shard: str) -> tuple[np.ndarray, np.ndarray]:
  """Loads the bytes at which records begin and the last one ends, uint64 [n + 1], and their checksums, uint32 [n]."""
  path = index_path(shard)
  try:
    index = np.load(io.BytesIO(repeat(paths.read, path)), allow_pickle=False)
    if index.dtype != _INDEX or index.ndim != 1 or not len(index) or (np.diff(index["start"].astype(int)) < 1).any():
      raise ValueError(f"an array {index.shape} of {index.dtype}")
  except (ValueError, EOFError) as error:
    raise FormatError(f"its index {path} cannot be used ({error})") from error
  return index["start"].copy(), index["sum"][:-1].copy()


def _find_starts(path: str, size: int) -> list[int]:
  """Reads the bytes at which records begin and the last one ends from the end of the file."""
  # One request for the last blocks usually brings both the postscript, in the last block, and the index before it.
  begin = max(size - _TAIL, 0)
  tail = repeat(_read_all, path, begin, size - begin)
  first = riegeli.parse_postscript(tail[-riegeli.BLOCK :])
  last = size - riegeli.BLOCK
  if not 0 < first <= last:
    raise FormatError(f"its end says that the index begins at {first} of {size} bytes")
  if first < begin:
    tail, begin = repeat(_read_all, path, first, last - first), first
  starts = riegeli.parse_index(riegeli.strip(tail[first - begin : last - begin], first))
  if any(start >= stop for start, stop in itertools.pairwise([*starts, first])):
    raise FormatError("its index is damaged: records do not follow one another")
  return [*starts, first]


def _read_all(path: str, offset: int, size: int) -> bytes:
  data = paths.read(path, offset, size)
  if len(data) != size:
    raise OSError(f"only {len(data)} of {size} bytes from {offset} on came")
  return data
