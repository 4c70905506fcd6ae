"""The inputs of `python -m fgclip_jax.embed`: images, texts and regions from files and record folders, item by item.

An input is iterated twice at most: to count its items, and to load them. `load` is called by threads, and raises
`RecordError` for an item that cannot be used; `embed` then leaves it out and names it in its report.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fgclip_jax.data import annotation_fields, shards
from fgclip_jax.data import image as images
from fgclip_jax.data import record as records
from fgclip_jax.inference import image_listing
from fgclip_jax.inference.image_listing import TEXT_LINES
from fgclip_jax.inference.pictures import Image, Reader
from fgclip_jax.storage import paths, streams, text
from fgclip_jax.storage.errors import RecordError

MAX_FILE = 1 << 30  # bytes of an image file; Pillow's largest picture is half of that once decoded
# what people call the field of texts, likeliest first
_TEXT_FIELDS = ("text", "caption", "captions", "short", "title", "sentence", "description", "long", "prompt", "query")


@dataclasses.dataclass(frozen=True)
class Loaded:
  """One item, ready to be encoded: a row, or as many as it has boxes or texts.

  Attributes:
    ids: the ids of its rows.
    pixels: uint8 [S, S, 3], or the patches of a picture of any shape; None for texts.
    boxes: float32 [K, 4], x1, y1, x2, y2 as fractions of the image's sides; None but for regions.
    texts: the texts; empty for images and regions.
  """

  ids: tuple[str, ...]
  pixels: Image | None = None
  boxes: np.ndarray | None = None
  texts: tuple[str, ...] = ()


@runtime_checkable
class Input(Protocol):
  """Items in an order that never changes.

  Attributes:
    name: names the input in messages.
    fingerprint: a JSON value that changes when the items change.
  """

  @property
  def name(self) -> str: ...

  @property
  def fingerprint(self) -> Any: ...

  def __iter__(self) -> Iterator[Any]:
    """Yields the items without loading them; raises `RecordError` where a file breaks off."""
    ...

  def describe(self, item: Any) -> str:
    """Returns the name of an item in reports."""
    ...

  def load(self, item: Any) -> Loaded:
    """Returns the item's rows; raises `RecordError` if it cannot be used."""
    ...


