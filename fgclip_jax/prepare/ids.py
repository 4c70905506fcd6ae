"""Finds ids that several records of a split have: each shard writes a hash of its ids, sorted, and all are compared.

A part of the hashes is compared at a time, so memory does not grow with the data set.
"""

import array
import hashlib
import io
import itertools
from collections.abc import Sequence

import numpy as np

from fgclip_jax.prepare import duplicates
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

TWICE = "id_twice"
_AT_ONCE = 1 << 22  # hashes
_ROW = np.dtype([("key", "<u8"), ("number", "<i8")])


class Ids:
  """Collects the ids of one shard: 16 bytes for each."""

  def __init__(self):
    self._rows = array.array("Q")

  def add(self, number: int, identity: str) -> None:
    """Adds the id of record `number`, as `duplicates.get_number` counts."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    self._rows.extend((int.from_bytes(digest, "little"), number))

  def save(self, path: str) -> None:
    """Writes the file of a shard."""
    rows = np.frombuffer(self._rows, _ROW) if self._rows else np.zeros(0, _ROW)
    stream = io.BytesIO()
    np.save(stream, np.sort(rows, order=("key", "number")))
    paths.write(path, stream.getvalue())


def find_twice(files: Sequence[str]) -> tuple[int, tuple[int, int] | None]:
  """Returns how many records have the id of an earlier one, and the first of these with that earlier one's number.

  Args:
    files: what `Ids.save` wrote; a missing file is passed over, for earlier versions wrote none.
  """
  files = [file for file in files if paths.is_file(file)]
  parts = max(-(-sum(len(_load(file)) for file in files) // _AT_ONCE), 1)
  edges = [(1 << 64) * part // parts for part in range(parts + 1)]
  count, first = 0, None
  for low, high in itertools.pairwise(edges):
    rows = np.concatenate([_slice(_load(file), low, high) for file in files] or [np.zeros(0, _ROW)])
    rows = rows[np.lexsort((rows["number"], rows["key"]))]
    later = np.flatnonzero(rows["key"][1:] == rows["key"][:-1]) + 1
    count += len(later)
    if len(later):
      index = later[np.argmin(rows["number"][later])]
      earlier = rows["number"][np.searchsorted(rows["key"], rows["key"][index])]
      found = int(rows["number"][index]), int(earlier)
      first = min(first or found, found)
  return count, first


def describe(first: int, files: Sequence[str]) -> RecordError:
  """Describes a record by the number of an earlier one with its id."""
  file, index = duplicates.get_place(first)
  return RecordError(TWICE, "id", f"is that of {files[file]}, record {index}, too; both are kept")


def _load(file: str) -> np.ndarray:
  if paths.is_remote(file):
    return np.load(io.BytesIO(paths.read(file)), allow_pickle=False)
  return np.load(file, mmap_mode="r", allow_pickle=False)


def _slice(rows: np.ndarray, low: int, high: int) -> np.ndarray:
  begin, end = (np.searchsorted(rows["key"], np.uint64(edge)) if edge >> 64 == 0 else len(rows) for edge in (low, high))
  return rows[begin:end]
