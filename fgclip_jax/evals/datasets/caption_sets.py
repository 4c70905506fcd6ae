"""Reads pictures with captions from the files of retrieval benchmarks."""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fgclip_jax.evals.datasets.image_folders import SUFFIXES
from fgclip_jax.prepare.sources import caption_files, known_forms
from fgclip_jax.storage import folders, paths, streams, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport

_NUMBERED = re.compile(r"#\d+$")
CAPTIONS = 5  # of an image are used in the benchmarks of short captions
SHAREGPT4V = 1000  # entries, from the first, are the benchmark ShareGPT4V-1K


class Entry(NamedTuple):
  """A picture's path below the folder of the images, and its captions.

  A picture that its record holds is read by `read_picture`, and `image` is its name only.
  """

  image: str
  captions: tuple[str, ...]
  read_picture: Callable[[], bytes] | None = None


class Options(NamedTuple):
  """What decides how a set's files are read, beside the set.

  Attributes:
    split: the split to take, of sets that have any; None: all.
    fields: of `pairs`, the names of fields that are given.
    kind: `short` or `long`: the captions to take of records that have both.
    notes: gets lines: on the fields that are read, where they are not those of the plain form, and on captions that
      are left out of pictures that have others.
  """

  split: str | None = None
  fields: caption_files.Fields = caption_files.Fields()
  kind: str = "short"
  notes: list[str] | None = None


def read(
  dataset: str, annotations: str, options: Options, limit: int | None, skips: SkipReport, skip_empty: bool = True
) -> list[Entry]:
  """Reads the entries of a set, in the order of its file.

  Args:
    dataset: a key of `READERS`.
    annotations: its file or folder.
    options: the split, and of `pairs` the fields.
    limit: the number of entries to read, from the first; None for all.
    skips: counts entries that cannot be used, as `caption_missing` (no caption, or an empty one) or by the kind of
      their record's error.
    skip_empty: leaves out empty captions, and pictures without another one; else they are captions like others.

  Raises:
    OSError, ValueError: the file is missing or broken, or holds no usable entry.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit must be at least 1, got {limit}")
  entries, wrong, first = [], 0, ""
  for found in itertools.islice(_read(dataset, annotations, options), limit):
    if isinstance(found, RecordError):
      skips.add(Skip.of(found, annotations))
      continue
    if not _is_text(found.image):
      skips.add(Skip("image_wrong_type", f"an image must be a path, got {found.image!r:.80}", place=annotations))
      continue
    texts = [text for text in found.captions if _is_text(text)]
    if len(texts) < len(found.captions):
      wrong += len(found.captions) - len(texts)
      first = first or found.image
    captions = tuple(text.strip() for text in texts if text.strip() or not skip_empty)
    if captions:
      entries.append(found._replace(captions=captions))
    else:
      skips.add(Skip("caption_missing", found.image, place=annotations))
  if not any(text for entry in entries for text in entry.captions):
    where = f" of split {options.split!r}" if options.split else ""
    reasons = "".join(f"; {skip.kind} {count}, the first: {skip}" for skip, count in skips.firsts())
    advice = _advise(dataset, annotations)
    raise ValueError(f"{annotations!r} holds no picture with a caption{where}{reasons}{advice}")
  if wrong and options.notes is not None:
    options.notes.append(f"{wrong:,} captions are no text and are left out, the first of {first!r}")
  return entries


def _read(dataset: str, path: str, options: Options) -> Iterator[Entry | RecordError]:
  """Yields what a set's reader does; an error also names a known form that the file is of instead."""
  try:
    yield from READERS[dataset](path, options)
  except ValueError as error:
    if advice := _advise(dataset, path):
      raise ValueError(f"{error}{advice}") from error
    raise


def _advise(dataset: str, path: str) -> str:
  """Names the form that a file is of, if that is known and another one than the set's."""
  form = known_forms.find_container(path) if dataset != "pairs" and paths.is_file(path) else None
  command = known_forms.FORMS[form].evaluate if form else None
  if form is None or command is None or command.split()[1:2] == [dataset]:
    return ""
  return f". {known_forms.advise(form, path, 'evaluate')}"


