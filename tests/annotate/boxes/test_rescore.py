"""Boxes of a detector with the scores of a model of this project."""

import dataclasses

import numpy as np

from fgclip_jax.annotate.boxes import rescore
from fgclip_jax.annotate.boxes.backend import Found, Located, Question
from fgclip_jax.annotate.boxes.own import Own
from fgclip_jax.annotate.boxes.rescore import Rescored

BOXES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Finds the same boxes in all pictures."""

  threshold: float = 0.4

  def signature(self):
    return {"detector": "fixed"}

  def locate(self, questions, part=0):
    for question in reversed(list(questions)):
      found = (Found(BOXES[0], 1, 0.9), Found(BOXES[1], 0, 0.5), Found(BOXES[1], 1, 0.3))
      yield Located(question.key, found, {"box_outside": 1})


def test_scores_are_those_of_the_box_and_its_own_phrase(monkeypatch):
  seen = []

  def score(model, image, boxes, phrases):
    seen.append((model, image, boxes.tolist(), phrases))
    return np.asarray([[0.1, 0.2], [0.3, 0.4]], np.float32)

  monkeypatch.setattr(rescore, "score_regions", score)
  detector = Rescored(Fixed(), Own("model", 0.25))
  questions = [Question(name, name.encode(), (10, 10), ("a dog", "a cat")) for name in ("one", "two")]
  found = {each.key: each for each in detector.locate(questions)}
  for name in ("one", "two"):
    np.testing.assert_allclose([each.score for each in found[name].found], [0.2, 0.3], rtol=1e-6)
    assert found[name].bad == {"box_outside": 1, "below_detector_threshold": 1}
  assert {image for _, image, _, _ in seen} == {b"one", b"two"} and detector.threshold == 0.25
