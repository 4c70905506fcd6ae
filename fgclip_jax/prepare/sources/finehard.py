"""FineHARD's annotations: one JSON object per image, with two captions and boxes with captions of their own.

```
{"f_path": "grit-20m/data-12m/coyo_image_0/00069/000699825.jpg", "caption": LONG, "short_caption": SHORT,
 "bbox_info": [{"bbox": [x1, y1, x2, y2, score], "short_expr": SHORT, "long_expr": LONG,
                "flag_short_neg": 1, "short_expr_negs": {"0": WRONG, ..., "9": WRONG}}, ...]}
```
FG-CLIP 2's files have the same form; `is_cn`, with any value, says that the captions are Chinese.
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import DEFAULT_LANGUAGE, MAX_NEGATIVES, Record, Region
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import caption_files, image_store, known_forms
from fgclip_jax.storage import folders, paths, streams, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report, SkipReport

SHORT = "FineHARD's annotations and images"
TEXT = (
  """
Converts FineHARD's annotations and images.

ANNOTATIONS is the folder of JSON files (the data set's `jsonfiles`), one JSON or JSON-lines file, or a .txt file that
lists such files, one on each line. IMAGES holds coyo_image_0, coyo_image_1, ...: the image of an f_path
`grit-20m/data-12m/coyo_image_0/00069/000699825.jpg` (or, in older annotations, `data/down-grit-12m/coyo_image_0/...`)
is the file IMAGES/coyo_image_0/00069/000699825.jpg, or of that name in IMAGES/coyo_image_0/00069.tar or, by its `key`,
in IMAGES/coyo_image_0/00069.parquet: img2dataset's output in any of its forms.

A download gives its images new numbers. With --url2key, FineHARD's folder url2key_jsons, images are found by their
URLs and need not be renamed; IMAGES is then the output of img2dataset with its side files. Any path may be a URL:
gs://..., s3://...

FG-CLIP 2's files are read too: a record with the key is_cn is Chinese. English and Chinese files have images in folders
of their own, so convert them by two commands, into two data sets, which a mixture then trains on.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--annotations FineHARD/jsonfiles --images FineHARD/data-12m --output data/finehard"

CHINESE = "zh"
SUFFIXES = (".json", ".jsonl")
PREFIXES = ("grit-20m/data-12m/", "data/down-grit-12m/", "data/grit-12m/")  # of the paths in released annotations
_DOWNLOAD = re.compile(r"(?P<folder>[^/]+/(?P<shard>\d{5}))/00000/00000(?P<number>\d{4})(?=\.[^./]+$)")


@dataclasses.dataclass(frozen=True)
class FineHard:
  """The source: annotation `files`, and the place of their images."""

  form = "finehard"
  files: tuple[str, ...]
  images: image_store.Folder | image_store.Archives
  take: str = ""  # the only language of which records are taken; empty: all

  def arguments(self) -> dict:
    return self.images.arguments() | ({"take": self.take} if self.take else {})

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, streams.Raw]]:
    return streams.scan(file, offset)

  def load(self, raw: streams.Raw, report: Report) -> Record:
    record, names = parse(streams.load(raw), report)
    language = record.language or DEFAULT_LANGUAGE
    if self.take not in ("", language):
      raise RecordError("language_not_taken", "is_cn", f"makes it a record in {language} (--take {self.take})")
    return dataclasses.replace(record, image=self.images.read(names))


def find_annotations(path: str) -> tuple[str, ...]:
  """Finds the annotation files at a path.

  These are a folder's .json and .jsonl files in the order of their names, those that a .txt file lists (absolute, or
  relative to its folder or to the current one), or the file itself.

  Raises:
    FileNotFoundError: there is none, or one of a list is missing.
  """
  if paths.is_folder(path):
    skips = SkipReport()
    files = [paths.join(path, name) for name in folders.list_files(path, SUFFIXES, skips)]
    for line in folders.describe(path, skips):
      print(line)
    if not files:
      raise FileNotFoundError(f"no .json or .jsonl file in {path!r} (folders in it are not searched)")
    return tuple(files)
  if not paths.is_file(path):
    raise FileNotFoundError(f"no annotation file or folder at {path!r}")
  if not path.lower().endswith(".txt"):
    return (path,)
  lines = [line.strip() for line in text.lines(path) if line.strip()]
  if not lines:
    raise FileNotFoundError(f"{path!r} lists no annotation file")
  return tuple(_find_listed(line, path) for line in lines)


