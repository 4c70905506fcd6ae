"""Images with captions of your own, in the plain form of this program or in one of those that `caption_files` lists.

```
{"image": "a/1.jpg", "short": SHORT, "long": LONG, "regions": [{"box": [x1, y1, x2, y2], "short": SHORT,
 "long": LONG, "negatives": [WRONG, ...]}, ...]}
```
`image` and `short` (or `caption`) are needed, the rest is optional. Boxes are fractions of the image's width and
height. A CSV file has the columns image, short (or caption) and long, named in its first line, and no regions.

A caption may be a list, of a picture and of a region, in the fields `short`, `long` and `captions`: of texts, or of
objects such as {"text": TEXT, "kind": "long", "language": "zh", "source": "alt_text", "weight": 0.5}, of which only
`text` is needed. All are kept as the set of the picture; the first of a kind is its short or its long caption.
"""

import argparse
import dataclasses
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from fgclip_jax.data import annotation_fields, caption_set
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.record import MAX_NEGATIVES, Record, Region
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import caption_files, conversations, image_store
from fgclip_jax.storage import arrow, parquet, paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report

SHORT = "images with captions of your own"
TEXT = (
  """
Converts images with captions of your own: JSON lines (.jsonl), a JSON list (.json), CSV (.csv, .tsv) or Parquet.

Fields: `image` (a path under IMAGES), `short` (or `caption`), optionally `long`, and in JSON optionally `regions`:
  {"image": "a/1.jpg", "short": "two dogs", "long": "two dogs play on ...", "regions": [
    {"box": [0.1, 0.2, 0.6, 0.9], "short": "a brown dog", "long": "...", "negatives": ["a white dog", ...]}]}
A box is x1, y1, x2, y2 as fractions of the image's width and height.

Also read as they are: open_clip's CSV and TSV (filepath, title); a Hugging Face ImageFolder (the folder with
metadata.jsonl), Parquet files, or folder of save_to_disk; DOCCI (image_file, description); ShareGPT4V and LLaVA
(conversations). Of other files, --image_field, --short_field and --long_field name the fields. A caption may be a list,
of texts or of objects {"text": ..., "kind": "short" or "long", "language": ..., "source": ..., "weight": ...}: all are
kept, and the first is the short or long caption. A form without short captions gets the first sentence of the long one
as its short caption.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--captions captions.jsonl --images photos --output data/photos"

FIELDS = ("image", "short", "caption", "captions", "long", "regions")
_KINDS: dict[str, caption_set.Kind] = {"short": "short", "long": "long", "captions": "short"}  # of a region's fields


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The source: `files` of captions, the folder of their images, and how their records are read."""

  form = "pairs"
  files: tuple[str, ...]
  images: image_store.Folder
  layout: caption_files.Layout = caption_files.PLAIN

  def arguments(self) -> dict[str, Any]:
    # the plain form's are those of older data sets, which can so be continued
    layout = {} if self.layout == caption_files.PLAIN else {"layout": dataclasses.asdict(self.layout)}
    return {**self.images.arguments(), **layout}

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, caption_files.Raw]]:
    for place, raw in caption_files.scan(file, offset):
      if self.layout.split is None or self._in_split(raw):
        yield place, raw

  def _in_split(self, raw: caption_files.Raw) -> bool:
    try:
      return caption_files.in_split(caption_files.load(raw), self.layout.split)
    except RecordError:
      return True  # it is counted when it is loaded

  def load(self, raw: caption_files.Raw, report: Report) -> Record:
    value = caption_files.load(raw, report)
    row = raw if isinstance(raw, parquet.Row | arrow.Row) else None
    record, names = parse(value, report, self.layout, row, paths.absolute(self.images.path))
    return dataclasses.replace(record, image=self.images.read(names)) if names else record


def parse(
  value: object,
  report: Report,
  layout: caption_files.Layout = caption_files.PLAIN,
  row: parquet.Row | arrow.Row | None = None,
  images: str = "",
) -> tuple[Record, tuple[str, ...]]:
  """Makes a record from one annotation; with its image only where the annotation holds it.

  Args:
    value: the parsed JSON object or row.
    report: called with everything that is left out of the record or worth a note.
    layout: where it has what.
    row: its place, which names a record that holds its image.
    images: the absolute path of the images folder; an absolute path of an image under it is made relative to it.

  Returns:
    The record and the paths, relative to the images folder, at which its image may lie; none if the record holds it.
    The record's id is the first path, unless the layout names a field for it.

  Raises:
    RecordError: the record cannot be used.
  """
  annotation = annotation_fields.get_mapping(value, "record")
  entry = caption_files.parse(annotation, layout)
  if entry.data is not None:
    names: tuple[str, ...] = ()
    name = f"{posixpath.splitext(posixpath.basename(row.path))[0]}/{row.number}" if row else entry.image
  else:
    names = _find_paths(caption_files.relative(entry.image, images), layout.image)
    name = names[0]
  short, long = (_get_first(getattr(entry, kind), annotation, kind, layout, report) for kind in ("short", "long"))
  if not layout.short:
    short = conversations.first_sentence(long)
    report("note", RecordError("short_from_long", "short", "is the first sentence of the long caption"))
  if layout.id and not entry.id:
    report("note", RecordError("id_missing", layout.id, f"is missing, null or blank; the id is {name!r}"))
  if layout == caption_files.PLAIN and row is None:  # of rows the fields are named once, before
    _note_unknown(annotation, report)
  regions = []
  for index, region in enumerate(
    annotation_fields.get_list(annotation.get("regions"), "regions", "regions", report, "region")
  ):
    try:
      regions.append(_parse_region(region, f"regions[{index}]", report))
    except RecordError as error:
      report("region", error)
  identity = entry.id or name
  annotation_fields.check_unicode(identity, "id", layout.id or layout.image)
  captions = _join(short, long, entry.captions)
  return Record(identity, entry.data or b"", short, long, tuple(regions), captions=captions), names


