"""Compositional sets: does a picture fit its caption better than one with the same words in another order or role?"""

import argparse
import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from fgclip_jax.data import image as image_files
from fgclip_jax.evals import guards, options, ranking
from fgclip_jax.evals.datasets.compositional_sets import READERS, Question, name_of, picture_source, read_questions
from fgclip_jax.evals.encoding import encode_images
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage.skip_report import SkipReport

SHORT = "compositional sets: SugarCrepe, ARO, Winoground and sets of their forms"
TEXT = """Whether a picture fits its caption better than a caption with the same words in other roles. Of Winoground,
which has two pictures and two captions a question: text, image and group score."""
EXAMPLE = "sugarcrepe --model M --annotations sugarcrepe/*.json --images coco/val2017 --output sugarcrepe.json"

_BLOCK = 65_536  # pairs of a picture and a caption scored at a time
ATTRIBUTES_LEAST = 25  # questions about a pair of attributes for it to count in the mean over pairs: the authors' rule


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
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
    annotations: JSON files, one for each category, e.g. SugarCrepe's seven.
    images: the folder of the pictures.
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
      raise ValueError("annotations: needs at least one file")
    stems = [name_of(path) for path in self.annotations]
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
    """Metrics of a picture and its captions: `FILE_top1`, the share of pictures whose own caption scores highest;
    `FILE_mean_per_group` where the questions have groups; `mean_of_files` of several files.

    Metrics of two pictures and two captions: `FILE_text` (each picture scores its own caption higher), `FILE_image`
    (each caption scores its own picture higher), `FILE_group` (both).
    """
    notes = guards.check_resolution(model, self.allow)
    skips = SkipReport()
    questions: list[Question] = []
    records = 0
    for path in self.annotations:
      found, read, note = read_questions(self.dataset, path, skips, self.limit)
      questions, records, notes = questions + found, records + read, notes + note
    if not questions:
      reason = skips.summary(records, "questions") or "they hold none"
      raise ValueError(f"no question of {', '.join(self.annotations)} can be used: {reason}")
    texts = [caption for question in questions for caption in question.captions]
    embeddings, cut = guards.encode_texts(model, texts, "short", self.allow, progress)
    where = {text: place for place, text in enumerate(texts)}
    distinct = list(dict.fromkeys(picture for question in questions for picture in question.pictures))
    lost = SkipReport()  # pictures
    sources = [picture_source(self.images, picture) for picture in distinct]
    image, kept = encode_images(model, sources, lost, self.mode, progress)
    row = {distinct[number]: place for place, number in enumerate(kept)}
    asked = [question for question in questions if all(picture in row for picture in question.pictures)]
    notes += [*cut, skips.summary(records, "questions"), lost.summary(len(distinct), "pictures")]
    if not asked:
      raise ValueError(f"no picture of {', '.join(self.annotations)} under {self.images!r} can be used: {notes[-1]}")
    skipped = dict(skips.counts)
    if len(asked) < len(questions):
      skipped["question_without_picture"] = len(questions) - len(asked)
    numbers = [
      ([row[picture] for picture in question.pictures], [where[caption] for caption in question.captions])
      for question in asked
    ]
    scores = _scores(image, embeddings, numbers)
    measure = _measure_pairs if self.dataset == "winoground" else _measure_choices
    values, examples = measure(asked, scores)
    return Result(values, examples, records, skipped, notes)


def _scores(
  image: Float32[np.ndarray, "I D"],
  text: Float32[np.ndarray, "T D"],
  numbers: Sequence[tuple[list[int], list[int]]],
) -> list[Float32[np.ndarray, "_ _"]]:
  """The cosines of each question's pictures with each of its captions."""
  pairs = np.asarray([pair for images, texts in numbers for pair in itertools.product(images, texts)], np.int64)
  blocks = [pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK)]
  flat = np.concatenate([np.einsum("nd,nd->n", image[block[:, 0]], text[block[:, 1]]) for block in blocks])
  ends = np.cumsum([len(images) * len(texts) for images, texts in numbers])[:-1]
  tables = zip(np.split(flat, ends), numbers, strict=True)
  return [table.reshape(len(images), len(texts)) for table, (images, texts) in tables]


def _above(right: Float32[np.ndarray, "*n"], wrong: Float32[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n"]:
  """Whether a score exceeds another by more than a tie; False where one is NaN."""
  return np.asarray(wrong < right - ranking.TIE)


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
  # `group` needs both right cosines above both wrong ones: 4 of the 24 orders of four cosines
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


def _by(keys: Iterable[str]) -> dict[str, Int[np.ndarray, "n"]]:
  """The places of each key, keys in the order of first meeting them."""
  places: dict[str, list[int]] = {}
  for place, key in enumerate(keys):
    places.setdefault(key, []).append(place)
  return {key: np.asarray(rows) for key, rows in places.items()}


def _mean_of(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Metric:
  """The mean over parts, whatever their sizes."""
  value = float(np.mean([hit.mean() for hit, _ in parts]))
  return Metric(value, float(np.mean([chance.mean() for _, chance in parts])), len(parts))
