"""Web pairs as img2dataset writes them: tar files of images, texts and JSON, or Parquet files.

A sample of a tar file is `KEY.jpg` with `KEY.txt` and `KEY.json`; a row of a Parquet file has the image in a column
`jpg` (or another of `parquet.IMAGE_COLUMNS`), and the rest in other columns. Both have the fields `key`, `url`,
`status` and `error_message`; the short caption is the text `txt`, or the field `caption`. Long captions are a further
field, or are looked up in a table by URL or key. Where another field is the short caption, the text that the page had
for the image is kept beside it, as a caption of source `alt_text`.
"""

import argparse
import dataclasses
import itertools
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from fgclip_jax.data import annotation_fields, caption_set
from fgclip_jax.data.caption_set import ALT_TEXT, Caption
from fgclip_jax.data.record import Record
from fgclip_jax.prepare import cli
from fgclip_jax.prepare.sources import image_store
from fgclip_jax.storage import lookup_table, parquet, paths, streams, tars, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report, Scope
from fgclip_jax.storage.workers import Engine

SHORT = "web pairs: img2dataset's tar or Parquet files"
TEXT = (
  """
Converts web pairs that img2dataset downloaded with --output_format webdataset (tar files) or parquet.

INPUT is one or more files, or folders, which are searched with all folders in them. The short caption is the text
beside an image (KEY.txt) or the field `caption`; --short_field names another one. Of a list of captions the first is
the short caption, and all are kept. So is the alt text that a page had for an image, beside captions that a model
wrote: KEY.txt or `caption` where --short_field names another field, or what --alt_text_field names; and so are the
captions of any --further_fields. Long captions, which the first stage of training needs, are a further field of the
same JSON or Parquet (--long_field), or come from files of their own (--long_captions): JSON lines, a JSON list, CSV
(each also as .gz) or Parquet, whose entries have a `url` or `key` and the caption in the field `long` (or
--long_field), or a JSON object of captions by URL or key.

The records before the break of a broken tar file are used. Any path may be a URL: gs://..., s3://...
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--input laion/00000.tar laion/00001.tar --long_captions captions/*.jsonl --by url --output data/web"

FILES, SAMPLES = 10, 100  # files, and samples of each, whose fields are looked at before the conversion begins
By = Literal["url", "key"]


@dataclasses.dataclass(frozen=True)
class WebDataset:
  """The source.

  Attributes:
    files: tar and Parquet files.
    short_field: the field of the short caption; None: the text beside the image, or else `caption`.
    long_field: the field of the long caption; None: there is none.
    long_captions: a table of long captions instead.
    by: the field that the table is looked up by.
    alt_text_field: the field of the text that the page had for the image; None: `txt` or `caption`, where
      `short_field` is another one.
    further_fields: fields of further short captions; `NAME:long` is one of long captions.
  """

  form = "webdataset"
  files: tuple[str, ...]
  short_field: str | None = None
  long_field: str | None = None
  long_captions: lookup_table.Table | None = None
  by: By = "url"
  alt_text_field: str | None = None
  further_fields: tuple[str, ...] = ()

  def arguments(self) -> dict[str, Any]:
    long_captions = self.long_captions and {"found": self.long_captions.digest, "by": self.by}
    named = {"short_field": self.short_field, "long_field": self.long_field, "long_captions": long_captions}
    others = {"alt_text_field": self.alt_text_field, "further_fields": self.further_fields}
    return named | {name: value for name, value in others.items() if value}

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, tars.Sample | parquet.Row]]:
    return (parquet if file.lower().endswith(".parquet") else tars).scan(file, offset)

  def load(self, raw: tars.Sample | parquet.Row, report: Report) -> Record:
    key, image, sample = _read_sample(raw) if isinstance(raw, tars.Sample) else _read_row(raw)
    for fault in raw.faults if isinstance(raw, tars.Sample) else ():
      report("note", fault)
    if image is None:
      if sample.get("status", "success") != "success":
        message = f"was not downloaded: {sample.get('status')}, {sample.get('error_message')}"
        raise RecordError("image_not_downloaded", "image", message)
      if isinstance(raw, tars.Sample):
        raise raw.missing_image()
      raise RecordError("image_missing", "image", f"sample {key!r} has no image; it has {', '.join(sorted(sample))}")
    alt_text = "txt" if "txt" in sample else "caption"
    name = self.short_field or alt_text
    try:
      short, *others = _get_texts(sample, name, "short", report)
    except RecordError as error:
      if error.kind != "short_missing" or not isinstance(raw, tars.Sample):
        raise
      files = ", ".join(f".{suffix}" for suffix in raw.parts)
      message = f"{error.message}: sample {key!r} has the files {files}; {tars.SORT}"
      raise RecordError(error.kind, error.field, message) from error
    identity = f"{posixpath.splitext(posixpath.basename(raw.path))[0]}/{key}"
    annotation_fields.check_unicode(identity, "key", "key")
    long, *longs = self._find_long(sample, key, report)
    captions = [*caption_set.plain(short, long), *map(Caption, others), *(Caption(text, "long") for text in longs)]
    if self.alt_text_field or alt_text not in (name, self.long_field):
      captions += _find_further(sample, self.alt_text_field or alt_text, "short", ALT_TEXT, report)
    for field in self.further_fields:
      further, kind = _split_kind(field)
      captions += _find_further(sample, further, kind, further, report)
    found = caption_set.reduce(caption_set.merge(captions), short, long)
    return Record(id=identity, image=image, short=short, long=long, captions=found)

  def _find_long(self, sample: dict[str, Any], key: str, report: Report) -> list[str]:
    if self.long_field:
      texts = _get_texts(sample, self.long_field, "long", report, optional=True)
    elif self.long_captions:
      value = key if self.by == "key" else sample.get("url")
      texts = [(self.long_captions.get(value) if isinstance(value, str) else None) or ""]
    else:
      return [""]
    if not texts[0]:
      report("note", RecordError("long_caption_none", "long", f"sample {key!r} has no long caption"))
    return texts


def _split_kind(field: str) -> tuple[str, caption_set.Kind]:
  """The name of a field, and the kind of its captions."""
  name, colon, kind = field.rpartition(":")
  return (name, "long") if colon and kind == "long" else (field, "short")


def _find_further(
  sample: dict[str, Any], field: str, kind: caption_set.Kind, source: str, report: Report
) -> list[Caption]:
  """The captions of a field beside the short and the long one; what cannot be used is reported."""
  try:
    texts = _get_texts(sample, field, "further_caption", report, optional=True)
  except RecordError as error:
    report("annotation", error)
    return []
  return [Caption(text, kind, source=source) for text in texts if text]


def _get_texts(sample: dict[str, Any], field: str, name: str, report: Report, optional: bool = False) -> list[str]:
  """The caption of a field, checked, and those that follow it in a list, as Parquet files of the Hub have them."""
  value, others = sample.get(field), []
  if isinstance(value, list):
    first, *others = [text for text in value if isinstance(text, str) and text.strip()] or value[:1] or [""]
    sample = {field: first}
  return [annotation_fields.get_text(sample, field, field, report, name=name, optional=optional), *others]


def _read_sample(sample: tars.Sample) -> tuple[str, bytes | None, dict[str, Any]]:
  """Returns a sample's key, its image, and all fields of its JSON file and its text."""
  values = {}
  if "json" in sample.parts:
    values.update(annotation_fields.get_mapping(streams.load(sample.read("json")), "json", "side_file"))
  if "txt" in sample.parts:
    values["txt"] = text.decode_marked(sample.read("txt"))  # what is not UTF-8 is found by its field
  suffix = sample.find_image()
  return sample.key, sample.read(suffix) if suffix else None, values


def _read_row(row: parquet.Row) -> tuple[str, bytes | None, dict[str, Any]]:
  values = row.read()
  column = next((name for name in parquet.IMAGE_COLUMNS if name in values), None)
  if column is None:
    columns = ", ".join(sorted(values))
    raise RecordError("image_missing", "image", f"{row.path} has no column of images among {columns}")
  key = values.get("key")
  return key if isinstance(key, str) else str(row.number), parquet.get_bytes(values.pop(column)), values


def find_files(inputs: list[str]) -> tuple[str, ...]:
  """Lists the tar and Parquet files of the inputs, in order: files themselves, and those under folders.

  Raises:
    FileNotFoundError: there is none.
    ValueError: a file is neither.
  """
  found = [file for path in inputs for file in image_store.find_files(path)]
  for file in found:
    if not file.lower().endswith((".tar", ".parquet")):
      raise ValueError(f"{file!r} must end in .tar or .parquet (a compressed .tar.gz has to be unpacked first)")
  return tuple(dict.fromkeys(found))


def check_fields(source: WebDataset) -> None:
  """Raises `ValueError` if no sample of the first ones has the fields that are read: it names those there are."""
  wanted = [("short_field", (source.short_field,) if source.short_field else ("txt", "caption"))]
  wanted += [("long_field", (source.long_field,))] if source.long_field else []
  wanted += [("alt_text_field", (source.alt_text_field,))] if source.alt_text_field else []
  wanted += [("further_fields", (name,)) for name, _ in map(_split_kind, source.further_fields)]
  first, fields, image = source.files[0], dict[str, None](), False
  for file in source.files[:FILES]:
    try:
      if file.lower().endswith(".parquet"):
        fields |= dict.fromkeys(parquet.list_columns(file))
        image = image or not fields.keys().isdisjoint(parquet.IMAGE_COLUMNS)
      else:
        image = True
        for _, sample in itertools.islice(tars.scan(file), SAMPLES):
          fields |= dict.fromkeys(_find_fields(sample))
    except RecordError:  # it is counted when the file is read
      image = True
  if fields and not image:
    raise ValueError(f"{first} has no column of images ({', '.join(parquet.IMAGE_COLUMNS)}): it has {_list(fields)}")
  for option, names in wanted:
    if fields and fields.keys().isdisjoint(names):
      expected = " or ".join(map(repr, names))
      raise ValueError(f"{first} has no field {expected}: it has {_list(fields)}; name one by --{option}")


def _find_fields(sample: tars.Sample) -> Iterable[str]:
  try:
    side = streams.load(sample.read("json")) if "json" in sample.parts else {}
  except RecordError:
    side = {}
  return [*(["txt"] if "txt" in sample.parts else []), *(side if isinstance(side, dict) else {})]


def _list(fields: Iterable[str]) -> str:
  return ", ".join(f"{name!r:.60}" for name in itertools.islice(fields, 50))


def read_long_captions(files: list[str], by: By, field: str, state: str, workers: int | Engine) -> lookup_table.Table:
  """Makes the table of long captions.

  Args:
    files: JSON lines, JSON lists, CSV (each also as .gz) or Parquet, with the fields `by` and `field`; or a JSON object
      of captions by URL or key.
    by: the field that names the image.
    field: the field of the caption.
    state: the folder where the table is kept.
    workers: the number of processes, or an engine.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file breaks off, or has no such fields.
  """
  arguments = {"by": by, "field": field, "files": [paths.fingerprint(file) for file in files]}
  inputs = [(paths.absolute(file), (file, by, field)) for file in files]
  table = lookup_table.make(
    paths.join(state, "long_captions"), _read_captions, inputs, arguments, workers, label="captions"
  )
  if table.broken:
    file, reason = table.broken[0]
    raise ValueError(f"{file}: {reason}")
  count, example = table.skipped
  if not table.entries:
    raise ValueError(f"no long caption in {', '.join(files)}: {example or 'no entry'}")
  if count:
    print(f"{count:,} entries have no {by} or no {field}: {example}")
  print(f"Found {table.entries:,} long captions in {len(files):,} files")
  if table.repeated:
    print(f"{table.repeated:,} more are of the same {by} as one before them, which is the one that is taken")
  return table


def _read_captions(task: tuple[str, str, str]) -> Iterator[tuple[str, str] | RecordError]:
  path, by, field = task
  for number, raw in enumerate(_read_entries(path, by, field)):
    try:
      entry = annotation_fields.get_mapping(raw if isinstance(raw, dict) else streams.load(raw), "entry")
      name = annotation_fields.get_text(entry, by, by, _ignore)
      yield name, annotation_fields.get_text(entry, field, field, _ignore, name="long")
    except RecordError as error:
      yield RecordError(error.kind, f"entry {number}: {error.field}", error.message)


def _read_entries(path: str, by: str, field: str) -> Iterator[streams.Raw | dict[str, Any]]:
  form = path.lower().removesuffix(".gz")
  if form.endswith(".parquet"):
    columns = parquet.list_columns(path)
    for name in (by, field):
      if name not in columns:
        raise RecordError("column_missing", name, f"is no column; there are {', '.join(columns)}")
    reader = parquet.Reader(path, [by, field])
    yield from (reader.get(number) for number in range(len(reader)))
  elif form.endswith(".json"):
    for name, raw in streams.walk(path):
      value = streams.load(raw) if name else None
      yield {by: name, field: value} if isinstance(value, str) else raw
  else:
    yield from (raw for _, raw in streams.scan(path))


def _ignore(scope: Scope, error: RecordError) -> None:
  """Drops notes on long texts, which are reported when a record uses them."""


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="folders, or .tar or .parquet files")
  parser.add_argument("--short_field", metavar="NAME", help="the field of the short caption (default: KEY.txt)")
  parser.add_argument("--long_field", metavar="NAME", help="the field of the long caption")
  parser.add_argument(
    "--alt_text_field", metavar="NAME",
    help="the field of the alt text, kept beside the others (default: KEY.txt or caption, if --short_field is another)",
  )  # fmt: skip
  parser.add_argument(
    "--further_fields", nargs="+", default=[], metavar="NAME[:long]", help="fields of further captions to keep"
  )
  parser.add_argument("--long_captions", nargs="+", metavar="FILE", help="files of long captions")
  parser.add_argument(
    "--by", choices=("url", "key"), default="url", help="how these files name images (default: %(default)s)"
  )
  cli.add_conversion(parser, name="webdataset")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  files, table, long_field = find_files(options.input), None, options.long_field
  if options.long_captions:
    state, engine = cli.tables_folder(options), cli.make_engine(options)
    table = read_long_captions(options.long_captions, options.by, long_field or "long", state, engine)
    long_field = None  # it was the field of the table's files
  further = tuple(options.further_fields)
  source = WebDataset(files, options.short_field, long_field, table, options.by, options.alt_text_field, further)
  check_fields(source)
  cli.convert(options, source)