def _read_coco(path: str, options: Options) -> Iterator[Entry | RecordError]:
  value = _load(path)
  captions: dict[str, list[str]] = {}
  names: dict[str, str] = {}
  for place, image in enumerate(_need_list(value, "images", path)):
    where = f"images[{place}]"
    try:
      identity = _need_id(image, "id", where)
      if identity in names:
        raise RecordError("image_id_twice", where, f"the id {identity:.40} is that of another image, too")
      names[identity], captions[identity] = _need(image, "file_name", where), []
    except RecordError as error:
      yield error
  annotations, skips, first = _need_list(value, "annotations", path), SkipReport(), None
  for place, annotation in enumerate(annotations):
    where = f"annotations[{place}]"
    try:
      identity = _need_id(annotation, "image_id", where)
      if identity not in names:
        raise RecordError("image_not_listed", where, f"is of image {identity:.40}, not listed")
      captions[identity].append(_need(annotation, "caption", where))
    except RecordError as error:
      skips.add(Skip.of(error, scope="annotation"))
      first = first or error
  if first and not any(captions.values()):
    yield first
  if skips and options.notes is not None:
    options.notes.append(skips.summary(len(annotations), "annotations"))
  for identity, name in names.items():
    yield Entry(name, tuple(captions[identity][:CAPTIONS]))


def _read_karpathy(path: str, options: Options) -> Iterator[Entry | RecordError]:
  """`dataset_flickr30k.json`, `dataset_coco.json`; or a CSV file with columns filename, split and raw (a list)."""
  if path.lower().endswith(".csv"):
    rows, read = _rows(path), _read_karpathy_row
  else:
    rows, read = _need_list(_load(path), "images", path), _read_karpathy_image
  for place, row in enumerate(rows):
    try:
      if isinstance(row, RecordError):
        raise row
      where = f"images[{place}]"
      if _need(row, "split", where) == options.split:
        yield read(row, where)
    except RecordError as error:
      yield error


def _read_karpathy_row(row: Any, where: str) -> Entry:
  try:
    sentences = json.loads(_need(row, "raw", where))
  except RecordError:
    raise
  except (ValueError, RecursionError) as error:
    raise RecordError("captions_not_json", f"{where}.raw", f"is no list of captions ({error})") from error
  return Entry(_need(row, "filename", where), tuple(sentences if isinstance(sentences, list) else ())[:CAPTIONS])


def _read_karpathy_image(image: Any, where: str) -> Entry:
  sentences = [
    _need(sentence, "raw", f"{where}.sentences[{place}]")
    for place, sentence in enumerate(_need_list(image, "sentences", where))
  ]
  folder, name = image.get("filepath") or "", _need(image, "filename", where)
  if not isinstance(folder, str) or not isinstance(name, str):
    raise RecordError("image_wrong_type", f"{where}.filename", f"must be text, got {folder!r:.40}, {name!r:.40}")
  return Entry(os.path.join(folder, name), tuple(sentences[:CAPTIONS]))


def _read_sharegpt4v(path: str, options: Options) -> Iterator[Entry | RecordError]:
  del options
  for place, entry in enumerate(itertools.islice(_rows(path), SHAREGPT4V)):
    try:
      if isinstance(entry, RecordError):
        raise entry
      turns = _need_list(entry, "conversations", f"entry {place}")
      caption = (_need(turns[1], "value", f"entry {place}"),) if len(turns) > 1 else ()
      yield Entry(_need(entry, "image", f"entry {place}"), caption)
    except RecordError as error:
      yield error


def _read_dci(path: str, options: Options) -> Iterator[Entry | RecordError]:
  del options
  for name in folders.list_files(path, (".json",)):
    try:
      value = _load(paths.join(path, name))
      entry = Entry(_need(value, "image", name), (_need(value, "extra_caption", name) or "",))
    except (OSError, ValueError) as error:
      yield error if isinstance(error, RecordError) else RecordError("file_unreadable", name, str(error))
      continue
    yield entry


def _read_urban1k(path: str, options: Options) -> Iterator[Entry | RecordError]:
  del options
  stems = {os.path.splitext(name)[0]: name for name in folders.list_files(paths.join(path, "caption"))}
  for name in folders.list_files(paths.join(path, "image")):
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in SUFFIXES:
      try:
        caption = text.read(paths.join(path, "caption", stems[stem])) if stem in stems else ""
      except (OSError, ValueError) as error:
        yield RecordError("file_unreadable", name, str(error))
        continue
      yield Entry(name, (caption,))


