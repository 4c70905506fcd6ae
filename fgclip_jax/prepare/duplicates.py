"""Finds images that come twice: equal files, or nearly equal pictures. The first in the order of the input stays.

Exact duplicates have equal 128-bit content hashes (BLAKE2b). The 64-bit perceptual hashes of near duplicates differ in
at most a few bits: 4 finds copies that were encoded again or scaled, 6 finds slightly cropped ones too; pictures of one
colour have no such hash. A picture is left out for any earlier one near it, even if that one is left out itself: of a
chain of pictures, each near the next, only the first stays.

No hash is compared with all others, and memory does not grow with the data set:
1. A task for each shard writes its hashes to a file, sorted into partitions by their leading bits.
2. A task for each partition reads it from the files of all shards, finds later copies, and writes them by shard.

For near duplicates the 64 bits are cut into bands, one more than the bits that may differ. By the pigeonhole principle
two near hashes are then equal in at least one band. So every hash is stored once for each band, rotated so that the
band leads, and compared only with hashes of the same band. That finds every pair, at a cost that grows with the square
of the records over 2^(width of a band).
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fgclip_jax.data import image
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.workers import Engine, run_tasks, tick

EXACT, NEAR = "image_duplicate", "image_near_duplicate"
MAX_BITS = 8
_INDEX_BITS = 40  # the lower bits of a record's number count it in its file; the upper bits are the file's number
_BLOCK = 1 << 22  # hashes compared at a time
_EXACT = np.dtype([("key", "<u8"), ("rest", "<u8"), ("number", "<i8")])
_NEAR = np.dtype([("key", "<u8"), ("number", "<i8")])
_FOUND = np.dtype([("number", "<i8"), ("first", "<i8")])


@dataclasses.dataclass(frozen=True)
class Search:
  """What to look for, and the folder of hashes and results. Numbers of records rise in the order of the input.

  Attributes:
    folder: the folder of the files, local or remote.
    records: the number of all records.
    starts: the number of each shard's first record, and then a number above all of them.
    near: how many bits may differ in near duplicates; None finds only exact ones.
    partition_rows: about how many hashes a task sorts at a time; the default takes about 300 MB of memory.
  """

  folder: str
  records: int
  starts: tuple[int, ...]
  near: int | None = None
  partition_rows: int = 1 << 22

  def hashes_path(self, shard: int) -> str:
    """The file of a shard's hashes."""
    return paths.join(self.folder, f"hashes-{shard:05d}.bin")

  def found_path(self, table: int, partition: int) -> str:
    """The file of the duplicates in a partition; table 0 is for exact ones, the others for the bands."""
    return paths.join(self.folder, f"found-{table}-{partition:05d}.bin")

  @property
  def bands(self) -> list[tuple[int, int]]:
    """The begin and end of each band, in bits counted from the highest."""
    if self.near is None:
      return []
    edges = [64 * band // (self.near + 1) for band in range(self.near + 2)]
    return list(itertools.pairwise(edges))

  def leading_bits(self, table: int) -> int:
    """The number of leading bits of a key that choose its partition."""
    wanted = max(-(-self.records // self.partition_rows) - 1, 0).bit_length()
    if table == 0:
      return wanted
    begin, end = self.bands[table - 1]
    return min(wanted, end - begin)  # hashes that are equal in a band must be in the same partition

  @property
  def tables(self) -> range:
    """0 for exact duplicates, and a number for each band."""
    return range(1 + len(self.bands))


class Hashes:
  """Collects the hashes of one shard's images: 24 bytes for each, and 16 more for near duplicates."""

  def __init__(self, search: Search):
    self._search = search
    self._exact, self._near = array.array("Q"), array.array("Q")

  def add(self, number: int, data: bytes) -> None:
    """Adds the image of record `number`: the bytes of a file that can be decoded."""
    self._exact.extend((*hash_bytes(data), number))
    if self._search.near is None:
      return
    with contextlib.suppress(Exception):  # Pillow raises many types for images that nobody has decoded before
      if value := hash_image(data):
        self._near.extend((value, number))

  def save(self, shard: int) -> None:
    """Writes the shard's file, which is complete from the moment it exists."""
    groups = _partition(_rows(self._exact, _EXACT), self._search.leading_bits(0))
    near = _rows(self._near, _NEAR)
    for table, (begin, _) in enumerate(self._search.bands, 1):
      turned = near.copy()
      turned["key"] = _rotate(near["key"], begin)
      groups += _partition(turned, self._search.leading_bits(table))
    _save(self._search.hashes_path(shard), groups)


@dataclasses.dataclass(frozen=True)
class Found:
  """The duplicates of one shard, in order: rows of a record's `number`, and of the `first` record with that image."""

  exact: np.ndarray
  near: np.ndarray

  def __len__(self) -> int:
    return len(self.exact) + len(self.near)

  def by_number(self) -> dict[int, tuple[str, int]]:
    """Maps each duplicate to its class and the number of the first."""
    found = {int(number): (NEAR, int(first)) for number, first in self.near}
    return found | {int(number): (EXACT, int(first)) for number, first in self.exact}


def get_number(file: int, index: int) -> int:
  """Returns the number of a record from its file's number and its own number in the file."""
  return file << _INDEX_BITS | index


def get_place(number: int) -> tuple[int, int]:
  """Inverts `get_number`."""
  return number >> _INDEX_BITS, number & ((1 << _INDEX_BITS) - 1)


def hash_bytes(data: bytes) -> tuple[int, int]:
  """Returns the 128-bit content hash of a file as two numbers of 64 bits."""
  digest = hashlib.blake2b(data, digest_size=16).digest()
  return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def hash_image(data: bytes) -> int:
  """Returns the perceptual hash of an image file.

  JPEGs are decoded at a reduced size, which is much faster and changes about two bits of the hash.
  """
  with Image.open(io.BytesIO(data), formats=image.FORMATS) as picture:
    if picture.format == "JPEG":
      picture.draft("L", (128, 128))
      return hash_picture(picture)
  return hash_picture(image.open_image(data))


def hash_picture(picture: Image.Image) -> int:
  """Returns the 64-bit perceptual hash of a picture: which of its 8 x 8 lowest frequencies exceed their median.

  As `phash` of the package imagehash: the cosine transform of the picture in grey, scaled to 32 x 32. The hash of a
  picture of one colour is 0 and is not used, for all such pictures would be alike.
  """
  grey = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
  if min(grey.getextrema()) == max(grey.getextrema()):
    return 0
  waves = _waves()
  low = (waves @ np.asarray(grey, np.float64) @ waves.T).ravel()
  return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


@functools.cache
def _waves() -> np.ndarray:
  """Returns the 8 lowest cosines on 32 points, [8, 32]: the rows of a type-II cosine transform, without its scale."""
  return np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None] + 1) / 64)


