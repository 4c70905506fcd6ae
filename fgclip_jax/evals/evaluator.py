"""What every benchmark is: settings and a run of a model; and what comes out of it.

An evaluator is a frozen dataclass of its paths and options. It is used from Python, by the command
`python -m fgclip_jax.evaluate`, and by the train loop, which gives it a model of the live parameters:

  result = fgclip_jax.evals.Records("data/scenes").run(fgclip_jax.load("runs/stage2"))

One whose protocol can go wrong in a way that `fgclip_jax.evals.guards` knows has an attribute `allow`, the names of the
guards that are switched off.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
  from fgclip_jax.inference.model import FGCLIP


@dataclasses.dataclass(frozen=True)
class Metric:
  """A share of right answers, or another mean from 0 to 1.

  Attributes:
    value: the share.
    chance: what guessing would give; None where that is no number.
    count: the number of questions asked.
  """

  value: float
  chance: float | None
  count: int


class Prediction(NamedTuple):
  """What was asked and found.

  Attributes:
    task: what was asked for, e.g. `long_image_to_text`.
    query: a caption, the id of an image, or that with the box of a region.
    right, predicted: a right answer (where one scored highest, that one), and the one that scored highest.
    rank: how many wrong answers score at least as high as the right one; 0 is a hit.
    score: the cosine of the answer that scored highest.
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
  """What a model was measured at.

  Attributes:
    metrics: by name.
    examples: columns of equal length with a row for each question: which it was, what was right, what was predicted,
      a rank or a score. Arrays have one axis.
    records: how many records were read, used or not.
    skipped: how many of them could not be used, by kind of fault.
    notes: what a reader of the results should know: metrics left out and why, the first fault, cut texts.
  """

  metrics: dict[str, Metric]
  examples: dict[str, np.ndarray | list]
  records: int
  skipped: dict[str, int] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    lengths = {name: len(column) for name, column in self.examples.items()}
    if len(set(lengths.values())) > 1:
      raise ValueError(f"the columns of examples differ in length: {lengths}")


@runtime_checkable
class Evaluator(Protocol):
  """A benchmark."""

  @property
  def name(self) -> str:
    """What it is called, e.g. `fgovd hard`."""

  def settings(self) -> dict[str, Any]:
    """What decides its numbers, as JSON: paths, prompts, limits."""

  def files(self) -> list[str | tuple[str, str]]:
    """The files and folders that it reads; a pair is a record folder and its split."""

  def run(self, model: "FGCLIP", progress: bool = False) -> Result:
    """Measures a model; with `progress`, shows progress bars.

    Raises:
      OSError: a file of the data set, other than a picture, is missing or cannot be read.
      ValueError: nothing can be measured, or a guard objects; the message says what to do.
    """
