"""Joins annotations of several files into JSON lines, one for each image, in the form that `pairs` reads.

What is left out, such as a box of a crowd or an annotation at fault, is written into the image's line under `found` and
reported when the line is read: so it is counted with the rest, and this step needs no report of its own. A fault of no
known image has a line of its own. The lines are on disk, and their parts in sqlite; neither has to fit in memory.

Images have numbers or texts as ids. A text of digits is the same id as the number, for some files mix the two.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import posixpath
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import Record
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, pairs
from fgclip_jax.storage import atomic, locks, paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report, Scope, printable

FOUND = "found"  # the field of what was left out: a list of [scope, kind, field, message]
FAULT = "fault"  # the only field of a line for what cannot be used, and belongs to no image: [kind, field, message]
NOT_LISTED = "not_listed"  # the only field of a line for an image that has annotations but is not listed
_LINES = "annotations.jsonl"
_MADE = cli.JOINED


@dataclasses.dataclass(frozen=True)
class Joined:
  """The source: `files` of lines that `make` wrote, and the folder of their images."""

  form: str
  files: tuple[str, ...]
  images: image_store.Folder

  def arguments(self) -> dict[str, Any]:
    return self.images.arguments()

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, streams.Raw]]:
    return streams.scan(file, offset)

  def load(self, raw: streams.Raw, report: Report) -> Record:
    line = annotation_fields.get_mapping(streams.load(raw), "record")
    if NOT_LISTED in line:
      message = f"annotations of image {line[NOT_LISTED]!r}, which is not among the images that the files list"
      raise RecordError("image_not_listed", "image", message)
    if FAULT in line:
      raise RecordError(*line[FAULT])
    found = line.pop(FOUND, ())
    record, names = pairs.parse(line, report)
    for scope, *error in found:
      report(scope, RecordError(*error))
    return dataclasses.replace(record, image=self.images.read(names))


def make(
  state: str,
  form: str,
  join: Callable[[Sequence[str]], Iterator[dict]],
  files: Sequence[str],
  folder: image_store.Folder,
) -> Joined:
  """Writes the lines of a join, unless they were already made from the same files.

  Args:
    state: the folder where they are kept.
    form: the form's name.
    join: a function from the files to the lines.
    files: the annotation files.
    folder: the images.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is broken or lacks expected fields.
  """
  for file in files:
    if not paths.exists(file):
      raise FileNotFoundError(f"no annotation file at {file!r}")
  made_of = {"form": form, "files": [[paths.absolute(file), paths.fingerprint(file)] for file in files]}
  digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
  lines, made = paths.join(state, _LINES), paths.join(state, _MADE)
  paths.make_folder(state)
  with locks.hold(f"{state}.lock", f"writing {lines}"):
    if not _is_whole(lines, made, digest):
      paths.remove(made)
      with atomic.named(lines), paths.open(lines, "wb") as output:
        for line in tqdm.tqdm(join(files), desc="joining annotations", unit=" images"):
          output.write(json.dumps(line).encode() + b"\n")
      paths.write(made, json.dumps({"digest": digest, "bytes": paths.size(lines), **made_of}).encode())
  return Joined(form, (lines,), folder)


def _is_whole(lines: str, made: str, digest: str) -> bool:
  """Whether the lines are there, whole, and made from the same files."""
  try:
    found = json.loads(paths.read(made))
    size = paths.size(lines)
    return found["digest"] == digest and found.get("bytes", size) == size
  except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
    return False


@contextlib.contextmanager
def database(*tables: str) -> Iterator[sqlite3.Connection]:
  """Opens a temporary database on disk with these tables, each given as SQL's `name (columns)`."""
  with atomic.scratch() as scratch:
    with contextlib.closing(sqlite3.connect(f"{scratch}/join.sqlite", isolation_level=None)) as connection:
      connection.execute("PRAGMA journal_mode = OFF")
      connection.execute("PRAGMA synchronous = OFF")
      connection.execute("BEGIN")
      for table in (*tables, "faults (image, scope TEXT, kind TEXT, field TEXT, message TEXT)"):
        connection.execute(f"CREATE TABLE {table}")
      yield connection


