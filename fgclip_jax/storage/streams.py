"""Reads annotation files record by record, never as a whole: JSON lists, JSON lines, CSV, JSON objects of lists.

`scan` finds the records and their byte offsets, `load` parses one. Reading can start at any offset that `scan` yielded
earlier, so that processes can share a file. `walk` goes through the lists inside one JSON object.
"""

import codecs
import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from fgclip_jax.storage import csv_rows, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
CHUNK = 1 << 20  # bytes read at a time
MAX_RECORD = 64 << 20  # bytes; a longer record means that the file is broken
_EDGE = 16  # bytes: this near the end of the text in memory, a number, literal or escape may be cut in two
_SPACE = " \t\n\r"
_SPACES = re.compile(f"[{_SPACE}]*")
_VALUES = json.JSONDecoder(strict=False)
_BOUNDARIES = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)  # finds ends; values are thrown away

Raw = bytes | csv_rows.Row | RecordError  # JSON text, a row, or why a row cannot be used


def scan(path: str, offset: int = 0) -> Iterator[tuple[int, Raw]]:
  """Yields the byte offset of each record and the record, from an offset yielded earlier (0: from the start).

  Raises:
    RecordError: the file breaks off or is not what its name says (kinds `annotation_truncated`,
      `annotation_not_json`, `annotation_not_csv`, `annotation_not_utf8`, `annotation_not_gzip`); every record before
      has been yielded.
    OSError: the file cannot be read.
  """
  suffix = _suffix(path)
  with _open(path) as file:
    if suffix in (".csv", ".tsv"):
      yield from csv_rows.scan(path, file, offset, plain=suffix == ".tsv")
    elif (start := _find_list(file, lines=suffix == ".jsonl")) is None:
      yield from _scan_lines(file, offset)
    else:
      yield from _scan_list(file, start, offset)


def columns(path: str) -> list[str] | None:
  """Returns the names of the columns of a CSV or TSV file; None for other files.

  Raises:
    RecordError, OSError: as `scan`.
  """
  if _suffix(path) not in (".csv", ".tsv"):
    return None
  with _open(path) as file:
    return csv_rows.read_header(path, file, plain=_suffix(path) == ".tsv")


def walk(path: str) -> Iterator[tuple[str, bytes]]:
  """Yields the names and values of a JSON object's members; of a list, each element by itself.

  `{"a": [1, 2], "b": {"c": 3}}` gives `("a", b"1")`, `("a", b"2")`, `("b", b'{"c": 3}')`. The elements of a file that
  is a list have the name "".

  Raises:
    RecordError: as `scan`.
    OSError: the file cannot be read.
  """
  with _open(path) as file:
    window = _Window(file, file.tell())
    head = window.peek()
    if head == "[":
      window.position += 1
      yield from (("", raw) for _, raw in _take_elements(window))
    elif head == "{":
      window.position += 1
      yield from _take_members(window)
    else:
      kind = "annotation_not_json" if head else "annotation_truncated"
      raise RecordError(kind, f"byte {window.place}", f"needs a JSON object or list, got {head or 'an empty file'!r}")
    _check_end(window)


def load(raw: Raw | str, report: Report | None = None) -> object:
  """Parses what `scan` yielded; NaN and Infinity are numbers.

  Args:
    raw: what `scan` yielded, or JSON text.
    report: called with the notes on a row, such as a quotation mark that is kept as text.

  Raises:
    RecordError: kinds `record_not_json`, `record_not_utf8`, `row_wrong_width`, `quote_unclosed`, `quote_misplaced`.
  """
  if isinstance(raw, RecordError):
    raise raw
  if isinstance(raw, tuple):
    value, notes = csv_rows.load(raw)
    if report:
      for note in notes:
        report("note", note)
    return value
  try:
    return _VALUES.decode(raw if isinstance(raw, str) else raw.removeprefix(codecs.BOM_UTF8).decode())
  except UnicodeDecodeError as error:
    raise RecordError("record_not_utf8", "record", text.describe(error.object, error.start)) from error
  except (ValueError, RecursionError) as error:
    raise RecordError("record_not_json", "record", f"is not JSON ({error})") from error


def _suffix(path: str) -> str:
  return os.path.splitext(path.lower().removesuffix(".gz"))[1]


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
  try:
    with text.open(path) as file:
      yield file
  except RecordError as error:
    if not error.kind.startswith("text_"):
      raise
    kind = error.kind.replace("text_", "annotation_")
    if error.kind == "text_line_too_long":
      kind = "annotation_not_csv" if _suffix(path) in (".csv", ".tsv") else "annotation_not_json"
    raise RecordError(kind, "file", error.message) from error


def _find_list(file: IO[bytes], lines: bool) -> int | None:
  """Returns the offset of the `[` that opens the list, or None for JSON lines; leaves the file at its text's start."""
  start = file.tell()
  rest = b""
  while not rest and (chunk := file.read(CHUNK)):  # byte by byte, a packed file of white space would take hours
    rest = chunk.lstrip(_SPACE.encode())
  head, place = rest[:1], file.tell() - len(rest)
  if head == b"[":
    return place
  if not head and not lines:
    raise RecordError("annotation_truncated", "byte 0", "the file is empty")
  file.seek(start)
  if not lines:
    file.seek(place)
    try:
      json.loads(next(text.split(file, carriage=text.ends_in_carriage_returns(file)), b""))
    except (ValueError, RecursionError) as error:
      raise RecordError("annotation_not_json", f"byte {place}", "neither a JSON list nor JSON lines") from error
    file.seek(place)
  return None


