"""Reads tar files of samples, as img2dataset and webdataset write them: a sample is a row of files with one name.

```
000690825.jpg  000690825.json  000690825.txt  000690826.jpg  ...
```
As in webdataset, the name goes to the first dot. Names with dots of their own, `IMG.001.jpg`, go to the last one: where
no file of the row has one dot alone, and the rest is an ending that is known.

Headers are read here and not by `tarfile`, which goes one level deeper for each long name, reads names of any length
into memory, and stops silently at what is no header.
"""

import collections
import dataclasses
import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif")
SORT = "the files of a sample must follow one another: pack them with tar --sort=name"
_KNOWN = (*IMAGE_SUFFIXES, "json", "txt")  # endings that part a name with several dots at the last one
_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME = 1 << 20  # bytes of a header that holds a name
_MAX_SIZE = 512 << 20  # bytes of a member
_AHEAD = 32  # members that decide how a name with several dots is parted
_ZEROS = bytes(_BLOCK)


@dataclasses.dataclass(frozen=True)
class Sample:
  """The files of one name.

  Attributes:
    path: the tar file.
    key: the name.
    parts: the place in the tar file of each ending in lower case: (offset, size) in bytes.
    faults: what is wrong with some of the files (kinds `tar_member_twice`, `tar_member_sparse`, `tar_member_link`);
      a twin counts instead of the file before it, and the others are no parts.
    file: the open tar file in which the sample was found, used while it stays open.
  """

  path: str
  key: str
  parts: dict[str, tuple[int, int]]
  faults: tuple[RecordError, ...] = ()
  file: IO | None = dataclasses.field(default=None, repr=False, compare=False)

  def read(self, suffix: str) -> bytes:
    """Returns the bytes of the sample's file with an ending."""
    offset, size = self.parts[suffix]
    if size > _MAX_SIZE:
      message = f"of {size:,} bytes; at most {_MAX_SIZE:,} are read"
      raise RecordError("tar_member_too_large", f"{self.key}.{suffix}", message)
    if self.file is None or self.file.closed:
      data = paths.read(self.path, offset, size)
    else:
      self.file.seek(offset)
      data = self.file.read(size)
    if len(data) < size:
      raise RecordError("tar_truncated", self.key, f"{self.path} has {len(data)} of its {size} bytes at {offset}")
    return data

  def find_image(self) -> str | None:
    """Returns the ending of the sample's image; None if it has none."""
    return next((suffix for suffix in IMAGE_SUFFIXES if suffix in self.parts), None)

  def missing_image(self) -> RecordError:
    """Returns the error that says why the sample has no image."""
    lost = next((fault for fault in self.faults if fault.kind != "tar_member_twice"), None)
    if lost:
      return RecordError(lost.kind, "image", f"sample {self.key!r} has no image: {lost.field} {lost.message}")
    message = f"sample {self.key!r} has no image; its files end in {', '.join(f'.{name}' for name in self.parts)}"
    if any(posixpath.splitext(name)[1].removeprefix(".") in IMAGE_SUFFIXES for name in self.parts):
      message += ". An ending begins at the first dot of a name: rename them to NAME.jpg, NAME.txt"
    else:
      message += f"; {SORT}"
    return RecordError("image_missing", "image", message)

  def __getstate__(self) -> dict:
    return {**self.__dict__, "file": None}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)


def scan(path: str, offset: int = 0) -> Iterator[tuple[int, Sample]]:
  """Yields the offset of each sample of a tar file and the sample, from an offset yielded earlier (0: the start).

  Hidden files and folders, and macOS's `__MACOSX`, are passed over.

  Raises:
    RecordError: the file breaks off or is no tar file (kinds `tar_truncated`, `tar_unreadable`). Every sample that is
      followed by the start of another one, and so is complete, has been yielded before.
    OSError: the file cannot be read.
  """
  with paths.open(path) as file:
    members = _Members(_scan_members(file, offset))
    sample: list[_Member] = []
    while (member := members.peek()) is not None:
      if sample and not _belongs(member, sample, members):
        yield sample[0].start, _make_sample(path, sample, file)
        sample = []
      sample.append(members.take())
    if sample:
      yield sample[0].start, _make_sample(path, sample, file)


