"""Retrieval in two stages: the answers that score highest are compared once more, by text-conditioned pooling."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from fgclip_jax.evals import ranking
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError
from fgclip_jax.inference.model import FGCLIP


def check(model: FGCLIP) -> None:
  """A NothingToMeasureError if the model cannot do it."""
  if model.config.text_pooling is None:
    raise NothingToMeasureError("this model has no text-conditioned pooling, which rerank needs: leave it out")


def reranked_recalls(
  model: FGCLIP,
  dense: Iterable[tuple[int, Float32[np.ndarray, "_ _ D"]]],
  image: Float32[np.ndarray, "N D"],
  text: Float32[np.ndarray, "T D"],
  pairs: Int[np.ndarray, "P 2"],
  k: int,
  ks: Sequence[int] = (1, 5, 10),
  repeats: Int[np.ndarray, "T"] | None = None,
) -> dict[str, Metric]:
  """Metrics `reranked_...`: those of `ranking.recalls` with the first k answers of each query compared anew.

  Args:
    model, dense: see `rescore`.
    image, text, pairs, ks, repeats: see `ranking.recalls`.
    k: how many answers.
  """
  answers = {"image_to_text": best_answers(image, text, k), "text_to_image": best_answers(text, image, k)}
  scores = dict(zip(answers, rescore(model, dense, text, *answers.values()), strict=True))

  def adjust(way, ranks, right):
    return rerank(ranks, answers[way], scores[way], right)

  found, _ = ranking.recalls(image, text, pairs, ks, repeats, adjust)
  return {f"reranked_{name}": metric for name, metric in found.items()}


def best_answers(
  queries: Float32[np.ndarray, "Q D"], gallery: Float32[np.ndarray, "G D"], k: int, block: int = ranking.BLOCK
) -> Int[np.ndarray, "Q k"]:
  """The numbers of each query's k answers of the highest scores, fewer where the gallery is smaller.

  Args:
    queries, gallery: unit-length embeddings.
    k: how many.
    block: at most block x block scores are held at a time.
  """
  k = min(k, len(gallery))
  found = []
  for start in range(0, len(queries), block):
    part = jnp.asarray(queries[start : start + block])
    state = jnp.full((len(part), k), -jnp.inf), jnp.zeros((len(part), k), jnp.int32)
    for at in range(0, len(gallery), block):
      state = _merge(part, jnp.asarray(gallery[at : at + block]), np.int32(at), *state)
    found.append(np.asarray(state[1]))
  return np.concatenate(found)


@jax.jit
def _merge(
  part: Float[Array, "B D"], some: Float[Array, "G D"], start: Int[Array, ""], best: Float[Array, "B k"], number
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
  """The best so far with one more block of answers, the first of them number `start`."""
  scores = jnp.matmul(part, some.T, precision=jax.lax.Precision.HIGHEST)
  numbers = jnp.broadcast_to(start + jnp.arange(len(some), dtype=jnp.int32), scores.shape)
  best, places = jax.lax.top_k(jnp.concatenate([best, scores], axis=1), best.shape[1])
  return best, jnp.take_along_axis(jnp.concatenate([number, numbers], axis=1), places, axis=1)


def rescore(
  model: FGCLIP,
  dense: Iterable[tuple[int, Float32[np.ndarray, "_ _ D"]]],
  text: Float32[np.ndarray, "T D"],
  image_answers: Int[np.ndarray, "N k"],
  text_answers: Int[np.ndarray, "T j"],
) -> tuple[Float32[np.ndarray, "N k"], Float32[np.ndarray, "T j"]]:
  """The cosines of pictures with texts by text-conditioned pooling, for the answers of either.

  Args:
    model: one that has the pooling.
    dense: the number of each of the N pictures, ascending, and its dense features.
    text: unit-length embeddings.
    image_answers: numbers of texts for each picture.
    text_answers: numbers of pictures for each text.

  Raises:
    ValueError: a picture is missing.
  """
  pictures, texts = len(image_answers), len(text)
  of_images = np.arange(pictures)[:, None] * texts + image_answers
  of_texts = text_answers * texts + np.arange(texts)[:, None]
  wanted = np.unique(np.concatenate([of_images.reshape(-1), of_texts.reshape(-1)]))  # picture by picture
  scores = np.zeros(len(wanted), np.float32)
  seen = 0
  for number, features in dense:
    if number != seen:
      break
    low, high = np.searchsorted(wanted, [number * texts, (number + 1) * texts])
    scores[low:high] = model.conditioned_similarity([features], text[wanted[low:high] % texts])[0]
    seen += 1
  if seen != pictures:
    raise ValueError(f"picture {seen} of {pictures} could be read once, and not again to compare it anew")
  return scores[np.searchsorted(wanted, of_images)], scores[np.searchsorted(wanted, of_texts)]


def rerank(
  ranks: ranking.Ranks,
  answers: Int[np.ndarray, "Q k"],
  scores: Float32[np.ndarray, "Q k"],
  pairs: Int[np.ndarray, "P 2"],
) -> ranking.Ranks:
  """The ranks where each query's first answers are ordered by new scores; all others stay behind them.

  Args:
    ranks: rank of the right answer, best answer and its score, as `ranking.search` gives them.
    answers: the numbers of the first answers.
    scores: their new scores. Ties count against the model, as in `ranking.search`.
    pairs: (query, right answer) numbers.
  """
  rank, _, _ = ranks
  size = int(max(answers.max(), pairs[:, 1].max())) + 1
  right = np.isin(np.arange(len(answers))[:, None] * size + answers, pairs[:, 0] * size + pairs[:, 1])
  best = np.where(right, scores, -np.inf).max(axis=1)
  beaten_by = np.sum(~(scores < best[:, None] - ranking.TIE) & ~right, axis=1)
  first = scores.argmax(axis=1)
  return (
    np.where(right.any(axis=1), beaten_by, rank),
    np.take_along_axis(answers, first[:, None], axis=1)[:, 0],
    scores.max(axis=1),
  )
