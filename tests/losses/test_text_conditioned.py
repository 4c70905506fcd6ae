"""The text-conditioned contrast against plain loops in float64, and over devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.losses.text_conditioned import text_conditioned_loss
from fgclip_jax.models.fgclip import Embeddings
from fgclip_jax.train.mesh import make_mesh

PICTURES, OWN, OTHERS = 16, 3, 4
SCALE, BIAS = 7.0, -3.0

pytestmark = pytest.mark.usefixtures("float64")


def fields():
  rng = np.random.default_rng(0)
  weight = rng.uniform(0.2, 2, (PICTURES, OWN)) * (rng.random((PICTURES, OWN)) < 0.7)
  weight[3] = 0.0  # a picture without captions
  valid = rng.random((PICTURES, OTHERS)) < 0.7
  valid[5] = False  # one without negatives
  return rng.uniform(-1, 1, (PICTURES, OWN)), weight, rng.uniform(-1, 1, (PICTURES, OTHERS)), valid


def loop(own, weight, other, valid, bias=None) -> float:
  pictures = []
  for i in range(PICTURES):
    negatives = [SCALE * s for s, counts in zip(other[i], valid[i], strict=True) if counts]
    total, weights = 0.0, 0.0
    for s, each in zip(own[i], weight[i], strict=True):
      if each == 0:
        continue
      if bias is None:
        loss = math.log(sum(map(math.exp, [SCALE * s, *negatives]))) - SCALE * s
      else:
        loss = math.log1p(math.exp(-(SCALE * s + bias))) + sum(math.log1p(math.exp(n + bias)) for n in negatives)
      total, weights = total + each * loss, weights + each
    if weights:
      pictures.append(total / weights)
  return sum(pictures) / len(pictures)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_the_loss_is_the_loop_s_on_one_device_and_on_eight(bias):
  arrays = fields()
  expected = loop(*arrays, bias)
  found = text_conditioned_loss(*map(jnp.asarray, (*arrays, SCALE)), None if bias is None else jnp.asarray(bias))
  assert float(found) == pytest.approx(expected, rel=1e-12)

  none = jnp.zeros((PICTURES, 2))
  objective = Objective(
    global_long=0.0, global_short=0.0, text_conditioned=0.5, contrast="softmax" if bias is None else "sigmoid"
  )

  def total(own, other, scale, mesh):
    e = Embeddings(
      none,
      none,
      conditioned_own=own,
      conditioned_weight=jnp.asarray(arrays[1]),
      conditioned_other=other,
      conditioned_valid=jnp.asarray(arrays[3]),
    )
    temperature = {"global": jnp.log(scale)} | ({} if bias is None else {"bias": jnp.asarray(bias)})
    terms = objective_terms(e, temperature, objective, mesh)
    assert set(terms) == {"total", "text_conditioned"}
    return terms["total"]

  given = jnp.asarray(arrays[0]), jnp.asarray(arrays[2]), jnp.asarray(SCALE)
  grad = jax.value_and_grad(total, argnums=(0, 1, 2))
  alone, gradients = grad(*given, None)
  spread, others = grad(*given, make_mesh({"data": 8}))
  assert float(alone) == pytest.approx(expected / 2, rel=1e-12) and float(spread) == pytest.approx(float(alone))
  for one, other in zip(gradients, others, strict=True):
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)


def test_a_model_without_the_pooling_has_no_term():
  one = jnp.eye(4)
  terms = objective_terms(Embeddings(one, one), {"global": jnp.asarray(0.0)}, Objective(text_conditioned=1.0))
  assert "text_conditioned" not in terms
