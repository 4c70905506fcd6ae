"""What a run needs to continue: parameters, optimizer state and step, as one tree of arrays."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgclip_jax.models.parameters import Params, abstract_params, flatten, init_params
from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.train.mesh import place, place_params


@flax.struct.dataclass
class TrainState:
  """The state that a step takes and gives: arrays, or their shapes or shardings. `step` counts updates made, int32."""

  step: Any
  params: Any
  opt_state: Any


def make_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
  """A fresh state around parameters."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
  """The shapes and dtypes of a state, without making it."""
  return jax.eval_shape(lambda params: make_state(optimizer, params), abstract_params(config))


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Where each leaf of the state lies: the optimizer's moments like their parameters, the rest everywhere."""
  state = abstract_state(config, optimizer)
  shapes = {name: leaf.shape for name, leaf in flatten(state.params).items()}
  everywhere = NamedSharding(mesh, PartitionSpec())

  def find(path, leaf):
    keys = [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", "")))) for part in path]
    # a moment's path ends in its parameter's name
    name = next((n for i in range(len(keys)) if (n := "/".join(keys[i:])) in shapes), None)
    return place(name, leaf.shape, mesh) if name and shapes[name] == leaf.shape else everywhere

  return jax.tree_util.tree_map_with_path(find, state)


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
  """A state with random parameters, born sharded."""
  make = lambda key: make_state(optimizer, init_params(config, key))  # noqa: E731
  return jax.jit(make, out_shardings=state_shardings(config, optimizer, mesh))(jax.random.key(seed))


def state_from(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, params: Params) -> TrainState:
  """A state around parameters on the host, cast to float32."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  params = jax.device_put(params, place_params(params, mesh))
  make = lambda params: make_state(optimizer, params)  # noqa: E731
  return jax.jit(make, out_shardings=state_shardings(config, optimizer, mesh))(params)
