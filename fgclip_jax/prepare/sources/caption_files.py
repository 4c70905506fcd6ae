"""Files of captions as people have them: which fields of their records hold the image and its captions.

| form | recognised by |
|---|---|
| `pairs` | `image` and `short` or `caption`: the form of this program |
| open_clip's CSV and TSV | `filepath` and `title` |
| ImageFolder of Hugging Face | a folder with `metadata.jsonl`, `.csv` or `.parquet`, with `file_name` |
| Parquet of Hugging Face, `save_to_disk` | rows with the image as bytes, or as an object with `bytes` and `path` |
| DOCCI | `image_file` and `description`, which is a long caption |
| ShareGPT4V, LLaVA | `image` and `conversations`: the answer to a question for a caption is the long caption |

Any other file is read by the names that the options give. All is decided from the first records, before an image is
read: an error names the fields that there are, and the likely ones.
"""

import dataclasses
import difflib
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from fgclip_jax.data import annotation_fields, caption_set
from fgclip_jax.data.caption_set import Caption, Kind
from fgclip_jax.prepare.sources import caption_folders, conversations, known_forms
from fgclip_jax.storage import arrow, parquet, paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report
from fgclip_jax.storage.tars import IMAGE_SUFFIXES

Raw = streams.Raw | parquet.Row | arrow.Row
SAMPLES = 1000  # records that are looked at to find the fields; of Parquet and Arrow, whose rows all have the same, 16
IMAGES = ("image", "filepath", "file_name", "image_file")
SHORTS = ("short", "caption", "captions", "title", "text")
SPLIT = "split"  # the field of a record's split
_MISSING = object()
_CAPTION_NAME = re.compile(r"caption|text|title|desc|prompt|sentence|comment|alt", re.I)
_IMAGE_ENDING = re.compile(rf"\.({'|'.join(IMAGE_SUFFIXES)})$", re.I)
_IMAGE_NAME = re.compile(r"image|img|file|path|photo|picture|jpg|png", re.I)


@dataclasses.dataclass(frozen=True)
class Fields:
  """The names of fields that the user gives; None: found. `a/b` is the field `b` of the object `a`."""

  image: str | None = None
  short: str | None = None
  long: str | None = None
  id: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a record has what.

  Attributes:
    image: the field of the image's path, or of its bytes.
    short: the fields of the short caption, of which the first that a record has is taken; none: there is no short one.
    long: the field of the long caption; None: there is none.
    id: the field of the record's name; None: the image's path.
    split: only records with this text in the field `split` are read; None: all.
  """

  image: str = "image"
  short: tuple[str, ...] = ("short", "caption", "captions")
  long: str | None = "long"
  id: str | None = None
  split: str | None = None


PLAIN = Layout()


@dataclasses.dataclass(frozen=True)
class CaptionFiles:
  """Files of captions.

  Attributes:
    files: the files.
    layout: where their records have what.
    images: the folder of the images.
    note: one line on what is read of them; empty for the plain form.
  """

  files: tuple[str, ...]
  layout: Layout
  images: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
  """An image and its captions.

  Attributes:
    image: its path as the record spells it; "" if the record holds the image and not its path.
    data: the encoded image, if the record holds it.
    short, long: all captions of each kind.
    id: the record's name; "" where it has none.
    captions: all captions of all fields, and what is known of them.
  """

  image: str
  data: bytes | None
  short: tuple[str, ...]
  long: tuple[str, ...]
  id: str = ""
  captions: tuple[Caption, ...] = ()


def find(
  captions: Sequence[str], fields: Fields, images: str | None = None, split: str | None = None, command: str = "prepare"
) -> CaptionFiles:
  """Finds the files at paths, and how their records are read.

  Args:
    captions: files, or a folder: an ImageFolder, Parquet files, or what `save_to_disk` wrote.
    fields: the fields' names that are given.
    images: the folder of the images; None: that of the first file.
    split: reads only this split: of a folder's, or by the field `split`.
    command: `prepare` or `evaluate`, whose commands are named for other forms.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: a form that is not read here, or fields that are missing.
  """
  files: list[str] = []
  in_folder = None
  for path in captions:
    if not paths.exists(path):
      raise FileNotFoundError(f"no captions file at {path!r}")
    if paths.is_folder(path):
      found, in_folder = caption_folders.find(path, split, command)
      files += found
    else:
      files.append(_check_file(path, command))
  for file in files:
    if form := known_forms.find_container(file):
      raise ValueError(known_forms.advise(form, file, command))
  first, samples = _find_samples(files)
  layout = _choose(samples, fields, first, command)
  for file in files:
    if file != first and not _has_rows(file) and (others := sample(file)[0]):  # a broken one is counted when it is read
      _choose(others, fields, file, command)
  if split is not None and in_folder is None:
    layout = dataclasses.replace(layout, split=split)
    _check_split(files, split)
  _check_records(samples, layout, first)
  images = images or os.path.dirname(files[0]) or "."
  if command == "prepare":
    _check_absolute(samples, layout, first, paths.absolute(images))
  plain = {*layout.short} == {*PLAIN.short} and dataclasses.replace(layout, short=PLAIN.short) == PLAIN
  note = "" if plain and not _has_rows(first) else _describe(samples, layout, first)
  return CaptionFiles(tuple(files), layout, images, note)


def scan(file: str, offset: int = 0) -> Iterator[tuple[int, Raw]]:
  """Yields offsets and records of a file of any form, as `streams.scan` does."""
  name = file.lower()
  yield from (parquet if name.endswith(".parquet") else arrow if name.endswith(".arrow") else streams).scan(
    file, offset
  )


def _has_rows(file: str) -> bool:
  """Whether all records of a file have the same fields, and may hold images."""
  return file.lower().endswith((".parquet", ".arrow"))


def load(raw: Raw, report: Report | None = None) -> object:
  """Parses what `scan` yielded; raises `RecordError`, and reports, as `streams.load` and a row's `read` do."""
  return raw.read() if isinstance(raw, parquet.Row | arrow.Row) else streams.load(raw, report)


