"""Web pairs as img2dataset writes them: tar files of images, texts and JSON, or Parquet files.

A sample of a tar file is `KEY.jpg` with `KEY.txt` and `KEY.json`; a row of a Parquet file has the image in a column
`jpg` (or as `parquet.IMAGE_COLUMNS` lists them), the rest in further ones. Both have the fields `key`, `url`, `status`
and `error_message`; the short caption is the text `txt`, or the field `caption`. Long captions are a further field, or
lie in a table, by URL or key.
"""

import dataclasses
import posixpath
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import Record
from fgclip_jax.prepare.sources import image_store
from fgclip_jax.storage import lookup_table, parquet, paths, streams, tars
from fgclip_jax.storage import workers as pool
from fgclip_jax.storage.errors import RecordError

By = Literal["url", "key"]


@dataclasses.dataclass(frozen=True)
class WebDataset:
  """The source.

  Attributes:
    files: tar and Parquet files.
    short_field: the field of the short caption; None: the text beside the image, or else `caption`.
    long_field: the field of the long caption; None: there is none.
    long_captions: a table of long captions instead.
    by: what the table goes by.
  """

  form: ClassVar[str] = "webdataset"
  files: tuple[str, ...]
  short_field: str | None = None
  long_field: str | None = None
  long_captions: lookup_table.Table | None = None
  by: By = "url"

  def arguments(self) -> dict[str, Any]:
    long_captions = self.long_captions and {"found": self.long_captions.digest, "by": self.by}
    return {"short_field": self.short_field, "long_field": self.long_field, "long_captions": long_captions}

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, tars.Sample | parquet.Row]]:
    return (parquet if file.lower().endswith(".parquet") else tars).scan(file, offset)

  def load(self, raw: tars.Sample | parquet.Row, tell: annotation_fields.Tell) -> Record:
    key, image, sample = _read_sample(raw) if isinstance(raw, tars.Sample) else _read_row(raw)
    if image is None:
      if sample.get("status", "success") != "success":
        message = f"was not downloaded: {sample.get('status')}, {sample.get('error_message')}"
        raise RecordError("image_not_downloaded", "image", message)
      raise RecordError("image_missing", "image", f"sample {key!r} has no image; it has {', '.join(sorted(sample))}")
    name = self.short_field or ("txt" if "txt" in sample else "caption")
    short = annotation_fields.get_text(sample, name, name, tell, name="short")
    identity = f"{posixpath.splitext(posixpath.basename(raw.path))[0]}/{key}"
    annotation_fields.check_unicode(identity, "key", "key")
    return Record(id=identity, image=image, short=short, long=self._find_long(sample, key, tell))

  def _find_long(self, sample: dict[str, Any], key: str, tell: annotation_fields.Tell) -> str:
    if self.long_field:
      long = annotation_fields.get_text(sample, self.long_field, self.long_field, tell, name="long", optional=True)
    elif self.long_captions:
      value = key if self.by == "key" else sample.get("url")
      long = (self.long_captions.get(value) if isinstance(value, str) else None) or ""
    else:
      return ""
    if not long:
      tell("note", RecordError("long_caption_none", "long", f"sample {key!r} has no long caption"))
    return long


def _read_sample(sample: tars.Sample) -> tuple[str, bytes | None, dict[str, Any]]:
  """A sample's key, its image, and all fields of its JSON file and its text."""
  values = {}
  if "json" in sample.parts:
    values.update(annotation_fields.get_mapping(streams.load(sample.read("json")), "json", "side_file"))
  if "txt" in sample.parts:
    values["txt"] = sample.read("txt").decode("utf-8", "surrogateescape")  # what is not UTF-8 is found by its field
  suffix = sample.find_image()
  return sample.key, suffix and sample.read(suffix), values


def _read_row(row: parquet.Row) -> tuple[str, bytes | None, dict[str, Any]]:
  values = row.read()
  column = next((name for name in parquet.IMAGE_COLUMNS if name in values), None)
  if column is None:
    columns = ", ".join(sorted(values))
    raise RecordError("image_missing", "image", f"{row.path} has no column of images among {columns}")
  key = values.get("key")
  return key if isinstance(key, str) else str(row.number), parquet.get_bytes(values.pop(column)), values


def find_files(inputs: list[str]) -> tuple[str, ...]:
  """The tar and Parquet files that inputs mean, in order: files themselves, and those under folders.

  Raises:
    FileNotFoundError: there is none.
    ValueError: a file is neither.
  """
  found = [file for path in inputs for file in image_store.find_files(path)]
  for file in found:
    if not file.lower().endswith((".tar", ".parquet")):
      raise ValueError(f"{file!r} must end in .tar or .parquet (a compressed .tar.gz has to be unpacked first)")
  return tuple(dict.fromkeys(found))


def read_long_captions(
  files: list[str], by: By, field: str, state: str, workers: int | pool.Engine
) -> lookup_table.Table:
  """Makes the table of long captions.

  Args:
    files: JSON lines, JSON lists, CSV (each also as .gz) or Parquet, with the fields `by` and `field`; or a JSON object
      of captions by what names their images.
    by: the field that names the image.
    field: the field of the caption.
    state: where the table is kept.
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
      entry = annotation_fields.get_mapping(streams.load(raw) if isinstance(raw, bytes | tuple) else raw, "entry")
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


def _ignore(loss: annotation_fields.Loss, error: RecordError) -> None:
  """Long texts are told when a record takes them."""
