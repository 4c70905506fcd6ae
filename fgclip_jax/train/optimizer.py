"""The optimizer: one of Optax's directions, decoupled weight decay, warm-up and cosine, and rules by parameter name.

An update is `-rate(step) * factor * (direction + decay * parameter)`: the direction is AdamW's, Adafactor's, Lion's or
Muon's; the decay and the factor follow from the rules and from `layer_decay`, in the same way for all of them.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from fgclip_jax.models.params import Params, flatten, is_statistic

NAMES = ("adamw", "adafactor", "lion", "muon")
MOMENT_DTYPES = ("float32", "bfloat16")
SETTINGS = {"weight_decay": 1.0, "learning_rate": 1.0, "frozen": 0.0}  # name to the value where no rule matches

Rules = tuple[tuple[str, str, float], ...]

_BLOCKS = r"^(\w+)/transformer/blocks/"
_EMBEDDINGS = r"^(\w+)/(patch_embedding|class_embedding|token_embedding|\w*positions|pre_norm)"
_HIDDEN_MATRICES = r"/blocks/.*/kernel$"  # [depth, in, out]
# The dense head asks with the patches and never with its probe, which FG-CLIP 2's files hold all the same: no gradient
# reaches it, and PyTorch leaves a parameter without a gradient alone, where its decay would shrink it.
_UNUSED = r"^vision/dense_head/probe$"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer and its schedule; the defaults are FG-CLIP's stage 2.

  Attributes:
    name: `adamw`; `adafactor` (factored second moments; as in arXiv 2106.04560 with a first moment and without
      scaling by the parameters' size, so that its learning rates are Adam's); `lion` (arXiv 2302.06675: a 3 to 10
      times smaller learning rate, b2 0.98 to 0.99); `muon` (orthogonalised momentum of 0.95 for the blocks' weight
      matrices, scaled to Adam's size of update, arXiv 2502.16982; NAdam for everything else).
    learning_rate: the peak.
    warmup_steps: linear from 0 to the peak; the first update has learning rate 0.
    warmup_share: the warm-up as a share of `total_steps`, rounded up, in place of `warmup_steps`; None: these.
    total_steps: where the cosine ends.
    end_fraction: the cosine's end, as a share of the peak.
    b1, b2, eps: of the moments. Adafactor has no b2 and no eps, and keeps no first moment with b1 = 0; Lion has no eps.
    moment_dtype: what first moments are kept in, `float32` or `bfloat16`.
    weight_decay: decoupled, scaled by the learning rate.
    rules: triples of a regular expression, a setting and its value. For each setting the first rule whose expression
      is found in a parameter's name decides. Settings: `weight_decay` and `learning_rate`, factors on these, 1 where
      no rule is found; `frozen`, 1 or 0: no gradient is computed for the parameter and no optimizer state is kept.
      `("^vision", "frozen", 1.0)` freezes the image tower and its projection. Where BatchNorm's statistics are frozen
      (`("(mean|variance)$", "frozen", 1.0)`), it goes by their running averages in training too.
    layer_decay: each block's learning rate is this times the one's above it; the last block's this times that of what
      follows the blocks, and the embeddings' this times the first block's (arXiv 2106.08254); 1: all the same.
    clip_norm: gradients of a larger global norm are scaled down to it; None never.
    temperature_max: the log temperatures are held at or below it after each update; None never
      (the reference; CLIP holds them at ln 100).
  """

  name: str = "adamw"
  learning_rate: float = 1e-6
  warmup_steps: int = 200
  warmup_share: float | None = None
  total_steps: int = 1000
  end_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  moment_dtype: str = "float32"
  weight_decay: float = 0.001
  rules: Rules = (("norm", "weight_decay", 0.0), ("bias", "weight_decay", 0.0))
  layer_decay: float = 1.0
  clip_norm: float | None = None
  temperature_max: float | None = None

  def __post_init__(self):
    checks = {
      "name": (self.name in NAMES, f"must be one of {NAMES}"),
      "moment_dtype": (self.moment_dtype in MOMENT_DTYPES, f"must be one of {MOMENT_DTYPES}"),
      "learning_rate": (self.learning_rate > 0, "must be positive"),
      "warmup_steps": (self.warmup_steps >= 0, "must not be negative"),
      "warmup_share": (self.warmup_share is None or 0 <= self.warmup_share <= 1, "must lie in 0..1"),
      "end_fraction": (0 <= self.end_fraction <= 1, "must lie in 0..1"),
      "b1": (0 <= self.b1 < 1, "must lie in 0..1 (1 excluded)"),
      "b2": (0 <= self.b2 < 1, "must lie in 0..1 (1 excluded)"),
      "eps": (self.eps > 0, "must be positive"),
      "weight_decay": (self.weight_decay >= 0, "must not be negative"),
      "layer_decay": (0 < self.layer_decay <= 1, "must lie in 0..1 (0 excluded)"),
      "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "must be positive (None never clips)"),
    }
    for name, (good, condition) in checks.items():
      if not good:
        raise ValueError(f"optimizer.{name} {condition}, got {getattr(self, name)!r}")

  @property
  def warmup(self) -> int:
    """The steps of the warm-up."""
    return self.warmup_steps if self.warmup_share is None else math.ceil(self.warmup_share * self.total_steps)


