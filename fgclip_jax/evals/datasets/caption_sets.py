"""Reads pictures with captions from the files of retrieval benchmarks."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fgclip_jax.evals.datasets.image_folders import SUFFIXES
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport

CAPTIONS = 5  # of an image are used in the benchmarks of short captions
SHAREGPT4V = 1000  # entries, from the first, are the benchmark ShareGPT4V-1K


class Entry(NamedTuple):
  """A picture's path below the folder of the images, and its captions."""

  image: str
  captions: tuple[str, ...]


def read(
  dataset: str, annotations: str, split: str, limit: int | None, skips: SkipReport, skip_empty: bool = True
) -> list[Entry]:
  """Reads the entries of a set, in the order of its file.

  Args:
    dataset: a key of `READERS`.
    annotations: its file or folder.
    split: for `flickr30k` and files of the same form, the split to take.
    limit: the number of entries to read, from the first; None for all.
    skips: counts entries that cannot be used, as `caption_missing` (no caption, or an empty one) or by the kind of
      their record's error.
    skip_empty: leaves out empty captions, and pictures without another one; else they are captions like others.

  Raises:
    OSError, ValueError: the file is missing or broken, or holds no usable entry.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit must be at least 1, got {limit}")
  entries = []
  for found in itertools.islice(READERS[dataset](annotations, split), limit):
    if isinstance(found, RecordError):
      skips.add(Skip.of(found, annotations))
      continue
    captions = tuple(text.strip() for text in found.captions if text.strip() or not skip_empty)
    if captions:
      entries.append(Entry(found.image, captions))
    else:
      skips.add(Skip("caption_missing", found.image, place=annotations))
  if not any(text for entry in entries for text in entry.captions):
    raise ValueError(f"{annotations!r} holds no picture with a caption{f' of split {split!r}' if split else ''}")
  return entries


def _read_coco(path: str, split: str) -> Iterator[Entry]:
  del split
  value = _load(path)
  captions: dict[Any, list[str]] = {_need(image, "id", path): [] for image in _need(value, "images", path)}
  for annotation in _need(value, "annotations", path):
    image = _need(annotation, "image_id", path)
    if image not in captions:
      raise ValueError(f"{path}: annotation {annotation.get('id')} is of image {image}, not listed")
    captions[image].append(_need(annotation, "caption", path))
  for image in value["images"]:
    yield Entry(_need(image, "file_name", path), tuple(captions[image["id"]][:CAPTIONS]))


def _read_karpathy(path: str, split: str) -> Iterator[Entry | RecordError]:
  """`dataset_flickr30k.json`, `dataset_coco.json`; or a CSV file with columns filename, split and raw (a list)."""
  if path.lower().endswith(".csv"):
    for row in _rows(path):
      if isinstance(row, RecordError):
        yield row
      elif _need(row, "split", path) == split:
        yield Entry(_need(row, "filename", path), tuple(json.loads(_need(row, "raw", path)))[:CAPTIONS])
    return
  for image in _need(_load(path), "images", path):
    if _need(image, "split", path) == split:
      sentences = tuple(_need(sentence, "raw", path) for sentence in _need(image, "sentences", path))
      yield Entry(os.path.join(image.get("filepath", ""), _need(image, "filename", path)), sentences[:CAPTIONS])


def _read_sharegpt4v(path: str, split: str) -> Iterator[Entry | RecordError]:
  del split
  for place, entry in enumerate(itertools.islice(_rows(path), SHAREGPT4V)):
    if isinstance(entry, RecordError):
      yield entry
      continue
    turns = _need(entry, "conversations", f"{path}, entry {place}")
    caption = (_need(turns[1], "value", f"{path}, entry {place}"),) if len(turns) > 1 else ()
    yield Entry(_need(entry, "image", f"{path}, entry {place}"), caption)


def _read_dci(path: str, split: str) -> Iterator[Entry]:
  del split
  for name in (name for name in paths.list_folder(path) if name.endswith(".json")):
    file = paths.join(path, name)
    value = _load(file)
    yield Entry(_need(value, "image", file), (_need(value, "extra_caption", file) or "",))


def _read_urban1k(path: str, split: str) -> Iterator[Entry]:
  del split
  stems = {os.path.splitext(name)[0]: name for name in paths.list_folder(paths.join(path, "caption"))}
  for name in paths.list_folder(paths.join(path, "image")):
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in SUFFIXES:
      text = paths.read(paths.join(path, "caption", stems[stem])).decode() if stem in stems else ""
      yield Entry(name, (text,))


def _read_pairs(path: str, split: str) -> Iterator[Entry | RecordError]:
  """Objects or rows with `image` and `caption` or `captions`, text or list; rows of one image are joined."""
  del split
  captions: dict[str, list[str]] = {}
  for place, row in enumerate(_rows(path)):
    if isinstance(row, RecordError):
      yield row
      continue
    found = row.get("captions", row.get("caption")) if isinstance(row, dict) else None
    found = [found] if isinstance(found, str) else found
    image = row.get("image") if isinstance(row, dict) else None
    if not isinstance(image, str) or not isinstance(found, list) or not all(isinstance(text, str) for text in found):
      yield RecordError("record_wrong_form", f"record {place}", "needs `image`, a path, and `caption` or `captions`")
    else:
      captions.setdefault(image, []).extend(found)
  yield from (Entry(image, tuple(texts)) for image, texts in captions.items())


READERS: dict[str, Callable[[str, str], Iterator[Entry | RecordError]]] = {
  "coco": _read_coco,
  "flickr30k": _read_karpathy,
  "sharegpt4v": _read_sharegpt4v,
  "dci": _read_dci,
  "urban1k": _read_urban1k,
  "pairs": _read_pairs,
}
LONG = ("sharegpt4v", "dci", "urban1k")  # sets with long captions


def _load(path: str) -> Any:
  try:
    return json.loads(paths.read(path))
  except ValueError as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error


def _rows(path: str) -> Iterator[Any]:
  """The parsed records of a JSON list, JSON lines or CSV; a `RecordError` for one that cannot be parsed."""
  for _, raw in streams.scan(path):
    try:
      yield streams.load(raw)
    except RecordError as error:
      yield error


def _need(value: Any, key: str, where: str) -> Any:
  if not isinstance(value, dict) or key not in value:
    has = f"has {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else f"is {value!r:.40}"
    raise ValueError(f"{where}: needs the key {key!r}, and {has}")
  return value[key]
