"""The margin: what a group offers, which groups count, its range, and no gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.losses.margin import next_margin
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.fgclip import Embeddings

WHOLE = Objective(hard_rank=0.2)
GROUPS = Objective(hard_rank=0.2, regional_group=1)


def batch(*cosines: tuple[float, ...]) -> Embeddings:
  """An image with one box for each entry: the cosines of its caption and its negatives; fewer than two: no hard box."""
  texts, count = 3, len(cosines)
  hard_text, valid = np.zeros((count, texts, 2), np.float32), np.zeros((count, texts), bool)
  for row, values in enumerate(cosines):
    for at, cosine in enumerate(values):
      hard_text[row, at], valid[row, at] = (cosine, np.sqrt(1 - cosine**2)), True
  box = np.tile(np.asarray([1.0, 0.0], np.float32), (count, 1))
  arrays = {
    "image": box,
    "short": box,
    "region_image": box[:, None],
    "region_text": box[:, None],
    "region_valid": np.ones((count, 1), bool),
    "hard_image": box,
    "hard_text": hard_text,
    "hard_valid": valid,
    "hard_row": np.arange(count, dtype=np.int32),
  }
  return Embeddings(**{name: jnp.asarray(value) for name, value in arrays.items()})


def after(e: Embeddings, objective: Objective = WHOLE, margin: float = 1.25, scale: float = 10.0) -> float:
  return float(next_margin(e, jnp.float32(scale), objective, jnp.float32(margin)))


def test_the_mean_of_captions_minus_that_of_negatives():
  e = batch((0.9, 0.5, 0.4), (0.7, 0.6), (0.8,))  # the last has no negative
  assert after(e) == pytest.approx(10 * (0.8 - 0.5), rel=1e-5)
  assert after(e, GROUPS) == pytest.approx(10 * (0.45 + 0.1) / 2, rel=1e-5)


def test_it_stays_in_its_range():
  assert after(batch((0.2, 0.8))) == 0.0
  assert after(batch((0.9, 0.1)), scale=100.0) == 10.0


def test_without_a_hard_box_it_stays():
  assert after(batch((0.9,), ())) == 1.25
  assert after(Embeddings(image=jnp.eye(2), short=jnp.eye(2))) == 1.25


def test_a_group_without_a_hard_box_counts_only_if_asked():
  e = batch((0.9, 0.6), (), (0.5,), (0.8, 0.7))
  assert after(e, GROUPS) == pytest.approx((3 + 1) / 2, rel=1e-5)
  assert after(e, dataclasses.replace(GROUPS, quirks=("empty_groups",))) == pytest.approx(
    (3 + 1.25 + 1.25 + 1) / 4, rel=1e-5
  )


def test_the_published_code_leaves_it_where_it_drops_the_terms():
  for quirk in ("few_regions", "one_hard_box"):  # one box is too few for either
    assert after(batch((0.9, 0.6)), dataclasses.replace(WHOLE, quirks=(quirk,))) == 1.25


def test_it_has_no_gradient():
  e = batch((0.9, 0.6), (0.8, 0.7))

  def of(hard_image, scale):
    return next_margin(e.replace(hard_image=hard_image), scale, WHOLE, jnp.float32(0.0))

  for gradient in jax.grad(of, argnums=(0, 1))(e.hard_image, jnp.float32(10.0)):
    assert not np.asarray(gradient).any()
