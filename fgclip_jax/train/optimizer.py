"""The optimizer: AdamW with the reference's weight-decay groups, warm-up and cosine (Optax)."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgclip_jax.models.parameters import Params, flatten, unflatten


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW and its schedule; the defaults are FG-CLIP's stage 2.

  Attributes:
    learning_rate: the peak.
    warmup_steps: linear from 0 to the peak; the first update has learning rate 0.
    total_steps: where the cosine ends.
    end_fraction: the cosine's end, as a share of the peak.
    b1, b2, eps, weight_decay: AdamW's; decay is decoupled and scaled by the learning rate.
    no_decay: regular expressions; a parameter in whose name one is found is not decayed.
    frozen: regular expressions; a parameter in whose name one is found is not trained: no gradient is computed
      for it and no optimizer state is kept. `("^vision",)` freezes the image tower and its projection.
    clip_norm: gradients of a larger global norm are scaled down to it; None never.
    temperature_max: the log temperatures are held at or below it after each update; None never
      (the reference; CLIP holds them at ln 100).
  """

  learning_rate: float = 1e-6
  warmup_steps: int = 200
  total_steps: int = 1000
  end_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.001
  no_decay: tuple[str, ...] = ("norm", "bias")
  frozen: tuple[str, ...] = ()
  clip_norm: float | None = None
  temperature_max: float | None = None


def schedule(config: OptimizerConfig) -> optax.Schedule:
  """The learning rate as a function of the number of updates already made."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if config.warmup_steps else config.learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=max(config.total_steps, config.warmup_steps + 1),
    end_value=config.learning_rate * config.end_fraction,
  )


def name_mask(params: Params, patterns: tuple[str, ...]) -> Any:
  """True for each parameter in whose name one of the regular expressions is found."""
  return unflatten({name: any(re.search(pattern, name) for pattern in patterns) for name in flatten(params)})


def decay_mask(params: Params, no_decay: tuple[str, ...]) -> Any:
  """True for each parameter that weight decay applies to."""
  return jax.tree.map(lambda found: not found, name_mask(params, no_decay))


def stop_frozen(params: Params, frozen: tuple[str, ...]) -> Params:
  """The parameters, with no gradient to the frozen ones."""
  if not frozen:
    return params
  stop = jax.lax.stop_gradient
  return jax.tree.map(lambda leaf, found: stop(leaf) if found else leaf, params, name_mask(params, frozen))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """The gradient transformation; its update is to be added to the parameters (`apply_updates`)."""
  adamw = optax.adamw(
    schedule(config),
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=lambda params: decay_mask(params, config.no_decay),
  )
  if config.clip_norm is not None:
    adamw = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
  if not config.frozen:
    return adamw
  return optax.partition({False: adamw, True: optax.set_to_zero()}, lambda params: name_mask(params, config.frozen))


def apply_updates(config: OptimizerConfig, params: Params, updates: Params) -> Params:
  """Adds the updates and holds the temperatures under their maximum."""
  params = optax.apply_updates(params, updates)
  if config.temperature_max is None:
    return params
  held = jax.tree.map(lambda t: jnp.minimum(t, config.temperature_max), params["temperature"])
  return {**params, "temperature": held}
