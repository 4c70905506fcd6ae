r"""Reads CSV and TSV row by row, and finds quotation marks that would swallow rows.

CSV is read strictly: a quoted cell must be closed before the next delimiter. Where a mark is never closed, or closed in
a way that shows that it stood for itself, only the line with the mark is lost, and it is counted:

    a.jpg,"says hi        <- quote_unclosed; the rows behind it are read
    b.jpg,the pipe

TSV has no quoting: a line is a row, a tab parts cells, and a quotation mark is a character like any other.
"""

import collections
import re
from collections.abc import Iterator
from typing import IO

from fgclip_jax.storage import text
from fgclip_jax.storage.errors import RecordError

MAX_ROW = 64 << 20  # bytes of a row; a longer quoted cell counts as unclosed
TAB = "\t"
_OTHERS = (TAB, ";", "|")  # delimiters of files that end in .csv, where no comma is in the first line
_CLOSE = re.compile(r'[^"]*(?:""[^"]*)*"(?!")')  # from inside a quoted cell to behind its closing mark
_QUOTED = re.compile(rf'"{_CLOSE.pattern}')
_ALIKE = tuple(map(re.compile, (r"\S+\.[A-Za-z0-9]{2,5}", r"https?://\S+", r"\d+")))  # file names, addresses, numbers

Row = tuple[list[str], list[str]] | tuple[list[str], list[str], RecordError]  # header, cells, and a note on the row


def scan(path: str, file: IO[bytes], offset: int, plain: bool) -> Iterator[tuple[int, Row | RecordError]]:
  """Yields the byte offset of each row, and the row or why it cannot be used; empty lines are no rows.

  Args:
    path: the file's path, for counting its lines.
    file: the file, open at the start of its text.
    offset: one yielded earlier, to start there; 0: the start.
    plain: TSV; otherwise CSV, whose delimiter may be another than a comma if the first line shows that.

  Raises:
    RecordError: kinds `annotation_truncated` (empty), `annotation_not_csv`.
  """
  lines = _Lines(path, file)
  header, delimiter, quoted = _read_header(lines, plain)
  if offset:
    file.seek(offset)
    lines = _Lines(path, file)
  take = _take_plain if plain else _take_row
  while (place := lines.place) is not None:
    row = take(lines, delimiter, header, quoted)
    if row is not None:
      yield place, row


def read_header(path: str, file: IO[bytes], plain: bool) -> list[str]:
  """Returns the names of the columns of a file that is open at the start of its text; errors as in `scan`."""
  return _read_header(_Lines(path, file), plain)[0]


def load(row: Row) -> tuple[dict[str, str], list[RecordError]]:
  """Returns a row's cells by the names of their columns, and the notes on it.

  Raises:
    RecordError: kind `row_wrong_width`.
  """
  header, cells, *notes = row
  if len(cells) != len(header):
    raise RecordError("row_wrong_width", "row", f"has {len(cells)} columns, the header {len(header)}")
  return dict(zip(header, cells, strict=True)), list(notes)


def _read_header(lines: "_Lines", plain: bool) -> tuple[list[str], str, bool]:
  """Returns the names of the columns, the delimiter, and whether a program wrote the TSV that quotes every cell."""
  if lines.place is None:
    raise RecordError("annotation_truncated", "byte 0", "the file is empty; its first line must name the columns")
  first, delimiter = lines.peek(), TAB if plain else ","
  if plain:
    if TAB not in first and ("," in first or ";" in first):
      message = f"names one column, {first!r}; .tsv files have tabs between columns: end the file's name in .csv"
      raise RecordError("annotation_not_csv", "line 1", message)
  elif re.fullmatch(r"sep=.", first):  # Excel's first line for itself
    delimiter = first[-1]
    lines.take()
  elif delimiter not in first:
    delimiter = next((other for other in _OTHERS if other in first), delimiter)
  row = _take_plain(lines, delimiter, [], False) if plain else _take_row(lines, delimiter, [], False)
  if isinstance(row, RecordError):
    raise RecordError("annotation_not_csv", row.field, f"in the names of the columns: {row.message}") from row
  if row is None:
    raise RecordError("annotation_not_csv", "line 1", "is empty; the first line must name the columns")
  names = [name.removeprefix("\ufeff").strip() for name in row[1]]
  quoted = plain and all(map(_QUOTED.fullmatch, names))
  return [_unquote(name) if quoted else name for name in names], delimiter, quoted


def _take_plain(lines: "_Lines", delimiter: str, header: list[str], quoted: bool) -> Row | None:
  """Moves over a line of TSV; None for an empty one."""
  line = lines.take()[1]
  if not line:
    return None
  cells, notes = line.split(delimiter), []
  for index, cell in enumerate(cells if '"' in line else ()):
    if not cell.startswith('"'):
      continue
    whole = _QUOTED.fullmatch(cell)
    if whole and (quoted or '""' in cell[1:-1]):  # no one writes doubled marks but a program that quotes
      cells[index] = _unquote(cell)
    elif header and (whole or cell.count('"') % 2):
      name = header[index] if index < len(header) else "row"
      notes.append(
        RecordError("tsv_quotation_mark", name, f"begins with a quotation mark, which is kept: {_show(cell)}")
      )
  return (header, cells, notes[0]) if notes else (header, cells)