def check_fields(files: Sequence[str]) -> None:
  """Raises `ValueError` if no record of the first ones has the fields of FineHARD."""
  samples: list[dict] = []
  for file in files:
    samples += caption_files.sample(file)[0]  # a broken file is counted when it is read
    if len(samples) >= caption_files.SAMPLES:
      break
  for field in ("f_path", "caption", "short_caption"):
    if samples and not any(field in record for record in samples):
      message = f"{files[0]} has no field {field!r}: {caption_files.list_fields(samples)}"
      form = known_forms.find_container(files[0])
      advice = known_forms.advise(form, files[0], "prepare") if form else "`prepare pairs` reads other forms"
      raise ValueError(f"{message}. {advice}")


def _find_listed(line: str, path: str) -> str:
  for candidate in (paths.join(os.path.dirname(path), line), line):
    if paths.is_file(candidate):
      return candidate
  raise FileNotFoundError(f"{path!r} lists {line!r}, which is no file")


def parse(value: object, report: Report) -> tuple[Record, tuple[str, ...]]:
  """Makes a record, without its image, from one annotation.

  Args:
    value: the parsed JSON object.
    report: called with everything that is left out of the record or worth a note.

  Returns:
    The record and the paths, relative to the images folder, at which its image may lie; its id is the first.

  Raises:
    RecordError: the record cannot be used.
  """
  annotation = annotation_fields.get_mapping(value, "record")
  f_path = annotation_fields.get_text(annotation, "f_path", "f_path", report)
  names = find_paths(f_path)
  long = annotation_fields.get_text(annotation, "caption", "caption", report)
  short = annotation_fields.get_text(annotation, "short_caption", "short_caption", report)
  regions = []
  for index, box in enumerate(
    annotation_fields.get_list(annotation.get("bbox_info"), "bbox_info", "bbox_info", report, "region")
  ):
    try:
      regions.append(_parse_region(box, f"bbox_info[{index}]", report))
    except RecordError as error:
      report("region", error)
  annotation_fields.note_region_count(len(regions), "bbox_info", report)
  language = CHINESE if "is_cn" in annotation else ""
  record = Record(id=names[0], image=b"", short=short, long=long, regions=tuple(regions), language=language)
  return record, names


def find_paths(f_path: str) -> tuple[str, ...]:
  """The paths under the images folder that an `f_path` may mean: without its known prefix, and as it is.

  Older annotations name an image by its download, `coyo_image_0/00069/00000/000009825.jpg`; it was renamed since, to
  `coyo_image_0/00069/000699825.jpg`, so that both names are looked for.
  """
  path = annotation_fields.check_path(f_path, "f_path")
  for prefix in PREFIXES:
    if path.startswith(prefix):
      stripped = path.removeprefix(prefix)
      renamed = _DOWNLOAD.sub(r"\g<folder>/\g<shard>\g<number>", stripped)
      return tuple(dict.fromkeys((stripped, renamed, path)))
  return (path,)


def _parse_region(value: object, field: str, report: Report) -> Region:
  annotation = annotation_fields.get_mapping(value, field, "region")
  box = annotation_fields.get_box(annotation.get("bbox"), f"{field}.bbox", report)
  short = annotation_fields.get_text(annotation, "short_expr", f"{field}.short_expr", report)
  long = annotation_fields.get_text(annotation, "long_expr", f"{field}.long_expr", report, optional=True)
  if not long:
    report("note", RecordError("long_expr_empty", f"{field}.long_expr", "is missing or empty"))
  return Region(box=box, short=short, long=long, negatives=_parse_negatives(annotation, short, field, report))


def _parse_negatives(annotation: dict, positive: str, field: str, report: Report) -> tuple[str, ...]:
  flag = annotation.get("flag_short_neg", 0)
  if flag not in (0, 1):
    message = f"must be 0 or 1, got {flag!r}; the region's negatives are left out"
    report("negative", RecordError("flag_short_neg_wrong", f"{field}.flag_short_neg", message))
  if flag != 1:
    return ()
  field = f"{field}.short_expr_negs"
  found = annotation.get("short_expr_negs")
  values = list(found.values()) if isinstance(found, dict) else found  # in the order of the keys in the file
  values = annotation_fields.get_list(values, field, "short_expr_negs", report, "negative")
  if not values:
    report("note", RecordError("negatives_none", field, "flag_short_neg is 1 but there are no negatives"))
  return annotation_fields.keep_negatives(values, positive, field, MAX_NEGATIVES, report)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--annotations", required=True, metavar="PATH", help="a folder, a JSON file, or a .txt list")
  cli.add_images(parser)
  parser.add_argument("--url2key", metavar="DIR", help="FineHARD's url2key_jsons, for images that were not renamed")
  parser.add_argument(
    "--take", default="", choices=("en", "zh"), help="leave out records in the other language (default: take both)"
  )
  cli.add_conversion(parser, name="finehard")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  files = find_annotations(options.annotations)
  check_fields(files)
  images = image_store.find(options.images, options.url2key, cli.tables_folder(options), cli.make_engine(options))
  cli.convert(options, FineHard(files, images, options.take))