def _join(short: str, long: str, captions: Sequence[Caption]) -> tuple[Caption, ...]:
  """The set of a picture or region, as records keep it."""
  usable = [caption for caption in captions if caption.text.strip()]
  return caption_set.reduce(caption_set.merge([*caption_set.plain(short, long), *usable]), short, long)


def _note_unknown(annotation: dict, report: Report) -> None:
  """Notes fields that are not read, of a record and of its captions."""
  for unknown in sorted({*map(str, annotation)} - {*FIELDS}):
    report("note", RecordError("field_unknown", unknown, f"is not read; the fields are {', '.join(FIELDS)}"))
  known = caption_set.DTYPES
  for name in ("short", "long", "caption", "captions"):
    values = annotation.get(name)
    for each in values if isinstance(values, list) else [values]:
      for unknown in sorted({*map(str, each)} - {*known}) if isinstance(each, dict) else ():
        message = f"is not read; the fields of a caption are {', '.join(known)}"
        report("note", RecordError("field_unknown", f"{name}.{unknown}", message))


def _find_paths(path: str, field: str) -> tuple[str, ...]:
  """The paths at which an image may lie: as it is spelled, and as Windows would read it."""
  names = [annotation_fields.check_path(path, field)]
  if "\\" in path:
    names.append(annotation_fields.check_path(path.replace("\\", "/"), field))
  return tuple(names)


def _get_first(texts: Sequence[str], annotation: dict, kind: str, layout: caption_files.Layout, report: Report) -> str:
  """The first of several captions, checked; it may be missing if it is a long one beside a short one."""
  wanted = layout.short if kind == "short" else (layout.long,) if layout.long else ()
  if not wanted:
    return ""
  name = next((name for name in wanted if name in annotation), wanted[0])
  texts = [text for text in texts if text.strip()] or [*texts[:1]]
  optional = kind == "long" and bool(layout.short)
  label = name if name in caption_files.PLAIN.short or name == "long" else kind
  return annotation_fields.get_text(
    {name: texts[0] if texts else ""}, name, name, report, name=label, optional=optional
  )


def _parse_region(value: object, field: str, report: Report) -> Region:
  annotation = annotation_fields.get_mapping(value, field, "region")
  box = annotation_fields.get_box(annotation.get("box"), f"{field}.box", report)
  captions: list[Caption] = []
  for name, kind in _KINDS.items():
    if (found := annotation.get(name)) is not None:
      captions += caption_set.parse(found, f"{field}.{name}", f"region_{name}", kind)
  texts = {caption.kind: caption.text for caption in reversed(captions) if caption.text.strip()}
  given = {**annotation, **texts}
  short = annotation_fields.get_text(given, "short", f"{field}.short", report, name="region_short")
  long = annotation_fields.get_text(given, "long", f"{field}.long", report, name="region_long", optional=True)
  field = f"{field}.negatives"
  values = annotation_fields.get_list(annotation.get("negatives"), field, "negatives", report, "negative")
  negatives = annotation_fields.keep_negatives(values, short, field, MAX_NEGATIVES, report)
  return Region(box, short, long, negatives, _join(short, long, captions))


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument(
    "--captions", required=True, nargs="+", metavar="PATH", help="JSON lines, a JSON list, CSV, Parquet, or a folder"
  )
  parser.add_argument("--images", metavar="DIR", help="the folder of the images (default: that of the captions)")
  cli.add_fields(parser)
  parser.add_argument("--id_field", metavar="NAME", help="the field of a record's id (default: the image's path)")
  parser.add_argument(
    "--from_split", metavar="NAME", help="read only this split: of a folder of several, or of the field `split`"
  )
  cli.add_conversion(parser, name="pairs")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  fields = caption_files.Fields(options.image_field, options.short_field, options.long_field, options.id_field)
  found = caption_files.find(options.captions, fields, options.images, options.from_split)
  if found.note:
    print(found.note)
  cli.convert(options, Pairs(found.files, image_store.Folder(found.images), found.layout))
