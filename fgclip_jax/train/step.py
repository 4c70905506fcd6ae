"""The training step: one jitted, pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fgclip_jax.data.image import MEAN, STD
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.parameters import build
from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import batch_sharding
from fgclip_jax.train.optimizer import OptimizerConfig, apply_updates, make_optimizer, schedule
from fgclip_jax.train.state import TrainState, state_shardings

Metrics = dict[str, Float[Array, ""]]


def normalize(image: UInt8[Array, "*B S S 3"]) -> Float[Array, "*B S S 3"]:
  """Bytes to CLIP's normalised float32 pixels, on the device."""
  return (image.astype(jnp.float32) / 255.0 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def make_loss(
  config: ModelConfig, objective: Objective, runtime: Runtime, mesh: Mesh | None
) -> Callable[[Any, dict[str, Array]], tuple[Array, Metrics]]:
  """The function of (parameters, batch) that training differentiates; returns the total and every term."""

  def loss(params, batch):
    batch = {**batch, "image": normalize(batch["image"])}
    model = build(config, params, runtime)
    terms = objective_terms(model(batch), params["temperature"], objective, mesh)
    return terms["total"], terms

  return loss


def make_step(
  config: ModelConfig, objective: Objective, optimizer_config: OptimizerConfig, runtime: Runtime, mesh: Mesh
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
  """The jitted step. The state it is given is donated: use the one it returns.

  Metrics: `loss` and the unweighted terms `loss_*`, `learning_rate`, `gradient_norm`, `temperature_*` (the
  factors of the cosines, as used in this step).
  """
  optimizer, rate = make_optimizer(optimizer_config), schedule(optimizer_config)
  loss = make_loss(config, objective, runtime, mesh)

  def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
    (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = apply_updates(optimizer_config, state.params, updates)
    metrics = {"loss": total}
    metrics |= {f"loss_{name}": value for name, value in terms.items() if name != "total"}
    metrics |= {"learning_rate": jnp.asarray(rate(state.step)), "gradient_norm": optax.global_norm(gradients)}
    metrics |= {f"temperature_{name}": jnp.exp(value) for name, value in state.params["temperature"].items()}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  shardings = state_shardings(config, optimizer, mesh)
  return jax.jit(
    step,
    in_shardings=(shardings, batch_sharding(mesh)),
    out_shardings=(shardings, None),
    donate_argnames="state",
  )
