"""FG-OVD: which of up to eleven descriptions fits a box; the wrong ones differ in a few attributes."""

import argparse
import collections
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from fgclip_jax.evals import guards, options, ranking
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.datasets.text_files import ERRORS, describe, need
from fgclip_jax.evals.encoding import encode_boxes
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport, printable

SHORT = "FG-OVD: a box's description among ten that differ in attributes"
TEXT = """Top-1 for each level (hard, medium, easy, trivial), and by the kind of attribute that was changed."""
EXAMPLE = "--model M --annotations fgovd/*.jsonl --images coco --output fgovd.json"

# `test_type` of a file's rows, and the benchmark's name of the level
LEVELS = {"1_attributes": "hard", "2_attributes": "medium", "3_attributes": "easy", "shuffle_negatives": "trivial"}

# The attributes that the benchmark's negatives exchange, a word each.
KINDS = {
  "colour": "black blue brown green grey orange pink purple red white yellow dark light",
  "material": (
    "stone wood wooden rattan fabric crochet wool leather velvet metal metallic paper plastic glass ceramic"
  ),
  "pattern": "plain striped dotted checkered woven studded perforated floral text textured logo",
  "transparency": "opaque translucent transparent",
}
SEVERAL = "several"
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words.split()}


@dataclasses.dataclass(frozen=True)
class Row:
  """A question: a box, its description, and wrong ones.

  Attributes:
    level: `hard`, `medium`, `easy`, `trivial`, or the file's `test_type` if it is another one.
    number: its place in the file, from 0.
    image: the path of the image, below the folder of images.
    box: x1 y1 x2 y2 as fractions of the image's width and height.
    positive, negatives: the texts.
  """

  level: str
  number: int
  image: str
  box: Float32[np.ndarray, "4"]
  positive: str
  negatives: tuple[str, ...]


def attribute_kind(positive: str, negative: str) -> str:
  """The kind of attribute that a wrong text changes: a key of `KINDS`, `several` or `other`.

  It is the kind of the words (of at least three letters: not `a` or `an`) that only the right text has, or, if there
  are none, of those that only the wrong one has. A word that is not in `KINDS` has the kind of the longest word of
  `KINDS` that it contains: `newspaper` is a material.
  """
  has, lacks = (collections.Counter(re.findall(r"[a-z]{3,}", text.lower())) for text in (positive, negative))
  kinds = {_kind_of_word(word) for word in (has - lacks or lacks - has)}
  return kinds.pop() if len(kinds) == 1 else SEVERAL if kinds else "other"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  parser.add_argument(
    "--annotations", required=True, nargs="+", metavar="FILE", help="files of FG-OVD (JSON lines), one for each level"
  )
  parser.add_argument(
    "--images", required=True, metavar="DIR", help="the folder that holds COCO's train2017 and val2017: both are needed"
  )
  options.add_limit(parser, "rows of each file")


