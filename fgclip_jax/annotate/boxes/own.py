"""Boxes by a model of this project: windows over the picture are compared with the phrases.

A window's score for a phrase is the softmax over all phrases and some that name no thing, as in the detection without
training (`evals/tasks/detection.py`). Around the best window of a phrase, finer ones are tried.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from fgclip_jax.annotate.boxes.backend import Found, Located, Question
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

BATCH = 8  # pictures at a time
_SIDES = (0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
_SHAPES = (0.6, 1.0, 1.7)  # width by height
_STEPS = 0.35  # of a side, between windows
_BACKGROUND = ("background", "nothing", "a plain surface", "an empty place")
_FINER = tuple(itertools.product((-0.12, 0.0, 0.12), (-0.12, 0.0, 0.12), (0.8, 1.0, 1.25)))


@dataclasses.dataclass(frozen=True)
class Own:
  """A model of this project.

  Attributes:
    model: a model or run folder.
    threshold: the least score of a box that is kept.
  """

  model: str
  threshold: float = 0.3

  def signature(self) -> dict[str, Any]:
    from fgclip_jax.embed import fingerprint

    return {
      "detector": "own",
      "version": 1,
      "model": paths.absolute(self.model),
      "weights": fingerprint(_load(self.model)),
    }

  def locate(self, questions: Iterable[Question]) -> Iterator[Located]:
    for batch in _batched(questions):
      yield from self._locate(batch)

  def _locate(self, batch: list[Question]) -> Iterator[Located]:
    model, boxes = _load(self.model), windows()
    try:
      features = model.encode_regions([each.image for each in batch], [boxes] * len(batch))
    except RecordError:  # one of them cannot be used: which one is found out one by one
      if len(batch) == 1:
        yield Located(batch[0].key, failure="image_unreadable", detail="the model cannot read the picture")
        return
      for each in batch:
        yield from self._locate([each])
      return
    scale = _scale(self.model)
    texts = model.encode_text([text for each in batch for text in each.phrases] + [*_BACKGROUND], kind="region")
    background = texts[-len(_BACKGROUND) :]
    finer, phrases, begin = [], [], 0
    for each, region in zip(batch, features, strict=True):
      names = texts[begin : begin + len(each.phrases)]
      begin += len(names)
      phrases.append(names)
      best = _score(region, names, background, scale).argmax(0)
      finer.append(np.concatenate([np.concatenate([boxes[place : place + 1], around(boxes[place])]) for place in best]))
    again = model.encode_regions([each.image for each in batch], finer)
    for each, names, tried, region in zip(batch, phrases, finer, again, strict=True):
      score, count = _score(region, names, background, scale), len(_FINER) + 1
      found = []
      for number in range(len(names)):
        own = slice(number * count, (number + 1) * count)
        place = own.start + int(score[own, number].argmax())
        box = tried[place].tolist()
        found.append(Found((box[0], box[1], box[2], box[3]), number, float(score[place, number])))
      yield Located(each.key, tuple(found))


def score_regions(
  name: str, image: bytes, boxes: Float32[np.ndarray, "P 4"], phrases: Sequence[str]
) -> Float32[np.ndarray, "P T"]:
  """How much each box looks like each phrase, by the model of this name: the softmax of `Own`."""
  model = _load(name)
  (regions,) = model.encode_regions([image], [boxes])
  texts = model.encode_text([*phrases, *_BACKGROUND], kind="region")
  return _score(regions, texts[: len(phrases)], texts[len(phrases) :], _scale(name))


def _score(
  regions: Float32[np.ndarray, "P D"],
  phrases: Float32[np.ndarray, "T D"],
  background: Float32[np.ndarray, "N D"],
  scale: float,
) -> Float32[np.ndarray, "P T"]:
  logits = scale * regions @ np.concatenate([phrases, background]).T
  logits -= logits.max(1, keepdims=True)
  weights = np.exp(logits)
  return (weights / weights.sum(1, keepdims=True))[:, : len(phrases)]


@functools.cache
def windows() -> Float32[np.ndarray, "P 4"]:
  """Windows of several sizes and shapes all over a picture, as fractions of its sides."""
  found = set()
  for side, shape in itertools.product(_SIDES, _SHAPES):
    width, height = min(side * shape**0.5, 1.0), min(side / shape**0.5, 1.0)
    for x, y in itertools.product(_starts(width), _starts(height)):
      found.add((x, y, x + width, y + height))
  return np.asarray(sorted(found), np.float32).clip(0, 1)


def _starts(length: float) -> list[float]:
  steps = int(np.ceil((1 - length) / (_STEPS * length))) if length < 1 else 0
  return [round((1 - length) * step / steps, 6) for step in range(steps + 1)] if steps else [0.0]


def around(box: Float32[np.ndarray, "4"]) -> Float32[np.ndarray, "P 4"]:
  """A window moved and scaled a little, in all ways."""
  x, y, u, v = box.tolist()
  width, height = u - x, v - y
  found = []
  for across, down, grow in _FINER:
    middle, centre = (x + u) / 2 + across * width, (y + v) / 2 + down * height
    half_width, half_height = grow * width / 2, grow * height / 2
    found.append((middle - half_width, centre - half_height, middle + half_width, centre + half_height))
  return np.asarray(found, np.float32).clip(0, 1)


@functools.lru_cache(maxsize=2)
def _load(model: str):
  import fgclip_jax

  return fgclip_jax.load(model)


def _scale(model: str) -> float:
  from fgclip_jax.evals.tasks.detection import learned_scale

  return learned_scale(_load(model))


def _batched(questions: Iterable[Question]) -> Iterator[list[Question]]:
  iterator = iter(questions)
  while batch := list(itertools.islice(iterator, BATCH)):
    yield batch