def in_split(value: object, split: str | None) -> bool:
  """Whether a parsed record belongs to a split; what is no record does, so that it is counted."""
  return split is None or not isinstance(value, dict) or value.get(SPLIT) == split


def parse(value: object, layout: Layout) -> Entry:
  """Reads a record's fields; texts may be empty.

  Raises:
    RecordError: kinds `record_not_object`, `image_missing`, `image_wrong_type`, `short_missing`, `short_wrong_type`,
      `caption_...` the same, `long_wrong_type`, `id_wrong_type`, `id_of_several_lines`, and those of conversations and
      of `caption_set.parse`.
  """
  record = annotation_fields.get_mapping(value, "record")
  image, data = _get_image(_get(record, layout.image), layout.image)
  long: list[Caption] = []
  if layout.long == conversations.FIELD:
    long = [Caption(conversations.find_caption(record.get(layout.long)), "long")]
  elif layout.long:
    long = _get_captions(record, layout.long, "long", "long", optional=bool(layout.short))
  fields: list[list[Caption]] = []
  named = [name for name in layout.short if _get(record, name) is not _MISSING] or [*layout.short[:1]]
  for name in named:
    if not fields or isinstance(_get(record, name), str | list):  # what else is beside the first was never read
      fields.append(_get_captions(record, name, name if name in PLAIN.short else "short", "short"))
  captions = [*itertools.chain.from_iterable(fields), *long]
  short = next((texts for each in fields if (texts := caption_set.texts(each, "short"))), ())
  if not short and any(fields):
    raise RecordError("short_missing", named[0], "holds no caption of the kind short")
  all_long = caption_set.texts(long or captions, "long")
  return Entry(image, data, short, all_long, _get_id(record, layout.id) if layout.id else "", tuple(captions))


def _get(record: dict, name: str) -> Any:
  """The value of a field, `a/b` being the field `b` of the object `a`; of a list of objects, the list of their `b`."""
  if name in record:
    return record[name]
  first, _, rest = name.partition("/")
  value = record.get(first, _MISSING) if rest else _MISSING
  if isinstance(value, list):
    found = [_get(each, rest) if isinstance(each, dict) else _MISSING for each in value]
    return _MISSING if any(each is _MISSING for each in found) else found
  return _get(value, rest) if isinstance(value, dict) else _MISSING