@dataclasses.dataclass(frozen=True)
class FgOvd:
  """The share of boxes whose description scores higher than every wrong one, for each level of difficulty.

  Each picture is encoded once for all files, each text once. `fgovd_LEVEL_top1` is the published number;
  `fgovd_LEVEL_KIND_top1` compares the right text only with the negatives that change attributes of that kind
  (`attribute_kind`), over the rows that have any. Rows may have any number of negatives; those equal to the right text
  are left out.

  Attributes:
    annotations: JSON-lines files of FG-OVD, one for each level.
    images: the folder that holds COCO's train2017 and val2017: rows point into both.
    limit: the number of rows to read of each file, from the first; None for all.
    allow: guards that are switched off.
  """

  annotations: tuple[str, ...]
  images: str
  limit: int | None = None
  allow: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return "fgovd"

  def settings(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def files(self) -> list[str | tuple[str, str]]:
    return [*self.annotations, self.images]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `fgovd_LEVEL_top1` and `fgovd_LEVEL_KIND_top1`."""
    notes = guards.check_resolution(model, self.allow)
    skips = SkipReport()
    rows: list[Row] = []
    records = 0
    for path in self.annotations:
      found, read = read_rows(path, skips, self.limit)
      rows, records = rows + found, records + read
    if not rows:
      raise ValueError(f"no row of {', '.join(self.annotations)} can be used: {skips.summary(records, 'rows')}")
    texts: dict[str, int] = {}
    positive = np.asarray([texts.setdefault(row.positive, len(texts)) for row in rows], np.int64)
    negatives = np.full((len(rows), max(len(row.negatives) for row in rows)), ranking.NONE)
    for place, row in zip(negatives, rows, strict=True):
      place[: len(row.negatives)] = [texts.setdefault(text, len(texts)) for text in row.negatives]
    text, cut = guards.encode_texts(model, list(texts), "region", self.allow, progress)
    images: dict[str, int] = {}
    image = np.asarray([images.setdefault(row.image, len(images)) for row in rows], np.int64)
    _, of_image = instances.group_by_image(image, np.arange(len(rows)))
    files = [paths.join(self.images, name) for name in images]
    box = np.stack([row.box for row in rows])
    beaten, asked = np.zeros(negatives.shape, bool), np.zeros(len(rows), bool)
    score, predicted = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.int64)
    lost = SkipReport()  # images
    encoded = encode_boxes(model, files, [box[mine] for mine in of_image], lost, progress)
    for number, features in encoded:
      mine = of_image[number]
      asked[mine] = True
      beaten[mine], score[mine], predicted[mine] = ranking.beaten_by(features, text, positive[mine], negatives[mine])
    if not asked.any():
      raise ValueError(f"none of {len(files)} images could be used: {lost.summary(len(files))}")
    number_to_text = list(texts)
    kept = np.flatnonzero(asked)
    examples = {
      "level": [rows[row].level for row in kept],
      "row": [rows[row].number for row in kept],
      "image": [rows[row].image for row in kept],
      "text": [rows[row].positive for row in kept],
      "predicted": [number_to_text[number] for number in predicted[kept]],
      "rank": beaten[kept].sum(1),
      "score": score[kept],
    }
    skipped = dict(skips.counts)
    if len(kept) < len(rows):
      skipped["row_without_image"] = len(rows) - len(kept)
    notes += [*cut, skips.summary(records, "rows"), lost.summary(len(files))]
    kinds = _kinds([rows[row] for row in kept], negatives.shape[1])
    levels = np.asarray([rows[row].level for row in kept])
    values = _measure(levels, kinds, beaten[kept], negatives[kept] != ranking.NONE)
    return Result(values, examples, records, skipped, notes)


def read_rows(path: str, skips: SkipReport, limit: int | None = None) -> tuple[list[Row], int]:
  """Reads a file of FG-OVD; returns the rows that can be used, and the number of all rows.

  Args:
    path: a file of JSON lines.
    skips: counts the others: `row_broken`, `row_without_negatives`, `box_without_size`, and the kinds of lines that
      cannot be parsed.
    limit: the number to read, from the first; None for all.

  Raises:
    FileNotFoundError, ValueError: the file is missing, or does not hold JSON lines.
  """
  rows, read = [], 0
  try:
    for number, (_, raw) in enumerate(streams.scan(path)):
      if limit is not None and number >= limit:
        break
      read += 1
      where = f"{path}, row {number}"
      try:
        row = _make_row(streams.load(raw), number)
      except RecordError as error:
        skips.add(Skip.of(error, where))
        continue
      except ERRORS as error:
        skips.add(Skip("row_broken", describe(error), place=where))
        continue
      if not instances.have_size(row.box[None])[0]:
        skips.add(Skip("box_without_size", "the box has no size within the picture", place=where))
      elif not row.negatives:
        skips.add(Skip("row_without_negatives", "needs one negative at least", place=where))
      else:
        rows.append(row)
  except RecordError as error:
    raise ValueError(f"{path} is broken at {error}; download it again") from error
  return rows, read


def _make_row(entry: Any, number: int) -> Row:
  for name in ("width", "height", "bbox", "pos_expression", "neg_expression", "test_type", "img_path"):
    need(entry, name)
  size = np.asarray([[float(entry["width"]), float(entry["height"])]])
  if not (np.isfinite(size) & (size > 0)).all():
    raise ValueError(f"{size[0].tolist()} is no size of an image")
  box = np.asarray(entry["bbox"], np.float64).reshape(1, 4)
  if not isinstance(entry["pos_expression"], list) or not isinstance(entry["neg_expression"], list):
    raise ValueError("`pos_expression` and `neg_expression` must be lists of texts")
  (positive,) = entry["pos_expression"]
  negatives = tuple(text for text in dict.fromkeys(entry["neg_expression"]) if text != positive)
  if not all(isinstance(text, str) and text.strip() for text in (positive, *negatives)):
    raise ValueError("an expression is empty or no text")
  level, image = entry["test_type"], entry["img_path"]
  if not isinstance(level, str) or not isinstance(image, str):
    raise ValueError(f"`test_type` and `img_path` must be text, got {level!r:.40} and {image!r:.40}")
  level = printable(LEVELS.get(level, level))
  return Row(level, number, image, instances.to_fractions(box, size)[0], positive, negatives)


@functools.cache
def _kind_of_word(word: str) -> str:
  known = [each for each in _KIND_OF if each in word]
  return _KIND_OF[max(known, key=len)] if known else "other"


def _kinds(rows: Sequence[Row], width: int) -> np.ndarray:
  """The kind of each negative [n, width]; "" where texts are unrelated, or there is no negative."""
  kinds = np.full((len(rows), width), "", dtype="<U12")
  for place, row in zip(kinds, rows, strict=True):
    if row.level != "trivial":
      place[: len(row.negatives)] = [attribute_kind(row.positive, text) for text in row.negatives]
  return kinds


def _measure(levels: np.ndarray, kinds: np.ndarray, beaten: np.ndarray, valid: np.ndarray) -> dict[str, Metric]:
  result = {}
  for level in [level for level in LEVELS.values() if level in levels] + sorted(set(levels) - set(LEVELS.values())):
    rows = levels == level
    result[f"fgovd_{level}_top1"] = _top1(beaten[rows], valid[rows])
    for kind in KINDS:
      these = valid[rows] & (kinds[rows] == kind)
      if these.any():
        result[f"fgovd_{level}_{kind}_top1"] = _top1(beaten[rows], these)
  return result


def _top1(beaten: np.ndarray, counted: np.ndarray) -> Metric:
  """The share of rows that no counted negative wins, of those that have any."""
  has = counted.any(1)
  hits = ~(beaten[has] & counted[has]).any(1)
  chance = float(np.mean(1 / (1 + counted[has].sum(1))))
  return Metric(value=float(hits.mean()), chance=chance, count=int(has.sum()))
