"""The journal of a stage: a line for each task that has an outcome, an answer or a classified failure.

A line is written by one call before its outcome is used, and reaches the disk within a second: a killed process loses
none, a machine without power at most a second of them. A last line that was cut off is dropped. In object storage,
where files cannot be appended to, every few hundred lines are an object of their own.
"""

import dataclasses
import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from typing import Any

from fgclip_jax.storage import paths

_SYNC_EVERY = 1.0  # seconds
_OBJECT_LINES, _OBJECT_SECONDS = 256, 5.0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a task.

  Attributes:
    key: the task's: the same input, prompt, model and code give the same key.
    value: the answer, as JSON; of a failure None.
    failure: the class of the failure in snake_case; empty: there is an answer.
    detail: what was wrong.
    attempts: how often it was tried.
    model: what answered; empty for rules.
    tokens: of the prompts and of the answers of all attempts.
  """

  key: str
  value: Any = None
  failure: str = ""
  detail: str = ""
  attempts: int = 1
  model: str = ""
  tokens: tuple[int, int] = (0, 0)

  def line(self) -> bytes:
    """One line of a journal."""
    values = {name: value for name, value in vars(self).items() if name == "key" or value != _DEFAULTS[name]}
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"

  @classmethod
  def parse(cls, line: bytes) -> "Outcome | None":
    """What `line` wrote; None for anything else, such as a line that was cut off."""
    try:
      values = json.loads(line)
      outcome = cls(**values | {"tokens": tuple(values.get("tokens", (0, 0)))})
    except (ValueError, TypeError, AttributeError, RecursionError):
      return None
    texts = (outcome.key, outcome.failure, outcome.detail, outcome.model)
    numbers = (outcome.attempts, *outcome.tokens)
    right = all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)
    return outcome if right and len(outcome.tokens) == 2 else None


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Outcome)}


class Journal:
  """The outcomes of one part of the items; of two with one key the later one counts.

  Args:
    path: the file, or in object storage the beginning of the objects' names.
  """

  def __init__(self, path: str):
    self._path, self._remote = path, paths.is_remote(path)
    self._waiting: list[bytes] = []
    self._objects = 0
    self._file: int | None = None
    self._synced = self._put = time.monotonic()

  def read(self) -> dict[str, Outcome]:
    """The outcomes by key."""
    outcomes = map(Outcome.parse, self._lines())
    return {outcome.key: outcome for outcome in outcomes if outcome}

  def add(self, outcome: Outcome) -> None:
    """Writes an outcome."""
    if self._remote:
      self._waiting.append(outcome.line())
      if len(self._waiting) >= _OBJECT_LINES or time.monotonic() > self._put + _OBJECT_SECONDS:
        self._put_object()
      return
    if self._file is None:
      self._file = self._open()
    line = outcome.line()
    if os.write(self._file, line) != len(line):  # of a full disk; the next run drops the line
      raise OSError(f"{self._path}: a line could not be written whole; is the disk full?")
    if time.monotonic() > self._synced + _SYNC_EVERY:
      os.fsync(self._file)
      self._synced = time.monotonic()

  def close(self) -> None:
    """Has everything on the disk."""
    if self._waiting:
      self._put_object()
    if self._file is not None:
      os.fsync(self._file)
      os.close(self._file)
      self._file = None

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _lines(self) -> Iterator[bytes]:
    if not self._remote:
      if os.path.exists(self._path):
        with paths.open(self._path) as file:
          yield from file
      return
    for name in self._names():
      yield from paths.read(paths.join(paths.parent(self._path), name)).splitlines(keepends=True)

  def _names(self) -> list[str]:
    folder, name = paths.parent(self._path), paths.base_name(self._path)
    try:
      return [found for found in paths.list_folder(folder) if found.startswith(f"{name}-")]
    except FileNotFoundError:
      return []

  def _open(self) -> int:
    os.makedirs(os.path.dirname(self._path), exist_ok=True)
    try:
      file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
      if error.errno == errno.ELOOP:  # what it leads to may be any file of the user's
        raise ValueError(f"{self._path!r} is to be a journal, and is a link; remove it") from error
      raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
      os.close(file)
      raise ValueError(f"{self._path!r} is to be a journal, and is no file; remove it")
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":  # what a killed process left is a line of its own
      os.write(file, b"\n")
    return file

  def _put_object(self) -> None:
    if not self._objects:
      paths.make_folder(paths.parent(self._path))
      self._objects = max((int(name.rpartition("-")[2]) for name in self._names()), default=-1) + 1
    paths.write(f"{self._path}-{self._objects:06d}", b"".join(self._waiting))
    self._objects, self._waiting, self._put = self._objects + 1, [], time.monotonic()
