"""The pictures that are annotated, and what is known of each: from folders, tar files and files of captions.

Items are spread over parts, each of one file, which one task works on.
"""

import array
import dataclasses
import functools
import glob
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fgclip_jax.data import annotation_fields, caption_set
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.record import MAX_NEGATIVES
from fgclip_jax.prepare.sources import caption_files, image_store
from fgclip_jax.storage import atomic, folders, paths, tars
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report, SkipReport

PART = 512  # items of a part, about
_HELD = 100_000  # lines
CAPTIONS = (".jsonl", ".jsonl.gz", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_CAPTION_FIELDS: dict[str, caption_set.Kind] = {
  "short": "short",
  "caption": "short",
  "captions": "short",
  "long": "long",
}
_FIELDS = ("image", *_CAPTION_FIELDS, "regions", "language")


@dataclasses.dataclass(frozen=True)
class Item:
  """One picture.

  Attributes:
    id: its path below the folder of the pictures, by which the output names it; of a tar file `TAR/KEY.ENDING`.
    source: the folder below which it is, or the tar file in which it is.
    offset, size: where in the tar file; None: it is a file of its own.
    known: what the input says of it, in the form of `prepare pairs`: some of short, long, captions, language, regions.
  """

  id: str
  source: str
  offset: int | None = None
  size: int | None = None
  known: dict[str, Any] = dataclasses.field(default_factory=dict)

  def read(self) -> bytes:
    """The bytes of the image file.

    Raises:
      RecordError: kinds `image_missing`, `image_not_file`, `image_too_large`, `image_not_permitted`.
    """
    if self.offset is None:
      return _folder(self.source).read((self.id,))
    return paths.read(self.source, self.offset, self.size)


def set_fields(value: Any) -> dict[str, Any]:
  """The fields of a dataclass but for those that are empty, which `cls(**...)` makes empty again."""
  return {name: field for name, field in vars(value).items() if field not in (None, "", [], {}) and field is not False}


@functools.lru_cache(maxsize=8)
def _folder(path: str) -> image_store.Folder:
  return image_store.Folder(path)


@dataclasses.dataclass(frozen=True)
class Input:
  """Where items come from.

  Attributes:
    images: a folder of pictures, or tar files; what `id`s are relative to.
    captions: files of captions, whose records name the pictures; none: every picture is an item.
    language: the code of the captions' language, where a record names none.
  """

  images: tuple[str, ...]
  captions: tuple[str, ...] = ()
  language: str = ""

  def scan(self, report: Report) -> Iterator[Item]:
    """Yields all items, in an order that depends on the names alone.

    `report` is called with what is left out.

    Raises:
      FileNotFoundError, ValueError: there is no such input, or one of no known form.
    """
    archives, other = self._divide()
    if self.captions:
      if archives or len(other) != 1:
        raise ValueError("--captions names pictures of one folder: give that folder as --images")
      yield from _from_captions(self.captions, other[0], report)
      return
    for folder in other:
      yield from _from_folder(folder, report)
    for archive in archives:
      yield from _from_tar(archive, report)

  def _divide(self) -> tuple[list[str], list[str]]:
    """The tar files, and the folders."""
    found = [name for given in self.images for name in _expand(given)]
    archives = [name for name in found if name.endswith(".tar")]
    other = [name for name in found if not name.endswith(".tar")]
    for name in other:
      if not paths.is_folder(name):
        raise FileNotFoundError(f"--images {name!r} is neither a folder nor a tar file")
    for name in archives:
      if not paths.is_file(name):
        raise FileNotFoundError(f"no tar file at {name!r} (--images)")
    return archives, other


def _expand(given: str) -> list[str]:
  if paths.is_remote(given) or not glob.has_magic(given) or os.path.exists(given):
    return [given]
  found = sorted(glob.glob(given))
  if not found:
    raise FileNotFoundError(f"nothing matches --images {given!r}")
  return found


def _from_folder(folder: str, report: Report) -> Iterator[Item]:
  skips = SkipReport(limit=sys.maxsize)
  suffixes = tuple(f".{suffix}" for suffix in tars.IMAGE_SUFFIXES)
  for name in folders.walk(folder, skips, suffixes):
    yield Item(name, folder)
  for skip in itertools.chain.from_iterable(skips.examples.values()):
    report("record", RecordError(skip.kind, skip.place, skip.message))


def _from_tar(archive: str, report: Report) -> Iterator[Item]:
  name = os.path.splitext(paths.base_name(archive))[0]
  try:
    for _, sample in tars.scan(archive):
      suffix = sample.find_image()
      if suffix is None:
        report("record", sample.missing_image())
        continue
      offset, size = sample.parts[suffix]
      yield Item(f"{name}/{sample.key}.{suffix}", archive, offset, size, _known_of_sample(sample, report))
  except RecordError as error:
    report("file", RecordError(error.kind, archive, error.message))


def _known_of_sample(sample: tars.Sample, report: Report) -> dict[str, Any]:
  """The alternative text beside a picture of img2dataset: it is its short caption."""
  if "txt" not in sample.parts:
    return {}
  try:
    text = sample.read("txt").decode().strip()
  except (RecordError, UnicodeDecodeError) as error:
    report("note", RecordError("short_unreadable", sample.key, str(error)))
    return {}
  return {"short": text} if text else {}


def _from_captions(files: Sequence[str], folder: str, report: Report) -> Iterator[Item]:
  for file in files:
    if not paths.is_file(file):
      raise FileNotFoundError(f"no captions file at {file!r}")
    if not file.lower().endswith(CAPTIONS):
      raise ValueError(f"{file!r} must end in one of {', '.join(CAPTIONS)}: its ending decides how it is read")
    try:
      for number, (_, raw) in enumerate(caption_files.scan(file)):
        try:
          yield _parse(caption_files.load(raw), folder, report)
        except RecordError as error:
          report("record", RecordError(error.kind, f"{file}, record {number}: {error.field}", error.message))
    except RecordError as error:
      report("file", RecordError(error.kind, file, error.message))


def _parse(value: object, folder: str, report: Report) -> Item:
  """An item of a record in the form of `prepare pairs`, in which all but the image may be missing."""
  record = annotation_fields.get_mapping(value, "record")
  name = annotation_fields.get_text(record, "image", "image", report)
  name = annotation_fields.check_path(caption_files.relative(name, paths.absolute(folder)), "image")
  annotation_fields.check_one_line(name, "image")
  known: dict[str, Any] = _known_captions(record, report)
  known["language"] = annotation_fields.get_text(record, "language", "language", report, optional=True)
  known["regions"] = [
    region
    for index, each in enumerate(
      annotation_fields.get_list(record.get("regions"), "regions", "regions", report, "region")
    )
    if (region := _parse_region(each, f"regions[{index}]", report))
  ]
  for unknown in sorted({*map(str, record)} - {*_FIELDS}):
    report("note", RecordError("field_unknown", unknown, f"is not read; the fields are {', '.join(_FIELDS)}"))
  return Item(name, folder, known={key: value for key, value in known.items() if value})


def _known_captions(record: dict[str, Any], report: Report) -> dict[str, Any]:
  """A record's first short and first long caption, and all if there are more, as `prepare pairs` reads them."""
  found: list[Caption] = []
  for name, kind in _CAPTION_FIELDS.items():
    if record.get(name) is not None:
      found += caption_set.parse(record[name], name, name, kind)
  found = [caption for caption in found if caption.text.strip()]
  first: dict[str, Any] = {caption.kind: caption.text for caption in reversed(found)}
  short, long = (annotation_fields.get_text(first, kind, kind, report, optional=True) for kind in caption_set.KINDS)
  whole = caption_set.merge(found)
  plain = caption_set.plain(short, long) if short else (Caption(long, "long"),)
  return {"short": short, "long": long, "captions": [vars(each) for each in whole] if whole != plain else []}


def _parse_region(value: object, field: str, report: Report) -> dict[str, Any] | None:
  """A region of which the box is known, and perhaps its captions and negatives."""
  try:
    region = annotation_fields.get_mapping(value, field, "region")
    found: dict[str, Any] = {"box": list(annotation_fields.get_box(region.get("box"), f"{field}.box", report))}
    for key in ("short", "long"):
      found[key] = annotation_fields.get_text(region, key, f"{field}.{key}", report, optional=True)
    place = f"{field}.negatives"
    negatives = annotation_fields.get_list(region.get("negatives"), place, "negatives", report, "negative")
    found["negatives"] = list(annotation_fields.keep_negatives(negatives, found["short"], place, MAX_NEGATIVES, report))
  except RecordError as error:
    report("region", error)
    return None
  return {key: value for key, value in found.items() if value}


# ---- parts


def write_parts(folder: str, found: Iterable[Item], report: Report, parts: int | None = None) -> list[int]:
  """Spreads items over parts, the files `part-00003.jsonl`, in which they are sorted by id; what was there goes.

  The part of an item depends on its id and the number of parts alone: an item stays where its answers are when others
  are added. An id that comes twice is reported, and its first item is kept.

  Args:
    folder: where the files are written; may be a URL.
    found: the items.
    report: called with what is left out.
    parts: how many; None: so many that a part has about `PART` items.

  Returns:
    The number of items of each part.
  """
  with atomic.scratch() as scratch:
    listing, sums = os.path.join(scratch, "items"), array.array("L")
    with open(listing, "w", encoding="utf-8") as file:
      for item in found:
        file.write(json.dumps(set_fields(item)) + "\n")
        sums.append(_checksum(item.id))
    parts = parts or -(-len(sums) // PART) or 1
    made = os.path.join(scratch, "parts")
    os.makedirs(made)
    _distribute(listing, sums, made, parts)
    counts = []
    for number in range(parts):
      kept: dict[str, str] = {}
      for line in _read_lines(made, number):
        identity = json.loads(line)["id"]
        if kept.setdefault(identity, line) is not line:
          report("record", RecordError("item_twice", identity, "comes twice; the first is taken"))
      _append(made, number, [kept[identity] for identity in sorted(kept)], "w")
      counts.append(len(kept))
    paths.remove(folder)
    paths.upload(made, folder)
    return counts


def part_of(identity: str, parts: int) -> int:
  """The part of an item."""
  return _checksum(identity) % parts


def _checksum(identity: str) -> int:
  return zlib.crc32(identity.encode())


def read_part(folder: str, number: int) -> list[Item]:
  """The items of a part."""
  return [Item(**json.loads(line)) for line in _read_lines(folder, number)]


def _read_lines(folder: str, number: int) -> list[str]:
  path = part_path(folder, number)
  return paths.read(path).decode().splitlines() if paths.exists(path) else []


def part_path(folder: str, number: int) -> str:
  """The file of a part in a folder."""
  return paths.join(folder, f"part-{number:05d}.jsonl")


def _distribute(listing: str, sums: Iterable[int], folder: str, parts: int) -> None:
  waiting: dict[int, list[str]] = {}
  with open(listing, encoding="utf-8") as file:
    for count, (line, checksum) in enumerate(zip(file, sums, strict=True), 1):
      waiting.setdefault(checksum % parts, []).append(line.rstrip("\n"))
      if count % _HELD == 0:  # of a million items, not all lines are held at a time
        for number, lines in waiting.items():
          _append(folder, number, lines)
        waiting = {}
  for number, lines in waiting.items():
    _append(folder, number, lines)


def _append(folder: str, number: int, lines: list[str], mode: str = "a") -> None:
  with open(part_path(folder, number), mode, encoding="utf-8") as file:
    file.writelines(line + "\n" for line in lines)