def _take_row(lines: "_Lines", delimiter: str, header: list[str], quoted: bool) -> Row | RecordError | None:
  """Moves over a row of CSV, or over the line at fault; None for an empty line."""
  del quoted
  line = lines.take()
  if not line[1]:
    return None
  if '"' not in line[1]:
    return header, line[1].split(delimiter)
  parser, used, size = _Parser(delimiter), [line], len(line[1])
  state = parser.feed(*line[1:])
  while state == "open" and lines.place is not None and size <= MAX_ROW:
    used.append(lines.take())
    size += len(used[-1][1]) + len(used[-1][2])  # a packed file may hold nothing but ends of lines
    state = parser.feed(*used[-1][1:])
  if state == "open":
    fault = RecordError("quote_unclosed", "", "a quotation mark opens a cell and is never closed")
  elif state == "behind":
    fault = RecordError("quote_misplaced", "", "text follows the quotation mark that closes a cell")
  elif len(used) > 1 and header and _swallows(used, parser.cells, delimiter, header):
    fault = RecordError("quote_unclosed", "", f"a quotation mark opens a cell that swallows {len(used) - 1} more rows")
  else:
    for name, cell in zip(header, parser.cells, strict=False):
      if delimiter in cell and ("\n" in cell or "\r" in cell):
        message = f"holds a line break and {delimiter!r} between quotation marks: {_show(cell)}"
        return header, parser.cells, RecordError("quoted_line_break", name, message)
    return header, parser.cells
  lines.put_back(used[1:])
  number = lines.count(line[0])
  message = f"{fault.message}: {_show(line[1])}; put the cell in quotation marks and double those inside"
  return RecordError(fault.kind, f"line {number}", message)


def _swallows(used: list[tuple[int, str, str]], cells: list[str], delimiter: str, header: list[str]) -> bool:
  """Whether the lines of a row look like rows: a quotation mark opened it that was meant as text.

  They do if the row has not as many cells as the header, or if two lines taken alone have as many, and the same kind of
  thing, such as a file's name, in one of them.
  """
  if len(cells) != len(header):
    return True
  first, *others = ([cell.strip('" ') for cell in body.split(delimiter)] for _, body, _ in used)
  if len(header) < 2 or len(first) != len(header):
    return False
  return any(
    len(other) == len(header)
    and any(
      kind.fullmatch(one) and kind.fullmatch(two) for kind in _ALIKE for one, two in zip(first, other, strict=True)
    )
    for other in others
  )


class _Parser:
  """The cells of a row that is fed line by line."""

  def __init__(self, delimiter: str):
    self.cells: list[str] = []
    self._delimiter = delimiter
    self._open: list[str] | None = None  # the parts of a quoted cell that is not closed yet

  def feed(self, body: str, end: str) -> str:
    """Takes a line and its end; returns `open`, `done` or, for text behind a closing mark, `behind`."""
    at, size = 0, len(body)
    while True:
      if self._open is None and body[at : at + 1] == '"':
        self._open, at = [], at + 1
      if self._open is None:
        stop = body.find(self._delimiter, at)
        self.cells.append(body[at : stop if stop >= 0 else size])
        if stop < 0:
          return "done"
        at = stop + 1
        continue
      found = _CLOSE.match(body, at)
      if not found:
        self._open.append(body[at:] + end)
        return "open"
      self._open.append(body[at : found.end() - 1])
      self.cells.append("".join(self._open).replace('""', '"'))
      self._open, at = None, found.end()
      while at < size and body[at] == " ":
        at += 1
      if at == size:
        return "done"
      if body[at] != self._delimiter:
        return "behind"
      at += 1


class _Lines:
  """The lines of a file from its position on, some of which may be put back."""

  def __init__(self, path: str, file: IO[bytes]):
    self._path, self._read = path, file.tell()
    self._source = text.split(file, path, blank=b"\r\n")
    self._ready: collections.deque[tuple[int, str, str]] = collections.deque()
    self._counted: tuple[Iterator[int], int] | None = None

  @property
  def place(self) -> int | None:
    """The byte offset of the next line; None at the end."""
    if not self._ready:
      line = next(self._source, None)
      if line is None:
        return None
      body = line.rstrip(b"\r\n")
      # Bytes that are not UTF-8 are found later, in their field.
      self._ready.append((self._read, body.decode("utf-8", "surrogateescape"), line[len(body) :].decode()))
      self._read += len(line)
    return self._ready[0][0]

  def peek(self) -> str:
    """Returns the next line without its end."""
    assert self.place is not None
    return self._ready[0][1]

  def take(self) -> tuple[int, str, str]:
    """Moves over a line; returns its offset, its text and its end."""
    assert self.place is not None
    return self._ready.popleft()

  def put_back(self, lines: list[tuple[int, str, str]]) -> None:
    """Puts lines back, to be taken again."""
    self._ready.extendleft(reversed(lines))

  def count(self, place: int) -> int:
    """Returns the number of the line at an offset, from 1; offsets must grow from call to call."""
    if self._counted is None:  # from the start of the file, which is read again for the few that are named
      self._counted = _count_from(self._path), 0
    starts, number = self._counted
    for start in starts:
      number += 1
      if start >= place:
        break
    self._counted = starts, number
    return number


def _count_from(path: str) -> Iterator[int]:
  """Yields the offset of each line of a file."""
  with text.open(path) as file:
    place = file.tell()
    for line in text.split(file, path):
      yield place
      place += len(line)


def _unquote(cell: str) -> str:
  return cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell


def _show(value: str) -> str:
  shown = repr(value)
  return shown if len(shown) <= 80 else f"{shown[:77]}..."
