"""Reads labelled images: folders named by class, a folder with a file of labels, ImageNet, TensorFlow Datasets."""

import collections
import csv
import dataclasses
import difflib
import functools
import importlib.resources
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from fgclip_jax.data import tfds_reader
from fgclip_jax.evals.datasets.images import Source
from fgclip_jax.evals.datasets.text_files import read_json
from fgclip_jax.storage import folders, paths, text
from fgclip_jax.storage.skip_report import Skip, SkipReport

_HEADINGS = ("imageid", "image_id", "image", "filename", "file", "name", "path")  # of the first column of a CSV file
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Pictures and their classes.

  Attributes:
    pictures: sources that `fgclip_jax.evals.datasets.images` reads.
    ids: the name of each picture in reports.
    labels: the number of each picture's class.
    names: the names of the classes; some may have no picture.
    notes: see `Result`.
  """

  pictures: Sequence[Source]
  ids: Sequence[str]
  labels: Int[np.ndarray, "N"]
  names: tuple[str, ...]
  notes: tuple[str, ...] = ()

  def first(self, limit: int | None) -> "Labelled":
    """The first `limit` pictures; all where it is None."""
    if limit is not None and limit < 1:
      raise ValueError(f"limit must be at least 1, got {limit}")
    return Labelled(self.pictures[:limit], self.ids[:limit], self.labels[:limit], self.names, self.notes)


@functools.cache
def imagenet_classes() -> dict[str, str]:
  """ImageNet-1K: WordNet numbers in the order of the classes, and the names from CLIP's authors."""
  return json.loads((importlib.resources.files("fgclip_jax.evals") / "imagenet.json").read_text(encoding="utf-8"))


def read_classes(path: str) -> dict[str, str] | list[str]:
  """Class names of a file: by folder (a JSON object, or lines `FOLDER<tab>NAME`) or in order (a JSON list, or lines).

  Raises:
    FileNotFoundError, ValueError: the file is missing, or holds no names.
  """
  if path.lower().endswith(".json"):
    found = read_json(path)
  else:
    lines = [(number, line.strip()) for number, line in enumerate(text.lines(path), 1) if line.strip()]
    rows = [(number, *line.split("\t", 1)) for number, line in lines if "\t" in line]
    if rows and len(rows) < len(lines):
      number, line = next(each for each in lines if "\t" not in each[1])
      raise ValueError(f"{path}, line {number}: {line!r:.80} has no tab, as other lines have: FOLDER<tab>NAME")
    found = {folder.strip(): name.strip() for _, folder, name in rows} if rows else [line for _, line in lines]
    if len(found) < len(lines):
      twice = collections.Counter(folder.strip() for _, folder, _ in rows).most_common(1)[0][0]
      raise ValueError(f"{path}: folder {twice!r} is on two lines")
  values = list(found.values()) if isinstance(found, dict) else found
  if (
    not isinstance(values, list) or not values or not all(isinstance(value, str) and value.strip() for value in values)
  ):
    raise ValueError(f"{path!r} must hold class names: an object or list of strings, or lines")
  return found


def list_classes(folder: str, skips: SkipReport | None = None) -> list[str]:
  """The names of the sub-folders of a folder, sorted; see `folders.list_folders` for those that are left out."""
  return folders.list_folders(folder, SkipReport() if skips is None else skips)


def read_folder(folder: str, classes: Mapping[str, str] | Sequence[str] | None = None) -> Labelled:
  """Reads pictures in sub-folders named by class, in the order of their names.

  Pictures in folders below those of the classes are read, too, behind the others of their class. Notes count them, and
  what is no part of the data: hidden and systems' own files and folders (see `storage.folders`), files without the
  suffix of an image, pictures beside the sub-folders.

  Args:
    folder: the folder.
    classes: names by sub-folder, or in order; None: a sub-folder's name is its class's, with spaces for `_`.
      With names in order, sub-folders named by numbers have the classes of these numbers (`10` is class 10, though it
      sorts before `2`), sub-folders named like classes have these, and where none is, they are taken in the order of
      their names.

  Raises:
    FileNotFoundError, ValueError: the folder is missing, has no picture, or has a sub-folder that is no class.
  """
  skips = SkipReport()
  found = list_classes(folder, skips)
  beside = [name for name, is_folder in paths.scan_folder(folder) if not is_folder and not folders.is_hidden(name)]
  if not found:
    odd = [name for name in beside if "\\" in name]
    advice = (
      f"; {odd[0]!r} is of a zip file of Windows, unpacked with its folders as names: unpack it again" if odd else ""
    )
    raise ValueError(f"{folder!r} has no sub-folders: it needs one for each class, with its pictures{advice}")
  for name in beside:
    if name.lower().endswith(SUFFIXES):
      skips.add(
        Skip("picture_without_class", "lies beside the sub-folders", place=paths.join(folder, name), scope="file")
      )
  number, names = _number_classes(folder, found, classes)
  pictures, labels, nested = [], [], []
  for name in found:
    files = [f"{name}/{file}" for file in _list_pictures(paths.join(folder, name), skips)]
    pictures += files
    nested += [file for file in files if file.count("/") > 1]
    labels += [number[name]] * len(files)
  notes = folders.describe(folder, skips)
  if not pictures:
    raise ValueError(f"the sub-folders of {folder!r} hold no pictures ({', '.join(SUFFIXES)}){'; '.join(('', *notes))}")
  if nested:
    notes.append(
      f"{len(nested):,} pictures lie in folders below those of their classes, and were read: {nested[0]}, ..."
    )
  sources = [paths.join(folder, file) for file in pictures]
  return Labelled(sources, pictures, np.asarray(labels, np.int64), names, tuple(notes))


