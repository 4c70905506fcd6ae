"""Boxes by a model of this project, from its dense features: where in the picture a phrase is likelier than all others.

Each patch has a probability for each phrase: the softmax over the picture's phrases and some that name no thing. A
phrase's box is the rectangle of patches in which this exceeds a share of its range by the most in all, so that patches
of something else count against it: the maximum-sum rectangle (J. Bentley, Programming Pearls, 1984).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from fgclip_jax.annotate.boxes.backend import Found, Located, Question
from fgclip_jax.annotate.draft import Box
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

BATCH = 8  # pictures at a time
SHARE = 0.3  # of the range of a phrase's probabilities; measured on rendered scenes, see benchmarks/README.md
_BACKGROUND = ("background", "nothing", "a plain surface", "an empty place")


@dataclasses.dataclass(frozen=True)
class Own:
  """A model of this project.

  Attributes:
    model: a model or run folder.
    threshold: the least score of a box that is kept: the mean probability of its phrase over its patches.
  """

  model: str
  threshold: float = 0.3

  def signature(self) -> dict[str, Any]:
    from fgclip_jax.embed import fingerprint

    weights = fingerprint(_load(self.model))
    return {"detector": "own", "version": 1, "model": paths.absolute(self.model), "weights": weights}

  def locate(self, questions: Iterable[Question], part: int = 0) -> Iterator[Located]:
    del part
    iterator = iter(questions)
    while batch := list(itertools.islice(iterator, BATCH)):
      yield from self._locate(batch)

  def _locate(self, batch: list[Question]) -> Iterator[Located]:
    model = _load(self.model)
    try:
      dense = model.encode_dense([each.image for each in batch])
    except RecordError:  # one of them cannot be used: which one is found out one by one
      if len(batch) == 1:
        yield Located(batch[0].key, failure="image_unreadable", detail="the model cannot read the picture")
        return
      for each in batch:
        yield from self._locate([each])
      return
    texts = model.encode_text([text for each in batch for text in each.phrases] + [*_BACKGROUND], kind="region")
    ends = list(itertools.accumulate(len(each.phrases) for each in batch))
    for each, patches, end in zip(batch, dense, ends, strict=True):
      phrases = texts[end - len(each.phrases) : end]
      chances = _softmax(np.asarray(patches), phrases, texts[ends[-1] :], _scale(self.model))
      found = []
      for number in range(len(phrases)):
        box, score = best_rectangle(chances[..., number])
        found.append(Found(box, number, score))
      yield Located(each.key, tuple(found))


def best_rectangle(chance: Float[np.ndarray, "h w"]) -> tuple[Box, float]:
  """The rectangle over which `chance` exceeds `SHARE` of its range by the most in all, and its mean there.

  Returns:
    x1, y1, x2, y2 as fractions of the picture's sides, and the mean.
  """
  rows, columns = chance.shape
  low, high = float(chance.min()), float(chance.max())
  sums = np.zeros((rows + 1, columns + 1))
  sums[1:, 1:] = (chance - (low + SHARE * (high - low))).cumsum(0).cumsum(1)
  best, place = -np.inf, (0, 0, 1, 1)
  for top in range(rows):
    strips = sums[top + 1 :] - sums[top]  # of each bottom, up to each column
    # the best strip that ends at a column begins behind the least sum before it
    least = np.minimum.accumulate(strips[:, :-1], axis=1)
    gain = strips[:, 1:] - least
    row, right = np.unravel_index(gain.argmax(), gain.shape)
    if gain[row, right] > best:
      left = int(np.argmin(strips[row, : right + 1]))
      best, place = float(gain[row, right]), (left, top, int(right) + 1, top + 1 + int(row))
  left, top, right, bottom = place
  box = (left / columns, top / rows, right / columns, bottom / rows)
  return box, float(chance[top:bottom, left:right].mean())


def score_regions(
  name: str, image: bytes, boxes: Float32[np.ndarray, "P 4"], phrases: Sequence[str]
) -> Float32[np.ndarray, "P T"]:
  """How much each box looks like each phrase, by the model of this name: the softmax of `Own`, of region features."""
  model = _load(name)
  (regions,) = model.encode_regions([image], [boxes])
  texts = model.encode_text([*phrases, *_BACKGROUND], kind="region")
  return _softmax(regions, texts[: len(phrases)], texts[len(phrases) :], _scale(name))


def compare_regions(
  name: str,
  images: Sequence[bytes],
  boxes: Sequence[Float32[np.ndarray, "_ 4"]],
  texts: Sequence[Sequence[Sequence[str]]],
) -> list[list[Float32[np.ndarray, " _"]]]:
  """Compares boxes with texts of their own, by the model of this name.

  Args:
    name: a model or run folder.
    images: the bytes of pictures.
    boxes: of each picture, as fractions of its sides.
    texts: of each box of each picture, at least one.

  Returns:
    The cosines of each box of each picture with its texts.

  Raises:
    RecordError: a picture cannot be used.
  """
  model = _load(name)
  regions = model.encode_regions(images, boxes)
  rows = {text: None for each in texts for of_box in each for text in of_box}
  rows = {text: row for row, text in enumerate(rows)}
  encoded = model.encode_text([*rows], kind="region")
  return [
    [encoded[[rows[text] for text in own]] @ feature for feature, own in zip(features, each, strict=True)]
    for features, each in zip(regions, texts, strict=True)
  ]


def _softmax(
  features: Float32[np.ndarray, "*P D"],
  phrases: Float32[np.ndarray, "T D"],
  background: Float32[np.ndarray, "N D"],
  scale: float,
) -> Float32[np.ndarray, "*P T"]:
  logits = np.float32(scale) * features @ np.concatenate([phrases, background]).T
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return (weights / weights.sum(-1, keepdims=True))[..., : len(phrases)]


@functools.lru_cache(maxsize=2)
def _load(model: str):
  import fgclip_jax

  return fgclip_jax.load(model)


def _scale(model: str) -> float:
  from fgclip_jax.evals.tasks.detection import learned_scale

  return learned_scale(_load(model))
