"""Ranks of right answers, computed in blocks; recalls, and their chance levels."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from fgclip_jax.evals.evaluator import Metric

# Scores closer than this are a tie. The rounding of float32 cosines is about a tenth of it.
TIE = 1e-6
BLOCK = 1024
# of each query: the rank of its right answer, the answer that scores highest, and its score
Ranks = tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"], Float32[np.ndarray, "Q"]]
NONE = -1  # in place of the number of a text: there is none


def search(
  queries: Float32[np.ndarray, "Q D"],
  gallery: Float32[np.ndarray, "G D"],
  pairs: Int[np.ndarray, "P 2"],
  block: int = BLOCK,
) -> Ranks:
  """The rank of each query's right answer, the answer that scores highest, and its score.

  A rank is the number of wrong answers that score at least as high as the best right one; 0 is a hit at 1. Ties and
  NaN count against the model: a model that embeds everything alike has no hit. Scores are computed on JAX's default
  device, which holds the gallery.

  Args:
    queries, gallery: unit-length embeddings.
    pairs: (query, right answer) numbers; every query needs at least one.
    block: at most block x block scores are held at a time.
  """
  pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
  if not np.array_equal(np.unique(pairs[:, 0]), np.arange(len(queries))):
    raise ValueError("every query needs at least one right answer")
  starts = range(0, len(gallery), block)
  answers = [jax.device_put(_pad(gallery[start : start + block], block)) for start in starts]
  found = []
  for start in range(0, len(queries), block):
    part = queries[start : start + block]
    low, high = np.searchsorted(pairs[:, 0], [start, start + len(part)])
    query, answer = pairs[low:high, 0] - start, pairs[low:high, 1]
    best = np.full(len(part), -np.inf, np.float32)
    for at in range(0, len(query), block):
      q, a = query[at : at + block], answer[at : at + block]
      with np.errstate(invalid="ignore"):  # NaN stays NaN
        np.maximum.at(best, q, np.einsum("nd,nd->n", part[q], gallery[a]))
    rows = _pad(part, block)
    asked = [rows, _pad(best, block), _pad(query, fill=len(rows)), _pad(answer, fill=-1)]
    asked = [jax.device_put(each if each.dtype == np.float32 else each.astype(np.int32)) for each in asked]
    state = jax.device_put((*np.zeros((2, len(rows)), np.int32), np.full(len(rows), -np.inf, np.float32)))
    for at, some in zip(starts, answers, strict=True):
      state = _look(*asked, some, *np.asarray([at, len(gallery)], np.int32), *state)
    found.append([np.asarray(each)[: len(part)] for each in state])
  rank, first, highest = (np.concatenate(each) for each in zip(*found, strict=True))
  return rank.astype(np.int64), first.astype(np.int64), highest


@jax.jit
def _look(
  part: Float[Array, "B D"],
  best: Float[Array, "B"],
  query: Int[Array, "P"],
  answer: Int[Array, "P"],
  some: Float[Array, "G D"],
  start: Int[Array, ""],
  total: Int[Array, ""],
  rank: Int[Array, "B"],
  first: Int[Array, "B"],
  highest: Float[Array, "B"],
) -> tuple[Int[Array, "B"], Int[Array, "B"], Float[Array, "B"]]:
  """Updates `search`'s results with one more block of answers; its first is number `start` of `total`."""
  scores = jnp.matmul(part, some.T, precision=jax.lax.Precision.HIGHEST)
  column = jnp.arange(len(some))
  real = column < total - start
  beats = ~(scores < best[:, None] - TIE) & real  # not >=, which is False for NaN
  place = answer - start
  here = (place >= 0) & (place < len(some))
  right = here & beats[query, jnp.clip(place, 0, len(some) - 1)]
  rank += beats.sum(1, dtype=jnp.int32) - jnp.zeros_like(rank).at[query].add(right.astype(jnp.int32), mode="drop")
  value = jnp.where(real, scores, -jnp.inf).max(1)
  top = jnp.where(real & (scores == value[:, None]), column, len(some)).min(1)
  better = value > highest  # False for NaN
  return rank, jnp.where(better, top + start, first), jnp.where(better, value, highest)