def read_lists(file: str, names: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
  """Yields the entries of the lists `names` in a JSON file: the list's name, the entry's place for messages, the entry.

  Raises:
    ValueError: as `streams.read_entries`.
  """
  numbers = dict.fromkeys(names, 0)
  for name, entry in streams.read_entries(file, names):
    yield name, f"{posixpath.basename(file)} {name or 'entry '}[{numbers[name]}]", entry
    numbers[name] += 1


@contextlib.contextmanager
def counted(database: sqlite3.Connection, image: object = None, scope: Scope = "annotation") -> Iterator[None]:
  """Stores a `RecordError` of the block as a fault of an image, which may be unknown, and goes on."""
  try:
    yield
  except RecordError as error:
    try:
      known = get_id({"id": image}, "id")
    except RecordError:
      known = None
    texts = (scope, error.kind, printable(error.field), printable(error.message))
    database.execute("INSERT INTO faults VALUES (?, ?, ?, ?, ?)", (known, *texts))


def index_by_image(database: sqlite3.Connection, *tables: str) -> None:
  """Makes rows of the tables, and faults, quick to find by image."""
  for table in tables:
    database.execute(f"CREATE INDEX {table}_of_images ON {table} (image, place)")
  database.execute("CREATE INDEX faults_of_images ON faults (image)")


def get_faults(database: sqlite3.Connection, image: int | str) -> list[list[str]]:
  """Returns the faults of an image as `FOUND` has them."""
  query = "SELECT scope, kind, field, message FROM faults WHERE image = ? ORDER BY rowid"
  return [list(row) for row in database.execute(query, (image,))]


def get_id(entry: dict, key: str, field: str = "") -> int | str:
  """Returns the id of an image or a class: a number of at most 64 bits, or any other as text.

  Raises:
    RecordError: kinds `<key>_missing`, `<key>_wrong_type`, `<key>_empty`, `<key>_not_unicode`.
  """
  value, name = entry.get(key), ".".join(filter(None, (field, key)))
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, int) and not isinstance(value, bool):
    return value if -(1 << 63) <= value < 1 << 63 else str(value)
  text = annotation_fields.get_text({key: value} if key in entry else {}, key, name, ignore)
  number = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
  return text if number is None or str(number) != text else number


def get_sides(values: object, field: str) -> list[float]:
  """Returns the four numbers of a box; NaN and infinite ones are refused where the box is read.

  Raises:
    RecordError: kind `box_not_four_numbers`.
  """
  if isinstance(values, list) and len(values) == 4 and not any(isinstance(value, bool) for value in values):
    with contextlib.suppress(TypeError, ValueError, OverflowError):
      return [float(value) for value in values]
  raise RecordError("box_not_four_numbers", field, f"needs left, top, width, height, got {values!r:.80}")


def get_image_size(entry: dict) -> tuple[float | None, float | None]:
  """Returns an image's width and height in pixels, which only boxes need; None if there are none."""
  try:
    return streams.get_size(entry)
  except (KeyError, TypeError, ValueError, OverflowError):
    return None, None


def add_image(database: sqlite3.Connection, identity: int | str, name: str, size: tuple) -> None:
  """Adds an image, unless it is known from another file.

  Raises:
    RecordError: kind `image_id_twice`: another image has the id; that one stays.
  """
  database.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", (identity, name, *size))
  (known,) = database.execute("SELECT name FROM images WHERE id = ?", (identity,)).fetchone()
  if known != name:
    raise RecordError("image_id_twice", "id", f"{identity!r} is that of {known!r} and of {name!r}, which is left out")
  if size[0] is not None:
    query = "UPDATE images SET width = ?, height = ? WHERE id = ? AND width IS NULL"
    database.execute(query, (*size, identity))


def ignore(scope: Scope, error: RecordError) -> None:
  """Drops notes, which are reported when a record uses the text."""


def captions(texts: Sequence[str]) -> dict[str, Any]:
  """The fields of a line for an image's captions, of which there may be none."""
  return {"short": texts[0] if texts else None, **({"captions": [*texts]} if len(texts) > 1 else {})}


def find_unlisted(database: sqlite3.Connection, *tables: str) -> Iterator[dict]:
  """Yields a line for each image that has rows in one of the tables, but none in the table of images.

  Faults of no image that is listed have a line each.
  """
  query = "SELECT kind, field, message FROM faults WHERE image IS NULL OR image NOT IN (SELECT id FROM images)"
  yield from ({FAULT: list(fault)} for fault in database.execute(f"{query} ORDER BY rowid"))
  unlisted = " UNION ".join(f"SELECT image FROM {table} WHERE image NOT IN (SELECT id FROM images)" for table in tables)
  yield from ({NOT_LISTED: image} for (image,) in database.execute(f"{unlisted} ORDER BY image"))


def make_box(box: Sequence[float | None], size: tuple[float | None, float | None]) -> list[float]:
  """Converts a box in pixels (left, top, width, height) to x1, y1, x2, y2 as fractions of the image's `size`.

  sqlite stores NaN as None; it becomes NaN again, and the box is refused where it is read.

  Raises:
    RecordError: kind `image_size_missing`.
  """
  left, top, width, height = (math.nan if value is None else value for value in box)
  across, down = size
  if across is None or down is None:
    message = "has no width and height in the annotations, which its boxes need"
    raise RecordError("image_size_missing", "image", message)
  return [left / across, top / down, (left + width) / across, (top + height) / down]