def read_flat(folder: str, labels: str, classes: Mapping[str, str] | Sequence[str] | None = None) -> Labelled:
  """Reads pictures of one folder, with their classes in a file.

  Args:
    folder: the folder.
    labels: a text file. Either lines `FILE CLASS`, separated by a tab, a comma or a space: the suffix of FILE may be
      missing, and if CLASS is several words and no class, its first word counts, as in Kaggle's `LOC_val_solution.csv`;
      or a class on each line, for the pictures of the folder in the order of their names.
    classes: names by key (for ImageNet, WordNet numbers), or in order; None: the distinct classes of the file, sorted,
      with spaces for `_`. A class is written as its key, its name, or, in lines with a FILE, its number from 0.

  Raises:
    FileNotFoundError, ValueError: a file is missing, or a line of `labels` cannot be used; the message names it.
  """
  skips = SkipReport()
  listed = _list_pictures(folder, skips)
  files = [file for file in listed if "/" not in file]
  by_name = {os.path.splitext(file)[0]: file for file in files} | {file: file for file in files}
  lines = {number: line.strip() for number, line in enumerate(text.lines(labels), 1) if line.strip()}
  rows, alone = _read_rows(labels, lines, files, by_name)
  if not files or not rows:
    raise ValueError(f"{folder!r} has {len(files)} pictures ({', '.join(SUFFIXES)}), {labels!r} names {len(rows)}")
  if classes is None:
    for number, _, label in rows:
      if not alone and ("\t" in label or ("," in label and '"' not in lines[number])):
        raise ValueError(f"{labels}, line {number}: needs two fields, FILE and CLASS, and goes on with {label!r:.80}")
    classes = {label: label.replace("_", " ") for label in sorted({label for _, _, label in rows})}
  keys, names = (list(classes), tuple(classes.values())) if isinstance(classes, Mapping) else ([], tuple(classes))
  known = {name: place for each in (names, keys) for place, name in enumerate(each)}
  # Numbers on lines without a file are refused: in ImageNet's development kit they count classes in another order.
  if not (alone and keys):
    known = {str(place): place for place in range(len(names))} | known
  found = []
  for number, file, label in rows:
    word = label if label in known else label.split(None, 1)[0] if label else ""
    if word not in known:
      advice = ""
      if word.isdecimal():
        advice = "; numbers are read in lines `FILE NUMBER`, from 0 on"
      elif likely := difflib.get_close_matches(label, known, 1):
        advice = f"; is it {likely[0]!r}?"
      elif not label:
        advice = (
          f": give a line `FILE CLASS` for each, or a class on each line; {len(rows)} are for {len(files)} pictures"
        )
      raise ValueError(f"{labels}, line {number}: {label!r} is none of the {len(names)} classes{advice}")
    found.append((by_name.get(file, file), known[word]))
  class_of: dict[str, int] = {}
  for (number, _, _), (file, place) in zip(rows, found, strict=True):
    if class_of.setdefault(file, place) != place:
      raise ValueError(f"{labels}, line {number}: {file!r} has another class on an earlier line")
  if len(class_of) < len(found):
    twice = Skip("picture_listed_twice", "some pictures are on several lines; each counts once", place=labels)
    skips.add(twice, len(found) - len(class_of))
  notes = folders.describe(folder, skips)
  unnamed = set(listed) - set(class_of)
  if unnamed:
    notes.append(
      f"{len(unnamed):,} pictures of {folder!r} are not in {labels!r} and were not looked at, e.g. {min(unnamed)}"
    )
  sources = [paths.join(folder, file) for file in class_of]
  return Labelled(sources, list(class_of), np.asarray(list(class_of.values()), np.int64), names, tuple(notes))


