"""What is left out on request: patches, pixels, and the work of frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.models.config import preset
from fgclip_jax.models.params import build, flatten
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer, stop_frozen
from fgclip_jax.train.step import choose_patches, resize
from tests.helpers.toy_models import init

MODEL = preset("tiny")
FROZEN = (("^vision", "frozen", 1.0), ("temperature", "frozen", 1.0))


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(jnp.asarray, init(MODEL, seed=0))


def test_patches_are_chosen_anew_for_each_image_and_step():
  first, second = (np.asarray(choose_patches(jax.random.key(seed), 5, 16, 0.5)) for seed in (0, 1))
  assert first.shape == (5, 8) and (first != second).any() and (first[0] != first[1]).any()
  for row in first:
    assert sorted(set(row)) == list(row) and 0 <= row.min() and row.max() < 16


def test_keeping_every_patch_changes_nothing(params):
  model = build(MODEL, params)
  image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  encode = jax.jit(type(model).image_features)
  whole, _ = encode(model, image)
  kept, dense = encode(model, image, jnp.tile(jnp.arange(16), (2, 1)))
  np.testing.assert_allclose(kept, whole, atol=1e-6)
  assert dense is None


def test_dropped_patches_are_not_looked_at(params):
  model = build(MODEL, params)
  image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
  keep = jnp.asarray([[0, 1, 2, 3]])  # the first row of patches
  below = image.at[:, 8:].add(1.0)
  encode = jax.jit(type(model).image_features)
  np.testing.assert_array_equal(encode(model, image, keep)[0], encode(model, below, keep)[0])


def test_frozen_parameters_have_no_state_no_gradient_and_do_not_move(params):
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0, rules=FROZEN, clip_norm=1.0))
  state = optimizer.init(params)
  frozen = {name for name in flatten(params) if name.startswith(("vision", "temperature"))}
  trained = sum(leaf.size for name, leaf in flatten(params).items() if name not in frozen)
  moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
  assert moments == 2 * trained

  def loss(params):
    return sum(jnp.sum((leaf + 1) ** 2) for leaf in jax.tree.leaves(stop_frozen(params, FROZEN)))

  gradients = jax.jit(jax.grad(loss))(params)
  with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
    updates, _ = jax.jit(optimizer.update)(gradients, state, params)
  for name, update in flatten(updates).items():
    assert (name in frozen) == (not np.any(flatten(gradients)[name])), name
    assert (name in frozen) <= (not np.any(update)), name


def test_images_are_made_smaller_as_pillow_does():
  from PIL import Image

  pixels = np.asarray(Image.effect_noise((64, 64), 50).convert("RGB"))
  theirs = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC), np.float32)
  ours = resize(jnp.asarray(pixels, jnp.float32)[None, None], 24)[0, 0]
  assert np.abs(np.clip(ours, 0, 255) - theirs).max() <= 1.0  # Pillow rounds to bytes
