"""Reads and decodes the records of a split in order; those that cannot be used are counted."""

import dataclasses
from collections.abc import Iterator

from fgclip_jax.data import record, shards
from fgclip_jax.inference.pictures import Image, Reader, SquareReader
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.threads import in_threads


@dataclasses.dataclass(frozen=True)
class Example:
  """A record with its image decoded.

  Attributes:
    number: the record's place in its split.
    pixels: what the model reads: RGB levels, squashed to a square, or the patches of a picture of any shape.
    record: the record.
  """

  number: int
  pixels: Image
  record: record.Record


class Examples:
  """A split of a record folder. Iterating gives its examples in order; each pass reads them again.

  Attributes:
    skips: the records that the last pass left out.
  """

  def __init__(
    self,
    folder: str,
    split: str,
    image_size: int = 224,
    limit: int | None = None,
    reader: Reader | None = None,
  ):
    """Opens a split.

    Args:
      folder: as `python -m fgclip_jax.prepare` writes it, on this machine or in object storage.
      split: e.g. `validation`.
      image_size: the side that images are squashed to.
      limit: the number of records to read, from the first; None for all.
      reader: the model's, see `FGCLIP.reader`; None: squares as CLIP reads them.

    Raises:
      FileNotFoundError, ValueError: there is no such folder or split, a shard is missing, no record can be read, or
        `limit` is below 1.
    """
    if limit is not None and limit < 1:
      raise ValueError(f"limit must be at least 1, got {limit}")
    self.folder, self.split, self._reader = folder, split, reader or SquareReader(image_size)
    self._source = shards.Records(folder, split)
    self._count = min(len(self._source), limit or len(self._source))
    self.skips = SkipReport()

  @property
  def damage(self) -> list[str]:
    """A line for each damaged shard."""
    return self._source.damage

  def __len__(self) -> int:
    """How many records there are, usable or not."""
    return self._count

  def read(self, number: int) -> record.Record:
    """One record as its shard has it; a `RecordError` says why it cannot be used."""
    if not 0 <= number < len(self):
      raise IndexError(f"no record {number} in split {self.split!r} of {self.folder!r}: it has {len(self)}")
    return record.decode(self._source[number])

  def __iter__(self) -> Iterator[Example]:
    self.skips = SkipReport()
    for number, result in enumerate(in_threads(self._try, range(len(self)))):
      if isinstance(result, Example):
        yield result
      else:
        self.skips.add(Skip.of(result, f"record {number} of split {self.split!r}"))

  def _try(self, number: int) -> Example | RecordError:
    try:
      found = self.read(number)
      pixels = self._reader.read(found.image, "image")
    except RecordError as error:
      if isinstance(error.__cause__, OSError) and error.kind == "shard_lost":
        raise OSError(f"{self.folder}, record {number}: {error}") from error  # the network failed, and not the record
      return error
    return Example(number, pixels, dataclasses.replace(found, image=b""))
