"""A run's settings, checked: from an ml_collections config to plain dataclasses.

Every value is looked at before anything is compiled; an error names the key and says what it takes.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import ml_collections

from fgclip_jax.data.loader import DataConfig
from fgclip_jax.data.packing import Layout, budget_ladder
from fgclip_jax.data.record import find_shards
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.presets import END_ID, ModelConfig, preset
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.optimizer import OptimizerConfig
from fgclip_jax.weights import folder as folders
from fgclip_jax.weights.names import stretched_length

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything a run is told.

  Attributes:
    model: the model's size.
    init_from: a folder that the weights come from; empty: random.
    objective, data, optimizer, runtime: see there.
    mesh: axis sizes.
    steps: updates to make in all.
    seed: of weights and data order.
    log_every, checkpoint_every: in steps.
    keep, keep_every: which checkpoints are kept.
    values: the whole config as it was given, for the record.
  """

  model: ModelConfig
  init_from: str
  objective: Objective
  data: DataConfig
  optimizer: OptimizerConfig
  runtime: Runtime
  mesh: dict[str, int]
  steps: int
  seed: int
  log_every: int
  checkpoint_every: int
  keep: int
  keep_every: int
  values: dict[str, Any]

  def layout(self, images_per_shard: int) -> Layout:
    """The static shapes of the run's batches."""
    text, data = self.model.text, self.data
    regions = self.objective.needs_regions and self.model.fine_grained
    layout = Layout(
      boxes=data.boxes if regions else 0,
      row_length=data.row_length or max(256, text.long_length or 0, text.short_length),
      short_length=text.short_length,
      long_length=text.long_length if self.objective.global_long else None,
      packed=data.packed,
    )
    return dataclasses.replace(layout, ladder=budget_ladder(layout, images_per_shard))


def read_config(config: ml_collections.ConfigDict) -> RunConfig:
  """Checks a config and turns it into dataclasses.

  Raises:
    ValueError: an unknown or missing key, or an impossible value.
    FileNotFoundError: a data set or model folder that is not there.
  """
  values = config.to_dict()
  left = dict(values)

  def take(key):
    if key not in left:
      raise ValueError(f"config.{key} is missing; see configs/common.py")
    return left.pop(key)

  def section(key, kind, **extra):
    given = take(key)
    fields = {field.name for field in dataclasses.fields(kind)} - set(extra)
    unknown = sorted(set(given) - fields)
    if unknown:
      raise ValueError(f"unknown keys {unknown} in config.{key}; it takes {sorted(fields)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return kind(**given, **extra)

  steps = take("steps")
  _positive("steps", steps)
  init_from, model_name = take("init_from"), take("model")
  model = _model(model_name, take("kind"), take("model_changes"), init_from)
  optimizer = section("optimizer", OptimizerConfig, total_steps=steps)
  _check_optimizer(optimizer, steps)
  runtime = take("runtime")
  if runtime.get("dtype") not in DTYPES:
    raise ValueError(f"config.runtime.dtype must be one of {list(DTYPES)}, got {runtime.get('dtype')!r}")
  run = RunConfig(
    model=model,
    init_from=init_from,
    objective=section("objective", Objective),
    data=section("data", DataConfig),
    optimizer=optimizer,
    runtime=Runtime(**{**runtime, "dtype": DTYPES[runtime["dtype"]]}),
    mesh=dict(take("mesh")),
    steps=steps,
    **{key: take(key) for key in ("seed", "log_every", "checkpoint_every", "keep", "keep_every")},
    values=values,
  )
  if left:
    raise ValueError(f"unknown keys {sorted(left)} in the config; see configs/common.py")
  for key in ("log_every", "checkpoint_every", "keep"):
    _positive(key, getattr(run, key))
  _check_objective(run)
  if not run.data.path:
    raise ValueError("config.data.path is empty: name a folder made by `python -m fgclip_jax.prepare`")
  find_shards(run.data.path, run.data.split)
  run.layout(1)
  return run


def _positive(key: str, value: Any) -> None:
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ValueError(f"config.{key} must be a whole number of at least 1, got {value!r}")


def _model(name: str, kind: str, changes: dict[str, Any], init_from: str) -> ModelConfig:
  """The model's size: a preset, or `from_weights`: that of the folder the weights come from."""
  if kind not in ("fgclip", "clip"):
    raise ValueError(f"config.kind must be 'fgclip' or 'clip', got {kind!r}")
  if init_from:
    folders.detect(init_from)
  if name == "from_weights":
    if not init_from:
      raise ValueError("config.model is 'from_weights', but config.init_from is empty")
    model = folders.read_config(init_from)
  else:
    model = preset(name)
  if kind == "clip":
    model = model.replace(text={"long_length": None})
  elif not model.fine_grained:
    model = model.replace(text={"long_length": stretched_length(model.text.short_length), "end_id": END_ID})
  given = {key: _given(value) if isinstance(value, dict) else value for key, value in changes.items()}
  try:
    return model.replace(**_given(given))
  except (TypeError, ValueError) as error:
    raise ValueError(f"config.model_changes: {error}") from None


def _given(values: dict[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in values.items() if value is not None}


def _check_optimizer(config: OptimizerConfig, steps: int) -> None:
  if not config.learning_rate > 0 or not math.isfinite(config.learning_rate):
    raise ValueError(f"config.optimizer.learning_rate must be positive, got {config.learning_rate}")
  if not 0 <= config.warmup_steps <= steps:
    raise ValueError(f"config.optimizer.warmup_steps must lie in 0..steps ({steps}), got {config.warmup_steps}")
  for name in ("b1", "b2"):
    if not 0 <= getattr(config, name) < 1:
      raise ValueError(f"config.optimizer.{name} must lie in 0..1 (1 excluded), got {getattr(config, name)}")
  if config.weight_decay < 0 or config.eps <= 0:
    raise ValueError("config.optimizer: weight_decay must not be negative, eps must be positive")


def _check_objective(run: RunConfig) -> None:
  weights = {
    name: getattr(run.objective, name) for name in ("global_long", "global_short", "regional", "hard_negative")
  }
  if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
    raise ValueError(f"config.objective: weights must not be negative and not all zero, got {weights}")
  fine = [name for name in ("global_long", "regional", "hard_negative") if weights[name]]
  if fine and not run.model.fine_grained:
    raise ValueError(f"config.objective: {fine} need FG-CLIP, the model is a plain CLIP (no long text, no regions)")
  group = run.objective.regional_group
  if group is not None and (group < 1 or run.data.batch_size % group):
    raise ValueError(f"config.objective.regional_group {group} must divide data.batch_size {run.data.batch_size}")
  if run.objective.needs_regions and run.data.boxes < 1:
    raise ValueError("config.data.boxes must be at least 1: the objective has region terms")
