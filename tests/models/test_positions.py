"""Image positions interpolated as PyTorch does, on any grid; and models of another image size."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.models.config import ResNetConfig, preset
from fgclip_jax.models.params import abstract_params, build, unflatten
from fgclip_jax.models.positions import resize, resize_positions
from tests.helpers.tiny_runs import random_weights

TINY = preset("tiny").replace(text={"vocab_size": 60})
RESNET = dataclasses.replace(TINY.replace(text={"long_length": None}), vision=ResNetConfig(4, (1, 2, 1, 1), 64))
SIDES = st.integers(1, 9)


def _interpolated(torch, table, old, new):
  grid = torch.tensor(table[1:].reshape(1, *old, -1).transpose(0, 3, 1, 2))
  resized = torch.nn.functional.interpolate(grid, new, mode="bicubic", align_corners=False)
  return resized.numpy()[0].transpose(1, 2, 0).reshape(new[0] * new[1], -1)


@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), seed=st.integers(0, 99))
def test_positions_are_interpolated_as_pytorch_does(torch, old, new, seed):
  table = np.random.default_rng(seed).uniform(-1, 1, (1 + old[0] * old[1], 3)).astype(np.float32)
  ours = np.asarray(jax.jit(resize_positions, static_argnums=(1, 2))(jnp.asarray(table), new, old))
  np.testing.assert_array_equal(ours[0], table[0])
  np.testing.assert_allclose(ours[1:], _interpolated(torch, table, old, new), rtol=0, atol=1e-6)


def test_the_published_change_of_size(torch):
  """224 to 336 pixels in patches of 14, as ViT-L/14 was brought to its larger size."""
  table = np.random.default_rng(0).normal(0, 0.1, (257, 8)).astype(np.float32)
  ours = np.asarray(resize_positions(jnp.asarray(table), 24))
  np.testing.assert_allclose(ours[1:], _interpolated(torch, table, (16, 16), (24, 24)), rtol=0, atol=1e-6)


def test_the_same_grid_changes_nothing_and_the_dtype_stays():
  table = jnp.arange(20, dtype=jnp.bfloat16).reshape(5, 4)
  assert resize_positions(table, 2) is table
  assert resize_positions(table, (3, 2)).dtype == jnp.bfloat16


def test_a_table_that_is_not_of_its_grid():
  with pytest.raises(ValueError, match="table of 8 positions is not that of a class token and a square grid"):
    resize_positions(jnp.zeros((8, 2)), 3)
  with pytest.raises(ValueError, match="a grid of 2 x 3"):
    resize_positions(jnp.zeros((8, 2)), 3, (2, 3))


@pytest.mark.parametrize(("config", "size"), [(TINY, 48), (RESNET, 96)], ids=["ViT", "ResNet"])
def test_a_model_takes_images_of_its_new_size(config, size):
  params = unflatten(random_weights(config))
  resized, changed = resize(params, config, size)
  assert changed == config.replace(vision={"image_size": size})
  chex.assert_trees_all_equal_shapes_and_dtypes(resized, abstract_params(changed))
  model = build(changed, resized)
  image, dense = jax.jit(type(model).image_features)(model, jnp.ones((1, size, size, 3)))
  assert np.isfinite(image).all() and dense.shape[1:3] == (changed.vision.grid,) * 2
  assert resize(params, config, config.vision.image_size) == (params, config)


def test_a_size_that_is_no_multiple_of_the_patches():
  with pytest.raises(ValueError, match="image_size 50 must be a multiple of patch_size 8"):
    resize(unflatten(random_weights(TINY)), TINY, 50)
