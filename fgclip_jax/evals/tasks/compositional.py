"""Compositional sets: does a picture fit its caption better than one with the same words in another order or role?

- SugarCrepe (https://github.com/RAIVNLab/sugar-crepe): a picture, its caption, a fluent wrong one.
- ARO (https://github.com/mertyg/vision-language-models-are-bows): relations and attributes in a box, order of words.
- Winoground (https://huggingface.co/datasets/facebook/winoground) and sets like it: two pictures, two captions.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

from fgclip_jax.data import image as image_files
from fgclip_jax.evals import guards, options, ranking
from fgclip_jax.evals.datasets import images as pictures
from fgclip_jax.evals.datasets.image_folders import SUFFIXES
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError

SHORT = "compositional sets: SugarCrepe, ARO, Winoground and sets of their forms"
TEXT = """Whether a picture fits its caption better than a caption with the same words in other roles. Of Winoground,
which has two pictures and two captions a question: text, image and group score."""
EXAMPLE = "sugarcrepe --model M --annotations sugarcrepe/*.json --images coco/val2017 --output sugarcrepe.json"

BLOCK = 65_536  # pairs of a picture and a caption scored at a time
ATTRIBUTES_LEAST = 25  # questions about a pair of attributes for it to count in the mean over pairs: the authors' rule

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Picture = tuple[str, Box | None]  # a path below the folder of images, and what is cut out of it


@dataclasses.dataclass(frozen=True)
class Question:
  """One picture whose first caption is right, the others wrong; or two pictures with a caption each.

  Attributes:
    file: the stem of the annotation file, e.g. `swap_obj`.
    id: its place or name in the file.
    pictures: one or two.
    captions: of one picture two at least, of two pictures two.
    group: what the question is about, e.g. the relation; empty where the file does not say.
    least: how many questions there must be about it for it to count in the mean over groups.
  """

  file: str
  id: str
  pictures: tuple[Picture, ...]
  captions: tuple[str, ...]
  group: str = ""
  least: int = 1


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("dataset", choices=tuple(READERS), help="the form of the annotations")
  parser.add_argument(
    "--annotations", required=True, nargs="+", metavar="FILE", help="their files, one for each category"
  )
  parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the pictures")
  options.add_mode(parser)
  options.add_limit(parser, "questions of each file")


@dataclasses.dataclass(frozen=True)
class Compositional:
  """The evaluator. Each distinct picture (or part of one) and each distinct caption is encoded once.

  Attributes:
    dataset: `sugarcrepe`, `aro` (relation, attribution and order alike) or `winoground`.
    annotations: JSON files; each is a category of its own, e.g. SugarCrepe's seven.
    images: the folder under which the pictures lie.
    mode, limit, allow: see `Classification`; the limit is of questions of each file.
  """

  dataset: str
  annotations: tuple[str, ...]
  images: str
  mode: image_files.Mode | None = None
  limit: int | None = None
  allow: tuple[str, ...] = ()

  def __post_init__(self):
    if self.dataset not in READERS:
      raise ValueError(f"dataset must be one of {', '.join(READERS)}, got {self.dataset!r}")
    if not self.annotations:
      raise ValueError("annotations: needs one file at least")
    stems = [_stem(path) for path in self.annotations]
    twice = [stem for stem, count in collections.Counter(stems).items() if count > 1]
    if twice:
      raise ValueError(f"annotations: two files are called {twice[0]!r}, by which results are named: rename one")

  @property
  def name(self) -> str:
    return f"compositional {self.dataset}"

  def settings(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def files(self) -> list[str | tuple[str, str]]:
    return [*self.annotations, self.images]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics of one picture and its captions: `FILE_top1`, the share of pictures whose caption scores highest, and,
    where questions are of groups, `FILE_mean_per_group`; of several files, `mean_of_files`.

    Metrics of two pictures and two captions: `FILE_text` (each picture finds its caption), `FILE_image` (each caption
    finds its picture), `FILE_group` (both).
    """
    notes = guards.check_resolution(model, self.allow)
    faults = pictures.Faults()
    questions: list[Question] = []
    records = 0
    for path in self.annotations:
      found, read, note = read_questions(self.dataset, path, faults, self.limit)
      questions, records, notes = questions + found, records + read, notes + note
    if not questions:
      told = "; ".join(faults.notes(records, "questions"))
      raise ValueError(f"no question of {', '.join(self.annotations)} can be used: {told or 'they hold none'}")
    texts = [caption for question in questions for caption in question.captions]
    embeddings, cut = guards.encode_texts(model, texts, "short", self.allow, progress)
    where = {text: place for place, text in enumerate(texts)}
    distinct = list(dict.fromkeys(picture for question in questions for picture in question.pictures))
    lost = pictures.Faults()
    sources = [_source(self.images, picture) for picture in distinct]
    image, kept = pictures.encode_pictures(model, sources, lost, self.mode, progress)
    row = {distinct[number]: place for place, number in enumerate(kept)}
    asked = [question for question in questions if all(picture in row for picture in question.pictures)]
    notes += [*cut, *faults.notes(records, "questions"), *lost.notes(len(distinct), "pictures")]
    if not asked:
      raise ValueError(f"no picture of {', '.join(self.annotations)} under {self.images!r} can be used: {notes[-1]}")
    skipped = dict(faults.skipped)
    if len(asked) < len(questions):
      skipped["question_without_picture"] = len(questions) - len(asked)
    numbers = [
      ([row[picture] for picture in question.pictures], [where[caption] for caption in question.captions])
      for question in asked
    ]
    scores = _scores(image, embeddings, numbers)
    measure = _measure_pairs if self.dataset == "winoground" else _measure_choices
    values, examples = measure(asked, scores)
    return Result(values, examples, records, skipped, tuple(notes))


