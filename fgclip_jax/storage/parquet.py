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
from typing import IO, Any

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.riegeli import read_varint

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "img")
MAX_BYTES = 512 << 20  # of an image
_ROWS = 16  # rows decoded at a time: images, a few MB in all
_HEADER = 1 << 16  # bytes in which the header of a page ends
_PAGES = 1 << 17  # of a column in a row group: of 1 MB each, 128 GB


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
    RecordError: kind `parquet_unreadable`: the file or one of its rows cannot be read; `parquet_cell_too_large`: the
      row is in a group with a cell that unpacks to more than `MAX_BYTES`.
  """

  def __init__(self, path: str, columns: Sequence[str] | None = None):
    import pyarrow.parquet

    self.path, self._columns = path, columns
    stream = self._stream = paths.open(path)
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
    self._largest: dict[int, int] = {}  # bytes of the largest page of a group

  def __len__(self) -> int:
    return self._starts[-1]

  def get(self, number: int) -> dict[str, Any]:
    """Returns one row."""
    group = next(index for index, start in enumerate(self._starts[1:]) if number < start)
    self._check_pages(group)
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

  def _check_pages(self, group: int) -> None:
    """Refuses a group of rows with a page for which too much room would be made: a page ends behind its first MB."""
    if group not in self._largest:
      columns = self._file.metadata.row_group(group)
      found = [columns.column(index) for index in range(columns.num_columns)]
      if self._columns is not None:
        found = [column for column in found if column.path_in_schema.split(".")[0] in self._columns]
      if paths.is_remote(self.path):  # where each page is a request: only where there may be such a one
        found = [column for column in found if column.total_uncompressed_size > MAX_BYTES]
      sizes = (size for column in found for size in _page_sizes(self._stream, column))
      self._largest[group] = max(sizes, default=0)
    if (largest := self._largest[group]) > MAX_BYTES:
      message = f"a cell of its row group {group} unpacks to {largest:,} bytes; at most {MAX_BYTES:,} are read"
      raise RecordError("parquet_cell_too_large", "parquet", f"{self.path}: {message}")

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


def _page_sizes(stream: IO[bytes], column: Any) -> Iterator[int]:
  """The bytes of each page of a column's chunk, unpacked, as its header says; none where headers are damaged."""
  begin = column.dictionary_page_offset or column.data_page_offset
  end = begin + column.total_compressed_size
  for _ in range(_PAGES):
    if not 0 <= begin < end:
      return
    stream.seek(begin)
    try:
      fields, length = _read_struct(stream.read(min(_HEADER, end - begin)), 0)
      unpacked, packed = fields[2], fields[3]  # uncompressed_page_size, compressed_page_size
    except (LookupError, ValueError):
      return  # pyarrow says what is wrong
    yield unpacked
    begin += length + max(packed, 0)
  raise RecordError("parquet_unreadable", "parquet", f"a column has more than {_PAGES:,} pages in a row group")


def _read_struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, int], int]:
  """The whole numbers of a structure in Thrift's compact protocol by field, and where it ends.

  The protocol: github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

  Raises:
    IndexError, ValueError: it is none.
  """
  fields, field = {}, 0
  if depth > 8:
    raise ValueError("nested too deeply")
  while head := data[at]:
    kind, at = head & 15, at + 1
    if head >> 4:
      field += head >> 4
    else:
      field, at = _read_number(data, at)
    if kind in (4, 5, 6):
      fields[field], at = _read_number(data, at)
    elif kind == 8:  # bytes
      length, at = read_varint(data, at)
      at += length
    elif kind == 12:
      _, at = _read_struct(data, at, depth + 1)
    elif kind in (3, 7):
      at += 1 if kind == 3 else 8
    elif kind not in (1, 2):  # the values of a Boolean; headers of pages hold no lists
      raise ValueError(f"a field of type {kind}")
  return fields, at + 1


def _read_number(data: bytes, at: int) -> tuple[int, int]:
  value, at = read_varint(data, at)
  return (value >> 1) ^ -(value & 1), at


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
