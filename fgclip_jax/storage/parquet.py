"""Reads Parquet files with one sample in each row, a few rows at a time.

Rows hold images, and a row group may hold thousands: neither a file nor a row group is ever read as a whole.
"""

import contextlib
import dataclasses
import functools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "img")
MAX_BYTES = 512 << 20  # of an image
_ROWS = 16  # rows decoded at a time: images, a few MB in all


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a file: the file's `path` and the row's `number`."""

  path: str
  number: int

  def read(self) -> dict[str, Any]:
    """Returns the row's values by column."""
    return _reader(self.path, threading.get_ident(), os.getpid()).get(self.number)


class Reader:
  """Reads rows of one file, all columns or some; quick as long as row numbers rise. `close` closes the file.

  Raises:
    RecordError: kind `parquet_unreadable`: the file or one of its rows cannot be read.
  """

  def __init__(self, path: str, columns: Sequence[str] | None = None):
    import pyarrow.parquet

    self.path, self._columns = path, columns
    stream = paths.open(path)
    # A cache holds readers and drops them, without a place to close them by hand: the file closes with its reader.
    self.close = weakref.finalize(self, stream.close)
    with self._named():
      self._file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
    self.columns = self._file.schema_arrow.names
    metadata = self._file.metadata
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    self._starts = [0]
    for count in counts:
      self._starts.append(self._starts[-1] + count)
    self._batches: Iterator = iter(())
    # The reader's position: a row group, the rows of it that were decoded last, and the number of the first of these.
    self._group: int | None = None
    self._rows: list[dict] = []
    self._first = 0

  def __len__(self) -> int:
    return self._starts[-1]

  def get(self, number: int) -> dict[str, Any]:
    """Returns one row."""
    group = next(index for index, start in enumerate(self._starts[1:]) if number < start)
    if group != self._group or number < self._first:
      self._batches = self._file.iter_batches(_ROWS, row_groups=[group], columns=self._columns)
      self._rows, self._first = [], self._starts[group]
    self._group = None  # an error below leaves the iterator broken; the next call then starts the group again
    while number >= self._first + len(self._rows):
      self._first += len(self._rows)
      with self._named():
        self._rows = next(self._batches).to_pylist()
    self._group = group
    return dict(self._rows[number - self._first])

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    import pyarrow

    try:
      yield
    except (pyarrow.ArrowException, OSError, StopIteration) as error:
      # pyarrow also raises OSError for damaged files; only those with an errno are faults of the disk or the network.
      if isinstance(error, OSError) and error.errno is not None:
        raise
      reason = str(error).strip().split("\n")[0] or "it holds fewer rows than it says"
      raise RecordError("parquet_unreadable", "parquet", f"{self.path} cannot be read ({reason})") from error


def scan(path: str, offset: int = 0) -> Iterator[tuple[int, Row]]:
  """Yields the number of each row of a Parquet file and the row, starting at a number yielded earlier (0: the start).

  Raises:
    RecordError: it is no Parquet file, or a damaged one (kind `parquet_unreadable`).
    OSError: the file cannot be read.
  """
  reader = Reader(path)
  count = len(reader)
  reader.close()
  for number in range(offset, count):
    yield number, Row(path, number)


def list_columns(path: str) -> list[str]:
  """Lists the names of a file's columns."""
  reader = Reader(path)
  reader.close()
  return reader.columns


def find_image_column(path: str) -> str | None:
  """Finds the column of images; None if there is none, as in the tables that img2dataset writes beside tar files."""
  columns = list_columns(path)
  return next((name for name in IMAGE_COLUMNS if name in columns), None)


def get_bytes(value: object) -> bytes | None:
  """Returns the bytes of an image's cell, which is bytes or an object with a field `bytes`; None if there are none.

  Raises:
    RecordError: kind `image_too_large`: it has more than `MAX_BYTES`.
  """
  if isinstance(value, dict):
    value = value.get("bytes")
  if isinstance(value, bytes) and len(value) > MAX_BYTES:
    raise RecordError("image_too_large", "image", f"has {len(value):,} bytes; at most {MAX_BYTES:,} are read")
  return value if isinstance(value, bytes) else None


@functools.lru_cache(maxsize=4)
def _reader(path: str, thread: int, process: int) -> Reader:
  del thread, process  # a reader has one position, so each thread has its own; a fork must not share its parent's file
  return Reader(path)
