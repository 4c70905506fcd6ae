"""Operations counted in a traced program: loops, branches, devices and kernels."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fgclip_jax.data.packing import Layout
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.plan.batch import Captions, abstract_batch, assumed_batch, row_budget
from fgclip_jax.plan.jaxpr import matrix_operations
from fgclip_jax.train.flops import count_flops
from fgclip_jax.train.mesh import make_mesh
from fgclip_jax.train.step import make_loss

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def count(function, *arguments, devices=1):
  return matrix_operations(jax.make_jaxpr(function)(*arguments).jaxpr, devices)


def test_a_scan_counts_its_trips():
  def function(x):
    return jax.lax.scan(lambda carry, _: (jax.jit(jnp.matmul)(carry, x), None), x, None, length=5)[0]

  assert count(function, SQUARE) == {"other": 5 * PRODUCT}


def test_of_branches_the_dearest_counts():
  def function(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert count(function, SQUARE) == {"other": 2 * PRODUCT}


def test_full_precision_is_counted_apart():
  highest = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  assert count(lambda x: highest(x, x) + x @ x, SQUARE) == {"float32": PRODUCT, "other": PRODUCT}
  assert count(lambda x: highest(x, x), jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)) == {"other": PRODUCT}


def test_every_device_counts_under_a_mesh():
  mesh = make_mesh({"data": 4, "fsdp": 2})
  spec = PartitionSpec(("data", "fsdp"))
  local = jax.shard_map(lambda x: x @ jnp.ones((8, 8)), mesh=mesh, in_specs=spec, out_specs=spec)
  assert count(local, jax.ShapeDtypeStruct((64, 8), jnp.float32), devices=8) == {"other": 8 * PRODUCT}


def test_convolutions():
  image, kernel = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((4, 4, 3, 5), jnp.float32)

  def function(image, kernel):
    return jax.lax.conv_general_dilated(image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  assert count(function, image, kernel) == {"other": 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)}


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [0, 3])
def test_a_step_computes_what_the_formula_says_and_more_with_recomputation(boxes):
  model = preset("tiny")
  objective = Objective() if boxes else Objective(regional=0.0, hard_negative=0.0)
  layout, captions = Layout(boxes=boxes), Captions()
  rows = row_budget(layout, 8, captions)
  batch = abstract_batch(layout, 1, 8, rows, 32)
  work = count_flops(model, objective, assumed_batch(layout, 1, 8, rows, 32, captions))

  def operations(**runtime):
    loss = make_loss(model, objective, Runtime(**runtime), None)
    with jax.numpy_dtype_promotion("standard"):
      gradient = jax.make_jaxpr(jax.grad(lambda params, batch: loss(params, batch, jax.random.key(0))[0]))
      return sum(matrix_operations(gradient(abstract_params(model), batch).jaxpr, 1).values())

  plain, dots, full = operations(), operations(remat="dots"), operations(remat="full")
  assert 1 <= plain / work.executed < 1.2  # attention's backward pass computes its scores anew
  assert plain <= dots < full
  assert 1.2 < full / plain < 1.4  # a forward pass more
  assert operations(remat="full", micro_batches=4) > full
