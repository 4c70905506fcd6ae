"""Mutations of binary files: archives, tables, pictures and weights, with checksums and lengths made right again."""

import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib

import pyarrow
import pyarrow.parquet
from PIL import Image

from fuzzing.fuzz_text import ESCAPED, NAMES, dump, mutate_bytes, mutate_tree

CELL = 600 << 20  # bytes


def mutate_tar(rng: random.Random, data: bytes) -> bytes:
  """Writes the archive again with hostile members, changes fields of a header, or the bytes."""
  if rng.random() < 0.3:
    return mutate_bytes(rng, data)
  if rng.random() < 0.4:
    return _mutate_tar_header(rng, data)
  out = io.BytesIO()
  form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
  with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w", format=form) as new:
    members = old.getmembers()
    chosen = rng.randrange(len(members))
    for number, member in enumerate(members):
      content = old.extractfile(member)
      body = content.read() if content else b""
      if number == chosen:
        kind = rng.randrange(5)
        if kind == 0:
          stem, dot, ending = member.name.partition(".")
          member.name = (
            rng.choice((*NAMES, f"../../{ESCAPED}", f"{stem}.b{dot}{ending}", f"{stem}{dot}", ending)) or "x"
          )
        elif kind == 1:
          types = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
          member.type, member.linkname = (
            rng.choice(types),
            rng.choice(("/etc/passwd", "/dev/zero", "../x", member.name)),
          )
        elif kind == 2:
          body = mutate_bytes(rng, body)
        elif kind == 3:
          _add(new, member, body)
        else:
          member.pax_headers = {
            rng.choice(("path", "size", "GNU.sparse.map", "linkpath")): rng.choice(("9" * 30, "1,2,3", "../x", "\0"))
          }
      _add(new, member, body)
  return out.getvalue()


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, body: bytes) -> None:
  member.size = len(body) if member.isreg() else 0
  try:
    archive.addfile(member, io.BytesIO(body))
  except (ValueError, UnicodeError):
    pass  # a name that the format cannot hold


def _mutate_tar_header(rng: random.Random, data: bytes) -> bytes:
  """Overwrites a field of a header, with the checksum made right."""
  changed = bytearray(data)
  headers = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
  if not headers:
    return mutate_bytes(rng, data)
  place = rng.choice(headers)
  begin, length = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
  value = rng.choice(
    (b"\xff" * length, b"7" * length, b"\x80" + b"\x7f" * length, b"S", b"L", b"x", b"\x1b[2J", bytes(8))
  )
  changed[place + begin : place + begin + length] = value[:length].ljust(length, b"\0")
  changed[place + 148 : place + 156] = b" " * 8
  changed[place + 148 : place + 156] = b"%06o\0 " % sum(changed[place : place + 512])
  return bytes(changed)


def mutate_parquet(rng: random.Random, data: bytes) -> bytes:
  """Changes the types and names of columns, or bytes of pages and of the footer."""
  if rng.random() < 0.6:
    footer = struct.unpack("<I", data[-8:-4])[0] + 8
    if rng.random() < 0.5:
      return mutate_bytes(rng, data[:-footer]) + data[-footer:]
    return data[:-footer] + mutate_bytes(rng, data[-footer:])
  table = pyarrow.parquet.read_table(io.BytesIO(data))
  name = rng.choice(table.column_names)
  place, rows = table.column_names.index(name), table.num_rows
  columns = (
    [None] * rows,
    list(range(rows)),
    [["a", "b"]] * rows,
    [{"bytes": b"x"}] * rows,
    [b"\xff\0"] * rows,
    ["\x1b"] * rows,
    [1.5] * rows,
    [True] * rows,
  )
  kind = rng.randrange(4)
  if rng.random() < 0.03:  # one cell of a few kB that unpacks to more than any picture may have
    cells = [bytes(CELL) if number == 1 else cell.as_py() for number, cell in enumerate(table.column("jpg"))]
    table = table.set_column(table.column_names.index("jpg"), "jpg", pyarrow.array(cells, pyarrow.large_binary()))
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression="zstd", use_dictionary=False, write_statistics=False)
    return out.getvalue()
  if kind == 0:
    table = table.remove_column(place)
  elif kind == 1:
    table = table.rename_columns([rng.choice(NAMES[:6]) if each == name else each for each in table.column_names])
  elif kind == 2:
    table = table.append_column(name, table.column(name))
  else:
    table = table.set_column(place, name, pyarrow.array(rng.choice(columns)))
  out = io.BytesIO()
  pyarrow.parquet.write_table(table, out)
  return out.getvalue()