def _scan_lines(file: IO[bytes], offset: int) -> Iterator[tuple[int, bytes]]:
  # In files with other ends of lines, `\r` is white space, or stands in a text.
  carriage = text.ends_in_carriage_returns(file)
  if offset:
    file.seek(offset)
  place = file.tell()
  for line in text.split(file, carriage=carriage, blank=_SPACE.encode()):
    if len(line) >= MAX_RECORD:
      raise RecordError("annotation_not_json", f"byte {place}", f"a line is longer than {MAX_RECORD} bytes")
    if line.strip():
      yield place, line
    place += len(line)


def _scan_list(file: IO[bytes], start: int, offset: int) -> Iterator[tuple[int, bytes]]:
  window = _Window(file, offset or start + 1)
  yield from _take_elements(window)
  _check_end(window)


def _take_elements(window: "_Window") -> Iterator[tuple[int, bytes]]:
  """Moves over a list from behind its `[` to behind its `]`."""
  while (head := window.peek()) != "]":
    if not head:
      raise RecordError("annotation_truncated", f"byte {window.place}", "the file ends inside the list")
    place = window.place
    yield place, window.take_value()
    _take_comma(window, "]")
  window.position += 1


def _take_members(window: "_Window") -> Iterator[tuple[str, bytes]]:
  """Moves over an object from behind its `{` to behind its `}`."""
  while (head := window.peek()) != "}":
    if not head:
      raise RecordError("annotation_truncated", f"byte {window.place}", "the file ends inside the object")
    place = window.place
    name = load(window.take_value())
    colon = window.peek()
    if not isinstance(name, str) or colon not in (":", ""):
      raise RecordError("annotation_not_json", f"byte {place}", f"needs a name and ':', got {name!r}")
    window.position += len(colon)
    if window.peek() == "[":
      window.position += 1
      yield from ((name, raw) for _, raw in _take_elements(window))
    else:
      yield name, window.take_value()
    _take_comma(window, "}")
  window.position += 1


def _take_comma(window: "_Window", end: str) -> None:
  head = window.peek()
  if head == ",":
    window.position += 1
  elif head and head != end:
    raise RecordError(
      "annotation_not_json", f"byte {window.place}", f"needs ',' or {end!r} after a record, got {head!r}"
    )


def _check_end(window: "_Window") -> None:
  if window.peek():
    raise RecordError("annotation_not_json", f"byte {window.place}", "there is more text after the end of the list")


class _Window:
  """The part of a file in memory, as text of one character per byte (latin-1): a position is a byte offset."""

  def __init__(self, file: IO[bytes], offset: int):
    file.seek(offset)
    self.file, self.offset = file, offset
    self.text, self.position = "", 0

  @property
  def place(self) -> int:
    """The byte offset of the position in the file."""
    return self.offset + self.position

  def extend(self) -> bool:
    """Drops the text before the position, and reads as much again as is left of it; returns False at the file's end."""
    data = self.file.read(max(CHUNK, len(self.text) - self.position))
    if data:
      self.text, self.offset, self.position = self.text[self.position :] + data.decode("latin-1"), self.place, 0
    return bool(data)

  def peek(self) -> str:
    """Moves over white space and returns the next character; empty at the end of the file."""
    while True:
      found = _SPACES.match(self.text, self.position)
      assert found is not None  # it matches nothing, too
      self.position = found.end()
      if self.position < len(self.text):
        return self.text[self.position]
      if not self.extend():
        return ""

  def take_value(self) -> bytes:
    """Moves over one JSON value and returns its bytes."""
    while True:
      try:
        end = _BOUNDARIES.raw_decode(self.text, self.position)[1]
        if end + _EDGE < len(self.text) or not self.extend():  # a number cut in two would end too early
          raw = self.text[self.position : end].encode("latin-1")
          self.position = end
          return raw
      except json.JSONDecodeError as error:
        # An error at the end of the text in memory may only mean that the value goes on: then read more and try again.
        place = f"byte {self.offset + error.pos}"
        unterminated = error.msg.startswith("Unterminated string")  # its place is where the string starts
        cut = unterminated or len(self.text.rstrip()) - error.pos <= _EDGE
        if not cut or len(self.text) - self.position > MAX_RECORD:
          raise RecordError("annotation_not_json", place, error.msg) from error
        if not self.extend():
          raise RecordError("annotation_truncated", place, "the file ends inside a record") from error
      except RecursionError as error:
        raise RecordError("annotation_not_json", f"byte {self.place}", "is nested too deeply") from error


def read_entries(file: str, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
  """Yields the entries of the lists `names` in a JSON file, with the list's name; "" names a file that is one list.

  A byte that is not UTF-8 stays in its text as `surrogateescape` keeps it, so that only its entry is at fault.

  Raises:
    ValueError: the file is broken, or lacks a list.
  """
  missing, seen = set(names), {}
  try:
    for name, raw in walk(file):
      if len(seen) < 8:
        seen[name] = None
      if name in names:
        missing.discard(name)
        yield name, load(raw.decode(errors="surrogateescape"))
  except RecordError as error:
    raise ValueError(f"{file} is broken at {error}; get it again") from error
  if missing:
    there = "is a list" if "" in seen else f"has {', '.join(map(repr, seen)) or 'nothing'}"
    raise ValueError(f"{file} has no entries {', '.join(map(repr, sorted(missing)))}: is it the right file? It {there}")


def get_size(entry: dict) -> tuple[float, float]:
  """Returns an image's width and height in pixels; raises `ValueError` for anything that is no size."""
  width, height = float(entry["width"]), float(entry["height"])
  if not (0 < width < math.inf and 0 < height < math.inf):
    raise ValueError(f"{width} x {height} is no size of an image")
  return width, height
