"""The state of a run: made the same on any mesh, and really split over it."""

import jax
import numpy as np
import pytest

from fgclip_jax.models.parameters import abstract_params, flatten, init_params
from fgclip_jax.models.presets import preset
from fgclip_jax.train.mesh import make_mesh, place
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.state import TrainState, init_state, state_from, state_shardings

MODEL = preset("tiny").replace(text={"vocab_size": 512})


@pytest.fixture(scope="module")
def mesh():
  return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@jax.jit
def random_params(seed):
  return init_params(MODEL, jax.random.key(seed))


def moments(state: TrainState) -> list[dict]:
  """Adam's two moments, as trees like the parameters."""
  return [
    getattr(part, name)
    for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam)
    if is_adam(part)
    for name in ("mu", "nu")
  ]


def is_adam(part) -> bool:
  return hasattr(part, "mu")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_moments_lie_where_their_parameters_lie(mesh, clip_norm):
  shardings = state_shardings(MODEL, make_optimizer(OptimizerConfig(clip_norm=clip_norm)), mesh)
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(MODEL)).items()}
  trees = [shardings.params, *moments(shardings)]
  assert len(trees) == 3
  for tree in trees:
    for name, sharding in flatten(tree).items():
      assert sharding == place(name, shapes[name], mesh), name
  assert shardings.step.is_fully_replicated


def test_frozen_parameters_have_no_moments(mesh):
  optimizer = make_optimizer(OptimizerConfig(frozen=("^vision",), clip_norm=1.0))
  shardings = state_shardings(MODEL, optimizer, mesh)
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(MODEL)).items()}
  trained = {name for name in shapes if not name.startswith("vision")}
  for tree in moments(shardings):
    leaves = jax.tree_util.tree_leaves_with_path(tree)  # what is frozen is masked, and has no leaf
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): sharding for path, sharding in leaves}
    assert found == {name: place(name, shapes[name], mesh) for name in trained}


def test_a_random_state_is_born_split_and_the_same_on_any_mesh():
  mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  optimizer = make_optimizer(OptimizerConfig())
  state = init_state(MODEL, optimizer, mesh, seed=3)
  for tree in (state.params, *moments(state)):
    kernel = tree["vision"]["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 32, 64) and kernel.addressable_shards[0].data.shape == (2, 16, 32)
    assert tree["text"]["token_embedding"].addressable_shards[0].data.shape == (256, 32)
  assert int(state.step) == 0
  assert not any(np.any(leaf) for tree in moments(state) for leaf in jax.tree.leaves(tree))
  expected = flatten(random_params(3))
  for name, leaf in flatten(state.params).items():
    np.testing.assert_allclose(leaf, expected[name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_a_state_around_given_parameters_is_float32(mesh):
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), random_params(0))
  state = state_from(MODEL, make_optimizer(OptimizerConfig()), mesh, params)
  for name, leaf in flatten(state.params).items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, flatten(params)[name].astype(np.float32))
    assert leaf.sharding == place(name, leaf.shape, mesh)
