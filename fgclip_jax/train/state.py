"""A run's state, one tree of arrays, and its setup: everything that does not change from step to step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import (
  Params,
  abstract_params,
  flatten,
  init_params,
  init_text_pooling,
  split_statistics,
  unflatten,
)
from fgclip_jax.models.positions import resize
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import param_sharding, shard_params
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.resume import flat_dict
from fgclip_jax.weights import clip_to_fgclip, naflex
from fgclip_jax.weights import formats as folders

COUNTS = ("step", "skipped", "skipped_in_a_row")


@flax.struct.dataclass
class TrainState:
  """What a step takes and returns, and a checkpoint holds: arrays, or their shapes or shardings.

  Attributes:
    step: steps made, int32.
    skipped: of these, steps that changed nothing because the loss or a gradient was not finite, int32.
    skipped_in_a_row: how many steps were skipped since the last finite one, int32.
    params: float32; BatchNorm's statistics are among them.
    opt_state: the optimizer's, for the trained parameters; statistics have none.
    ema: the parameters' exponential moving average, a tree like `params`; None: none is kept.
    margin: of the objective's ranking term, as the next step uses it, float32; None: the objective has none.
  """

  step: Any
  skipped: Any
  skipped_in_a_row: Any
  params: Any
  opt_state: Any
  ema: Any = None
  margin: Any = None


def make_state(
  optimizer: optax.GradientTransformation, params: Params, ema: bool = False, margin: bool = False
) -> TrainState:
  """A fresh state around parameters; with `ema`, their average begins with them; with `margin`, one of 0."""
  average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: the step is given both to overwrite
  counts = {name: jnp.zeros((), jnp.int32) for name in COUNTS}
  trained, _ = split_statistics(params)
  first_margin = jnp.zeros((), jnp.float32) if margin else None
  return TrainState(**counts, params=params, opt_state=optimizer.init(trained), ema=average, margin=first_margin)


def abstract_state(
  config: ModelConfig, optimizer: optax.GradientTransformation, ema: bool = False, margin: bool = False
) -> TrainState:
  """The shapes and dtypes of a state, without making it."""
  return jax.eval_shape(lambda params: make_state(optimizer, params, ema, margin), abstract_params(config))


def size_in_bytes(state: TrainState) -> int:
  """The bytes of all its arrays together, over all devices."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """What a run's state and step follow from; built once.

  Attributes:
    model: the model's size.
    mesh: the devices.
    objective: the loss.
    optimizer_config: the optimizer, its schedule and its rules by parameter name.
    runtime: dtype, rematerialisation, attention.
    seed: of the random parameters, and of what is random in a step.
    patch_dropout: the share of patches that the image tower does not see, 0..1.
    ema_decay: decay of the parameters' moving average by step; None: no average is kept.
  """

  model: ModelConfig
  mesh: Mesh
  objective: Objective = dataclasses.field(default_factory=Objective)
  optimizer_config: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  runtime: Runtime = dataclasses.field(default_factory=Runtime)
  seed: int = 0
  patch_dropout: float = 0.0
  ema_decay: float | None = None

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    """The optimizer as Optax has it."""
    return make_optimizer(self.optimizer_config)

  @property
  def has_ema(self) -> bool:
    """Whether the state holds an average of the parameters."""
    return self.ema_decay is not None

  @functools.cached_property
  def abstract_state(self) -> TrainState:
    """The shapes and dtypes of the state."""
    return abstract_state(self.model, self.optimizer, self.has_ema, self.objective.needs_margin)

  def make_state(self, params: Params) -> TrainState:
    """A fresh state around parameters."""
    return make_state(self.optimizer, params, self.has_ema, self.objective.needs_margin)

  @functools.cached_property
  def state_shardings(self) -> TrainState:
    """The sharding of each leaf of the state.

    A leaf with a parameter's shape is sharded like the parameter: first and second moments, the average. Every other
    leaf is replicated: counts, and Adafactor's rows and columns, which are small.
    """
    shapes = {name: leaf.shape for name, leaf in flatten(self.abstract_state.params).items()}
    replicated = NamedSharding(self.mesh, PartitionSpec())

    def find(path, leaf):
      keys = [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", "")))) for part in path]
      # a moment's path ends in its parameter's name, and so does an average's
      name = next((n for i in range(len(keys)) if (n := "/".join(keys[i:])) in shapes), None)
      return param_sharding(name, leaf.shape, self.mesh) if name and shapes[name] == leaf.shape else replicated

    return jax.tree_util.tree_map_with_path(find, self.abstract_state)


def init_state(setup: TrainSetup) -> TrainState:
  """A state with random parameters, created sharded: no device ever holds all of it."""
  make = lambda key: setup.make_state(init_params(setup.model, key))  # noqa: E731
  return jax.jit(make, out_shardings=setup.state_shardings)(jax.random.key(setup.seed))


def state_from(setup: TrainSetup, params: Params) -> TrainState:
  """A state around parameters on the host, cast to float32."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  params = jax.device_put(params, shard_params(params, setup.mesh))
  return jax.jit(setup.make_state, out_shardings=setup.state_shardings)(params)


def _without_choices(config: ModelConfig) -> ModelConfig:
  """A model's size without what a run may choose for any weights."""
  budget = {"max_patches": 1} if config.vision.takes_patches else {}
  return config.replace(vision=budget, temperature_init=0.0, region_temperature_init=None)


def read_weights(folder: str, model: ModelConfig) -> Any:
  """The parameters of a model folder or file; a ValueError if they do not fit.

  They are made FG-CLIP where the run's model is one, made for pictures of any shape where it takes such, or brought to
  its image size. A text pooling that they lack is left out.
  """
  config, flat, _ = folders.read(folder)
  if model.vision.takes_patches and config.text.type == model.text.type:
    config, flat = naflex.to_naflex(config, flat)
  if model.fine_grained and not config.fine_grained:
    config, flat = clip_to_fgclip.to_fgclip(config, flat)
  params = unflatten(flat)
  if config.vision.patch_size == model.vision.patch_size and not config.vision.takes_patches:
    params, config = resize(params, config, model.vision.image_size)
  if config.text_pooling is None:
    config = dataclasses.replace(config, text_pooling=model.text_pooling)
  ours, theirs = (flat_dict(_without_choices(each).to_dict()) for each in (model, config))
  keys = dict.fromkeys([*ours, *theirs])
  different = [f"{key} {theirs.get(key)} (config: {ours.get(key)})" for key in keys if ours.get(key) != theirs.get(key)]
  if different:
    raise ValueError(
      f"config.init_from: the weights in {folder!r} are of another model: {', '.join(different)}; "
      "set config.model=from_weights to take the size from the weights"
    )
  return params


def first_state(init_from: str, setup: TrainSetup, log: Callable[[str], object]) -> TrainState:
  """The state of a new run: the weights of a folder, or random ones."""
  if not init_from:
    state = init_state(setup)
    log("random weights")
    return state
  params = read_weights(init_from, setup.model)
  begins = setup.model.text_pooling is not None and "text_pooling" not in params
  if begins:
    params = {**params, "text_pooling": init_text_pooling(setup.model, jax.random.key(setup.seed))}
  state = state_from(setup, params)
  if begins:
    log(f"text pooling: random weights, as those in {init_from} have none")
  log(f"weights from {init_from}{', averaged over its steps' if folders.is_averaged(init_from) else ''}")
  return state
