"""Joins annotations of several files into JSON lines, one for each image, in the form that `pairs` reads.

What is left out, such as a box of a crowd, is written into the image's line under `found` and reported when the line is
read: so it is counted with the rest, and this step needs no report of its own. The lines are on disk, and their parts
in sqlite; neither has to fit in memory.
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
from fgclip_jax.storage.skip_report import Report

FOUND = "found"  # the field of what was left out: a list of [scope, kind, field, message]
NOT_LISTED = "not_listed"  # the only field of a line for an image that has annotations but is not listed
_LINES = "annotations.jsonl"
_MADE = "annotations.json"


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
    if not paths.exists(made) or json.loads(paths.read(made))["digest"] != digest:
      paths.remove(made)
      with paths.open(lines, "wb") as output:
        for line in tqdm.tqdm(join(files), desc="joining annotations", unit=" images"):
          output.write(json.dumps(line).encode() + b"\n")
      paths.write(made, json.dumps({"digest": digest, **made_of}).encode())
  return Joined(form, (lines,), folder)


@contextlib.contextmanager
def database(*tables: str) -> Iterator[sqlite3.Connection]:
  """Opens a temporary database on disk with these tables, each given as SQL's `name (columns)`."""
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


def make_box(box: Sequence[float | None], size: tuple[float, float]) -> list[float]:
  """Converts a box in pixels (left, top, width, height) to x1, y1, x2, y2 as fractions of the image's `size`.

  sqlite stores NaN as None; it becomes NaN again, and the box is refused where it is read.
  """
  left, top, width, height = (math.nan if value is None else value for value in box)
  across, down = size
  return [left / across, top / down, (left + width) / across, (top + height) / down]