def check_rules(rules: Rules, names: Iterable[str]) -> None:
  """Checks rules against the names of a model's parameters.

  Raises:
    ValueError: an unknown setting, an impossible value, no regular expression, one that is in no parameter's name,
      some of BatchNorm's statistics frozen and others not, or nothing left to train.
  """
  names = list(names)
  for pattern, setting, value in rules:
    rule = f"config.optimizer.rules holds {(pattern, setting, value)}"
    if setting not in SETTINGS:
      raise ValueError(f"{rule}: {setting!r} is not a setting; there are {', '.join(SETTINGS)}")
    if setting == "frozen" and value not in (0, 1):
      raise ValueError(f"{rule}: frozen is 1 or 0")
    if setting == "learning_rate" and value <= 0:
      raise ValueError(f"{rule}: the factor must be positive; `frozen` leaves parameters as they are")
    if value < 0:
      raise ValueError(f"{rule}: the factor must not be negative")
    try:
      found = any(re.search(pattern, name) for name in names)
    except re.error as error:
      raise ValueError(f"{rule}: {pattern!r} is no regular expression: {error}") from None
    if not found:
      raise ValueError(f"{rule}: {pattern!r} is in no parameter's name, such as {', '.join(names[:3])}")
  statistics = {is_frozen(rules, name): name for name in names if is_statistic(name)}
  if len(statistics) == 2:
    raise ValueError(
      f"config.optimizer.rules freeze {statistics[True]!r} and not {statistics[False]!r}: BatchNorm goes by running "
      'averages everywhere or nowhere; put ("(mean|variance)$", "frozen", 1.0), or the same with 0.0, first'
    )
  if all(is_frozen(rules, name) for name in names if not is_statistic(name)):
    raise ValueError("config.optimizer.rules freeze every parameter: there is nothing to train")


def rule_value(rules: Rules, setting: str, name: str) -> float:
  """The value of a setting for the parameter of this name."""
  found = (value for pattern, key, value in rules if key == setting and re.search(pattern, name))
  return next(found, SETTINGS[setting])


def is_frozen(rules: Rules, name: str) -> bool:
  """Whether the parameter of this name is not trained."""
  return rule_value(rules, "frozen", name) != 0


def freezes(rules: Rules, params: Params, tower: str) -> bool:
  """Whether every parameter of a tower, `vision` or `text`, is frozen."""
  return all(is_frozen(rules, name) for name in flatten(params) if name.startswith(f"{tower}/"))


def freezes_statistics(rules: Rules, names: Iterable[str]) -> bool:
  """Whether BatchNorm's statistics, of which there are some among these names, are frozen."""
  return any(is_frozen(rules, name) for name in names if is_statistic(name))


def stop_frozen(params: Params, rules: Rules) -> Params:
  """The parameters, with no gradient to the frozen ones."""
  return _map_named(lambda name, leaf: jax.lax.stop_gradient(leaf) if is_frozen(rules, name) else leaf, params)