@dataclasses.dataclass(frozen=True)
class _Member:
  """A file in a tar file.

  Attributes:
    start: the byte at which its headers begin.
    stem: its path, to the first dot of its last part.
    middle: what is between the first and the last dot, if the ending behind is known.
    suffix: all behind the first dot.
    offset, size: the place of its bytes.
    fault: why these are not its bytes; empty where they are.
  """

  start: int
  stem: str
  middle: str
  suffix: str
  offset: int
  size: int
  fault: str

  @property
  def last(self) -> str:
    return self.suffix.rpartition(".")[2]


def _belongs(member: _Member, sample: list[_Member], members: "_Members") -> bool:
  """Whether the next member is a part of the sample before it.

  The answer depends only on the sample's members and on those that follow, so that reading can start at any sample.
  """
  if member.stem != sample[0].stem:
    return False
  if member.middle == sample[-1].middle or not member.middle or not all(one.middle for one in sample):
    return True
  # Both have several dots. `IMG.001.jpg`, `IMG.002.jpg` are two samples; `0.input.jpg`, `0.outputs.txt` are one.
  following = [ahead for ahead in members.ahead() if ahead.stem == member.stem]
  if not all(one.middle for one in following):
    return True
  if (
    any(one.middle == member.middle for one in following) or [one.middle for one in sample].count(sample[-1].middle) > 1
  ):
    return False  # a name that several files share
  return member.last not in {one.last for one in sample}


def _make_sample(path: str, members: list[_Member], file: IO) -> Sample:
  dotted = members[0].middle and all(one.middle == members[0].middle for one in members)
  key = f"{members[0].stem}.{members[0].middle}" if dotted else members[0].stem
  parts, faults = {}, []
  for member in members:
    suffix = member.last if dotted else member.suffix
    if member.fault:
      faults.append(RecordError(member.fault, f"{key}.{suffix}", _FAULTS[member.fault]))
      continue
    if suffix in parts:
      faults.append(RecordError("tar_member_twice", f"{key}.{suffix}", "comes twice; the later file is taken"))
    parts[suffix] = member.offset, member.size
  key = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
  return Sample(path, key, parts, tuple(faults), file)


class _Members:
  """The members of a tar file, with a look at those that follow; an error comes in its turn."""

  def __init__(self, source: Iterator[_Member]):
    self._source, self._ready = source, collections.deque[_Member]()
    self._error: RecordError | None = None

  def _fill(self, count: int) -> None:
    while len(self._ready) < count and self._error is None:
      try:
        self._ready.append(next(self._source))
      except StopIteration:
        return
      except RecordError as error:
        self._error = error

  def peek(self) -> _Member | None:
    self._fill(1)
    if not self._ready and self._error:
      raise self._error
    return self._ready[0] if self._ready else None

  def take(self) -> _Member:
    return self._ready.popleft()

  def ahead(self) -> Iterator[_Member]:
    """Yields up to `_AHEAD` members behind the next one."""
    for index in range(1, _AHEAD):
      self._fill(index + 1)
      if index >= len(self._ready):
        return
      yield self._ready[index]


_FAULTS = {
  "tar_member_sparse": "is a sparse file, which is not read; unpack it and pack it with tar --hole-detection=raw",
  "tar_member_link": "is a link, which is not followed; pack the file itself with tar --dereference --hard-dereference",
}