@dataclasses.dataclass(frozen=True)
class Reading:
  """How items are loaded.

  Attributes:
    reader: makes images into what the model reads.
    what: `images`, `texts` or `regions`.
    kind: the kind of texts: `short`, `long` or `region`.
    field: the field of texts in JSON or CSV.
    root: the folder that paths of images are relative to; empty: the current one.
  """

  reader: Reader
  what: str
  kind: str
  field: str
  root: str

  def image(self, data: bytes | str, name: str) -> Image:
    """Returns an image file, given as its bytes or its path, as the model reads it.

    Raises:
      RecordError: kinds `image_missing`, `image_unreadable` and those of `images.to_levels`.
    """
    try:
      if isinstance(data, str):
        size = 0 if paths.is_remote(data) else os.stat(data).st_size
        data = b"" if size > MAX_FILE else paths.read(data)
        if size > MAX_FILE:
          raise images.ImageError(
            "image_too_large", name, f"is a file of {size:,} bytes, at most {MAX_FILE:,} are read"
          )
    except FileNotFoundError as error:
      raise RecordError("image_missing", name, "there is no such file") from error
    except images.ImageError:
      raise
    except (OSError, ValueError) as error:  # of a path with a zero byte, or a URL that cannot be used here
      raise RecordError("image_unreadable", name, f"cannot be read ({error})") from error
    return self.reader.read(data, name)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """Image files by a listing, see `image_listing`.

  Attributes:
    fingerprint: changes when the paths change.
    sizes: changes when the size of a file changes.
  """

  name: str
  listing: str
  folder: str
  reading: Reading
  fingerprint: int
  sizes: int

  def __iter__(self) -> Iterator[list]:
    with paths.open(self.listing, "r", encoding="utf-8") as file:
      for line in file:
        item = json.loads(line)
        yield [item] if isinstance(item, str) else item  # an older version listed paths alone

  def describe(self, item: list) -> str:
    return item[0]

  def load(self, item: list) -> Loaded:
    path = item[0]
    if len(item) > 2:
      raise RecordError(item[1], "file", item[2])
    check_id(path)
    return Loaded((path,), self.reading.image(paths.join(self.folder, path) if self.folder else path, path))


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Texts, or images with boxes, from a file of one text a line, JSON lines, a JSON list or CSV."""

  name: str
  reading: Reading
  fingerprint: Any

  def __iter__(self) -> Iterator[tuple[int, Any]]:
    if self.name.lower().endswith(TEXT_LINES):
      with text.open(self.name) as file:
        yield from enumerate(text.split(file, self.name), 1)
    else:
      yield from enumerate((raw for _, raw in streams.scan(self.name)), 1)

  def describe(self, item: tuple[int, Any]) -> str:
    return str(item[0])

  def load(self, item: tuple[int, Any]) -> Loaded:
    number, raw = item
    if self.name.lower().endswith(TEXT_LINES):
      values = {self.reading.field: _decode(raw)}
    else:
      values = annotation_fields.get_mapping(streams.load(raw), "record")
    if self.reading.what == "regions":
      return self._load_regions(values)
    name, field = _get_id(values.get("id"), number), self.reading.field
    given = values.get(field)
    if isinstance(given, list):  # several captions of one image
      listed = {f"{field}[{place}]": each for place, each in enumerate(given)}
      if not listed:
        raise RecordError("text_missing", field, "is an empty list")
      texts = tuple(_get_text(listed, each) for each in listed)
      return Loaded(tuple(f"{name}#{place}" for place in range(len(texts))), texts=texts)
    return Loaded((name,), texts=(_get_text(values, field),))

  def check_fields(self) -> None:
    """Raises `ValueError` where no record has the fields that are read: it names those there, and the likely one."""
    if self.name.lower().endswith(TEXT_LINES):
      return
    regions = self.reading.what == "regions"
    there: dict[str, None] = {}
    try:
      there |= dict.fromkeys(streams.columns(self.name) or ())
      for values in self._load_all():
        both = "image" in values and ("boxes" in values or "regions" in values)
        if both if regions else self.reading.field in values:
          return
        there |= dict.fromkeys(list(values)[:50] if len(there) < 50 else ())
    except RecordError as error:
      raise ValueError(f"{self.name!r} breaks off ({error}): repair it first") from error
    if there:
      shown = ", ".join(f"{name!r:.60}" for name in there)
      if regions:
        raise ValueError(f"no record of {self.name!r} has `image` and `boxes` (or `regions`); the fields are {shown}")
      likely = find_likely(self.reading.field, list(there))
      advice = f": give --field {likely}" if likely else ": name one with --field"
      raise ValueError(f"no record of {self.name!r} has a field {self.reading.field!r}; the fields are {shown}{advice}")

  def _load_all(self) -> Iterator[dict]:
    for _, raw in self:
      with contextlib.suppress(RecordError):  # counted when its turn comes
        if isinstance(values := streams.load(raw), dict):
          yield values

  def _load_regions(self, values: dict) -> Loaded:
    path = annotation_fields.get_text(values, "image", "image", _ignore)
    check_id(path)
    given = values.get("boxes")
    if given is None:  # as `prepare pairs` takes them
      found = annotation_fields.get_list(values.get("regions"), "regions", "regions", _ignore, "region")
      given = [annotation_fields.get_mapping(region, "regions").get("box") for region in found]
    if not isinstance(given, list):
      raise RecordError("boxes_wrong_type", "boxes", f"must be a list of boxes [x1, y1, x2, y2], got {given!r:.80}")
    boxes = [records.check_box(box, f"boxes[{number}]") for number, box in enumerate(given)]
    return _regions(path, boxes, self.reading.image(paths.join(self.reading.root, path), path))


class RecordFolder:
  """The images, captions or regions of a split of a record folder that `python -m fgclip_jax.prepare` wrote."""

  def __init__(self, folder: str, split: str, reading: Reading):
    self.reading = reading
    self._records = shards.Records(folder, split)
    self.name = f"split {split!r} of {folder}"
    self.fingerprint = [[path, paths.fingerprint(path)] for path in self._records.paths]
    self.damage = self._records.damage

  def __iter__(self) -> Iterator[int]:
    return iter(range(len(self._records)))

  def describe(self, item: int) -> str:
    return self._records.where(item)

  def load(self, item: int) -> Loaded:
    found = records.decode(self._records[item])
    check_id(found.id)
    if self.reading.what == "texts":
      return self._load_texts(found)
    pixels = self.reading.image(found.image, found.id)
    if self.reading.what == "regions":
      return _regions(found.id, [region.box for region in found.regions], pixels)
    return Loaded((found.id,), pixels)

  def _load_texts(self, found: records.Record) -> Loaded:
    if self.reading.kind == "region":
      texts = tuple(region.short for region in found.regions)
      return Loaded(tuple(f"{found.id}#{number}" for number in range(len(texts))), texts=texts)
    caption = found.long if self.reading.kind == "long" else found.short
    if not caption.strip():
      raise RecordError("text_empty", self.reading.kind, "there is no such caption")
    return Loaded((found.id,), texts=(caption,))


def find(what: str, given: str, split: str, state: str, reading: Reading) -> Input:
  """Finds the input at a path.

  Args:
    what: `images`, `texts` or `regions`.
    given: a record folder; or, for images, a folder, a pattern such as `photos/**/*.jpg`, a .txt list of paths, or a
      file; for texts, a .txt, .jsonl, .json, .csv or .tsv file; for regions, a .jsonl or .json file.
    split: the split of a record folder.
    state: a folder where the list of images is kept.
    reading: how items are loaded.

  Raises:
    FileNotFoundError, ValueError: there is no such input.
  """
  if shards.is_record_folder(given):
    return RecordFolder(given, split, reading)
  if what == "images":
    listing = paths.join(state, f"images-{zlib.crc32(os.fsencode(given)):08x}.jsonl")
    folder = given if paths.is_folder(given) else reading.root if given.lower().endswith(TEXT_LINES) else ""
    if not paths.exists(listing):
      image_listing.write(listing, given, folder)
    names = sizes = 0
    with paths.open(listing) as file:
      for line in file:
        item = json.loads(line)
        names = zlib.crc32(json.dumps(item[0] if isinstance(item, list) else item).encode() + b"\n", names)
        sizes = zlib.crc32(line, sizes)
    return ImageFiles(given, listing, folder, reading, names, sizes)
  if paths.is_folder(given):
    raise FileNotFoundError(f"{given!r} is no record folder: give one, or a file of {what}")
  if not paths.exists(given):
    raise FileNotFoundError(f"no file or record folder at {given!r}")
  suffixes = (".jsonl", ".json") if what == "regions" else (".txt", *streams.SUFFIXES)
  if not given.lower().removesuffix(".gz").endswith(suffixes):
    raise ValueError(f"{given!r}: a file of {what} must end in one of {', '.join(suffixes)}")
  found = Annotations(given, reading, paths.fingerprint(given))
  found.check_fields()
  return found


def check_id(name: str) -> None:
  """Raises `RecordError` for an id that cannot be a line of a text file.

  Kinds `id_empty`, `id_not_unicode`, `id_of_several_lines`: the last for all that `str.splitlines` takes for an end of
  a line, such as U+2028.
  """
  annotation_fields.check_unicode(name, "id", "id")
  if not name.strip():
    raise RecordError("id_empty", "id", "is blank")
  annotation_fields.check_one_line(name, "id")


def find_likely(wanted: str, there: list[str]) -> str | None:
  """The field that was probably meant; None where nothing is likely."""
  lower = {name.strip().lower(): name for name in reversed(there)}
  known = [name for name in (wanted.strip().lower(), *_TEXT_FIELDS) if name in lower]
  close = (
    known or difflib.get_close_matches(wanted.lower(), lower, 1) or [n for n in lower if "caption" in n or "text" in n]
  )
  return lower[close[0]] if close else None


def _get_id(value: Any, number: int) -> str:
  """A record's id as text; its number if it has none, or a blank one."""
  if value is None or (isinstance(value, str) and not value.strip()):
    return str(number)
  if isinstance(value, bool | list | dict) or (isinstance(value, float) and not math.isfinite(value)):
    raise RecordError("id_wrong_type", "id", f"must be text or a number, got {value!r:.80}")
  return str(value)


def _get_text(values: dict, field: str) -> str:
  return annotation_fields.get_text(values, field, field, _ignore, name="text")


def _regions(name: str, boxes: list, pixels: Image) -> Loaded:
  return Loaded(tuple(f"{name}#{k}" for k in range(len(boxes))), pixels, np.asarray(boxes, np.float32).reshape(-1, 4))


def _decode(line: bytes) -> str:
  try:
    return line.decode().rstrip("\r\n")
  except UnicodeDecodeError as error:
    raise RecordError("record_not_utf8", "line", text.describe(line, error.start)) from error


def _ignore(*_: object) -> None:
  """Drops notes on fields: `embed` reports only items that it leaves out."""
