"""The inputs of `python -m fgclip_jax.embed`: images, texts and regions from files and record folders, item by item.

An input is iterated twice at most: to count its items, and to load them. `load` is called by threads, and raises
`RecordError` for an item that cannot be used; `embed` then leaves it out and names it in its report.
"""

import dataclasses
import functools
import glob
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fgclip_jax.data import annotation_fields, shards
from fgclip_jax.data import image as images
from fgclip_jax.data import record as records
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError

TEXT_LINES = ".txt"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """One item, ready to be encoded: a row, or as many as it has boxes or texts.

  Attributes:
    ids: the ids of its rows.
    pixels: uint8 [S, S, 3]; None for texts.
    boxes: float32 [K, 4], x1, y1, x2, y2 as fractions of the image's sides; None but for regions.
    texts: the texts; empty for images and regions.
  """

  ids: tuple[str, ...]
  pixels: np.ndarray | None = None
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
    size: the side of images in pixels.
    mode: how images are made square.
    what: `images`, `texts` or `regions`.
    kind: the kind of texts: `short`, `long` or `region`.
    field: the field of texts in JSON or CSV.
    root: the folder that paths of images are relative to; empty: the current one.
    pixels: the model's.
  """

  size: int
  mode: str
  what: str
  kind: str
  field: str
  root: str
  pixels: PixelSpec = CLIP_PIXELS

  def image(self, data: bytes | str, name: str) -> np.ndarray:
    """Returns the pixels, uint8 [S, S, 3], of an image file given as its bytes or its path.

    Raises:
      RecordError: kinds `image_missing`, `image_unreadable` and those of `images.to_levels`.
    """
    try:
      data = data if isinstance(data, bytes) else paths.read(data)
    except FileNotFoundError as error:
      raise RecordError("image_missing", name, "there is no such file") from error
    except OSError as error:
      raise RecordError("image_unreadable", name, f"cannot be read ({error})") from error
    return images.to_levels(data, self.size, self.mode, name, self.pixels)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """Image files by a listing of their paths: a file with one JSON string a line."""

  name: str
  listing: str
  folder: str
  reading: Reading
  fingerprint: int

  def __iter__(self) -> Iterator[str]:
    with open(self.listing, encoding="utf-8") as file:
      for line in file:
        yield json.loads(line)

  def describe(self, item: str) -> str:
    return item

  def load(self, item: str) -> Loaded:
    return Loaded((item,), self.reading.image(paths.join(self.folder, item) if self.folder else item, item))


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Texts, or images with boxes, from a file of one text a line, JSON lines, a JSON list or CSV."""

  name: str
  reading: Reading
  fingerprint: Any

  def __iter__(self) -> Iterator[tuple[int, Any]]:
    if self.name.lower().endswith(TEXT_LINES):
      with paths.open(self.name, "rb") as file:
        yield from enumerate(file, 1)
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
    text = annotation_fields.get_text(values, self.reading.field, self.reading.field, _ignore, name="text")
    return Loaded((str(values.get("id", number)),), texts=(text,))

  def _load_regions(self, values: dict) -> Loaded:
    path = annotation_fields.get_text(values, "image", "image", _ignore)
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
    text = found.long if self.reading.kind == "long" else found.short
    if not text.strip():
      raise RecordError("text_empty", self.reading.kind, "there is no such caption")
    return Loaded((found.id,), texts=(text,))


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
  if paths.is_folder(given) and any(".array_record-" in name for name in paths.list_folder(given)):
    return RecordFolder(given, split, reading)
  if what == "images":
    listing = os.path.join(state, f"images-{zlib.crc32(given.encode()):08x}.jsonl")
    folder = given if paths.is_folder(given) else reading.root if given.lower().endswith(TEXT_LINES) else ""
    if not os.path.exists(listing):
      _write_listing(listing, _list_images(given))
    with open(listing, "rb") as file:
      return ImageFiles(given, listing, folder, reading, functools.reduce(lambda c, line: zlib.crc32(line, c), file, 0))
  if paths.is_folder(given):
    raise FileNotFoundError(f"{given!r} is no record folder: give one, or a file of {what}")
  if not paths.exists(given):
    raise FileNotFoundError(f"no file or record folder at {given!r}")
  suffixes = (".jsonl", ".json") if what == "regions" else (TEXT_LINES, *streams.SUFFIXES)
  if not given.lower().removesuffix(".gz").endswith(suffixes):
    raise ValueError(f"{given!r}: a file of {what} must end in one of {', '.join(suffixes)}")
  return Annotations(given, reading, paths.fingerprint(given))


def _list_images(given: str) -> Iterable[str]:
  """Lists paths in a fixed order; those in a folder are relative to it."""
  suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in images.FORMATS}
  if paths.is_folder(given):
    if paths.is_remote(given):
      raise ValueError(f"{given!r}: a folder of images must be on this machine; list remote ones in a .txt file")
    return (path for path in _walk(given) if os.path.splitext(path)[1].lower() in suffixes)
  if glob.has_magic(given) and not os.path.exists(given):
    return sorted(path for path in glob.iglob(given, recursive=True) if os.path.isfile(path))
  if not paths.exists(given):
    raise FileNotFoundError(f"no image, folder, list or record folder at {given!r}")
  return _read_list(given) if given.lower().endswith(TEXT_LINES) else [given]


def _walk(folder: str) -> Iterator[str]:
  for base, below, names in os.walk(folder):
    below.sort()  # in place: `os.walk` goes through this very list next
    yield from (os.path.relpath(os.path.join(base, name), folder) for name in sorted(names))


def _read_list(path: str) -> Iterator[str]:
  with paths.open(path, "rb") as file:
    for number, line in enumerate(file, 1):
      try:
        if name := line.decode().strip():
          yield name
      except UnicodeDecodeError as error:
        raise ValueError(f"line {number} of {path!r} is not UTF-8 text ({error})") from error


def _write_listing(listing: str, names: Iterable[str]) -> None:
  os.makedirs(os.path.dirname(listing), exist_ok=True)
  with open(listing + ".tmp", "w", encoding="utf-8") as file:
    file.writelines(json.dumps(name) + "\n" for name in names)
  os.replace(listing + ".tmp", listing)


def _regions(name: str, boxes: list, pixels: np.ndarray) -> Loaded:
  return Loaded(tuple(f"{name}#{k}" for k in range(len(boxes))), pixels, np.asarray(boxes, np.float32).reshape(-1, 4))


def _decode(line: bytes) -> str:
  try:
    return line.decode().rstrip("\r\n")
  except UnicodeDecodeError as error:
    raise RecordError("record_not_utf8", "line", f"is not UTF-8 text ({error})") from error


def _ignore(*_: object) -> None:
  """Drops notes on fields: `embed` reports only items that it leaves out."""
