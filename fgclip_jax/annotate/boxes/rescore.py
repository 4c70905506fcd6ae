"""Gives the boxes of another detector the scores of a model of this project."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fgclip_jax.annotate.boxes.backend import Detector, Located, Question
from fgclip_jax.annotate.boxes.own import Own, score_regions


@dataclasses.dataclass(frozen=True)
class Rescored:
  """A detector whose boxes a model of this project judges; a box that shows something else gets a low score.

  Attributes:
    detector: finds the boxes; those below its own threshold are not judged.
    judge: the model.
  """

  detector: Detector
  judge: Own

  @property
  def threshold(self) -> float:
    return self.judge.threshold

  def signature(self) -> dict[str, Any]:
    return self.detector.signature() | {"judge": self.judge.signature(), "least": self.detector.threshold}

  def locate(self, questions: Iterable[Question], part: int = 0) -> Iterator[Located]:
    asked: dict[str, Question] = {}

    def remember() -> Iterator[Question]:
      for question in questions:
        asked[question.key] = question
        yield question

    for located in self.detector.locate(remember(), part):
      question = asked.pop(located.key)
      good = [each for each in located.found if each.score >= self.detector.threshold]
      low = len(located.found) - len(good)
      bad = located.bad | ({"below_detector_threshold": low} if low else {})
      if good:
        boxes = np.asarray([each.box for each in good], np.float32)
        scores = score_regions(self.judge.model, question.image, boxes, question.phrases)
        good = [
          dataclasses.replace(each, score=float(row[each.phrase])) for each, row in zip(good, scores, strict=True)
        ]
      yield dataclasses.replace(located, found=tuple(good), bad=bad)
