"""A split's records by number, over its shards: local or in object storage, damaged ones included."""

import concurrent.futures
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from fgclip_jax.data import dataset_folder
from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.storage import paths
from fgclip_jax.storage.damaged_shard import DamagedShard
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.remote_shard import RemoteShard

_LEAST = 40  # bytes of the smallest record in a shard's file
_LOST = 1 << 20  # records that a damaged shard may have lost, whatever is left of its file
REQUESTS = 128  # at once to object storage: 128 of 50 ms read 2560 records a second


def is_record_folder(path: str) -> bool:
  """Whether there is a folder with shards at a path."""
  return paths.is_folder(path) and any(".array_record-" in name for name in paths.list_folder(path))


class Records:
  """A split's records by number; the readers open when first used, in the process that uses them.

  Of a shard that is damaged, the records that are still whole are read. The others keep their numbers, as far as
  `dataset_info.json` knows how many there were, so that the order of the rest does not depend on the damage. Whole
  shards are counted themselves; of a damaged one, a number is only believed that its file or `_LOST` allows.

  Shards in object storage (a folder such as `gs://bucket/finehard`) are not opened here where `dataset_info.json` knows
  their records, so what is damaged there shows when it is read.

  Attributes:
    damage: one line for each damaged shard.

  Raises:
    FileNotFoundError, ValueError: no such data, or nothing in it can be read.
  """

  def __init__(self, folder: str, split: str):
    self.paths = find_shards(folder, split)
    self._remote = paths.is_remote(folder)
    expected = dataset_folder.read_splits(folder).get(split)
    if expected and len(expected) != len(self.paths):
      raise ValueError(
        f"{folder!r} has {len(self.paths)} shards of split {split!r}, but {dataset_folder.DATASET_INFO} in it knows "
        f"{len(expected)}; run `prepare` again"
      )
    self.damage: list[str] = []
    self._start_unopened()
    if self._remote and expected:
      counts = expected
    else:
      counts = self._count_all(expected)
    self._ends = np.cumsum(counts)
    if not self._ends[-1]:
      raise ValueError("\n".join([f"split {split!r} of {folder!r} has no record that can be read", *self.damage]))

  def _start_unopened(self) -> None:
    self._shards: list[tuple[Any, str] | None] = [None] * len(self.paths)
    self._lock = threading.Lock()
    self._pool: concurrent.futures.Executor | None = None
    self._ahead: dict[int, concurrent.futures.Future] = {}

  def _count_all(self, expected: list[int] | None) -> list[int]:
    counts = []
    with concurrent.futures.ThreadPoolExecutor(REQUESTS if self._remote else 1) as pool:
      opened = pool.map(_open_shard, self.paths)
      for number, (path, (shard, cause)) in enumerate(zip(self.paths, opened, strict=True)):
        count = len(shard)
        if cause:
          said = expected[number] if expected else 0
          believed = count < said <= max(_LOST, _size(path) // _LEAST)
          count = said if believed else count
          known = f"{len(shard)} of its {count}" if believed else f"its first {len(shard)}"
          message = f"{known} records can be read; run `prepare` again for all"
          self.damage.append(f"damaged shard {path} ({cause}): {message}")
        counts.append(count)
    return counts

  def __getstate__(self):
    state = self.__dict__.copy()
    for name in ("_shards", "_lock", "_pool", "_ahead"):
      del state[name]
    return state

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._start_unopened()

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> bytes:
    """A record's bytes.

    Raises:
      RecordError: of class `shard_lost`, the shard has lost the record or cannot be read at all; `record_corrupt`,
        this record alone is damaged.
    """
    begun = self._ahead.pop(int(index), None)
    return begun.result() if begun else self._read(int(index))

  def prefetch(self, indices: Iterable[int]) -> None:
    """Begins to read records that will soon be asked for, many at once; local files are quick enough without."""
    if not self._remote:
      return
    with self._lock:
      if self._pool is None:
        self._pool = concurrent.futures.ThreadPoolExecutor(REQUESTS, thread_name_prefix="records")
    for index in indices:
      self._ahead[int(index)] = self._pool.submit(self._read, int(index))

  def _read(self, index: int) -> bytes:
    number, index = self._place(index)
    try:
      opened = self._shards[number]
      if opened is None:
        opened = self._shards[number] = _open_shard(self.paths[number])
      shard, cause = opened
      if index < len(shard):
        return shard[index]
    except OSError as error:
      raise RecordError("shard_lost", "record", f"its shard cannot be read ({error})") from error
    except Exception as error:  # the reader raises many types; the cause is chained
      raise RecordError("record_corrupt", "record", f"cannot be read ({error})") from error
    raise RecordError("shard_lost", "record", f"its shard was cut off before it, or is damaged: {cause}")

  def where(self, index: int) -> str:
    """The file and the record's number in it, for messages."""
    number, index = self._place(index)
    return f"{self.paths[number]}, record {index}"

  def _place(self, index: int) -> tuple[int, int]:
    shard = int(np.searchsorted(self._ends, index, side="right"))
    return shard, int(index) - (int(self._ends[shard - 1]) if shard else 0)


def _size(path: str) -> int:
  try:
    return paths.size(path)
  except OSError:
    return 0


def _open_shard(path: str) -> tuple[Any, str]:
  """A shard's records, and why it cannot be opened as a whole; empty where it can."""
  try:
    if paths.is_remote(path):
      return RemoteShard(path), ""
    paths.open(path).close()  # refuses a pipe or a device, for which the reader would wait
    import grain  # not above: it imports JAX, which takes seconds, and most commands of `prepare` open no shard

    source: Any = grain.sources.ArrayRecordDataSource([path])
    len(source)  # this opens the file
    return source, ""
  except Exception as error:  # the reader raises many types
    if paths.is_remote(path) and isinstance(error, OSError):
      raise  # the network's fault, not the shard's
    cause = str(error).strip() or "it ends too early"
    try:
      return DamagedShard(path), cause
    except paths.NotRegularFileError:
      return [], cause
