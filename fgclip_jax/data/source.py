"""Where records come from: what every form of input offers to the writer."""

import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from fgclip_jax.data.fields import Tell
from fgclip_jax.data.record import Record, RecordError


@runtime_checkable
class Source(Protocol):
  """A form of input. Implementations are frozen dataclasses, for they are sent to other processes and machines.

  Attributes:
    form: the form's name, e.g. `finehard`; kept in reports.
    files: what is read, in order; a shard is made of ranges of records of these.
  """

  form: str
  files: tuple[str, ...]

  def arguments(self) -> dict[str, Any]:
    """What else decides what is written, as JSON (e.g. the folder of the images); a run with others is another run."""

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, Any]]:
    """Yields the offset of each record of a file and the record in raw form, which can be pickled.

    Args:
      file: one of `files`.
      offset: where to start: 0, or an offset yielded earlier. Offsets grow from record to record and do not exceed
        the file's size, for progress is told by them.

    Raises:
      RecordError: the file breaks off or is not what its name says; every record before the break has been yielded.
      OSError: the file cannot be read.
    """

  def load(self, raw: Any, tell: Tell) -> Record:
    """Makes a record, with its encoded image as it came, of what `scan` yielded.

    Args:
      raw: what `scan` yielded.
      tell: called with everything left out of the record, or merely worth a note.

    Raises:
      RecordError: the record cannot be used.
      OSError: a fault of the disk or the network, not of the record.
    """


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder of image files.

  Raises:
    FileNotFoundError: there is no such folder.
  """

  path: str

  def __post_init__(self):
    if not os.path.isdir(self.path):
      raise FileNotFoundError(f"no images folder at {self.path!r} (--images)")

  def read(self, paths: tuple[str, ...]) -> bytes:
    """Returns the first file found at `paths`, relative to the folder, or raises `RecordError`.

    Kinds: `image_missing`, `image_not_permitted`.
    """
    for path in paths:
      try:
        with open(os.path.join(self.path, path), "rb") as file:
          return file.read()
      except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        continue
      except PermissionError as error:
        raise RecordError("image_not_permitted", "image", f"{path!r} may not be read") from error
      except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
          raise  # a fault of the disk or the network, not of the record
    raise RecordError("image_missing", "image", f"no file {paths[0]!r} under {self.path}")
