"""Reads the complete records of an ArrayRecord file that cannot be opened: it was cut off, or its index is damaged.

Records follow each other, each in a chunk of its own if the file was written with `group_size:1`, which random access
needs; so they can be found from the front, without the index.
"""

from fgclip_jax.storage import paths, riegeli
from fgclip_jax.storage.remote_shard import repeat
from fgclip_jax.storage.riegeli import CHUNK_HEADER, RECORDS, SIGNATURE


class DamagedShard:
  """The records of a damaged file up to the damage, by number.

  Chunks of more than one record are not read: in a file written with `group_size:1`, such a chunk is the index.

  Attributes:
    largest: the bytes of the largest record when decoded, as the headers say, which any reader makes room for.
  """

  def __init__(self, path: str):
    self.path, self.largest = path, 0
    self._places: list[tuple[int, int]] = []  # begin and end of each record's chunk, as positions in the content
    repeat(self._scan, path)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> bytes:
    """Returns a record.

    Raises:
      ValueError: its bytes are damaged, or compressed in a way that is not read here.
      OSError: it cannot be read.
    """
    start, stop = self._places[index]
    first = riegeli.to_file(start)
    data = repeat(paths.read, self.path, first, riegeli.to_file(stop) - first)
    return riegeli.decode_record(riegeli.strip(data, first))

  def _scan(self, path: str) -> None:
    self._places.clear()
    size, at = riegeli.to_content(paths.size(path)), 0
    with paths.open(path) as file:
      while at + CHUNK_HEADER <= size:
        header = riegeli.parse_header(_read(file, at, CHUNK_HEADER))
        stop = at + CHUNK_HEADER + header.length
        if header.kind not in (SIGNATURE, RECORDS) or (header.kind == RECORDS and header.records != 1) or stop > size:
          return  # the index, padding, damage, or a record that is cut off
        if header.kind == RECORDS:
          self._places.append((at, stop))
          self.largest = max(self.largest, header.decoded)
        at = stop


def _read(file, start: int, length: int) -> bytes:
  """Reads `length` bytes of content from a position in the content."""
  first, last = riegeli.to_file(start), riegeli.to_file(start + length)
  file.seek(first)
  return riegeli.strip(file.read(last - first), first)[:length]
