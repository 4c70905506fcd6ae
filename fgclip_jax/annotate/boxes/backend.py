"""The protocol of a detector: where in a picture are these phrases?"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from fgclip_jax.annotate.boxes.conventions import Convention
from fgclip_jax.annotate.draft import Box
from fgclip_jax.storage.errors import RecordError


@dataclasses.dataclass(frozen=True)
class Found:
  """A box that a detector has found.

  Attributes:
    box: x1, y1, x2, y2 as fractions of the picture's sides.
    phrase: the number of its phrase.
    score: the detector's, which only compares with its own threshold.
  """

  box: Box
  phrase: int
  score: float


@dataclasses.dataclass(frozen=True)
class Question:
  """A picture and its phrases.

  Attributes:
    key: by which the answer is found again.
    image: the bytes of the image file.
    size: its width and height in pixels.
    phrases: what is looked for.
    language: the code of their language; empty: English.
  """

  key: str
  image: bytes
  size: tuple[int, int]
  phrases: tuple[str, ...]
  language: str = ""


@dataclasses.dataclass(frozen=True)
class Located:
  """What a detector says of a picture.

  Attributes:
    key: the question's.
    found: its boxes.
    bad: how many boxes were left out, by the class of what is wrong with them.
    failure, detail: the class of the failure, if the whole picture has no answer, and what was wrong.
    attempts: how often it was asked.
    model: the name of the model server's model; empty: none was asked.
    tokens: of the prompts and of the answers of all attempts.
  """

  key: str
  found: tuple[Found, ...] = ()
  bad: dict[str, int] = dataclasses.field(default_factory=dict)
  failure: str = ""
  detail: str = ""
  attempts: int = 1
  model: str = ""
  tokens: tuple[int, int] = (0, 0)


@runtime_checkable
class Detector(Protocol):
  """A detector. Implementations are frozen dataclasses, which are pickled for other processes.

  Attributes:
    threshold: the least score of a box that is kept, unless another is asked for.
  """

  @property
  def threshold(self) -> float: ...

  def signature(self) -> dict[str, Any]:
    """Everything but pictures and phrases that decides the boxes, as JSON."""
    ...

  def locate(self, questions: Iterable[Question], part: int = 0) -> Iterator[Located]:
    """Answers each question once, in any order; or not at all where the answer comes later.

    `part` is the number of the part of the pictures that the questions are about.
    """
    ...


def read_boxes(
  values: Any, question: Question, convention: Convention, seen: tuple[int, int] | None = None
) -> tuple[tuple[Found, ...], dict[str, int]]:
  """The boxes of an answer, and how many are left out by class.

  A box belongs to a phrase by its number, or by the phrase itself, spelled alike but for case and white space. Labels
  that detectors make of pieces of words are `label_unknown`.
  """
  bad: dict[str, int] = {}
  found = []
  by_text = {phrase.strip().lower(): number for number, phrase in enumerate(question.phrases)}
  if not isinstance(values, list):
    return (), {"boxes_not_list": 1}
  for value in values:
    try:
      if not isinstance(value, dict):
        raise RecordError("box_not_object", "box", f"{value!r:.80}")
      number = value.get("phrase")
      if number is None:
        number = by_text.get(str(value.get("label", "")).strip().lower())
      if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(question.phrases):
        raise RecordError("label_unknown", "label", f"{value.get('label', number)!r:.80}")
      score = value.get("score", 1.0)
      if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise RecordError("score_impossible", "score", f"{score!r:.80}")
      found.append(Found(convention.to_box(value.get("box", ()), question.size, seen), number, float(score)))
    except RecordError as error:
      bad[error.kind] = bad.get(error.kind, 0) + 1
  return tuple(found), bad
