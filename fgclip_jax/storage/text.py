r"""The one reader of text files, also of those packed as `.gz`: UTF-8, or UTF-16 with a byte-order mark.

A mark at the start is dropped. `\n`, `\r\n` and `\r` end lines, and nothing else does: U+2028, a form feed and the like
are part of the text. Text in another encoding is an error that names the byte and the likely encoding.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, cast

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

CHUNK = 1 << 20  # bytes read at a time
MAX_LINE = 64 << 20  # bytes; a longer line means that the file is no text
MAX_TEXT = 1 << 30  # bytes that `read` returns at most: a packed file may be much larger than it looks
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def read(path: str) -> str:
  """Returns the text of a file, with its ends of lines as they are.

  Raises:
    RecordError: it is no text, or longer than `MAX_TEXT`; the kinds are those of `open` and `decode`.
    OSError: it cannot be read.
  """
  with open(path) as file:
    start = file.tell()
    parts, size = [], 0
    while data := file.read(CHUNK):
      parts.append(data)
      size += len(data)
      if size > MAX_TEXT:
        raise RecordError("text_too_large", path, f"is longer than {MAX_TEXT:,} bytes")
  return decode(b"".join(parts), path, start)


def lines(path: str) -> Iterator[str]:
  """Yields the lines of a file without their ends.

  Raises:
    RecordError: as `read`; `text_line_too_long`: a line has more than `MAX_LINE` bytes.
    OSError: it cannot be read.
  """
  with open(path) as file:
    place = file.tell()
    for line in split(file, path):
      yield decode(line, path, place).rstrip("\r\n")
      place += len(line)


@contextlib.contextmanager
def open(path: str) -> Iterator[IO[bytes]]:
  """Opens a file for reading UTF-8, at the first byte behind a mark.

  Positions are bytes of the file, unpacked if its name ends in `.gz`. A file of UTF-16 is read as UTF-8; its positions
  are bytes of that. Seeking is as slow as reading in both.

  Raises:
    RecordError: while the file is open, too: it breaks off or is no gzip file (`text_truncated`, `text_not_gzip`), or
      is UTF-16 that cannot be decoded, or UTF-32 (`text_not_utf8`). Its field is the path.
    OSError: it cannot be read, or is no regular file.
  """
  with paths.open(path) as packed, contextlib.ExitStack() as stack:
    file = packed
    try:
      if path.lower().endswith(".gz"):
        file = cast(IO[bytes], stack.enter_context(gzip.open(packed)))
      head = file.read(4)
      if head[:4] in _UTF32:
        raise RecordError("text_not_utf8", path, "is UTF-32 text; save it as UTF-8")
      if head[:2] in _UTF16:
        file.seek(2)
        decoded = cast(IO[bytes], io.BufferedReader(_Utf16(file, _UTF16[head[:2]], path), CHUNK))
        _skip_marks(decoded)
        yield decoded
        return
      if len(head) == 4 and [byte == 0 for byte in head] in ([False, True] * 2, [True, False] * 2):
        raise RecordError("text_not_utf8", path, "looks like UTF-16 text without a byte-order mark; save it as UTF-8")
      file.seek(0)
      _skip_marks(file)
      yield file
    except EOFError as error:
      raise RecordError("text_truncated", path, f"byte {packed.tell()}: the compressed file ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
      message = f"byte {packed.tell()}: cannot be unpacked ({error})"
      raise RecordError("text_not_gzip", path, message) from error


def _skip_marks(file: IO[bytes]) -> None:
  """Moves behind the marks that UTF-8 begins with: programs that convert or join files leave more than one."""
  place = file.tell()
  while file.read(3) == codecs.BOM_UTF8:
    place = file.tell()
  file.seek(place)


def split(file: IO[bytes], path: str = "text", carriage: bool = True, blank: bytes = b"") -> Iterator[bytes]:
  r"""Yields the lines of an open file from its position on, with their ends.

  Args:
    file: the file.
    path: its path, for messages.
    carriage: whether a `\r` without `\n` ends a line.
    blank: long runs of these characters may come as one line: one by one, the lines of a packed file of nothing else
      would take hours.

  Raises:
    RecordError: kind `text_line_too_long`.
  """
  ends = (b"\n", b"\r") if carriage else (b"\n",)
  rest = b""
  while data := file.read(CHUNK):
    rest += data
    if blank and not rest.strip(blank):
      yield rest
      rest = b""
    elif any(end in data for end in ends):
      *found, rest = _split_data(rest, carriage)
      yield from found
    elif len(rest) > MAX_LINE:
      raise RecordError("text_line_too_long", path, f"has a line of more than {MAX_LINE:,} bytes")
  yield from filter(None, _split_data(rest, carriage))


def _split_data(data: bytes, carriage: bool) -> list[bytes]:
  """Splits text behind its ends of lines; the last part, which may go on, is empty or has no whole end."""
  found = data.splitlines(keepends=True) if carriage else [line + b"\n" for line in data.split(b"\n")]
  if not carriage:
    found[-1] = found[-1][:-1]
  elif not found or found[-1].endswith(b"\n"):
    found.append(b"")
  return found  # for bytes, `splitlines` knows these three ends alone


def ends_in_carriage_returns(file: IO[bytes]) -> bool:
  r"""Whether `\r` alone ends the lines of an open file, judged by its first MB; leaves the position as it was."""
  place = file.tell()
  head = file.read(CHUNK)
  file.seek(place)
  return b"\n" not in head and b"\r" in head.rstrip()


def decode(data: bytes, path: str, place: int = 0) -> str:
  """Decodes UTF-8.

  Args:
    data: the text.
    path, place: the file and the position of the text in it, for messages.

  Raises:
    RecordError: kind `text_not_utf8`; it names the byte and the likely encoding.
  """
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise RecordError("text_not_utf8", path, describe(data, error.start, place)) from error


def decode_marked(data: bytes) -> str:
  """Decodes a small file that was read as a whole; bytes that are not UTF-8 are kept with `surrogateescape`."""
  if data[:2] in _UTF16:
    return data[2:].decode(_UTF16[data[:2]], "replace").lstrip("\ufeff")
  return data.decode("utf-8", "surrogateescape").lstrip("\ufeff")


def is_unicode(text: str) -> bool:
  """Whether UTF-8 can hold a text: JSON can spell codes that are no characters, and names of files any bytes."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def describe(data: bytes, at: int, place: int = 0) -> str:
  """Describes the byte `at` of some text, which is no UTF-8; the text begins at the position `place` of its file."""
  shown = bytes(data[max(at - 12, 0) : at + 12]).decode("cp1252", "replace")
  advice = "if it is Latin-1 or Windows-1252, save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
  return f"byte {place + at} (0x{data[at]:02x}, in {shown!r}) is not UTF-8; {advice}"


