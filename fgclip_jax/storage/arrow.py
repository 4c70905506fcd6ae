"""Reads rows of Arrow files: the streams that `datasets` writes with `save_to_disk`, and Arrow files with an index.

A local file is mapped into memory, not read: a row costs what it holds. One in object storage is read as a whole.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

_INDEXED = b"ARROW1"  # the first bytes of a file with an index at its end; a stream has none


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a file: the file's `path` and the row's `number`."""

  path: str
  number: int

  def read(self) -> dict[str, Any]:
    """Returns the row's values by column; raises `RecordError` of kind `arrow_unreadable`."""
    with _named(self.path):
      row = _table(self.path, os.getpid()).slice(self.number, 1)
      row.validate(full=True)  # offsets that point outside would be followed into other memory
      return row.to_pylist()[0]


def scan(path: str, offset: int = 0) -> Iterator[tuple[int, Row]]:
  """Yields the number of each row of an Arrow file and the row, starting at a number yielded earlier (0: the start).

  Raises:
    RecordError: it is no Arrow file, or a damaged one (kind `arrow_unreadable`).
    OSError: the file cannot be read.
  """
  with _named(path):
    count = len(_table(path, os.getpid()))
  for number in range(offset, count):
    yield number, Row(path, number)


@functools.lru_cache(maxsize=4)
def _table(path: str, process: int) -> Any:
  del process  # a fork must not share its parent's file
  import pyarrow

  local = not paths.is_remote(path)
  with paths.open(path) as file:  # also refuses what is no regular file
    head = file.read(len(_INDEXED))
  source = pyarrow.memory_map(path) if local else pyarrow.BufferReader(paths.read(path))
  reader = pyarrow.ipc.open_file(source) if head == _INDEXED else pyarrow.ipc.open_stream(source)
  table = reader.read_all()
  table.validate()
  return table


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
  import pyarrow

  try:
    yield
  except (pyarrow.ArrowException, OSError) as error:
    # pyarrow also raises OSError for damaged files; only those with an errno are faults of the disk or the network.
    if isinstance(error, OSError) and error.errno is not None:
      raise
    reason = str(error).strip().split("\n")[0]
    raise RecordError("arrow_unreadable", "arrow", f"{path} cannot be read ({reason})") from error
