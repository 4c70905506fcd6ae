"""The protocol of a detector: where in a picture are these phrases?"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from fgclip_jax.annotate.draft import Box


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
  """

  key: str
  image: bytes
  size: tuple[int, int]
  phrases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Located:
  """What a detector says of a picture.

  Attributes:
    key: the question's.
    found: its boxes.
    bad: how many boxes were left out, by the class of what is wrong with them.
    failure, detail: the class of the failure, if the whole picture has no answer, and what was wrong.
  """

  key: str
  found: tuple[Found, ...] = ()
  bad: dict[str, int] = dataclasses.field(default_factory=dict)
  failure: str = ""
  detail: str = ""


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

  def locate(self, questions: Iterable[Question]) -> Iterator[Located]:
    """Answers each question once, in any order."""
    ...
