"""Converts Visual Genome's region descriptions.

IMAGES holds the folders VG_100K and VG_100K_2. Regions are the described boxes, in the order of the file. The images
have no captions of their own: the short caption is the phrase of the largest box. There are no long captions.
"""

import argparse
import sqlite3
from collections.abc import Iterator, Sequence

from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store, joins
from fgclip_jax.storage.streams import get_size, named, read_entries

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
    "images (id INTEGER PRIMARY KEY, name TEXT, width REAL, height REAL)",
    "boxes (image INTEGER, place INTEGER, phrase TEXT, x REAL, y REAL, width REAL, height REAL)",
  ) as database:
    for _, entry in read_entries(files[0], ("",)):
      with named(files[0], entry):
        name = "/".join(entry["url"].split("/")[-2:])  # .../VG_100K_2/1.jpg: images are in two folders
        values = (entry["image_id"], name, *get_size(entry))
        database.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", values)
    for _, entry in read_entries(files[1], ("",)):
      with named(files[1], entry):
        for place, region in enumerate(entry["regions"]):
          box = [float(region[side]) for side in ("x", "y", "width", "height")]
          values = (region.get("image_id", entry.get("id")), place, region["phrase"].strip(), *box)
          database.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    database.execute("CREATE INDEX boxes_of_images ON boxes (image, place)")
    for row in database.execute("SELECT id, name, width, height FROM images ORDER BY id"):
      yield _make_line(database, *row)
    yield from joins.find_unlisted(database, "boxes")


def _make_line(database: sqlite3.Connection, identity: int, name: str, width: float, height: float) -> dict:
  query = "SELECT phrase, x, y, width, height FROM boxes WHERE image = ? ORDER BY place"
  boxes = database.execute(query, (identity,)).fetchall()
  largest = max((box for box in boxes if box[0]), key=lambda box: (box[3] or 0) * (box[4] or 0), default=(None,))
  regions = [{"box": joins.make_box(box, (width, height)), "short": phrase} for phrase, *box in boxes]
  return {"image": name, "short": largest[0], "regions": regions}


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