def read_tfds(name: str, split: str = "test", data_dir: str | None = None) -> Labelled:
  """Reads a data set of TensorFlow Datasets from local random-access files, without TensorFlow.

  Args:
    name: its name, e.g. `imagenet_v2` or `cifar10:3.0.2`, or its folder (with `features.json`).
    split: its split.
    data_dir: the folder of data sets; None: `~/tensorflow_datasets`.

  Raises:
    FileNotFoundError, ValueError: it is missing, has no `image` with a `label` that is a class, or its files are not
      ArrayRecord files.
  """
  import tensorflow_datasets as tfds

  folder, _ = tfds_reader.find_files(name, data_dir, split, ("image", "label"))
  builder: Any = tfds.builder_from_directory(folder)
  label = builder.info.features["label"]
  if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
    raise ValueError(f"field `label` of {folder} must be a class, and is {label!r}")
  source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  known = imagenet_classes()
  names = tuple(known.get(each, each.replace("_", " ")) for each in label.names)
  labels = [int(source[place]["label"]) for place in range(len(source))]
  pictures = [functools.partial(_get_image, source, place) for place in range(len(source))]
  return Labelled(pictures, [f"{split}/{place}" for place in range(len(source))], np.asarray(labels, np.int64), names)


def _list_pictures(folder: str, skips: SkipReport) -> list[str]:
  """The paths of the pictures in a folder and those below it; other files are counted."""
  found = []
  for name in folders.walk(folder, skips):
    if name.lower().endswith(SUFFIXES):
      found.append(name)
    else:
      skips.add(Skip("file_not_picture", "has no suffix of a picture", place=paths.join(folder, name), scope="file"))
  return found


def _read_rows(
  path: str, lines: Mapping[int, str], files: list[str], by_name: Mapping[str, str]
) -> tuple[list[tuple[int, str, str]], bool]:
  """The number, picture and class of each line of a file of labels, and whether lines have only the class."""
  rows = [(number, *_split_row(path, number, line)) for number, line in lines.items()]
  if len(rows) == len(files) and not any(file in by_name for _, file, _ in rows):
    return [(number, file, line) for file, (number, line) in zip(files, lines.items(), strict=True)], True
  heading = bool(rows) and rows[0][1].lower() in _HEADINGS
  return rows[heading:], False


def _split_row(path: str, number: int, line: str) -> tuple[str, str]:
  """The first field of a line, and the second, which may be empty."""
  mark = next((mark for mark in "\t," if mark in line), None)
  if mark == "," and '"' in line:
    try:
      first, *rest = next(csv.reader([line], strict=True))
    except csv.Error as error:
      raise ValueError(f"{path}, line {number}: {line!r:.80} is no row of a CSV file ({error})") from error
    rest = [",".join(rest)]
  else:
    first, *rest = line.split(mark, 1)
  return first.strip(), rest[0].strip() if rest else ""


def _get_image(source: Sequence[dict], place: int) -> bytes | np.ndarray:
  image = source[place]["image"]
  return image.item() if isinstance(image, np.ndarray) and not image.ndim else image


def _number_classes(folder: str, found: list[str], classes: Mapping[str, str] | Sequence[str] | None):
  """The number of each sub-folder's class, and the names of all classes."""
  if classes is None:
    return {name: place for place, name in enumerate(found)}, tuple(name.replace("_", " ") for name in found)
  if isinstance(classes, Mapping):
    keys, names = list(classes), tuple(classes.values())
  else:
    keys, names = None, tuple(classes)
  if all(name.isdecimal() for name in found) and (keys is None or found[0] not in keys):
    number = {name: int(name) for name in found}
    wrong = [name for name in found if int(name) >= len(names)]
    twice = [name for name in found if sum(each == number[name] for each in number.values()) > 1]
    if twice:
      raise ValueError(f"sub-folders {', '.join(map(repr, twice))} of {folder!r} have the same number")
  else:
    if keys is None:
      spaced = {name.replace("_", " "): name for name in found}
      keys = [spaced.get(name.replace("_", " "), name) for name in names]
      if not set(found) & set(keys) and len(found) == len(names):
        keys = found
    number = {key: place for place, key in enumerate(keys)}
    wrong = [name for name in found if name not in number]
  if wrong:
    likely = difflib.get_close_matches(wrong[0], [*(keys or ()), *names], 1)
    more = f"; nor are {len(wrong) - 1:,} others" if len(wrong) > 1 else ""
    advice = f"; is it {likely[0]!r}?" if likely else ""
    raise ValueError(f"sub-folder {wrong[0]!r} of {folder!r} is none of the {len(names)} classes{more}{advice}")
  return number, names
