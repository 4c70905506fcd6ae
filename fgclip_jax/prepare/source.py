"""Where records come from: what every form of input offers to the writer."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from fgclip_jax.data.annotation_fields import Tell
from fgclip_jax.data.record import Record


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
