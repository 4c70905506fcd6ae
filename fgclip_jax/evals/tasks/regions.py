"""What the model sees in a box: which of all descriptions fits it, and which of eleven that differ in one attribute."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.evals import ranking
from fgclip_jax.evals.embeddings import Embedded
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError, Question
from fgclip_jax.inference.model import FGCLIP


@dataclasses.dataclass(frozen=True)
class RegionClassification:
  """The caption of a region among the data set's region classes, or else among all region captions of the split."""

  name: str = "region classification"
  ks: tuple[int, ...] = (1, 5)

  def run(self, model: FGCLIP, examples: Embedded) -> tuple[dict[str, Metric], list[Question]]:
    """Metrics `region_topK`, over the regions whose caption is one of the classes."""
    if not len(examples.region):
      raise NothingToMeasureError("no record has a region")
    known = np.isin(examples.region_caption, examples.classes)
    if not known.any():
      raise NothingToMeasureError(f"no region's caption is one of the {len(examples.classes)} region classes")
    region, label = examples.region[known], np.searchsorted(examples.classes, examples.region_caption[known])
    pairs = np.stack([np.arange(len(region)), label], axis=1)
    rank, first, score = ranking.search(region, examples.short_text[examples.classes], pairs)
    found = {f"region_top{k}": ranking.top_k(rank, pairs, len(examples.classes), k) for k in self.ks}
    return found, _questions("region", examples, np.flatnonzero(known), examples.classes[first], rank, score)


@dataclasses.dataclass(frozen=True)
class FineGrained:
  """The caption of a region among itself and its hard negatives, eleven texts where it has ten. Ties are misses."""

  name: str = "fine-grained matching"

  def run(self, model: FGCLIP, examples: Embedded) -> tuple[dict[str, Metric], list[Question]]:
    """The metric `fine_grained_top1`, over the regions with at least one negative."""
    valid = examples.negatives != ranking.NONE
    has = np.flatnonzero(valid.any(1))
    if not len(has):
      raise NothingToMeasureError("no region has hard negatives")
    beaten, _, first = ranking.beaten_by(
      examples.region[has], examples.short_text, examples.region_caption[has], examples.negatives[has]
    )
    chance = float(np.mean(1 / (1 + valid[has].sum(1))))
    found = {"fine_grained_top1": Metric(float(np.mean(~beaten.any(1))), chance, len(has))}
    score = np.einsum("nd,nd->n", examples.region[has], examples.short_text[first])
    return found, _questions("fine_grained", examples, has, first, beaten.sum(1), score)


def _questions(
  task: str,
  examples: Embedded,
  regions: Int[np.ndarray, "n"],
  first: Int[np.ndarray, "n"],
  rank: Int[np.ndarray, "n"],
  score: Float32[np.ndarray, "n"],
) -> list[Question]:
  """The questions about some regions; `first` is the text that scored highest."""
  words = examples.short_words
  return [
    Question(task, examples.places[region], words[examples.region_caption[region]], words[text], *rest)
    for region, text, *rest in zip(regions, first, rank.tolist(), score.tolist(), strict=True)
  ]