def beaten_by(
  queries: Float32[np.ndarray, "Q D"],
  answers: Float32[np.ndarray, "A D"],
  right: Int[np.ndarray, "Q"],
  wrong: Int[np.ndarray, "Q N"],
  block: int = BLOCK,
) -> tuple[Bool[np.ndarray, "Q N"], Float32[np.ndarray, "Q"], Int[np.ndarray, "Q"]]:
  """Compares each query's right answer with its own wrong ones. Ties and NaN count against the model.

  Args:
    queries, answers: unit-length embeddings.
    right, wrong: numbers of answers; `NONE` in `wrong`: no more.
    block: the number of queries compared at a time.

  Returns:
    Which wrong answers score at least as high as the right one; the right one's score; the answer that scores highest.
  """
  beaten, score, first = np.zeros(wrong.shape, bool), np.zeros(len(queries), np.float32), right.copy()
  for start in range(0, len(queries), block):
    rows = slice(start, start + block)
    part, valid = queries[rows], wrong[rows] != NONE
    score[rows] = np.einsum("nd,nd->n", part, answers[right[rows]])
    scores = np.einsum("nd,nkd->nk", part, answers[wrong[rows]])
    beaten[rows] = ~(scores < score[rows, None] - TIE) & valid  # not >=, which is False for NaN
    lost = beaten[rows].any(1)
    best = np.where(valid, scores, -np.inf)[lost].argmax(1)
    first[rows][lost] = wrong[rows][lost, best]
  return beaten, score, first


def _pad(rows: np.ndarray, most: int | None = None, fill: int = 0) -> np.ndarray:
  """Appends rows up to a power of two, or `most`, so that few sizes are compiled."""
  size = 1 << max(len(rows) - 1, 0).bit_length()
  size = size if most is None else min(size, most)
  return np.concatenate([rows, np.full((size - len(rows), *rows.shape[1:]), fill, rows.dtype)])


def top_k(rank: Int[np.ndarray, "Q"], pairs: Int[np.ndarray, "P 2"], gallery: int, k: int) -> Metric:
  """The share of queries with a right answer among the best `k` of `gallery` answers."""
  right = np.bincount(pairs[:, 0], minlength=len(rank))
  missed = np.ones(len(rank))  # the chance that k answers drawn without replacement are all wrong
  for drawn in range(min(k, gallery)):
    missed *= np.maximum(gallery - right - drawn, 0) / (gallery - drawn)
  return Metric(value=float(np.mean(rank < k)), chance=float(np.mean(1 - missed)), count=len(rank))


@dataclasses.dataclass(frozen=True)
class Found:
  """The results of `search` for queries in one direction: rank, best answer, its cosine."""

  rank: Int[np.ndarray, "Q"]
  first: Int[np.ndarray, "Q"]
  score: Float32[np.ndarray, "Q"]


def recalls(
  image: Float32[np.ndarray, "N D"],
  text: Float32[np.ndarray, "T D"],
  pairs: Int[np.ndarray, "P 2"],
  ks: Sequence[int] = (1, 5, 10),
  repeats: Int[np.ndarray, "T"] | None = None,
  adjust: Callable[[str, Ranks, Int[np.ndarray, "P 2"]], Ranks] | None = None,
) -> tuple[dict[str, Metric], dict[str, Found]]:
  """Metrics `image_to_text_rK` and `text_to_image_rK`, and the results of both directions.

  Args:
    image, text: unit-length embeddings of images and of distinct texts.
    pairs: (image, text) numbers that belong together.
    ks: the K of each R@K.
    repeats: how often each text counts as a query; None: once.
    adjust: makes the ranks of a way (its name, the ranks, its pairs) into those that count; None: they stay.
  """
  result, found = {}, {}
  for way, queries, gallery, right in (
    ("image_to_text", image, text, pairs),
    ("text_to_image", text, image, pairs[:, ::-1]),
  ):
    ranks = search(queries, gallery, right)
    rank, first, score = ranks if adjust is None else adjust(way, ranks, right)
    if way == "text_to_image" and repeats is not None:
      asked = np.repeat(np.arange(len(text)), repeats)
      rank, first, score = rank[asked], first[asked], score[asked]
      answers = np.split(right[np.argsort(right[:, 0], kind="stable"), 1], np.cumsum(np.bincount(right[:, 0]))[:-1])
      right = np.asarray([(question, a) for question, row in enumerate(asked) for a in answers[row]])
    found[way] = Found(rank, first, score)
    for k in ks:
      result[f"{way}_r{k}"] = top_k(rank, right, len(gallery), k)
  return result, found
