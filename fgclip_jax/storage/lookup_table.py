"""Tables on disk from text to text, larger than memory: made in parallel, read by any process.

A table is a folder of sqlite files, its parts, each made from some of the inputs, and `table.json`, which describes
the inputs; as long as these do not change, the table is used as it is.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fgclip_jax.storage import atomic, locks, paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.text import is_unicode
from fgclip_jax.storage.workers import Engine, run_tasks, tick

MAX_PARTS = 16  # a look-up asks one part after the other
_INFO = "table.json"
_SQLITE = b"SQLite format 3\0"  # the first bytes of a part
_ROWS = 10_000  # between two checks whether the run was stopped

Reader = Callable[[Any], Iterator[tuple[str, str] | RecordError]]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table in a folder.

  Attributes:
    folder: the folder of its parts.
    parts: the number of parts.
    digest: a digest of its inputs, which differs from that of an earlier table in the same folder.
    entries: the number of keys in its parts.
    repeated: how many keys were met again; the first value counts.
    skipped: how many entries of the input could not be used, and why the first could not.
    broken: the inputs that break off: name and reason of each.
  """

  folder: str
  parts: int
  digest: str
  entries: int
  repeated: int
  skipped: tuple[int, str]
  broken: tuple[tuple[str, str], ...]

  def get(self, key: str) -> str | None:
    """Returns the value of a key; None if it has none."""
    if not is_unicode(key):
      return None
    for connection in _connect(self.folder, self.parts, self.digest):
      row = connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
      if row:
        return row[0]
    return None


def make(
  folder: str,
  read: Reader,
  inputs: Sequence[tuple[str, Any]],
  arguments: dict,
  workers: int | Engine,
  *,
  label: str,
) -> Table:
  """Makes a table, or opens the one in `folder` if it was made from the same inputs.

  Args:
    folder: the folder of the table.
    read: a function at the top of a module; it yields keys and values of one input, or a `RecordError` for an entry
      that cannot be used, and raises a `RecordError` where the input breaks off.
    inputs: the name of each input, and the argument of `read`.
    arguments: everything that decides what the table holds, as JSON: fingerprints of the inputs and the like.
    workers: the number of processes, or an engine.
    label: the label of the progress bar.
  """
  arguments = json.loads(json.dumps({"inputs": [name for name, _ in inputs], **arguments}))
  paths.make_folder(folder)
  with locks.hold(f"{folder}.lock", f"making {folder}"):
    return _open(folder, arguments) or _make(folder, read, inputs, arguments, workers, label)


def _make(
  folder: str, read: Reader, inputs: Sequence[tuple[str, Any]], arguments: dict, workers: int | Engine, label: str
) -> Table:
  parts = min(len(inputs), MAX_PARTS)
  bounds = [len(inputs) * part // parts for part in range(parts + 1)]
  tasks = [(folder, part, read, inputs[begin:end]) for part, (begin, end) in enumerate(itertools.pairwise(bounds))]
  results = dict(run_tasks(_make_part, tasks, workers, total=len(inputs), label=label, unit=" files"))
  entries, repeated, reports, broken = zip(*(results[part] for part in range(parts)), strict=True)
  skips = SkipReport()
  for report in reports:
    skips.merge(report)
  info = {
    "parts": parts,
    "digest": hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest(),
    "entries": sum(entries),
    "repeated": sum(repeated),
    "skipped": (len(skips), next((str(skip) for skip, _ in skips.firsts()), "")),
    "broken": [*itertools.chain(*broken)],
  }
  paths.write(paths.join(folder, _INFO), json.dumps({"table": info, "arguments": arguments}).encode())
  made = _open(folder, arguments)
  assert made is not None  # it has just been written
  return made


def _open(folder: str, arguments: dict) -> Table | None:
  """Opens the table in a folder; None if there is none, a damaged one, or one that was made from other inputs."""
  try:
    info = json.loads(paths.read(paths.join(folder, _INFO)))
    if info["arguments"] != arguments:
      return None
    broken = tuple((name, reason) for name, reason in info["table"].pop("broken"))
    skipped = tuple(info["table"].pop("skipped"))
    table = Table(folder=folder, broken=broken, skipped=skipped, **info["table"])
    whole = 0 <= table.parts <= MAX_PARTS and all(
      map(_is_part, (_part_path(folder, part) for part in range(table.parts)))
    )
  except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
    return None
  return table if whole else None


def _is_part(path: str) -> bool:
  return paths.is_file(path) and paths.read(path, 0, len(_SQLITE)) == _SQLITE


def _part_path(folder: str, part: int) -> str:
  return paths.join(folder, f"{part:05d}.sqlite")


def _make_part(task: tuple[str, int, Reader, Sequence[tuple[str, Any]]]) -> tuple[int, tuple]:
  """Writes one part; returns its number, and its `entries`, `repeated`, what was skipped, and `broken`."""
  folder, part, read, inputs = task
  found, skips, broken = 0, SkipReport(), []
  with atomic.scratch(None if paths.is_remote(folder) else folder) as scratch:
    path = os.path.join(scratch, "part.sqlite")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
      # Sorted before it is stored: keys in random order would touch every page of a large tree again and again.
      connection.execute("PRAGMA journal_mode = OFF")
      connection.execute("PRAGMA synchronous = OFF")
      connection.execute("ATTACH ? AS scratch", (os.path.join(scratch, "unsorted.sqlite"),))
      connection.execute("PRAGMA scratch.journal_mode = OFF")
      connection.execute("CREATE TABLE scratch.found (key TEXT, value TEXT)")
      connection.execute("BEGIN")
      for name, value in inputs:
        try:
          for row in read(value):
            if isinstance(row, RecordError):
              skips.add(Skip.of(row, name))
            elif not is_unicode("".join(row)):
              skips.add(Skip("text_not_unicode", f"{row!r} is no text that UTF-8 can hold", place=name))
            else:
              connection.execute("INSERT INTO scratch.found VALUES (?, ?)", row)
              found += 1
              if found % _ROWS == 0:
                tick(0)  # ends the task if the run was stopped
        except RecordError as error:
          broken.append((name, str(error)))
        tick(1)
      connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
      order = "SELECT key, value FROM scratch.found ORDER BY key, rowid"
      connection.execute(f"INSERT OR IGNORE INTO entries {order}")
      connection.execute("COMMIT")
      (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    paths.publish(path, _part_path(folder, part))
  return part, (entries, found - entries, skips, broken)


@functools.lru_cache(maxsize=16)
def _connect(folder: str, parts: int, digest: str) -> tuple[sqlite3.Connection, ...]:
  """Opens the parts for reading, once per process; those of object storage are copied to this machine first."""
  del digest  # part of the cache's key alone
  if not paths.is_remote(folder):
    return tuple(_connect_part(folder, part) for part in range(parts))
  with atomic.scratch() as local:
    for part in range(parts):
      with paths.open(_part_path(folder, part)) as source, open(_part_path(local, part), "wb") as file:
        shutil.copyfileobj(source, file)
    # The folder is deleted here, but an open file keeps its content until its process ends, however that ends.
    return tuple(_connect_part(local, part) for part in range(parts))


def _connect_part(folder: str, part: int) -> sqlite3.Connection:
  path = _quote(_part_path(folder, part))
  connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
  connection.execute("PRAGMA schema_version")  # opens the file now; sqlite otherwise waits for the first query
  return connection


def _quote(path: str) -> str:
  return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
