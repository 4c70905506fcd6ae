"""Converts COCO's captions and, with --instances, its boxes.

An image's short caption is the first of its five, in the order of the file; the others are not used, which is noted.
Its regions are the boxes of its instances, with the names of their classes as captions. Boxes around crowds are left
out, for their captions would be wrong. There are no long captions.
"""

import argparse
import functools
import sqlite3
from collections.abc import Iterator, Sequence

from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage.streams import get_size, named, read_entries

SHORT = "COCO's captions and boxes"
TEXT = f"{__doc__}{cli.IMAGE_CHECK}"
EXAMPLE = (
  "--captions captions_train2017.json --instances instances_train2017.json --images train2017 --output data/coco"
)

FORM = "coco"


def make(state: str, captions: Sequence[str], instances: Sequence[str], folder: image_store.Folder) -> joins.Joined:
  """Joins files such as `captions_train2017.json` and `instances_train2017.json`; see `joins.make`."""
  join = functools.partial(_join, captions=len(captions))
  return joins.make(state, FORM, join, [*captions, *instances], folder)


def _join(files: Sequence[str], captions: int) -> Iterator[dict]:
  with joins.database(
    "images (id INTEGER PRIMARY KEY, name TEXT, width REAL, height REAL)",
    "captions (image INTEGER, place INTEGER, text TEXT)",
    "boxes (image INTEGER, place INTEGER, class INTEGER, crowd INTEGER, x REAL, y REAL, width REAL, height REAL)",
    "classes (id INTEGER PRIMARY KEY, name TEXT)",
  ) as database:
    for file in files[:captions]:
      _read_captions(database, file)
    for file in files[captions:]:
      _read_instances(database, file)
    for table in ("captions", "boxes"):
      database.execute(f"CREATE INDEX {table}_of_images ON {table} (image, place)")
    for row in database.execute("SELECT id, name, width, height FROM images ORDER BY id"):
      yield _make_line(database, *row)
    yield from joins.find_unlisted(database, "captions", "boxes")


def _read_captions(database: sqlite3.Connection, file: str) -> None:
  for place, (name, entry) in enumerate(read_entries(file, ("images", "annotations"))):
    with named(file, entry):
      if name == "images":
        _add_image(database, entry)
      else:
        database.execute("INSERT INTO captions VALUES (?, ?, ?)", (entry["image_id"], place, entry["caption"].strip()))


def _read_instances(database: sqlite3.Connection, file: str) -> None:
  for place, (name, entry) in enumerate(read_entries(file, ("images", "annotations", "categories"))):
    with named(file, entry):
      if name == "images":
        _add_image(database, entry)
      elif name == "categories":
        database.execute("INSERT OR REPLACE INTO classes VALUES (?, ?)", (entry["id"], entry["name"]))
      else:
        left, top, width, height = map(float, entry["bbox"])
        values = (entry["image_id"], place, entry["category_id"], entry.get("iscrowd", 0), left, top, width, height)
        database.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _add_image(database: sqlite3.Connection, entry: dict) -> None:
  values = (entry["id"], entry["file_name"], *get_size(entry))
  database.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", values)


def _make_line(database: sqlite3.Connection, identity: int, name: str, width: float, height: float) -> dict:
  found, regions = [], []
  texts = database.execute("SELECT text FROM captions WHERE image = ? ORDER BY place", (identity,)).fetchall()
  if len(texts) > 1:
    found.append(["note", "captions_unused", "captions", f"{len(texts)} captions, of which the first is taken"])
  query = (
    "SELECT classes.name, crowd, x, y, boxes.width, boxes.height FROM boxes LEFT JOIN classes ON class = classes.id "
    "WHERE image = ? ORDER BY place"
  )
  for caption, crowd, *box in database.execute(query, (identity,)):
    if crowd:
      found.append(["region", "box_of_crowd", f"instances of image {identity}", f"a crowd of class {caption!r}"])
    else:
      regions.append({"box": joins.make_box(box, (width, height)), "short": caption})
  return {"image": name, "short": texts[0][0] if texts else None, "regions": regions, joins.FOUND: found}


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument(
    "--captions", required=True, nargs="+", metavar="FILE", help="captions_train2017.json or the like"
  )
  parser.add_argument("--instances", default=[], nargs="+", metavar="FILE", help="instances_train2017.json or the like")
  cli.add_images(parser)
  cli.add_conversion(parser, name="coco")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  folder = image_store.Folder(options.images)
  cli.convert(options, make(cli.tables_folder(options), options.captions, options.instances, folder))