def mutate_picture(rng: random.Random, data: bytes) -> bytes:
  """Changes bytes, the size that the header tells, or the format."""
  kind = rng.randrange(4)
  if kind == 0 and data[:4] == b"\x89PNG":
    sizes = [rng.choice((0, 1, 2, 20, 80_000_000, 2**31 - 1)) for _ in range(2)]
    header = b"IHDR" + struct.pack(">II", *sizes) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
  if kind == 1:
    form, mode = rng.choice(
      (
        ("GIF", "P"),
        ("TIFF", "F"),
        ("TIFF", "I;16"),
        ("PNG", "LA"),
        ("PNG", "1"),
        ("JPEG", "CMYK"),
        ("BMP", "RGB"),
        ("ICO", "RGBA"),
        ("PPM", "RGB"),
      )
    )
    out = io.BytesIO()
    Image.new(mode, rng.choice(((1, 1), (20, 20), (1, 200), (300, 7)))).save(out, form)
    return out.getvalue()
  return mutate_bytes(rng, data)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
  """Changes the header's tree with its length made right, the length, or the bytes."""
  length = struct.unpack("<Q", data[:8])[0]
  kind = rng.randrange(4)
  if kind == 0:
    return struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, len(data), 2**40, 2**63))) + data[8:]
  if kind == 1:
    return mutate_bytes(rng, data[: 8 + length]) + data[8 + length :]
  if kind == 2:
    return mutate_bytes(rng, data)
  header = dump(mutate_tree(rng, json.loads(data[8 : 8 + length])), rng).encode(errors="surrogatepass")
  return struct.pack("<Q", len(header)) + header + data[8 + length :]


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
  """Changes bytes or numbers, or puts in calls of functions that write a file."""
  if rng.random() < 0.25:
    call = b"cos\nsystem\n(S'touch ../" + ESCAPED.encode() + b"'\ntR0"
    place = rng.choice((2, 2, rng.randrange(2, len(data))))
    return data[:place] + call + data[place:]
  if rng.random() < 0.3:
    names = re.findall(rb"[A-Za-z_.]{4,}", data)
    name = rng.choice(names)
    return data.replace(name, rng.choice((b"x" * len(name), name[::-1], rng.choice(names))), rng.choice((1, -1)))
  return mutate_bytes(rng, data)


def mutate_torch(rng: random.Random, data: bytes) -> bytes:
  """Changes an entry of the archive and writes it again, or the bytes of the file."""
  if data[:2] != b"PK":
    return mutate_pickle(rng, data)
  if rng.random() < 0.4:
    return mutate_bytes(rng, data)
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
    entries = [(info.filename, old.read(info)) for info in old.infolist()]
    chosen = (
      rng.randrange(len(entries)) if rng.random() < 0.5 else [n.endswith("data.pkl") for n, _ in entries].index(True)
    )
    kind = rng.randrange(6)
    for number, (name, body) in enumerate(entries):
      if number == chosen and kind == 0:
        continue
      if number == chosen and kind == 1:
        name = rng.choice((f"../{ESCAPED}", f"{name}x", name.replace("/", "/../"), "\x1b[2J"))
      elif number == chosen:
        body = (mutate_pickle if name.endswith("data.pkl") else mutate_bytes)(rng, body)
      compression = zipfile.ZIP_DEFLATED if kind == 5 else zipfile.ZIP_STORED
      new.writestr(zipfile.ZipInfo(name), body, compression)
  return out.getvalue()
