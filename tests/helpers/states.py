"""Small states of a run, saved and restored by the tests of checkpoints."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.train.mesh import make_mesh
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.state import TrainState, make_state
from fgclip_jax.weights.native import FOLDER

CONFIG = {"steps": 7, "optimizer": {"rules": [["norm", "weight_decay", 0.0]], "clip_norm": None}}


def make_params(seed: int = 0, width: int = 6):
  rng = np.random.default_rng(seed)
  return {
    "vision": {"kernel": jnp.asarray(rng.normal(size=(8, width)), jnp.float32)},
    "temperature": {"global": jnp.float32(rng.normal())},
  }


def make_train_state(seed: int = 0, width: int = 6, ema: bool = False, margin: bool = False, **optimizer) -> TrainState:
  """A state with something in every leaf, split over two devices where it divides."""
  rng = np.random.default_rng(seed)
  state = make_state(make_optimizer(OptimizerConfig(**optimizer)), make_params(seed, width), ema)
  fill = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
  state = state.replace(opt_state=jax.tree.map(fill, state.opt_state), step=jnp.int32(seed))
  if ema:
    state = state.replace(ema=make_params(seed + 100, width))
  if margin:
    state = state.replace(margin=jnp.float32(rng.normal()))
  return jax.device_put(state, shardings_of(state))


def shardings_of(state: TrainState):
  mesh = make_mesh({"data": 2}, jax.devices()[:2])

  def place(leaf):
    spec = ("data",) if leaf.shape[:1] == (8,) else ()
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  return jax.tree.map(place, state)


def assert_same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  for (path, first), second in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True):
    assert first.dtype == second.dtype and np.asarray(first).tobytes() == np.asarray(second).tobytes(), path


def saved(folder, steps, keep: Keep | None = None, losses=None, **state) -> list[int]:
  """Saves states at these steps and returns the steps that are left."""
  checkpoints = Checkpoints(str(folder), keep or Keep(newest=9))
  for step in steps:
    checkpoints.save(step, make_train_state(step, **state), CONFIG, losses and {"loss": losses[step]})
  checkpoints.close()
  return sorted(int(name) for name in os.listdir(folder / FOLDER) if name.isdigit())


def restored(folder, like: TrainState) -> TrainState:
  checkpoints = Checkpoints(str(folder))
  try:
    return checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like))
  finally:
    checkpoints.close()
