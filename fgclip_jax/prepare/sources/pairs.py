"""Images with captions in a plain form: JSON lines, a JSON list, or CSV.

```
{"image": "a/1.jpg", "short": SHORT, "long": LONG, "regions": [{"box": [x1, y1, x2, y2], "short": SHORT,
 "long": LONG, "negatives": [WRONG, ...]}, ...]}
```
`image` and `short` (or `caption`) are needed, the rest is optional. Boxes are fractions of the image's width and
height. A CSV file has the columns image, short (or caption) and long, named in its first line, and no regions.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import MAX_NEGATIVES, Record, Region
from fgclip_jax.prepare.sources import image_store
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError

FIELDS = ("image", "short", "caption", "long", "regions")


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The source: `files` of captions, and the folder in which their images lie."""

  form: ClassVar[str] = "pairs"
  files: tuple[str, ...]
  images: image_store.Folder

  def arguments(self) -> dict:
    return self.images.arguments()

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, streams.Raw]]:
    return streams.scan(file, offset)

  def load(self, raw: streams.Raw, tell: annotation_fields.Tell) -> Record:
    record, names = parse(streams.load(raw), tell)
    return dataclasses.replace(record, image=self.images.read(names))


def check_captions(path: str) -> str:
  """Returns the path of a captions file; raises `FileNotFoundError` or, for an unknown ending, `ValueError`."""
  if not paths.is_file(path):
    raise FileNotFoundError(f"no captions file at {path!r}")
  if not path.lower().endswith(streams.SUFFIXES):
    raise ValueError(f"{path!r} must end in one of {', '.join(streams.SUFFIXES)}: the ending tells its form")
  return path


def parse(value: object, tell: annotation_fields.Tell) -> tuple[Record, tuple[str, ...]]:
  """Makes a record, without its image, of one annotation.

  Args:
    value: the parsed JSON object or CSV row.
    tell: called with everything left out of the record, or merely worth a note.

  Returns:
    The record and the one path, relative to the images folder, of its image, which is also its id.

  Raises:
    RecordError: the record cannot be used.
  """
  annotation = annotation_fields.get_mapping(value, "record")
  path = annotation_fields.check_path(annotation_fields.get_text(annotation, "image", "image", tell), "image")
  key = "caption" if "caption" in annotation and "short" not in annotation else "short"
  short = annotation_fields.get_text(annotation, key, key, tell)
  long = annotation_fields.get_text(annotation, "long", "long", tell, optional=True)
  for unknown in sorted(set(annotation) - set(FIELDS)):
    tell("note", RecordError("field_unknown", unknown, f"is not read; the fields are {', '.join(FIELDS)}"))
  regions = []
  for index, region in enumerate(
    annotation_fields.get_list(annotation.get("regions"), "regions", "regions", tell, "region")
  ):
    try:
      regions.append(_parse_region(region, f"regions[{index}]", tell))
    except RecordError as error:
      tell("region", error)
  return Record(id=path, image=b"", short=short, long=long, regions=tuple(regions)), (path,)


def _parse_region(value: object, field: str, tell: annotation_fields.Tell) -> Region:
  annotation = annotation_fields.get_mapping(value, field, "region")
  box = annotation_fields.get_box(annotation.get("box"), f"{field}.box", tell)
  short = annotation_fields.get_text(annotation, "short", f"{field}.short", tell, name="region_short")
  long = annotation_fields.get_text(annotation, "long", f"{field}.long", tell, name="region_long", optional=True)
  values = annotation_fields.get_list(annotation.get("negatives"), f"{field}.negatives", "negatives", tell, "negative")
  negatives = annotation_fields.keep_negatives(values, short, f"{field}.negatives", MAX_NEGATIVES, tell)
  return Region(box=box, short=short, long=long, negatives=negatives)
