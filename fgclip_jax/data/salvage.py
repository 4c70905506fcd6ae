"""Reads the whole records of an ArrayRecord file that cannot be opened, because it was cut off or its index is damaged.

An ArrayRecord file is a Riegeli file (for its format see github.com/google/riegeli, doc/riegeli_records_file_format.md)
with an index at its end. Its records stand one after another, each in a chunk of its own where it was written with
`group_size:1`, as random access needs; so they can be found from the front, without the index.
"""

import dataclasses
import os

import zstandard

_BLOCK, _BLOCK_HEADER = 1 << 16, 24  # every 64 KiB of the file begin with a header, also in the middle of a chunk
_CHUNK_HEADER = 40
_NONE, _ZSTD = b"\x00", b"z"


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """Where a record's chunk stands, counted without block headers, and its length; and that of its decoded content."""

  start: int
  length: int
  decoded: int


class DamagedShard:
  """The records of a damaged file up to the damage, by number.

  Chunks that hold more than one record are not read: where a file was written with `group_size:1`, they are the index.
  """

  def __init__(self, path: str):
    self.path = path
    self._content = _without_headers(os.path.getsize(path))
    self._chunks: list[_Chunk] = []
    with open(path, "rb") as file:
      self._scan(file)

  def __len__(self) -> int:
    return len(self._chunks)

  def __getitem__(self, index: int) -> bytes:
    """A record.

    Raises:
      ValueError: its bytes are damaged, or compressed in a way that is not read here.
    """
    chunk = self._chunks[index]
    with open(self.path, "rb") as file:
      return _decode(_read(file, chunk.start, chunk.length), chunk.decoded)

  def _scan(self, file) -> None:
    at = 0
    while at + _CHUNK_HEADER <= self._content:
      header = _read(file, at, _CHUNK_HEADER)
      length, kind = int.from_bytes(header[8:16], "little"), header[24:25]
      records, decoded = int.from_bytes(header[25:32], "little"), int.from_bytes(header[32:40], "little")
      start = at + _CHUNK_HEADER
      if kind not in (b"s", b"r") or (kind == b"r" and records != 1) or start + length > self._content:
        return  # the index, padding, damage, or a record that is cut off
      if kind == b"r":
        self._chunks.append(_Chunk(start, length, decoded))
      at = start + length


def _without_headers(size: int) -> int:
  """How much of so many bytes of a file is content."""
  blocks, rest = divmod(size, _BLOCK)
  return blocks * (_BLOCK - _BLOCK_HEADER) + max(rest - _BLOCK_HEADER, 0)


def _read(file, start: int, length: int) -> bytes:
  """Content bytes, counted without block headers."""
  parts = []
  while length > 0:
    block, offset = divmod(start, _BLOCK - _BLOCK_HEADER)
    take = min(length, _BLOCK - _BLOCK_HEADER - offset)
    file.seek(block * _BLOCK + _BLOCK_HEADER + offset)
    parts.append(file.read(take))
    start, length = start + take, length - take
  return b"".join(parts)


def _decode(data: bytes, decoded: int) -> bytes:
  """The one record of a chunk: compression, the length of the length, the length, the record."""
  compression, rest = data[:1], data[1:]
  sizes, rest = _varint(rest)
  sizes, values = rest[:sizes], rest[sizes:]
  if compression == _ZSTD:
    values = _varint(values)[1]
    try:
      values = zstandard.ZstdDecompressor().decompress(values, max_output_size=decoded)
    except zstandard.ZstdError as error:
      raise ValueError(f"its bytes are damaged: {error}") from error
  elif compression != _NONE:
    raise ValueError(f"it is compressed with {compression!r}; only zstd and none are read from a damaged file")
  if len(values) != decoded:
    raise ValueError(f"it has {len(values)} bytes, its header says {decoded}")
  return values


def _varint(data: bytes) -> tuple[int, bytes]:
  """A number in groups of seven bits, the lowest first, and what follows it."""
  value = 0
  for place, byte in enumerate(data[:10]):
    value |= (byte & 127) << (7 * place)
    if byte < 128:
      return value, data[place + 1 :]
  raise ValueError("its bytes are damaged: a number does not end")