def _get_image(value: Any, name: str) -> tuple[str, bytes | None]:
  data = parquet.get_bytes(value)
  path = value.get("path") if isinstance(value, dict) else None if data is not None else value
  if data is not None or isinstance(path, str):
    if data is None and not str(path).strip():
      raise RecordError("image_empty", name, "is empty")
    return path if isinstance(path, str) else "", data
  if value is None or value is _MISSING or isinstance(value, dict):
    raise RecordError("image_missing", name, "is missing" if value is _MISSING else "is null")
  raise RecordError("image_wrong_type", name, f"must be text, got {value!r:.80}")


def _get_captions(record: dict, name: str, label: str, kind: Kind, optional: bool = False) -> list[Caption]:
  value = _get(record, name)
  if optional and value in (_MISSING, None):
    return []
  if value is _MISSING or value is None:
    raise RecordError(f"{label}_missing", name, "is null" if value is None else "is missing")
  return caption_set.parse(value, name, label, kind)


def _get_id(record: dict, name: str) -> str:
  value = _get(record, name)
  if value is _MISSING or value is None or (isinstance(value, str) and not value.strip()):
    return ""
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise RecordError("id_wrong_type", name, f"must be text or a whole number, got {value!r:.80}")
  text = str(value)
  annotation_fields.check_one_line(text, name)
  return text


def _check_file(path: str, command: str) -> str:
  if not paths.is_file(path):
    raise FileNotFoundError(f"{path!r} is neither a file nor a folder")
  if not path.lower().removesuffix(".gz").endswith(caption_folders.SUFFIXES):
    advice = known_forms.name_file(path, command)
    endings = ", ".join(caption_folders.SUFFIXES)
    raise ValueError(advice or f"{path!r} must end in one of {endings}: its ending decides how it is read")
  return path


def _find_samples(files: Sequence[str]) -> tuple[str, list[dict]]:
  """The first file that has records, and its first ones; raises `ValueError` if there is none."""
  reason = None
  for file in files:
    found, why = sample(file)
    if found:
      return file, found
    reason = reason or f"no record in {file}: {why}"
  raise ValueError(reason or "no file of captions")


def sample(file: str) -> tuple[list[dict], str]:
  """The first records of a file, and why there is none."""
  found, reason = [], "it is empty"
  try:
    for _, raw in itertools.islice(scan(file), 16 if _has_rows(file) else SAMPLES):
      try:
        value = load(raw)
        if isinstance(value, dict):
          found.append(value)
        else:
          reason = f"its records are not objects with named fields, but {value!r:.80}"
      except RecordError as error:
        reason = str(error)
  except RecordError as error:
    reason = str(error)
  return found, reason


def _choose(samples: list[dict], fields: Fields, file: str, command: str) -> Layout:
  columns = list(dict.fromkeys(name for record in samples for name in record))
  for option, name in dataclasses.asdict(fields).items():
    if name is not None and all(_get(record, name) is _MISSING for record in samples):
      near = difflib.get_close_matches(name, map(str, columns), 1)
      advice = f"; is it {near[0]!r}?" if near else ""
      raise ValueError(f"{file} has no field {name!r} (--{option}_field): {list_fields(samples)}{advice}")
  image = fields.image or next((name for name in IMAGES if name in columns), None)
  if image is None:
    if advice := known_forms.name_records(file, samples[0], command):
      raise ValueError(advice)
    raise ValueError(f"{file}: no field of images; {list_fields(samples)}{_advise('image', samples, columns)}")
  values = [_get(record, image) for record in samples]
  if all(isinstance(value, str) and value.startswith(("http://", "https://")) for value in values):
    raise ValueError(known_forms.advise_download(file, image))
  if conversations.FIELD in columns and not (fields.short or fields.long):
    return Layout(image, (), conversations.FIELD, fields.id)
  present = [name for name in SHORTS if name in columns and name != image]
  short = (fields.short,) if fields.short else PLAIN.short if {*PLAIN.short} & {*present} else (*present[:1],)
  long = fields.long or ("long" if "long" in columns or short == PLAIN.short else None)
  if command == "evaluate" and short == PLAIN.short:
    short = short[::-1]  # of a list and a text beside it, an evaluation takes the list
  if not short and long is None and image == "image_file" and "description" in columns:
    long = "description"  # DOCCI
  if not short and long is None:
    advice = _advise("short", samples, [name for name in columns if name != image])
    raise ValueError(f"{file}: no field of captions; {list_fields(samples)}{advice}")
  return Layout(image, short, long, fields.id)