def _scan_members(file: IO, place: int) -> Iterator[_Member]:
  end = file.seek(0, 2)
  start, name, headers = place, b"", {}
  while True:
    info, block = _read_header(file, place)
    if info is None:
      return
    data = place + _BLOCK
    if info.type == tarfile.GNUTYPE_SPARSE:
      more = block[482]  # whether the map of the holes goes on in the next block
      while more:
        more = _read_block(file, data)[504]
        data += _BLOCK
    filled = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    extended = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
    extended = extended or info.type == tarfile.SOLARIS_XHDTYPE
    size = _get_size(headers, info.size) if filled and not extended else info.size
    if size < 0:
      raise RecordError("tar_unreadable", f"byte {place}", "a header gives a negative size")
    following = data + (-(-size // _BLOCK) * _BLOCK if filled or extended else 0)
    if extended:
      if size > _MAX_NAME:
        raise RecordError("tar_unreadable", f"byte {place}", f"a name of {size:,} bytes")
      file.seek(data)
      content = file.read(size)
      if info.type == tarfile.GNUTYPE_LONGNAME:
        name = content.partition(b"\0")[0]
      elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        headers |= _parse_headers(content, place)
    else:
      plain = name or info.name.encode("utf-8", "surrogateescape")
      path = headers.get("GNU.sparse.name") or headers.get("path") or plain
      sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in headers)
      link = info.islnk() or info.issym()
      member = _make_member(start, path.decode("utf-8", "surrogateescape"), data, size)
      if member and (info.isreg() or link):
        fault = "tar_member_sparse" if sparse else "tar_member_link" if link else ""
        yield dataclasses.replace(member, fault=fault)
      start, name, headers = following, b"", {}
    if following > end:
      raise RecordError("tar_truncated", f"byte {place}", "breaks off inside this member")
    place = following


def _read_header(file: IO, place: int) -> tuple[tarfile.TarInfo | None, bytes]:
  """Returns a header, and its block; None at the archive's end, a block of zeros."""
  block = _read_block(file, place)
  if block == _ZEROS:
    return None, block
  try:
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"), block
  except Exception as error:  # of tarfile's own types, and what odd numbers raise
    message = f"is no header of a member ({error}); a plain tar file is needed, not a packed one"
    raise RecordError("tar_unreadable", f"byte {place}", message) from error


def _read_block(file: IO, place: int) -> bytes:
  file.seek(place)
  block = file.read(_BLOCK)
  if len(block) < _BLOCK:
    message = "the file ends without a tar file's end: was its writer stopped?"
    raise RecordError("tar_truncated", f"byte {place}", message)
  return block


def _parse_headers(content: bytes, place: int) -> dict[str, bytes]:
  """Parses a POSIX header: lines of `LENGTH NAME=VALUE`."""
  headers, at = {}, 0
  while at < len(content) and content[at]:
    length, space, _ = content[at : at + 20].partition(b" ")
    line = content[at : at + int(length)] if space and length.isdigit() else b""
    key, equals, value = line[len(length) + 1 : -1].partition(b"=")
    if not equals or len(line) != int(length) or not line.endswith(b"\n"):
      raise RecordError("tar_unreadable", f"byte {place}", "a header of names is damaged")
    headers[key.decode("utf-8", "replace")] = value
    at += len(line)
  return headers


def _get_size(headers: dict[str, bytes], size: int) -> int:
  given = headers.get("size", b"")
  return int(given) if given.isdigit() and len(given) < 20 else size


def _make_member(start: int, path: str, offset: int, size: int) -> _Member | None:
  """Takes a name apart; None for hidden files and names without an ending."""
  folder, name = posixpath.split(path)
  stem, _, suffix = name.partition(".")
  if not stem or not suffix:
    return None
  hidden = ((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in folder.split("/"))
  if any(hidden):
    return None
  suffix = suffix.lower()
  middle, _, last = name.partition(".")[2].rpartition(".")
  middle = middle if last.lower() in _KNOWN else ""
  return _Member(start, posixpath.normpath(posixpath.join(folder, stem)), middle, suffix, offset, size, "")