class _Utf16(io.RawIOBase):
  """UTF-16 text as UTF-8; positions are bytes of the UTF-8."""

  def __init__(self, file: IO[bytes], encoding: str, path: str):
    self._file, self._encoding, self._path, self._start = file, encoding, path, file.tell()
    self._begin()

  def _begin(self) -> None:
    self._file.seek(self._start)
    self._decoder = codecs.getincrementaldecoder(self._encoding)()
    self._ready, self._place = b"", 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._place

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    if whence == io.SEEK_CUR:
      offset += self._place
    elif whence != io.SEEK_SET:
      raise io.UnsupportedOperation("the length of the decoded text is not known")
    if offset < self._place:
      self._begin()
    while self._place < offset and (data := self._take(min(offset - self._place, CHUNK))):
      del data
    return self._place

  def readinto(self, buffer) -> int:
    data = self._take(len(buffer))
    buffer[: len(data)] = data
    return len(data)

  def _take(self, size: int) -> bytes:
    while not self._ready:
      data = self._file.read(CHUNK)
      try:
        self._ready = self._decoder.decode(data, final=not data).encode()
      except UnicodeError as error:
        place = self._file.tell() - len(data)
        raise RecordError("text_not_utf8", self._path, f"is no whole UTF-16 text behind byte {place}") from error
      if not data:
        break
    taken, self._ready = self._ready[:size], self._ready[size:]
    self._place += len(taken)
    return taken