def schedule(config: OptimizerConfig) -> optax.Schedule:
  """The learning rate as a function of the number of updates already made."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if config.warmup else config.learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup,
    decay_steps=max(config.total_steps, config.warmup + 1),
    end_value=config.learning_rate * config.end_fraction,
  )


def rate_factor(config: OptimizerConfig, params: Params) -> Callable[[str], Any]:
  """A function from a parameter's name to the factor on its learning rate.

  The factor is a float, or for stacked blocks [depth, ...] with `layer_decay` a tuple of `depth` floats.
  """
  flat = flatten(params)
  depths = {match[1]: leaf.shape[0] for name, leaf in flat.items() if (match := re.search(_BLOCKS, name))}

  def factor(name):
    by_rule = rule_value(config.rules, "learning_rate", name)
    if config.layer_decay == 1:
      return by_rule
    if match := re.search(_BLOCKS, name):
      depth = depths[match[1]]
      return tuple(by_rule * config.layer_decay ** (depth - i) for i in range(depth))
    if match := re.search(_EMBEDDINGS, name):
      return by_rule * config.layer_decay ** (depths[match[1]] + 1)
    return by_rule

  return factor


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """The gradient transformation; its update is to be added to the parameters (`apply_updates`)."""
  optimizer: optax.GradientTransformation = optax.chain(
    _direction(config), _decay(config), optax.scale_by_learning_rate(schedule(config))
  )
  if config.clip_norm is not None:
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  if any(setting == "frozen" for _, setting, _ in config.rules):
    labels = lambda params: _map_named(lambda name, _: is_frozen(config.rules, name), params)  # noqa: E731
    optimizer = optax.partition({False: optimizer, True: optax.set_to_zero()}, labels)
  if config.layer_decay != 1 or any(setting == "learning_rate" for _, setting, _ in config.rules):
    optimizer = optax.chain(optimizer, _scale_rates(config))  # outermost: it needs the depth of frozen towers too
  return optimizer


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
  """The direction of an update, from gradients: subtracted from the parameters at learning rate 1 without decay."""
  dtype = jnp.dtype(config.moment_dtype)
  if config.name == "adamw":
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=dtype)
  if config.name == "lion":
    return optax.scale_by_lion(b1=config.b1, b2=config.b2, mu_dtype=dtype)
  if config.name == "adafactor":
    direction = optax.adafactor(
      learning_rate=None, multiply_by_parameter_scale=False, momentum=config.b1 or None, dtype_momentum=dtype
    )
  else:
    direction = optax.contrib.muon(
      learning_rate=1.0,
      eps=config.eps,
      mu_dtype=dtype,
      adam_b1=config.b1,
      adam_b2=config.b2,
      muon_weight_dimension_numbers=cast(Any, _hidden_matrices),  # Optax's type leaves out functions of our trees
      consistent_rms=0.2,
    )
  return optax.chain(direction, optax.scale(-1.0))  # Optax's complete optimizers already turn the sign


def _hidden_matrices(params: Params) -> Any:
  """The input and output axes of stacked weight matrices, [depth, in, out]; None for other parameters."""
  axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
  return _map_named(lambda name, _: axes if re.search(_HIDDEN_MATRICES, name) else None, params)


def _decay(config: OptimizerConfig) -> optax.GradientTransformation:
  def add(name, update, param):
    decay = 0.0 if re.search(_UNUSED, name) else config.weight_decay * rule_value(config.rules, "weight_decay", name)
    return update + decay * param if decay else update

  return optax.stateless(lambda updates, params: _map_named(add, updates, params))


def _scale_rates(config: OptimizerConfig) -> optax.GradientTransformation:
  def scale(updates, params):
    factor = rate_factor(config, params)

    def one(name, update):
      values = jnp.asarray(factor(name), update.dtype)
      return update * values.reshape(values.shape + (1,) * (update.ndim - values.ndim))

    return _map_named(one, updates)

  return optax.stateless(scale)


def _map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Maps `function` of name and leaf over a tree; parts that Optax has masked have no leaf."""
  keystr = jax.tree_util.keystr
  named = lambda path, *leaves: function(keystr(path, simple=True, separator="/"), *leaves)  # noqa: E731
  return jax.tree_util.tree_map_with_path(named, tree, *rest)


def apply_updates(config: OptimizerConfig, params: Params, updates: Params) -> Params:
  """Adds the updates and holds the temperatures under their maximum."""
  params = cast(Params, optax.apply_updates(params, updates))
  most = config.temperature_max
  if most is None:
    return params
  hold = lambda name, t: t if name == "bias" else jnp.minimum(t, most)  # noqa: E731
  return {**params, "temperature": {name: hold(name, t) for name, t in params["temperature"].items()}}


def update_average(decay: float, average: Params, params: Params) -> Params:
  """The exponential moving average of parameters after an update: `decay * average + (1 - decay) * params`."""
  return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
