"""Images with captions of your own in a plain form: JSON lines, a JSON list, or CSV.

```
{"image": "a/1.jpg", "short": SHORT, "long": LONG, "regions": [{"box": [x1, y1, x2, y2], "short": SHORT,
 "long": LONG, "negatives": [WRONG, ...]}, ...]}
```
`image` and `short` (or `caption`) are needed, the rest is optional. Boxes are fractions of the image's width and
height. A CSV file has the columns image, short (or caption) and long, named in its first line, and no regions.
"""

import argparse
import dataclasses
from collections.abc import Iterator

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import MAX_NEGATIVES, Record, Region
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report

SHORT = "images with captions of your own"
TEXT = (
  """
Converts images with captions of your own: a JSON-lines file (.jsonl), a JSON list (.json), or CSV (.csv, .tsv).

Fields: `image` (a path under IMAGES), `short` (or `caption`), optionally `long`, and in JSON optionally `regions`:
  {"image": "a/1.jpg", "short": "two dogs", "long": "two dogs play on ...", "regions": [
    {"box": [0.1, 0.2, 0.6, 0.9], "short": "a brown dog", "long": "...", "negatives": ["a white dog", ...]}]}
A box is x1, y1, x2, y2 as fractions of the image's width and height.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--captions captions.jsonl --images photos --output data/photos"

FIELDS = ("image", "short", "caption", "long", "regions")


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The source: `files` of captions, and the folder of their images."""

  form = "pairs"
  files: tuple[str, ...]
  images: image_store.Folder

  def arguments(self) -> dict:
    return self.images.arguments()

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, streams.Raw]]:
    return streams.scan(file, offset)

  def load(self, raw: streams.Raw, report: Report) -> Record:
    record, names = parse(streams.load(raw, report), report)
    return dataclasses.replace(record, image=self.images.read(names))


def check_captions(path: str) -> str:
  """Returns the path of a captions file; raises `FileNotFoundError`, or `ValueError` for an unknown ending."""
  if not paths.is_file(path):
    raise FileNotFoundError(f"no captions file at {path!r}")
  if not path.lower().endswith(streams.SUFFIXES):
    raise ValueError(f"{path!r} must end in one of {', '.join(streams.SUFFIXES)}: its ending decides how it is read")
  return path


def parse(value: object, report: Report) -> tuple[Record, tuple[str, ...]]:
  """Makes a record, without its image, from one annotation.

  Args:
    value: the parsed JSON object or CSV row.
    report: called with everything that is left out of the record or worth a note.

  Returns:
    The record and the one path, relative to the images folder, of its image, which is also its id.

  Raises:
    RecordError: the record cannot be used.
  """
  annotation = annotation_fields.get_mapping(value, "record")
  path = annotation_fields.check_path(annotation_fields.get_text(annotation, "image", "image", report), "image")
  key = "caption" if "caption" in annotation and "short" not in annotation else "short"
  short = annotation_fields.get_text(annotation, key, key, report)
  long = annotation_fields.get_text(annotation, "long", "long", report, optional=True)
  for unknown in sorted(set(annotation) - set(FIELDS)):
    report("note", RecordError("field_unknown", unknown, f"is not read; the fields are {', '.join(FIELDS)}"))
  regions = []
  for index, region in enumerate(
    annotation_fields.get_list(annotation.get("regions"), "regions", "regions", report, "region")
  ):
    try:
      regions.append(_parse_region(region, f"regions[{index}]", report))
    except RecordError as error:
      report("region", error)
  return Record(id=path, image=b"", short=short, long=long, regions=tuple(regions)), (path,)


def _parse_region(value: object, field: str, report: Report) -> Region:
  annotation = annotation_fields.get_mapping(value, field, "region")
  box = annotation_fields.get_box(annotation.get("box"), f"{field}.box", report)
  short = annotation_fields.get_text(annotation, "short", f"{field}.short", report, name="region_short")
  long = annotation_fields.get_text(annotation, "long", f"{field}.long", report, name="region_long", optional=True)
  field = f"{field}.negatives"
  values = annotation_fields.get_list(annotation.get("negatives"), field, "negatives", report, "negative")
  negatives = annotation_fields.keep_negatives(values, short, field, MAX_NEGATIVES, report)
  return Region(box=box, short=short, long=long, negatives=negatives)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--captions", required=True, metavar="FILE", help="JSON lines, a JSON list, or CSV")
  cli.add_images(parser)
  cli.add_conversion(parser, name="pairs")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  captions = check_captions(options.captions)
  cli.convert(options, Pairs((captions,), image_store.Folder(options.images)))
