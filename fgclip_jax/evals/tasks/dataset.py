"""What a prepared data set's own captions, regions and hard negatives tell of a model, each image encoded once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fgclip_jax.evals import guards
from fgclip_jax.evals.embeddings import Part, embed
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError, Question, Result
from fgclip_jax.evals.tasks.dataset_retrieval import Retrieval
from fgclip_jax.evals.tasks.regions import FineGrained, RegionClassification
from fgclip_jax.inference.model import FGCLIP

PARTS: tuple[Part, ...] = (Retrieval("long"), Retrieval("short"), RegionClassification(), FineGrained())


@dataclasses.dataclass(frozen=True)
class Records:
  """The evaluator. Captions are cut as in training, which is noted.

  Attributes:
    data, split: a record folder and its split.
    limit: reads only so many records, the first ones.
    allow: see `guards`.
    parts: what to measure.
  """

  data: str
  split: str = "validation"
  limit: int | None = None
  allow: tuple[str, ...] = ()
  parts: Sequence[Part] = PARTS

  @property
  def name(self) -> str:
    return "records"

  def settings(self) -> dict[str, Any]:
    return {"data": self.data, "split": self.split, "limit": self.limit}

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Encodes the split once and measures all parts.

    Raises:
      FileNotFoundError, ValueError: the split is not there, or holds no usable record.
    """
    notes = guards.check_resolution(model, self.allow)
    examples = embed(model, self.data, self.split, self.limit, progress)
    metrics: dict[str, Metric] = {}
    questions: list[Question] = []
    notes += examples.notes
    for part in self.parts:
      try:
        found, asked = part.run(model, examples)
        metrics |= found
        questions += asked
      except NothingToMeasureError as error:
        notes.append(f"{part.name} left out: {error}")
    columns = {name: [getattr(each, name) for each in questions] for name in Question._fields}
    return Result(metrics, columns, examples.records, examples.skipped, tuple(notes))
