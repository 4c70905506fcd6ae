"""Batches that hold a record more than once: every term equals a plain loop, in every form, on any mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.fgclip import Embeddings

IMAGES, BOXES, WIDTH = 16, 3, 8
TEMPERATURE = {"global": 2.0, "regional": 1.5, "hard_negative": 2.5}
BIAS = -3.0
# a record twice, on one device and on two; one three times; and records that are there once
RECORD = np.asarray([7, 7, 1, 2, 3, 4, 5, 1, 6, 8, 9, 1, 10, 11, 2, 12], np.int32)

pytestmark = pytest.mark.usefixtures("float64")


@functools.cache
def batch() -> dict[str, np.ndarray]:
  """Embeddings; those of one record are alike, as they are where a record is loaded twice."""
  rng = np.random.default_rng(0)

  def unit(*shape):
    x = rng.normal(size=(*shape, WIDTH))
    x = x[np.unique(RECORD, return_inverse=True)[1]] + 0.1 * rng.normal(size=x.shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  valid = np.arange(BOXES) < rng.integers(0, BOXES + 1, IMAGES)[:, None]
  none = np.zeros((IMAGES * BOXES, 2), bool)
  return {
    "image": unit(IMAGES),
    "short": unit(IMAGES),
    "long": unit(IMAGES),
    "region_image": unit(IMAGES, BOXES),
    "region_text": unit(IMAGES, BOXES),
    "region_valid": valid,
    "region_caption": rng.integers(0, 6, (IMAGES, BOXES)).astype(np.int32),
    "hard_image": np.zeros((IMAGES * BOXES, WIDTH)),
    "hard_text": np.zeros((IMAGES * BOXES, 2, WIDTH)),
    "hard_valid": none,
    "hard_row": np.zeros(IMAGES * BOXES, np.int32),
  }


def loop(image, text, scale, sees, sigmoid: bool) -> float:
  """A contrast pair by pair; `sees(i, j)`: whether row i is contrasted with column j."""
  rows, total = range(len(image)), 0.0
  logit = [[scale * math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in text] for x in image]
  for i in rows:
    if sigmoid:
      for j in rows:
        if sees(i, j):
          total += math.log1p(math.exp(-(1 if i == j else -1) * (logit[i][j] + BIAS)))
    else:
      by_row = math.log(math.fsum(math.exp(logit[i][j]) for j in rows if sees(i, j)))
      by_column = math.log(math.fsum(math.exp(logit[j][i]) for j in rows if sees(i, j)))
      total += (by_row + by_column) / 2 - logit[i][i]
  return total / len(image) if len(image) else 0.0


def slow_terms(objective: Objective) -> dict[str, float]:
  arrays, sigmoid = batch(), objective.contrast == "sigmoid"
  scales = {name: math.exp(value) for name, value in TEMPERATURE.items()}

  def other_records(i, j):
    return i == j or RECORD[i] != RECORD[j]

  terms = {
    f"global_{text}": loop(arrays["image"], arrays[text], scales["global"], other_records, sigmoid)
    for text in ("long", "short")
  }
  of_groups, size = [], objective.regional_group or IMAGES
  for first in range(0, IMAGES, size):
    boxes = [(i, k) for i in range(first, first + size) for k in range(BOXES) if arrays["region_valid"][i, k]]
    caption = [arrays["region_caption"][box] for box in boxes]

    def sees(a, b, boxes=boxes, caption=caption):
      if a == b:
        return True
      (i, _), (j, _) = boxes[a], boxes[b]
      # regions of one image contrast with each other, those of another image of the same record do not
      same = objective.regional_mask_identical and caption[a] == caption[b]
      return not same and (i == j or RECORD[i] != RECORD[j])

    image, text = ([arrays[name][box] for box in boxes] for name in ("region_image", "region_text"))
    of_groups.append(loop(image, text, scales["regional"], sees, sigmoid))
  return terms | {"regional": sum(of_groups) / len(of_groups)}


def our_terms(objective: Objective, shape=(), record=RECORD):
  """The terms, and the gradients of their total by every float array."""
  mesh = (
    jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3) if shape else None
  )
  temperature = TEMPERATURE | ({"bias": BIAS} if objective.contrast == "sigmoid" else {})
  temperature = {name: jnp.asarray(value, jnp.float64) for name, value in temperature.items()}
  arrays = {**batch(), **({} if record is None else {"record": record})}
  if mesh:
    arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

  def total(floats, rest):
    given = {**rest, **floats}
    found = given.pop("record", None)
    terms = objective_terms(Embeddings(**given), temperature, objective, mesh, record=found)
    return terms["total"], terms

  floats = {name: jnp.asarray(x) for name, x in arrays.items() if x.dtype == np.float64}
  rest = {name: jnp.asarray(x) for name, x in arrays.items() if name not in floats}
  (_, terms), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(floats, rest)
  return jax.tree.map(np.asarray, (terms, gradients))


VARIANTS = {
  "softmax": Objective(),
  "sigmoid": Objective(contrast="sigmoid"),
  "groups": Objective(regional_group=4),
  "a device's images": Objective(regional_group=2),
  "identical captions": Objective(regional_mask_identical=True),
}


@pytest.mark.parametrize("objective", VARIANTS.values(), ids=VARIANTS)
def test_a_picture_is_not_its_own_negative(objective):
  terms, _ = our_terms(objective)
  for name, value in slow_terms(objective).items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-12, err_msg=name)
  unmasked, _ = our_terms(objective, record=None)
  assert all(unmasked[name] > terms[name] + 1e-3 for name in slow_terms(objective))


@pytest.mark.parametrize(
  ("variant", "shape", "form"),
  [
    ("softmax", (8, 1, 1), "ring"),
    ("softmax", (2, 4, 1), "chunked"),
    ("softmax", (8, 1, 1), "all_gather"),
    ("softmax", (), "ring"),
    ("sigmoid", (8, 1, 1), "ring"),
    ("sigmoid", (2, 2, 2), "chunked"),
    ("groups", (4, 2, 1), "ring"),
    ("a device's images", (8, 1, 1), "chunked"),
    ("identical captions", (8, 1, 1), "ring"),
  ],
)
def test_every_form_on_any_mesh_does_the_same(variant, shape, form):
  objective = VARIANTS[variant]
  ours = our_terms(dataclasses.replace(objective, form=form, chunk=4), shape)
  expected = our_terms(dataclasses.replace(objective, form="dense"))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1.0))


def test_records_that_are_there_once_change_nothing():
  once = np.arange(2**31 - IMAGES, 2**31).astype(np.int32)
  for a, b in zip(
    *map(jax.tree.leaves, (our_terms(Objective(), record=once), our_terms(Objective(), record=None))), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_a_batch_of_one_record_has_nothing_to_contrast():
  terms, gradients = our_terms(Objective(), record=np.zeros(IMAGES, np.int32))
  np.testing.assert_allclose([terms["global_short"], terms["global_long"]], 0.0, atol=1e-12)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
