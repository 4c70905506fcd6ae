"""The protocol of a source: what every form of input offers to the pipeline.

A source is one file in `prepare/sources/` with a class of this protocol and the command that makes it:

    SHORT = "its line in the list of commands"
    TEXT, EXAMPLE = "the help of the command", "an example of its options"

    def add_options(parser): ...   # `cli.add_conversion(parser, name=...)` adds the options that all sources share
    def run(options): ...          # `cli.convert(options, MySource(...))` writes the data set

The file's name is the command's; nothing else has to be edited. `docs/extending.md` has an example.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from fgclip_jax.data.record import Record
from fgclip_jax.storage.skip_report import Report


@runtime_checkable
class Source(Protocol):
  """A form of input. Implementations are frozen dataclasses, which are pickled for other processes and machines.

  Attributes:
    form: the form's name, e.g. `finehard`; reports keep it.
    files: the files to read, in order; a shard is made of ranges of their records.
  """

  @property
  def form(self) -> str: ...

  @property
  def files(self) -> tuple[str, ...]: ...

  def arguments(self) -> dict[str, Any]:
    """Returns what else decides what is written, as JSON, e.g. the folder of the images.

    A run with other arguments does not continue this one.
    """
    ...

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, Any]]:
    """Yields the offset of each record of a file and the record in raw form, which can be pickled.

    Args:
      file: one of `files`.
      offset: where to start: 0, or an offset yielded earlier. Offsets grow from record to record and do not exceed
        the file's size in bytes, for the progress bar shows them.

    Raises:
      RecordError: the file breaks off or is not what its name says; every record before the break has been yielded.
      OSError: the file cannot be read.
    """
    ...

  def load(self, raw: Any, report: Report) -> Record:
    """Makes a record, with the bytes of its image file, from what `scan` yielded.

    Args:
      raw: what `scan` yielded.
      report: called with everything that is left out of the record or worth a note, and how much that is.

    Raises:
      RecordError: the record cannot be used.
      OSError: a fault of the disk or the network, not of the record.
    """
    ...
