"""Converts COCO's captions and, with --instances, its boxes.

An image's short caption is the first of its five, in the order of the file; all five are kept as its set of captions.
Its regions are the boxes of its instances, with the names of their classes as captions. Boxes around crowds are left
out, for their captions would be wrong. There are no long captions.
"""

import argparse
import functools
import sqlite3
from collections.abc import Iterator, Sequence

from fgclip_jax.data import annotation_fields
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage.errors import RecordError

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
    "images (id PRIMARY KEY, name TEXT, width REAL, height REAL)",
    "captions (image, place INTEGER, text TEXT)",
    "boxes (image, place INTEGER, field TEXT, class, crowd INTEGER, x REAL, y REAL, width REAL, height REAL)",
    "classes (id PRIMARY KEY, name TEXT)",
  ) as database:
    for file in files[:captions]:
      _read_captions(database, file)
    for file in files[captions:]:
      _read_instances(database, file)
    joins.index_by_image(database, "captions", "boxes")
    for row in database.execute("SELECT id, name, width, height FROM images ORDER BY id"):
      yield _make_line(database, *row)
    yield from joins.find_unlisted(database, "captions", "boxes")


def _read_captions(database: sqlite3.Connection, file: str) -> None:
  for place, (name, field, value) in enumerate(joins.read_lists(file, ("images", "annotations"))):
    with joins.counted(database, _image_of(name, value)):
      entry = annotation_fields.get_mapping(value, field, "annotation")
      if name == "images":
        _add_image(database, entry, field)
      else:
        text = annotation_fields.get_text(entry, "caption", f"{field}.caption", joins.ignore)
        values = (joins.get_id(entry, "image_id", field), place, text.strip())
        database.execute("INSERT INTO captions VALUES (?, ?, ?)", values)


def _read_instances(database: sqlite3.Connection, file: str) -> None:
  for place, (name, field, value) in enumerate(joins.read_lists(file, ("images", "annotations", "categories"))):
    with joins.counted(database, _image_of(name, value), "region" if name == "annotations" else "annotation"):
      entry = annotation_fields.get_mapping(value, field, "annotation")
      if name == "images":
        _add_image(database, entry, field)
      elif name == "categories":
        text = annotation_fields.get_text(entry, "name", f"{field}.name", joins.ignore, name="category_name")
        database.execute("INSERT OR REPLACE INTO classes VALUES (?, ?)", (joins.get_id(entry, "id", field), text))
      else:
        box = joins.get_sides(entry.get("bbox"), f"{field}.bbox")
        crowd = entry.get("iscrowd") not in (None, 0, "0", "")
        found = joins.get_id(entry, "image_id", field), place, field, joins.get_id(entry, "category_id", field)
        database.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*found, crowd, *box))


def _image_of(name: str, value: object) -> object:
  """Returns the id of the image that an annotation is of, as the file gives it."""
  return value.get("image_id") if name == "annotations" and isinstance(value, dict) else None


def _add_image(database: sqlite3.Connection, entry: dict, field: str) -> None:
  if "file_name" not in entry and isinstance(entry.get("coco_url"), str):  # LVIS
    entry = {**entry, "file_name": "/".join(entry["coco_url"].split("/")[-2:])}
  name = annotation_fields.get_text(entry, "file_name", f"{field}.file_name", joins.ignore)
  joins.add_image(database, joins.get_id(entry, "id", field), name, joins.get_image_size(entry))


def _make_line(
  database: sqlite3.Connection, identity: int | str, name: str, width: float | None, height: float | None
) -> dict:
  found, regions = [], []
  rows = database.execute("SELECT text FROM captions WHERE image = ? ORDER BY place", (identity,)).fetchall()
  query = (
    "SELECT classes.name, crowd, field, x, y, boxes.width, boxes.height FROM boxes "
    "LEFT JOIN classes ON class = classes.id WHERE image = ? ORDER BY place"
  )
  for caption, crowd, field, *box in database.execute(query, (identity,)):
    if crowd:
      found.append(["region", "box_of_crowd", f"instances of image {identity}", f"a crowd of class {caption!r}"])
      continue
    try:
      regions.append({"box": joins.make_box(box, (width, height)), "short": caption})
    except RecordError as error:
      found.append(["region", error.kind, field, error.message])
  found += joins.get_faults(database, identity)
  return {"image": name, **joins.captions([text for (text,) in rows]), "regions": regions, joins.FOUND: found}


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