def read_questions(
  dataset: str, path: str, faults: pictures.Faults, limit: int | None = None
) -> tuple[list[Question], int, list[str]]:
  """Reads a file; returns the questions that can be used, how many were read, and notes.

  A wrong caption that is the right one's equal (shuffling can give that) is left out of the question.

  Args:
    dataset: a key of `READERS`.
    path: a file of JSON or JSON lines.
    faults: where the others are counted: `question_broken` (not the expected fields), `box_without_size`,
      `negatives_missing` (no wrong caption).
    limit: reads only so many.

  Raises:
    FileNotFoundError, ValueError: the file is missing, or broken.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit must be at least 1, got {limit}")
  found: list[Question] = []
  read = equal = 0
  try:
    for number, raw in enumerate(itertools.islice(_rows(dataset, path), limit)):
      read += 1
      where = f"{path}, question {number}"
      try:
        question = READERS[dataset](streams.load(raw), _stem(path), str(number))
      except RecordError as error:
        faults.add(error.kind, f"{where}: {error}")
        continue
      except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        faults.add("question_broken", f"{where}: not the expected fields ({error!r})")
        continue
      if len(question.pictures) == 1:
        right, *wrong = question.captions
        different = [caption for caption in wrong if caption != right]
        equal += len(wrong) - len(different)
        question = dataclasses.replace(question, captions=(right, *different))
      if len(set(question.captions)) < 2:
        faults.add("negatives_missing", f"{where}: has no caption that differs from {question.captions[0]!r}")
      else:
        found.append(question)
  except RecordError as error:
    raise ValueError(f"{path} is broken at {error}; get it anew") from error
  notes = [f"{path}: {equal} wrong captions equal the right one and were left out"] if equal else []
  return found, read, notes


def _rows(dataset: str, path: str) -> Iterator[bytes]:
  """The records of a file: SugarCrepe's is an object of objects, or a list; the others a list or lines."""
  if dataset == "sugarcrepe":
    return (raw for _, raw in streams.walk(path))
  return (raw for _, raw in streams.scan(path))


def _read_sugarcrepe(entry: dict, file: str, number: str) -> Question:
  captions = _texts(entry["caption"], entry["negative_caption"])
  return Question(file, number, ((_text(entry["filename"]), None),), captions)


def _read_aro(entry: dict, file: str, number: str) -> Question:
  """Relation and attribution: true and false caption, box; order: the right caption first in `caption_options`."""
  picture = _text(entry["image_path"] if "image_path" in entry else entry["image"])
  if "caption_options" in entry:
    return Question(file, number, ((picture, None),), _texts(*entry["caption_options"]))
  box = None
  if "bbox_x" in entry:
    left, top, width, height = (float(entry[f"bbox_{key}"]) for key in "xywh")
    if not (width > 0 and height > 0):
      raise RecordError("box_without_size", "bbox_w, bbox_h", f"the box is {width:g} x {height:g} pixels")
    box = (left, top, left + width, top + height)
  captions = _texts(entry["true_caption"], entry["false_caption"])
  if "attributes" in entry:
    return Question(file, number, ((picture, box),), captions, "_".join(entry["attributes"]), ATTRIBUTES_LEAST)
  return Question(file, number, ((picture, box),), captions, entry.get("relation_name", ""))


def _read_winoground(entry: dict, file: str, number: str) -> Question:
  names = [_text(entry[key]) for key in ("image_0", "image_1")]
  files = [name if name.lower().endswith(SUFFIXES) else f"{name}.png" for name in names]  # the set's lack their ending
  captions = _texts(entry["caption_0"], entry["caption_1"])
  return Question(file, str(entry.get("id", number)), tuple((name, None) for name in files), captions)


READERS = {"sugarcrepe": _read_sugarcrepe, "aro": _read_aro, "winoground": _read_winoground}


def _texts(*values: object) -> tuple[str, ...]:
  return tuple(_text(value) for value in values)


def _text(value: object) -> str:
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{value!r} is empty or no text")
  return value


def _stem(path: str) -> str:
  return os.path.basename(path).partition(".")[0]


def _source(folder: str, picture: Picture) -> pictures.Source:
  name, box = picture
  path = paths.join(folder, name)
  return path if box is None else functools.partial(_crop, path, box)


