"""A split's records by number, over its shards, damaged ones included."""

from typing import Any

import grain
import numpy as np

from fgclip_jax.data import record as records
from fgclip_jax.data.record import RecordError
from fgclip_jax.data.salvage import DamagedShard


class Records:
  """A split's records by number; the readers open when first used, in the process that uses them.

  Of a shard that is damaged, the records that are still whole are read. The others keep their numbers, as far as
  `info.json` knows how many there were, so that the order of the rest does not depend on the damage.

  Attributes:
    damage: one line for each damaged shard.

  Raises:
    FileNotFoundError, ValueError: no such data, or nothing in it can be read.
  """

  def __init__(self, folder: str, split: str):
    self.paths = records.find_shards(folder, split)
    expected = records.read_info(folder).get("shards", {}).get(split)
    self._shards: list[Any] = [None] * len(self.paths)
    self.damage: list[str] = []
    counts = []
    for number, path in enumerate(self.paths):
      shard, cause = _open_shard(path)
      count = len(shard)
      if cause:
        count = max(expected[number], count) if expected else count
        known = f"{len(shard)} of its {count}" if expected else f"its first {len(shard)}"
        self.damage.append(f"damaged shard {path} ({cause}): {known} records can be read; run `prepare` again for all")
      counts.append(count)
    self._ends = np.cumsum(counts)
    if not self._ends[-1]:
      raise ValueError("\n".join([f"split {split!r} of {folder!r} has no record that can be read", *self.damage]))

  def __getstate__(self):
    return self.__dict__ | {"_shards": [None] * len(self.paths)}

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> bytes:
    """A record's bytes.

    Raises:
      RecordError: of class `shard_lost`, the shard has lost the record or cannot be read at all; `record_corrupt`,
        this record alone is damaged.
    """
    number, index = self._place(index)
    try:
      if self._shards[number] is None:
        self._shards[number], _ = _open_shard(self.paths[number])
      shard = self._shards[number]
    except OSError as error:
      raise RecordError("shard_lost", "record", f"its shard cannot be read ({error})") from error
    if index >= len(shard):
      raise RecordError("shard_lost", "record", "its shard was cut off before it")
    try:
      return shard[index]
    except Exception as error:  # the reader raises many types; the cause is chained
      raise RecordError("record_corrupt", "record", f"cannot be read ({error})") from error

  def where(self, index: int) -> str:
    """The file and the record's number in it, for messages."""
    number, index = self._place(index)
    return f"{self.paths[number]}, record {index}"

  def _place(self, index: int) -> tuple[int, int]:
    shard = int(np.searchsorted(self._ends, index, side="right"))
    return shard, int(index) - (int(self._ends[shard - 1]) if shard else 0)


def _open_shard(path: str) -> tuple[Any, str]:
  """A shard's records, and why it cannot be opened as a whole; empty where it can."""
  try:
    source = grain.sources.ArrayRecordDataSource([path])
    len(source)  # this opens the file
    return source, ""
  except Exception as error:  # the reader raises many types
    return DamagedShard(path), str(error).strip() or "it ends too early"
