"""Annotations that lie in several files, brought together in JSON lines that `pairs` reads: one for each image.

What cannot be taken over (a box of a crowd, say) stands in its line under `found`, and is told when the line is read:
so it is counted with the rest, and this step needs no report of its own. Lines lie in order on disk, and what they are
made of in sqlite; neither is ever held in memory.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import Record
from fgclip_jax.prepare.sources import image_store, pairs
from fgclip_jax.storage import locks, paths, streams
from fgclip_jax.storage.errors import RecordError

FOUND = "found"  # the field of what was left out: [loss, kind, field, message] each
NOT_LISTED = "not_listed"  # the only field of a line for an image that has annotations alone
_LINES = "annotations.jsonl"
_MADE = "annotations.json"


@dataclasses.dataclass(frozen=True)
class Joined:
  """The source: `files` of lines that `make` wrote, and the folder in which their images lie."""

  form: str
  files: tuple[str, ...]
  images: image_store.Folder

  def arguments(self) -> dict[str, Any]:
    return self.images.arguments()

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, streams.Raw]]:
    return streams.scan(file, offset)

  def load(self, raw: streams.Raw, tell: annotation_fields.Tell) -> Record:
    line = streams.load(raw)
    if NOT_LISTED in line:
      message = f"annotations of image {line[NOT_LISTED]!r}, which is not among the images that the files list"
      raise RecordError("image_not_listed", "image", message)
    found = line.pop(FOUND, ())
    record, names = pairs.parse(line, tell)
    for loss, *error in found:
      tell(loss, RecordError(*error))
    return dataclasses.replace(record, image=self.images.read(names))


def make(
  state: str,
  form: str,
  join: Callable[[Sequence[str]], Iterator[dict]],
  files: Sequence[str],
  folder: image_store.Folder,
) -> Joined:
  """Writes the lines of a join, unless they were written of the same files before.

  Args:
    state: where they are kept.
    form: the form's name.
    join: yields them, given the files.
    files: the annotation files.
    folder: of the images.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is broken or is not what it should be.
  """
  for file in files:
    if not paths.exists(file):
      raise FileNotFoundError(f"no annotation file at {file!r}")
  made_of = {"form": form, "files": [[paths.absolute(file), paths.fingerprint(file)] for file in files]}
  digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
  lines, made = paths.join(state, _LINES), paths.join(state, _MADE)
  paths.make_folder(state)
  with locks.hold(f"{state}.lock", f"writing {lines}"):
    if not paths.exists(made) or json.loads(paths.read(made))["digest"] != digest:
      paths.remove(made)
      with paths.open(lines, "wb") as output:
        for line in tqdm.tqdm(join(files), desc="joining annotations", unit=" images"):
          output.write(json.dumps(line).encode() + b"\n")
      paths.write(made, json.dumps({"digest": digest, **made_of}).encode())
  return Joined(form, (lines,), folder)


@contextlib.contextmanager
def database(*tables: str) -> Iterator[sqlite3.Connection]:
  """A temporary database on disk with these tables, each given as SQL's `name (columns)`."""
  with tempfile.TemporaryDirectory() as scratch:
    with contextlib.closing(sqlite3.connect(f"{scratch}/join.sqlite", isolation_level=None)) as connection:
      connection.execute("PRAGMA journal_mode = OFF")
      connection.execute("PRAGMA synchronous = OFF")
      connection.execute("BEGIN")
      for table in tables:
        connection.execute(f"CREATE TABLE {table}")
      yield connection


def find_unlisted(database: sqlite3.Connection, *tables: str) -> Iterator[dict]:
  """Yields a line for each image that has rows in one of the tables, but none in the table of images."""
  unlisted = " UNION ".join(f"SELECT image FROM {table} WHERE image NOT IN (SELECT id FROM images)" for table in tables)
  yield from ({NOT_LISTED: image} for (image,) in database.execute(f"{unlisted} ORDER BY image"))


def make_box(
  left: float | None, top: float | None, width: float | None, height: float | None, size: tuple[float, float]
) -> list[float]:
  """A box in pixels as fractions of the image's width and height: x1, y1, x2, y2.

  None is what sqlite makes of a number that is none; the box is refused where it is read.
  """
  left, top, width, height = (math.nan if value is None else value for value in (left, top, width, height))
  across, down = size
  return [left / across, top / down, (left + width) / across, (top + height) / down]
