"""Converts Visual Genome's region descriptions.

IMAGES holds the folders VG_100K and VG_100K_2. Regions are the described boxes, in the order of the file, each with its
own phrase. The images have no captions of their own: the short caption is the phrase of the largest box. There are no
long captions.
"""

import argparse
import sqlite3
from collections.abc import Iterator, Sequence

from fgclip_jax.data import annotation_fields
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage.errors import RecordError

SHORT = "Visual Genome's region descriptions"
TEXT = f"{__doc__}{cli.IMAGE_CHECK}"
EXAMPLE = "--image_data image_data.json --regions region_descriptions.json --images images --output data/vg"

FORM = "visual_genome"


def make(state: str, image_data: str, regions: str, folder: image_store.Folder) -> joins.Joined:
  """Joins `image_data.json` and `region_descriptions.json`; see `joins.make`.

  Args:
    state: the folder where the result is kept.
    image_data, regions: the two files.
    folder: the images.
  """
  return joins.make(state, FORM, _join, [image_data, regions], folder)


def _join(files: Sequence[str]) -> Iterator[dict]:
  with joins.database(
    "images (id PRIMARY KEY, name TEXT, width REAL, height REAL)",
    "boxes (image, place INTEGER, field TEXT, phrase TEXT, x REAL, y REAL, width REAL, height REAL)",
  ) as database:
    for _, field, value in joins.read_lists(files[0], ("",)):
      with joins.counted(database):
        entry = annotation_fields.get_mapping(value, field, "annotation")
        url = annotation_fields.get_text(entry, "url", f"{field}.url", joins.ignore)
        name = "/".join(url.split("/")[-2:])  # .../VG_100K_2/1.jpg: images are in two folders
        joins.add_image(database, joins.get_id(entry, "image_id", field), name, joins.get_image_size(entry))
    for _, field, value in joins.read_lists(files[1], ("",)):
      with joins.counted(database):
        _read_regions(database, annotation_fields.get_mapping(value, field, "annotation"), field)
    joins.index_by_image(database, "boxes")
    for row in database.execute("SELECT id, name, width, height FROM images ORDER BY id"):
      yield _make_line(database, *row)
    yield from joins.find_unlisted(database, "boxes")


def _read_regions(database: sqlite3.Connection, entry: dict, field: str) -> None:
  regions = entry.get("regions")
  if not isinstance(regions, list):
    raise RecordError("regions_wrong_type", f"{field}.regions", f"must be a list, got {regions!r:.80}")
  for place, value in enumerate(regions):
    inner = f"{field}.regions[{place}]"
    region = value if isinstance(value, dict) else {}
    key = "image_id" if "image_id" in region else "id"
    image = region if key == "image_id" else entry
    with joins.counted(database, image.get(key), "region"):
      annotation_fields.get_mapping(value, inner, "region")
      box = joins.get_sides([region.get(side) for side in ("x", "y", "width", "height")], inner)
      phrase = region.get("phrase")
      if not isinstance(phrase, str):  # one that is empty is refused where the region is read
        annotation_fields.get_text(region, "phrase", f"{inner}.phrase", joins.ignore)
      annotation_fields.check_unicode(phrase := str(phrase), "phrase", f"{inner}.phrase")
      values = (joins.get_id(image, key, inner), place, inner, phrase.strip(), *box)
      database.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _make_line(
  database: sqlite3.Connection, identity: int | str, name: str, width: float | None, height: float | None
) -> dict:
  query = "SELECT field, phrase, x, y, width, height FROM boxes WHERE image = ? ORDER BY place"
  boxes = database.execute(query, (identity,)).fetchall()
  largest = max((box for box in boxes if box[1]), key=lambda box: (box[4] or 0) * (box[5] or 0), default=("", None))
  regions, found = [], []
  for field, phrase, *box in boxes:
    try:
      regions.append({"box": joins.make_box(box, (width, height)), "short": phrase})
    except RecordError as error:
      found.append(["region", error.kind, field, error.message])
  found += joins.get_faults(database, identity)
  return {"image": name, "short": largest[1], "regions": regions, joins.FOUND: found}


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--image_data", required=True, metavar="FILE", help="image_data.json")
  parser.add_argument("--regions", required=True, metavar="FILE", help="region_descriptions.json")
  cli.add_images(parser)
  cli.add_conversion(parser, name="visual_genome")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  folder = image_store.Folder(options.images)
  cli.convert(options, make(cli.tables_folder(options), options.image_data, options.regions, folder))
