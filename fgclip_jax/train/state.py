"""What a run needs to continue: parameters, optimizer state, averages and step, as one tree of arrays."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params, abstract_params, flatten, init_params, split_statistics
from fgclip_jax.train.mesh import param_sharding, shard_params

COUNTS = ("step", "skipped", "skipped_in_a_row")


@flax.struct.dataclass
class TrainState:
  """The state that a step takes and gives: arrays, or their shapes or shardings.

  Attributes:
    step: steps made, int32.
    skipped: of these, steps that changed nothing because the loss or a gradient was not finite, int32.
    skipped_in_a_row: how many of these came last, without one that was sound after them, int32.
    params: float32; BatchNorm's statistics are among them.
    opt_state: the optimizer's; it knows nothing of statistics.
    ema: the parameters' exponential moving average, a tree like theirs; None: none is kept.
  """

  step: Any
  skipped: Any
  skipped_in_a_row: Any
  params: Any
  opt_state: Any
  ema: Any = None


def make_state(optimizer: optax.GradientTransformation, params: Params, ema: bool = False) -> TrainState:
  """A fresh state around parameters; with `ema`, their average begins with them."""
  average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: the step is given both to overwrite
  counts = {name: jnp.zeros((), jnp.int32) for name in COUNTS}
  trained, _ = split_statistics(params)
  return TrainState(**counts, params=params, opt_state=optimizer.init(trained), ema=average)


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
  """The shapes and dtypes of a state, without making it."""
  return jax.eval_shape(lambda params: make_state(optimizer, params, ema), abstract_params(config))


def size_in_bytes(state: TrainState) -> int:
  """Of all its arrays together."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def state_shardings(
  config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, ema: bool = False
) -> TrainState:
  """Where each leaf of the state lies.

  What has a parameter's shape lies like it: first and second moments, the average. The rest lies everywhere: counts,
  and Adafactor's rows and columns, which are small.
  """
  state = abstract_state(config, optimizer, ema)
  shapes = {name: leaf.shape for name, leaf in flatten(state.params).items()}
  everywhere = NamedSharding(mesh, PartitionSpec())

  def find(path, leaf):
    keys = [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", "")))) for part in path]
    # a moment's path ends in its parameter's name, and so does an average's
    name = next((n for i in range(len(keys)) if (n := "/".join(keys[i:])) in shapes), None)
    return param_sharding(name, leaf.shape, mesh) if name and shapes[name] == leaf.shape else everywhere

  return jax.tree_util.tree_map_with_path(find, state)


def init_state(
  config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int, ema: bool = False
) -> TrainState:
  """A state with random parameters, born sharded."""
  make = lambda key: make_state(optimizer, init_params(config, key), ema)  # noqa: E731
  return jax.jit(make, out_shardings=state_shardings(config, optimizer, mesh, ema))(jax.random.key(seed))


def state_from(
  config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, params: Params, ema: bool = False
) -> TrainState:
  """A state around parameters on the host, cast to float32."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  params = jax.device_put(params, shard_params(params, mesh))
  make = lambda params: make_state(optimizer, params, ema)  # noqa: E731
  return jax.jit(make, out_shardings=state_shardings(config, optimizer, mesh, ema))(params)
