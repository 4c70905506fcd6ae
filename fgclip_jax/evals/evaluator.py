"""The protocol of all benchmarks: an evaluator, which runs a model, and its result.

An evaluator is a frozen dataclass of its paths and options. It is used from Python, by the command
`python -m fgclip_jax.evaluate`, and by the train loop, on a model of the live parameters:

  result = fgclip_jax.evals.Records("data/scenes").run(fgclip_jax.load("runs/stage2"))

Evaluators that a guard of `fgclip_jax.evals.guards` can stop have a field `allow`, the names of guards to switch off.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
  from fgclip_jax.inference.model import FGCLIP


@dataclasses.dataclass(frozen=True)
class Metric:
  """A share of right answers, or another mean from 0 to 1.

  Attributes:
    value: the share.
    chance: the expected share of random guesses; None where it is not defined.
    count: the number of questions.
  """

  value: float
  chance: float | None
  count: int


class Prediction(NamedTuple):
  """The model's answer to one question.

  Attributes:
    task: the kind of question, e.g. `long_image_to_text`.
    query: a caption, the id of an image, or the id of an image and the box of a region.
    right: a right answer; the predicted one if that is right.
    predicted: the answer that scored highest.
    rank: the number of wrong answers that score at least as high as the right one; 0 is a hit.
    score: the cosine of the predicted answer.
  """

  task: str
  query: str
  right: str
  predicted: str
  rank: int
  score: float


class NothingToMeasureError(ValueError):
  """The examples have no labels for this evaluator, or the model cannot do what it measures."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of an evaluator.

  Attributes:
    metrics: by name.
    examples: columns of equal length with a row for each question: the question, the right answer, the prediction, its
      rank or score. Arrays have one axis.
    records: the number of records that were read, used or not.
    skipped: the number of records that could not be used, by kind.
    notes: facts that a reader of the numbers needs: metrics left out and why, records skipped, texts cut. Empty notes
      are dropped.
    settings: those that the evaluator has chosen itself, such as the patch budget of published numbers.
  """

  metrics: Mapping[str, Metric]
  examples: Mapping[str, np.ndarray | Sequence]
  records: int
  skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, "skipped", dict(self.skipped))
    object.__setattr__(self, "notes", tuple(filter(None, self.notes)))
    lengths = {name: len(column) for name, column in self.examples.items()}
    if len(set(lengths.values())) > 1:
      raise ValueError(f"the columns of examples differ in length: {lengths}")


@runtime_checkable
class Evaluator(Protocol):
  """A benchmark."""

  @property
  def name(self) -> str:
    """The name of the benchmark in results, e.g. `classify imagenet`."""
    ...

  def settings(self) -> dict[str, Any]:
    """The settings that decide its numbers, as JSON: paths, prompts, limits."""
    ...

  def files(self) -> list[str | tuple[str, str]]:
    """The files and folders that it reads; a pair is a record folder and a split."""
    ...

  def run(self, model: "FGCLIP", progress: bool = False) -> Result:
    """Measures a model; with `progress`, shows progress bars.

    Raises:
      OSError: a file of the data set, other than an image, is missing or cannot be read.
      ValueError: nothing can be measured, or a guard objects; the message says what to do.
    """
    ...
