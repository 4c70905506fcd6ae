"""Reads tar files of samples, as img2dataset and webdataset write them: a sample is a row of files with one name.

```
000690825.jpg  000690825.json  000690825.txt  000690826.jpg  ...
```
"""

import dataclasses
import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif")
_BLOCK = tarfile.BLOCKSIZE


@dataclasses.dataclass(frozen=True)
class Sample:
  """The files of one name.

  Attributes:
    path: the tar file.
    key: the name, up to the first dot of its last part.
    parts: the place in the tar file of each ending in lower case: (offset, size) in bytes.
    file: the open tar file in which the sample was found, used while it stays open.
  """

  path: str
  key: str
  parts: dict[str, tuple[int, int]]
  file: IO | None = dataclasses.field(default=None, repr=False, compare=False)

  def read(self, suffix: str) -> bytes:
    """Returns the bytes of the sample's file with an ending."""
    offset, size = self.parts[suffix]
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

  def __getstate__(self) -> dict:
    return {"path": self.path, "key": self.key, "parts": self.parts, "file": None}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)


def scan(path: str, offset: int = 0) -> Iterator[tuple[int, Sample]]:
  """Yields the offset of each sample of a tar file and the sample, from an offset yielded earlier (0: the start).

  Raises:
    RecordError: the file breaks off or is no tar file (kinds `tar_truncated`, `tar_unreadable`). Every sample that is
      followed by the start of another one, and so is complete, has been yielded before.
    OSError: the file cannot be read.
  """
  with paths.open(path) as file:
    start, key, parts = offset, "", {}
    for member in _scan_members(file, offset):
      stem, _, suffix = posixpath.basename(member.name).partition(".")
      if not member.isreg() or not stem or not suffix:  # folders, hidden files
        continue
      name = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), stem))
      if name != key:
        if parts:
          yield start, Sample(path, key, parts, file)
        start, key, parts = member.offset, name, {}
      parts[suffix.lower()] = (member.offset_data, member.size)
    if parts:
      yield start, Sample(path, key, parts, file)


def _scan_members(file: IO, offset: int) -> Iterator[tarfile.TarInfo]:
  file.seek(offset)
  place = offset
  try:
    with tarfile.open(fileobj=file, mode="r:", errors="replace") as archive:
      while (member := archive.next()) is not None:
        # tarfile keeps all members, which would grow with the file
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        place = member.offset
        yield member
      place = archive.offset
  except tarfile.ReadError as error:
    truncated = any(sign in str(error) for sign in ("unexpected end", "empty file", "truncated"))
    kind = "tar_truncated" if truncated else "tar_unreadable"
    raise RecordError(kind, f"byte {place}", f"breaks off or is no plain tar file ({error})") from error
  _check_end(file, place)


def _check_end(file: IO, end: int) -> None:
  """Raises `RecordError` unless the archive ends with a block of zeros: tarfile stops silently at other bytes, too."""
  file.seek(end)
  block = file.read(_BLOCK)
  if block == bytes(_BLOCK):
    return
  if len(block) < _BLOCK:
    raise RecordError("tar_truncated", f"byte {end}", "the file ends without a tar file's end: was its writer stopped?")
  raise RecordError("tar_unreadable", f"byte {end}", "is no header of a member")
