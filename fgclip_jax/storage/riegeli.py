"""The format of ArrayRecord files, as far as reading single records needs it.

An ArrayRecord file is a Riegeli file (format: github.com/google/riegeli, doc/riegeli_records_file_format.md): a
signature, then chunks. A chunk is a header of 40 bytes and data that is compressed by itself. Random access needs files
written with `group_size:1`, in which every record has a chunk of its own. The file ends with an index of the chunks,
and its last 64 KiB hold the position of that index (github.com/google/array_record, cpp/layout.proto):

    | signature | record | record | ... | index of the chunks | padding | postscript: position of the index |

Every 64 KiB block of the file begins with a block header of 24 bytes, even in the middle of a chunk. A position in the
file counts these headers; a position in the content does not. `to_content`, `to_file` and `strip` convert between them.
"""

import dataclasses
import threading
from collections.abc import Iterator

import zstandard

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40  # bytes
SIGNATURE, RECORDS = b"s", b"r"  # kinds of chunks
_CONTENT = BLOCK - BLOCK_HEADER  # bytes of content in a block
_MAGIC = 0x71930E704FDAE05E  # in the postscript of every ArrayRecord file
MAX_BYTES = 1 << 30  # of the records of a chunk: a thousand bytes could unpack to more than the memory holds
_NONE, _ZSTD = b"\x00", b"z"  # kinds of compression
_thread = threading.local()  # each thread has a decompressor: making one takes longer than using it


class FormatError(ValueError):
  """Bytes break the format, or are compressed in a way that is not read here."""


@dataclasses.dataclass(frozen=True)
class Header:
  """A chunk's header.

  Attributes:
    length: the bytes of its data.
    kind: `SIGNATURE`, `RECORDS` or another.
    records: the number of records in it.
    decoded: the bytes of all its records when decoded.
  """

  length: int
  kind: bytes
  records: int
  decoded: int


def to_content(position: int) -> int:
  """Converts a position in the file to one in the content; within a block header, to that of the content after it."""
  blocks, rest = divmod(position, BLOCK)
  return blocks * _CONTENT + max(rest - BLOCK_HEADER, 0)


def to_file(position: int) -> int:
  """Converts a position in the content to one in the file."""
  blocks, rest = divmod(position, _CONTENT)
  return blocks * BLOCK + BLOCK_HEADER + rest


def strip(data: bytes, start: int) -> bytes:
  """Removes block headers from the bytes of a file that begin at position `start`."""
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
  """Parses the header at the start of a chunk's content."""
  if len(content) < CHUNK_HEADER:
    raise FormatError("a chunk is cut off in its header")
  number = int.from_bytes
  # 0: hash of the header, 8: size of the data, 16: hash of the data, 24: kind, 25: records, 32: size when decoded
  return Header(
    length=number(content[8:16], "little"),
    kind=content[24:25],
    records=number(content[25:32], "little"),
    decoded=number(content[32:40], "little"),
  )


def decode_chunk(content: bytes) -> list[bytes]:
  """Decodes the records of a chunk from its header and data; bytes after these are ignored.

  Raises:
    FormatError: its bytes are damaged, or compressed in a way that is not read here.
  """
  header = parse_header(content)
  if header.kind != RECORDS:
    raise FormatError(f"expected a chunk of records here, got one of kind {header.kind!r}")
  data = content[CHUNK_HEADER : CHUNK_HEADER + header.length]
  if len(data) < header.length:
    raise FormatError(f"its data has {len(data)} bytes, its header says {header.length}")
  # The data: kind of compression, compressed size of the sizes, the sizes of all records, the records' bytes.
  compression, at = data[:1], 1
  length, at = read_varint(data, at)
  sizes = _decompress(compression, data[at : at + length])
  values = _decompress(compression, data[at + length :])
  records, at, begin = [], 0, 0
  for _ in range(header.records):
    size, at = read_varint(sizes, at)
    records.append(values[begin : begin + size])
    begin += size
  if begin != len(values) or len(values) != header.decoded:
    raise FormatError(f"it has {len(values)} bytes, its sizes say {begin}, its header says {header.decoded}")
  return records


def decode_record(content: bytes) -> bytes:
  """Decodes a chunk of one record, see `decode_chunk`."""
  records = decode_chunk(content)
  if len(records) != 1:
    raise FormatError(f"it holds {len(records)} records; only files written with group_size:1 can be read")
  return records[0]


def parse_postscript(block: bytes) -> int:
  """Returns the position of an ArrayRecord file's index from the file's last 64 KiB.

  Raises:
    FormatError: they are not the end of an ArrayRecord file.
  """
  if len(block) != BLOCK:
    raise FormatError("it is shorter than any ArrayRecord file")
  values = dict(_fields(decode_chunk(block[BLOCK_HEADER:])[0]))  # 1: position of the index, 2: magic number
  if values.get(2) != _MAGIC or not isinstance(values.get(1), int):
    raise FormatError("its last 64 KiB are not the end of an ArrayRecord file")
  return values[1]


def parse_index(content: bytes) -> list[int]:
  """Returns the position in the file of each record's chunk.

  Raises:
    FormatError: the index is damaged, or of a file whose chunks hold several records.
  """
  _, *entries = decode_chunk(content)  # the first entry holds the format's version and counts
  starts = []
  for entry in entries:
    values = dict(_fields(entry))  # 1: position of the chunk, 3: records in it
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
  size, at = read_varint(data, 0)
  try:
    # zstd makes room for what a frame says of itself, whatever it is asked for
    if max(size, zstandard.frame_content_size(data[at:])) > MAX_BYTES:
      raise FormatError(f"it unpacks to more than {MAX_BYTES:,} bytes")
    content = _thread.zstd.decompress(data[at:], max_output_size=size)
  except (zstandard.ZstdError, MemoryError, OverflowError) as error:
    raise FormatError(f"its bytes are damaged: {error}") from error
  if len(content) != size:
    raise FormatError(f"its bytes are damaged: {len(content)} of {size} bytes came out")
  return content


def read_varint(data: bytes, at: int) -> tuple[int, int]:
  """Decodes a number in groups of seven bits, the lowest first; returns it and the position after it."""
  value = 0
  for place, byte in enumerate(data[at : at + 10]):
    value |= (byte & 127) << (7 * place)
    if byte < 128:
      return value, at + place + 1
  raise FormatError("its bytes are damaged: a number does not end")


def _fields(message: bytes) -> Iterator[tuple[int, int]]:
  """Yields number and value of each field of a protocol buffer that holds only integers."""
  at = 0
  while at < len(message):
    key, at = read_varint(message, at)
    if key % 8:
      raise FormatError("its index is damaged: a field is no whole number")
    value, at = read_varint(message, at)
    yield key >> 3, value
