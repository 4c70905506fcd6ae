"""Ranks and chance levels against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.evals import ranking


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def brute_force(queries, gallery, pairs):
  """The definition, one query and one answer at a time."""
  result = []
  for q in range(len(queries)):
    right = {int(a) for query, a in pairs if query == q}
    scores = [float(np.dot(queries[q].astype(np.float64), answer.astype(np.float64))) for answer in gallery]
    best = max(scores[a] for a in right)
    result.append(sum(score >= best for a, score in enumerate(scores) if a not in right))
  return result


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_ranks_equal_brute_force_whatever_the_block(queries, gallery, extra, block, seed):
  rng = np.random.default_rng(seed)
  pairs = {(q, int(rng.integers(gallery))) for q in range(queries)}
  pairs |= {(int(rng.integers(queries)), int(rng.integers(gallery))) for _ in range(extra)}
  pairs = rng.permutation(np.asarray(sorted(pairs)))
  q, g = unit(rng.normal(size=(queries, 6))), unit(rng.normal(size=(gallery, 6)))
  np.testing.assert_array_equal(ranking.search(q, g, pairs, block)[0], brute_force(q, g, pairs))
  _, first, score = ranking.search(q, g, pairs, block)
  np.testing.assert_array_equal(first, (q @ g.T).argmax(1))
  np.testing.assert_allclose(score, (q @ g.T).max(1), atol=1e-6)


def test_ties_and_values_that_are_no_numbers_are_misses():
  """A model that gives everything the same embedding, or NaN, finds nothing."""
  pairs = np.stack([np.arange(5), np.arange(5)], axis=1)
  same = np.tile(unit(np.asarray([1.0, 2.0, 3.0])), (5, 1))
  np.testing.assert_array_equal(ranking.search(same, same, pairs, 2)[0], [4] * 5)
  np.testing.assert_array_equal(ranking.search(np.full_like(same, np.nan), same, pairs)[0], [4] * 5)
  np.testing.assert_array_equal(ranking.search(same, np.full_like(same, np.nan), pairs)[0], [4] * 5)


def test_a_query_without_a_right_answer_is_an_error():
  with pytest.raises(ValueError, match="at least one right answer"):
    ranking.search(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32), np.asarray([[0, 0]]))


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_chance_is_that_of_drawing_without_replacement(gallery, k, data):
  right = data.draw(st.integers(1, gallery))
  pairs = np.asarray([(0, a) for a in range(right)] + [(1, 0)])
  metric = ranking.top_k(np.asarray([0, 5]), pairs, gallery, k)

  def expected(right):
    draws = list(itertools.combinations(range(gallery), min(k, gallery)))
    return sum(min(draw) < right for draw in draws) / len(draws)

  assert math.isclose(metric.chance, (expected(right) + expected(1)) / 2)
  assert metric.count == 2 and metric.value == (1 + (k > 5)) / 2