def _crop(path: str, box: Box) -> Image.Image:
  """A part of a picture, to whole pixels; what of the box lies outside the picture is black, as Pillow gives it."""
  try:
    data = paths.read(path)
  except (FileNotFoundError, IsADirectoryError) as error:
    raise RecordError("image_missing", path, "there is no such file") from error
  try:
    picture = image_files.open_image(data)
  except image_files.ImageError as error:
    raise RecordError(error.kind, path, error.message) from error
  left, top, right, bottom = (round(edge) for edge in box)
  if right <= 0 or bottom <= 0 or left >= picture.width or top >= picture.height:
    raise RecordError(
      "box_outside", path, f"the box {list(box)} lies outside of its {picture.width} x {picture.height}"
    )
  return picture.crop((left, top, right, bottom))


def _scores(
  image: Float32[np.ndarray, "I D"],
  text: Float32[np.ndarray, "T D"],
  numbers: Sequence[tuple[list[int], list[int]]],
) -> list[Float32[np.ndarray, "_ _"]]:
  """The cosines of each question's pictures with each of its captions."""
  pairs = np.asarray([pair for images, texts in numbers for pair in itertools.product(images, texts)], np.int64)
  blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
  flat = np.concatenate([np.einsum("nd,nd->n", image[block[:, 0]], text[block[:, 1]]) for block in blocks])
  ends = np.cumsum([len(images) * len(texts) for images, texts in numbers])[:-1]
  tables = zip(np.split(flat, ends), numbers, strict=True)
  return [table.reshape(len(images), len(texts)) for table, (images, texts) in tables]


def _above(
  right: Float32[np.ndarray, "*n"], wrong: Float32[np.ndarray, "*n"]
) -> Bool[np.ndarray, "*n"] | np.bool_ | bool:
  """Whether a score is above another by more than a tie; never of what is no number."""
  return wrong < right - ranking.TIE


def _measure_choices(
  questions: Sequence[Question], scores: Sequence[Float32[np.ndarray, "_ _"]]
) -> tuple[dict[str, Metric], dict[str, np.ndarray | list]]:
  right = np.asarray([table[0, 0] for table in scores])
  wrong = np.asarray([table[0, 1:].max() for table in scores])
  hit = _above(right, wrong)
  chance = np.asarray([1 / table.shape[1] for table in scores])
  best = [table[0].argmax() if ok else 1 + table[0, 1:].argmax() for table, ok in zip(scores, hit, strict=True)]
  values = {}
  for file, rows in _by(question.file for question in questions).items():
    values[f"{file}_top1"] = Metric(float(hit[rows].mean()), float(chance[rows].mean()), len(rows))
    groups = _by(questions[row].group for row in rows)
    counted = [rows[places] for group, places in groups.items() if group]
    counted = [these for these in counted if len(these) >= questions[these[0]].least]
    if counted:
      values[f"{file}_mean_per_group"] = _mean_of([(hit[these], chance[these]) for these in counted])
  files = list(_by(question.file for question in questions).values())
  if len(files) > 1:
    values["mean_of_files"] = _mean_of([(hit[rows], chance[rows]) for rows in files])
  examples = {
    "file": [question.file for question in questions],
    "id": [question.id for question in questions],
    "image": [question.pictures[0][0] for question in questions],
    "group": [question.group for question in questions],
    "caption": [question.captions[0] for question in questions],
    "predicted": [question.captions[place] for question, place in zip(questions, best, strict=True)],
    "right": hit,
    "score": right,
    "best_wrong_score": wrong,
  }
  return values, examples


def _measure_pairs(
  questions: Sequence[Question], scores: Sequence[Float32[np.ndarray, "_ _"]]
) -> tuple[dict[str, Metric], dict[str, np.ndarray | list]]:
  table = np.stack(scores)  # [n, picture, caption]
  first, second, cross, back = table[:, 0, 0], table[:, 1, 1], table[:, 0, 1], table[:, 1, 0]
  text = _above(first, cross) & _above(second, back)
  image = _above(first, back) & _above(second, cross)
  # of four cosines in random order the two right ones are the highest in 4 of 24 cases
  found = {"text": (text, 1 / 4), "image": (image, 1 / 4), "group": (text & image, 1 / 6)}
  values = {}
  for file, rows in _by(question.file for question in questions).items():
    for kind, (hit, chance) in found.items():
      values[f"{file}_{kind}"] = Metric(float(hit[rows].mean()), chance, len(rows))
  examples = {
    "file": [question.file for question in questions],
    "id": [question.id for question in questions],
    **{kind: hit for kind, (hit, _) in found.items()},
    **{f"score_image_{i}_caption_{t}": table[:, i, t] for i in (0, 1) for t in (0, 1)},
  }
  return values, examples


def _by(keys: Iterator[str]) -> dict[str, Int[np.ndarray, "n"]]:
  """The places of each key, in the order of their first."""
  places: dict[str, list[int]] = {}
  for place, key in enumerate(keys):
    places.setdefault(key, []).append(place)
  return {key: np.asarray(rows) for key, rows in places.items()}


def _mean_of(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Metric:
  """The mean over parts, whatever their sizes."""
  value = float(np.mean([hit.mean() for hit, _ in parts]))
  return Metric(value, float(np.mean([chance.mean() for _, chance in parts])), len(parts))