def find(search: Search, workers: int | Engine) -> None:
  """Finds the duplicates among the hashes of all shards, except in partitions that were searched before."""
  tasks = [
    (search, table, partition)
    for table in search.tables
    for partition in range(1 << search.leading_bits(table))
    if not paths.exists(search.found_path(table, partition))
  ]
  total = len(search.tables) * search.records
  for _ in run_tasks(_find, tasks, workers, total=total, label="looking for duplicates", unit=" hashes"):
    pass


def describe(kind: str, first: int, files: Sequence[str]) -> RecordError:
  """Returns the error for a duplicate of record number `first` of the input `files`."""
  file, index = get_place(first)
  same = "is byte for byte" if kind == EXACT else "looks nearly like"
  return RecordError(kind, "image", f"{same} that of {files[file]}, record {index}")


def forget(search: Search) -> None:
  """Removes the results of a search: the hashes are about to be written again."""
  for table in search.tables:
    for partition in range(1 << search.leading_bits(table)):
      paths.remove(search.found_path(table, partition))


def load(search: Search, shard: int) -> Found:
  """Loads the duplicates among a shard's records; those that are exact are not listed as near, too."""
  tables = [
    np.concatenate(
      [
        _load(search.found_path(table, partition), shard, _FOUND)
        for partition in range(1 << search.leading_bits(table))
      ]
    )
    for table in search.tables
  ]
  exact = np.sort(tables[0], order="number")
  near = np.sort(np.concatenate([np.empty(0, _FOUND), *tables[1:]]), order=("number", "first"))
  near = near[np.unique(near["number"], return_index=True)[1]]  # bands find pairs again: the lowest first is kept
  return Found(exact, near[~np.isin(near["number"], exact["number"])])