def _read_pairs(path: str, options: Options) -> Iterator[Entry | RecordError]:
  """Records of any form that `prepare pairs` reads; those of one image are joined."""
  found = caption_files.find([path], options.fields, split=options.split, command="evaluate")
  if found.note and options.notes is not None:
    options.notes.append(found.note)
  entries: dict[str, Entry] = {}
  for file in found.files:
    stem = os.path.splitext(os.path.basename(file))[0]
    for place, (_, raw) in enumerate(caption_files.scan(file)):
      try:
        value = caption_files.load(raw)
        if not caption_files.in_split(value, found.layout.split):
          continue
        entry = caption_files.parse(value, found.layout)
      except RecordError as error:
        read = error.kind.startswith(("record_", "parquet_", "arrow_")) and error.kind != "record_not_object"
        yield error if read else RecordError("record_wrong_form", f"record {place}", str(error))
        continue
      texts = (entry.long or entry.short) if options.kind == "long" else (entry.short or entry.long)
      held = entry.data is not None
      name = f"{stem}/{place}" if held else entry.image
      read_picture = functools.partial(_read_picture, raw, found.layout) if held else None
      known = entries.setdefault(name, Entry(name, (), read_picture))
      entries[name] = known._replace(captions=known.captions + texts)
  yield from entries.values()


def _read_picture(raw: caption_files.Raw, layout: caption_files.Layout) -> bytes:
  return caption_files.parse(caption_files.load(raw), layout).data or b""


def _read_lines(path: str, options: Options, captions: int | None = None) -> Iterator[Entry | RecordError]:
  """Lines `IMAGE<tab>CAPTION`; those of one picture are joined, and `#N` behind its name, as Flickr30k has, dropped."""
  del options
  entries: dict[str, list[str]] = {}
  for number, line in enumerate(text.lines(path), 1):
    if not line.strip():
      continue
    image, tab, caption = line.partition("\t")
    if not tab or not image.strip():
      message = f"needs a picture and its caption, parted by a tab, got {line!r:.80}"
      yield RecordError("line_wrong_form", f"{path}, line {number}", message)
      continue
    entries.setdefault(_NUMBERED.sub("", image.strip()), []).append(caption)
  for image, found in entries.items():
    yield Entry(image, tuple(found[:captions]))


READERS: dict[str, Callable[[str, Options], Iterator[Entry | RecordError]]] = {
  "coco": _read_coco,
  "flickr30k": _read_karpathy,
  "karpathy": _read_karpathy,
  "sharegpt4v": _read_sharegpt4v,
  "dci": _read_dci,
  "urban1k": _read_urban1k,
  "pairs": _read_pairs,
  "coco_cn": functools.partial(_read_lines, captions=CAPTIONS),
  "flickr30k_cna": functools.partial(_read_lines, captions=CAPTIONS),
  "lit_cn": _read_lines,
  "dci_cn": _read_lines,
  "docci_cn": _read_lines,
}
LONG = ("sharegpt4v", "dci", "urban1k", "lit_cn", "dci_cn", "docci_cn")  # sets with long captions
# sets that FG-CLIP 2's published evaluation does not lower-case
AS_WRITTEN = ("flickr30k_cna", "lit_cn", "dci_cn", "docci_cn")


def _load(path: str) -> Any:
  try:
    return json.loads(text.decode_marked(paths.read(path)))  # what is not UTF-8 is found by its field
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error


def _rows(path: str) -> Iterator[Any]:
  """The parsed records of a JSON list, JSON lines or CSV; a `RecordError` for one that cannot be parsed."""
  for _, raw in streams.scan(path):
    try:
      yield streams.load(raw)
    except RecordError as error:
      yield error


def _is_text(value: Any) -> bool:
  """Whether a value is text, all of which UTF-8 can hold."""
  return isinstance(value, str) and text.is_unicode(value)


def _need_list(value: Any, key: str, where: str) -> list:
  found = _need(value, key, where)
  if not isinstance(found, list):
    raise RecordError(f"{key}_wrong_type", where, f"{key!r} must be a list, got {found!r:.80}")
  return found


def _need_id(value: Any, key: str, where: str) -> str:
  """An id as text: the number 7 is the same as the text `7` where a file has both."""
  found = _need(value, key, where)
  if isinstance(found, float) and found.is_integer():  # as pandas writes them
    found = int(found)
  if isinstance(found, bool) or not isinstance(found, str | int):
    raise RecordError(f"{key}_wrong_type", where, f"{key!r} must be a number or text, got {found!r:.80}")
  return str(found)


def _need(value: Any, key: str, where: str) -> Any:
  if not isinstance(value, dict) or key not in value:
    has = f"has {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else f"is {value!r:.40}"
    raise RecordError(f"{key}_missing", where, f"needs the key {key!r}, and {has}")
  return value[key]