def list_fields(samples: list[dict]) -> str:
  """Names the fields of records."""
  columns = list(dict.fromkeys(str(name) for record in samples for name in record))
  return f"the fields are {', '.join(map(repr, columns[:20]))}{', ...' if len(columns) > 20 else ''}"


def _advise(option: str, samples: list[dict], columns: list) -> str:
  """Names the field that likely holds images or captions, and a likely delimiter of a file with a single column."""
  if len(columns) == 1 and (delimiter := next((each for each in "\t;|," if each in str(columns[0])), None)):
    return f"; is the delimiter {'a tab' if delimiter == chr(9) else repr(delimiter)}?"
  texts = {name: [record[name] for record in samples if isinstance(record.get(name), str | list)] for name in columns}
  pictures = {name: [v for v in values if _IMAGE_ENDING.search(str(v))] for name, values in texts.items()}
  if option == "image":
    held = [name for name in columns if any(parquet.get_bytes(record.get(name)) for record in samples)]
    likely = held or [name for name in columns if pictures[name]]
    likely = likely or [name for name in columns if _IMAGE_NAME.search(str(name))]
  else:
    likely = [name for name in columns if texts[name] and not pictures[name] and _CAPTION_NAME.search(str(name))]
    spaced = {name: sum(" " in str(v) for v in values) for name, values in texts.items() if not pictures[name]}
    likely = likely or [name for name, count in spaced.items() if count and count == max(spaced.values())]
  return f"; likely --{option}_field {shlex.quote(str(likely[0]))}" if likely else f"; name it by --{option}_field"


def _check_records(samples: list[dict], layout: Layout, file: str) -> None:
  """Raises `ValueError` if no record of the first can be read for want of a field or for its type."""
  first = None
  for record in samples:
    try:
      parse(record, layout)
      return
    except RecordError as error:
      if not error.kind.endswith(("_missing", "_wrong_type", "_none")):
        return
      first = first or error
  raise ValueError(f"{file}: none of the first {len(samples)} records can be used: {first}; {list_fields(samples)}")


def relative(path: str, images: str) -> str:
  """An absolute path under the folder `images` as one relative to it; any other as it is."""
  return path.removeprefix(f"{images.rstrip('/')}/") if images and path.startswith("/") else path


def _check_absolute(samples: list[dict], layout: Layout, file: str, images: str) -> None:
  """Raises `ValueError` if all paths of images are absolute, and none is under their folder."""
  values = [_get(record, layout.image) for record in samples]
  outside = [value for value in values if isinstance(value, str) and relative(value, images).startswith("/")]
  if outside and len(outside) == len(values):
    folder = os.path.commonpath([os.path.dirname(path) for path in outside])
    raise ValueError(f"{file}: images are not under {images}, but at {outside[0]!r}: give --images {folder}")


def _check_split(files: Sequence[str], split: str) -> None:
  """Raises `ValueError` if no record is of the split."""
  seen: dict[str, None] = {}
  for file in files:
    try:
      for _, raw in scan(file):
        try:
          value = load(raw)
        except RecordError:
          continue
        if isinstance(value, dict) and value.get(SPLIT) == split:
          return
        if isinstance(value, dict) and SPLIT in value and len(seen) < 10:
          seen[repr(value[SPLIT])] = None
    except RecordError:
      continue  # found again, and counted, when the file is read
  held = f"the splits are {', '.join(seen)}" if seen else f"records have no field {SPLIT!r}"
  raise ValueError(f"{files[0]} has no record of split {split!r}: {held}")


def _describe(samples: list[dict], layout: Layout, file: str) -> str:
  read = {layout.image: "image", **dict.fromkeys(layout.short, "short caption")}
  read |= {name: what for name, what in ((layout.long, "long caption"), (layout.id, "id")) if name}
  columns = list(dict.fromkeys(name for record in samples for name in record))
  used = [f"{what} from {name!r}" for name, what in read.items() if any(_get(r, name) is not _MISSING for r in samples)]
  rest = [repr(name) for name in columns if name not in {key.split("/")[0] for key in read}]
  return f"{file}: {', '.join(used)}{'; not read: ' if rest else ''}{', '.join(rest[:10])}"