def _find(task: tuple[Search, int, int]) -> None:
  """Searches one partition of a table, and writes its duplicates by shard."""
  search, table, partition = task
  group = sum(1 << search.leading_bits(earlier) for earlier in range(table)) + partition
  dtype = _NEAR if table else _EXACT
  rows = np.concatenate([_load(search.hashes_path(shard), group, dtype) for shard in range(len(search.starts) - 1)])
  found = _find_near(rows, *search.bands[table - 1], search.near or 0) if table else _find_equal(rows, ("key", "rest"))
  found = found[np.argsort(found["number"])]
  ends = np.searchsorted(found["number"], search.starts)
  _save(search.found_path(table, partition), [found[a:b] for a, b in itertools.pairwise(ends)])
  tick(len(rows))


def _find_equal(rows: np.ndarray, keys: Sequence[str]) -> np.ndarray:
  """Returns the rows that equal a row of a lower number, each with the lowest such number."""
  rows = rows[np.lexsort([rows["number"], *(rows[key] for key in reversed(keys))])]
  if not len(rows):
    return np.empty(0, _FOUND)
  # Equal rows follow each other, the lowest number first: every row that is not new has the last new row as its first.
  new = np.ones(len(rows), bool)
  new[1:] = np.logical_or.reduce([rows[key][1:] != rows[key][:-1] for key in keys])
  first = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
  return _pairs(rows["number"][~new], rows["number"][first[~new]])


def _find_near(rows: np.ndarray, begin: int, end: int, bits: int) -> np.ndarray:
  """Returns the rows that differ in at most `bits` from a row of a lower number with the same band, and that number."""
  equal = _find_equal(rows, ("key",))  # first and separately: many copies of one picture would be compared in pairs
  rows = np.sort(rows[~np.isin(rows["number"], equal["number"])], order=("key", "number"))
  band = rows["key"] >> np.uint64(64 - (end - begin))
  edges = np.flatnonzero(np.concatenate([[True], band[1:] != band[:-1], [True]])) if len(rows) else np.zeros(1, int)
  found = [equal]
  for index in np.flatnonzero(np.diff(edges) > 1):
    found.append(_compare(rows[edges[index] : edges[index + 1]], bits))
  return np.concatenate(found)


def _compare(rows: np.ndarray, bits: int) -> np.ndarray:
  """Returns those of rows with different keys that are near a row of a lower number, with the lowest such number."""
  rows = rows[np.argsort(rows["number"])]
  keys, numbers = rows["key"], rows["number"]
  size = max(_BLOCK // len(rows), 1)  # a block of the matrix of all pairs at a time, which bounds memory
  found = []
  for start in range(0, len(rows), size):
    block = slice(start, start + size)
    near = np.bitwise_count(keys[block, None] ^ keys[None]) <= bits
    first = near.argmax(axis=1)  # the lowest near row; there is one, for a row is near itself
    later = first < np.arange(start, start + len(first))
    found.append(_pairs(numbers[block][later], numbers[first[later]]))
  return np.concatenate(found)


def _pairs(numbers: np.ndarray, firsts: np.ndarray) -> np.ndarray:
  found = np.empty(len(numbers), _FOUND)
  found["number"], found["first"] = numbers, firsts
  return found


def _rotate(keys: np.ndarray, count: int) -> np.ndarray:
  """Rotates 64-bit numbers to the left."""
  return (keys << np.uint64(count)) | (keys >> np.uint64(64 - count)) if count else keys


def _rows(values: array.array, dtype: np.dtype) -> np.ndarray:
  return np.frombuffer(values.tobytes(), dtype)


def _partition(rows: np.ndarray, bits: int) -> list[np.ndarray]:
  """Groups rows by the leading bits of their keys."""
  if not bits:
    return [rows]
  leading = rows["key"] >> np.uint64(64 - bits)
  order = np.argsort(leading, kind="stable")
  ends = np.searchsorted(leading[order], np.arange((1 << bits) + 1, dtype=np.uint64))
  return [rows[order[a:b]] for a, b in itertools.pairwise(ends)]


def _save(path: str, groups: list[np.ndarray]) -> None:
  """Writes groups of rows, after a table of the offsets at which each begins and the last ends."""
  sizes = [8 * (len(groups) + 1), *(group.nbytes for group in groups)]
  paths.write(path, np.cumsum(sizes).astype("<i8").tobytes() + b"".join(group.tobytes() for group in groups))


def _load(path: str, group: int, dtype: np.dtype) -> np.ndarray:
  """Loads one group of the rows that `_save` wrote."""
  begin, end = np.frombuffer(paths.read(path, 8 * group, 16), "<i8")
  return np.frombuffer(paths.read(path, int(begin), int(end - begin)), dtype) if end > begin else np.empty(0, dtype)
