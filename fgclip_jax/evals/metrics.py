"""What evaluators measure and what they share: ranks computed in blocks, and chance levels."""

import dataclasses
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

if TYPE_CHECKING:
  from fgclip_jax.api import FGCLIP
  from fgclip_jax.evals.embedded import Embedded

# Scores closer than this are a tie: float32 cosines are rounded to about a tenth of it.
TIE = 1e-6
BLOCK = 1024


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


class NothingToMeasureError(ValueError):
  """The examples have no labels for this evaluator, or the model cannot do what it measures."""


@runtime_checkable
class Part(Protocol):
  """What is measured of the embeddings of a record folder."""

  name: str

  def run(self, model: "FGCLIP", examples: "Embedded") -> dict[str, Metric]:
    """Measures, or raises `NothingToMeasureError`."""


def ranks(
  queries: Float32[np.ndarray, "Q D"],
  gallery: Float32[np.ndarray, "G D"],
  pairs: Int[np.ndarray, "P 2"],
  block: int = BLOCK,
) -> Int[np.ndarray, "Q"]:
  """The ranks that `search` finds."""
  return search(queries, gallery, pairs, block)[0]


def search(
  queries: Float32[np.ndarray, "Q D"],
  gallery: Float32[np.ndarray, "G D"],
  pairs: Int[np.ndarray, "P 2"],
  block: int = BLOCK,
) -> tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"], Float32[np.ndarray, "Q"]]:
  """The rank of each query's right answer, the answer that scores highest, and its score.

  A rank is how many wrong answers score at least as high as the best right one; 0 is a hit at 1. A tie counts against
  the model, and so does a score that is not a number: a model that gives the same embedding for everything has no hit.

  Args:
    queries, gallery: unit-length embeddings.
    pairs: (query, right answer) numbers; every query needs one at least.
    block: at most block x block scores are held at a time.
  """
  pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
  if not np.array_equal(np.unique(pairs[:, 0]), np.arange(len(queries))):
    raise ValueError("every query needs at least one right answer")
  result, first = np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64)
  highest = np.full(len(queries), -np.inf, np.float32)
  for start in range(0, len(queries), block):
    part = queries[start : start + block]
    low, high = np.searchsorted(pairs[:, 0], [start, start + len(part)])
    query, answer = pairs[low:high, 0] - start, pairs[low:high, 1]
    best = np.full(len(part), -np.inf, np.float32)
    for at in range(0, len(query), block):
      q, a = query[at : at + block], answer[at : at + block]
      with np.errstate(invalid="ignore"):  # NaN stays NaN
        np.maximum.at(best, q, np.einsum("nd,nd->n", part[q], gallery[a]))
    for low in range(0, len(gallery), block):
      scores = part @ gallery[low : low + block].T
      beats = ~(scores < best[:, None] - TIE)  # not >=, which is False for NaN
      here = (answer >= low) & (answer < low + block)
      beats[query[here], answer[here] - low] = False
      result[start : start + block] += beats.sum(1)
      top = scores.argmax(1)
      value = scores[np.arange(len(part)), top]
      better = value > highest[start : start + block]
      first[start : start + block][better] = top[better] + low
      highest[start : start + block][better] = value[better]
  return result, first, highest


def top_k(rank: Int[np.ndarray, "Q"], pairs: Int[np.ndarray, "P 2"], gallery: int, k: int) -> Metric:
  """The share of queries with a right answer among the first `k` of `gallery` answers."""
  right = np.bincount(pairs[:, 0], minlength=len(rank))
  missed = np.ones(len(rank))  # the chance that k answers drawn without replacement are all wrong
  for drawn in range(min(k, gallery)):
    missed *= np.maximum(gallery - right - drawn, 0) / (gallery - drawn)
  return Metric(value=float(np.mean(rank < k)), chance=float(np.mean(1 - missed)), count=len(rank))
