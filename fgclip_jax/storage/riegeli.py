"""The format of ArrayRecord files, as far as reading single records of them takes.

An ArrayRecord file is a Riegeli file (its format: github.com/google/riegeli, doc/riegeli_records_file_format.md): a
signature, then chunks, each a header and data that is compressed by itself. Random access needs files written with
`group_size:1`, where every record has a chunk of its own. At the end stand an index of the chunks, and in the last
64 KiB where that index begins (see github.com/google/array_record, cpp/layout.proto).

Every 64 KiB of the file begin with a block header, also in the middle of a chunk. A position in the file counts these
headers; a position in the content does not.
"""

import dataclasses
import threading
from collections.abc import Iterator

import zstandard

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
SIGNATURE, RECORDS = b"s", b"r"  # kinds of chunks
_CONTENT = BLOCK - BLOCK_HEADER  # of a block
_MAGIC = 0x71930E704FDAE05E
_NONE, _ZSTD = b"\x00", b"z"
_thread = threading.local()  # making a decompressor takes longer than using it, and threads cannot share one


class FormatError(ValueError):
  """Bytes that are not what the format says, or that are compressed in a way that is not read here."""


@dataclasses.dataclass(frozen=True)
class Header:
  """A chunk's header: the bytes of its data, its kind, its records, and the sum of their bytes when decoded."""

  length: int
  kind: bytes
  records: int
  decoded: int


def to_content(position: int) -> int:
  """The position in the content of a position in the file; one in a block header is the content's after it."""
  blocks, rest = divmod(position, BLOCK)
  return blocks * _CONTENT + max(rest - BLOCK_HEADER, 0)


def to_file(position: int) -> int:
  """The position in the file of a position in the content."""
  blocks, rest = divmod(position, _CONTENT)
  return blocks * BLOCK + BLOCK_HEADER + rest


def strip(data: bytes, start: int) -> bytes:
  """The content of a file's bytes from position `start` on."""
  if start % BLOCK >= BLOCK_HEADER and start % BLOCK + len(data) <= BLOCK:
    return data
  parts, at = [], 0
  while at < len(data):
    within = (start + at) % BLOCK
    end = at + BLOCK - within
    parts.append(data[at + max(BLOCK_HEADER - within, 0) : end])
    at = end
  return b"".join(parts)


def parse_header(content: bytes) -> Header:
  """The header that a chunk's content begins with."""
  if len(content) < CHUNK_HEADER:
    raise FormatError("a chunk is cut off in its header")
  number = int.from_bytes
  return Header(
    length=number(content[8:16], "little"),
    kind=content[24:25],
    records=number(content[25:32], "little"),
    decoded=number(content[32:40], "little"),
  )


def decode_chunk(content: bytes) -> list[bytes]:
  """The records of a chunk, of which `content` is its header and data; more after it is ignored.

  Raises:
    FormatError: its bytes are damaged, or compressed in a way that is not read here.
  """
  header = parse_header(content)
  if header.kind != RECORDS:
    raise FormatError(f"a chunk of records should stand here, not one of kind {header.kind!r}")
  data = content[CHUNK_HEADER : CHUNK_HEADER + header.length]
  if len(data) < header.length:
    raise FormatError(f"its data has {len(data)} bytes, its header says {header.length}")
  compression, at = data[:1], 1
  length, at = _varint(data, at)
  sizes = _decompress(compression, data[at : at + length])
  values = _decompress(compression, data[at + length :])
  records, at, begin = [], 0, 0
  for _ in range(header.records):
    size, at = _varint(sizes, at)
    records.append(values[begin : begin + size])
    begin += size
  if begin != len(values) or len(values) != header.decoded:
    raise FormatError(f"it has {len(values)} bytes, its sizes say {begin}, its header says {header.decoded}")
  return records


def decode_record(content: bytes) -> bytes:
  """The one record of a chunk, see `decode_chunk`."""
  records = decode_chunk(content)
  if len(records) != 1:
    raise FormatError(f"it holds {len(records)} records; only files written with group_size:1 can be read")
  return records[0]


def parse_postscript(block: bytes) -> int:
  """Where the index of an ArrayRecord file begins, from the file's last 64 KiB.

  Raises:
    FormatError: they are not the end of an ArrayRecord file.
  """
  if len(block) != BLOCK:
    raise FormatError("it is shorter than any ArrayRecord file")
  values = dict(_fields(decode_chunk(block[BLOCK_HEADER:])[0]))
  if values.get(2) != _MAGIC or not isinstance(values.get(1), int):
    raise FormatError("its last 64 KiB are not the end of an ArrayRecord file")
  return values[1]


def parse_index(content: bytes) -> list[int]:
  """Where in the file each record's chunk begins.

  Raises:
    FormatError: the index is damaged, or of a file whose chunks hold several records.
  """
  _, *entries = decode_chunk(content)  # the first tells the format's version and counts
  starts = []
  for entry in entries:
    values = dict(_fields(entry))
    if values.get(3) != 1:
      raise FormatError(f"its chunks hold {values.get(3)} records; only files written with group_size:1 can be read")
    starts.append(values[1])
  return starts


def _decompress(compression: bytes, data: bytes) -> bytes:
  if compression == _NONE:
    return data
  if compression != _ZSTD:
    raise FormatError(f"it is compressed with {compression!r}; only zstd and none are read here")
  if not hasattr(_thread, "zstd"):
    _thread.zstd = zstandard.ZstdDecompressor()
  size, at = _varint(data, 0)
  try:
    content = _thread.zstd.decompress(data[at:], max_output_size=size)
  except (zstandard.ZstdError, MemoryError, OverflowError) as error:
    raise FormatError(f"its bytes are damaged: {error}") from error
  if len(content) != size:
    raise FormatError(f"its bytes are damaged: {len(content)} of {size} bytes came out")
  return content


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A number in groups of seven bits, the lowest first, and where it ends."""
  value = 0
  for place, byte in enumerate(data[at : at + 10]):
    value |= (byte & 127) << (7 * place)
    if byte < 128:
      return value, at + place + 1
  raise FormatError("its bytes are damaged: a number does not end")


def _fields(message: bytes) -> Iterator[tuple[int, int]]:
  """The numbered fields of a protocol buffer that holds whole numbers alone."""
  at = 0
  while at < len(message):
    key, at = _varint(message, at)
    if key % 8:
      raise FormatError("its index is damaged: a field is no whole number")
    value, at = _varint(message, at)
    yield key >> 3, value
