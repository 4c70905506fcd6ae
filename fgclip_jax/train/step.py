"""The training step: one jitted, pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fgclip_jax.losses.groups import count_rows
from fgclip_jax.losses.margin import next_margin
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models import positions
from fgclip_jax.models.attention import load_kernels
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.fgclip import Embeddings
from fgclip_jax.models.params import Params, abstract_params, build, flatten, merge, split_statistics
from fgclip_jax.models.pixels import normalize, normalize_patches
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import activation_sharding, batch_sharding
from fgclip_jax.train.optimizer import (
  apply_updates,
  freezes_statistics,
  schedule,
  stop_frozen,
  update_average,
)
from fgclip_jax.train.state import TrainSetup, TrainState

Metrics = dict[str, Float[Array, ""]]


def resize(image: Float[Array, "G b S S 3"], size: int) -> Float[Array, "G b {size} {size} 3"]:
  """Images of another size, bicubic and antialiased, on the device."""
  return jax.image.resize(image, (*image.shape[:2], size, size, 3), "cubic")


def choose_patches(key: Array, images: int, patches: int, dropout: float) -> Int[Array, "B N"]:
  """For each image its own random patches, a share of `1 - dropout`, in order."""
  kept = max(round(patches * (1.0 - dropout)), 1)
  order = jnp.argsort(jax.random.uniform(key, (images, patches)), axis=1)
  return jnp.sort(order[:, :kept], axis=1)


def make_loss(
  config: ModelConfig,
  objective: Objective,
  runtime: Runtime,
  mesh: Mesh | None,
  *,
  patch_dropout: float = 0.0,
  image_size: int | None = None,
  running_statistics: bool = False,
) -> Callable[..., tuple[Array, tuple[Metrics, Embeddings]]]:
  """The function of (parameters, batch, random key) that training differentiates: the total; every term, embeddings.

  The ranking term's margin is a fourth argument, by default None for its first value, 0.

  Args:
    config, objective, runtime, mesh: see there.
    patch_dropout: the share of patches that the image tower does not see.
    image_size: resizes the batch's images to this side, and the position table with them.
    running_statistics: BatchNorm goes by its running averages, which stay, instead of the batch's statistics.
  """
  if mesh is not None:
    runtime = dataclasses.replace(runtime, sharding=activation_sharding(mesh))
  size = image_size or config.vision.image_size
  negatives = objective.conditioned_negatives if objective.text_conditioned else None

  def loss(params, batch, key, margin=None):
    if config.vision.takes_patches:
      patches = normalize_patches(batch["patches"], batch["patch_segment"], config.vision.pixels)
      resized, keep, batch = config, None, {**batch, "patches": patches}
    else:
      image, keep = normalize(batch["image"], config.vision.pixels), None
      if size != config.vision.image_size:
        image = resize(image, size)
      params, resized = positions.resize(params, config, size)
      if patch_dropout:
        images = image.shape[0] * image.shape[1]
        keep = choose_patches(key, images, resized.vision.grid**2, patch_dropout)
      batch = {**batch, "image": image}
    embeddings = build(resized, params, runtime)(batch, keep, running_statistics, negatives)
    compared = dataclasses.replace(embeddings, statistics=None)
    record = batch["repeated_record"].reshape(-1) if "repeated_record" in batch else None
    terms = objective_terms(compared, params["temperature"], objective, mesh, record=record, margin=margin)
    return terms["total"], (terms, embeddings)

  return loss


def embedding_variance(embedding: Float[Array, "B D"]) -> Float[Array, ""]:
  """The variance of unit-length embeddings, 0..1, over all directions: 0 where all have become the same."""
  return jnp.mean(jnp.sum((embedding - jnp.mean(embedding, axis=0)) ** 2, axis=-1))


def make_step(
  setup: TrainSetup, image_size: int | None = None
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
  """The jitted step. The state it is given is donated: use the one it returns.

  Args:
    setup: of the run.
    image_size: resizes images to this side, in pixels; the model's by default.

  Returns:
    A function of state and batch (arrays [G, ...], G data shards). What is random in step s follows from the seed and
    s. A step whose loss or gradient is not finite changes nothing but the counts of such steps. Its metrics, float32
    scalars: `loss` and the unweighted terms `loss_*`, `skipped_updates` (in all) and `skipped_in_a_row`,
    `learning_rate`, `gradient_norm`, `update_norm`, `embedding_variance_image` and `_short` (see `embedding_variance`),
    `temperature_*` (the factors of the cosines, as used in this step); `logit_bias` if there is one; with FG-CLIP 2's
    terms, what the batch holds for them (`losses/groups.py`: `regions`, ...) and the `margin`, as used in this step.
  """
  load_kernels()
  optimizer, optimizer_config, ema_decay = setup.optimizer, setup.optimizer_config, setup.ema_decay
  learning_rate = schedule(optimizer_config)
  loss = make_loss(
    setup.model,
    setup.objective,
    setup.runtime,
    setup.mesh,
    patch_dropout=setup.patch_dropout,
    image_size=image_size,
    running_statistics=freezes_statistics(optimizer_config.rules, flatten(abstract_params(setup.model))),
  )

  def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.key(setup.seed), state.step)
    trained, statistics = split_statistics(state.params)

    def total_loss(trained: Any):
      return loss(merge(stop_frozen(trained, optimizer_config.rules), statistics), batch, key, state.margin)

    (total, (terms, embeddings)), gradients = jax.value_and_grad(total_loss, has_aux=True)(trained)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    params = merge(apply_updates(optimizer_config, trained, cast(Params, updates)), embeddings.statistics or statistics)
    ema = None if ema_decay is None else update_average(ema_decay, state.ema, params)
    scales = {name: jnp.exp(value) for name, value in state.params["temperature"].items() if name != "bias"}
    margin = state.margin  # of the next step; by the embeddings and the factor of this one
    if margin is not None:
      margin = next_margin(embeddings, scales["hard_negative"], setup.objective, margin)
    # a step that is not finite leaves the state as it was; selected on the device, so that the host need not wait for
    # the loss before it starts the next step
    after = TrainState(
      step=state.step,
      skipped=state.skipped,
      skipped_in_a_row=jnp.zeros_like(state.skipped_in_a_row),
      params=params,
      opt_state=opt_state,
      ema=ema,
      margin=margin,
    )
    before = dataclasses.replace(state, skipped=state.skipped + 1, skipped_in_a_row=state.skipped_in_a_row + 1)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    after = dataclasses.replace(after, step=state.step + 1)
    metrics = {"loss": total, "skipped_updates": after.skipped, "skipped_in_a_row": after.skipped_in_a_row}
    metrics |= {f"loss_{name}": value for name, value in terms.items() if name != "total"}
    metrics |= {
      f"embedding_variance_{name}": embedding_variance(getattr(embeddings, name)) for name in ("image", "short")
    }
    metrics |= {"learning_rate": jnp.asarray(learning_rate(state.step)), "gradient_norm": norm}
    metrics |= {"update_norm": jnp.where(finite, optax.tree.norm(updates), 0.0)}
    if "bias" in state.params["temperature"]:
      metrics["logit_bias"] = state.params["temperature"]["bias"]
    metrics |= {f"temperature_{name}": value for name, value in scales.items()}
    if setup.objective.counts_rows:
      metrics |= count_rows(embeddings, setup.objective)
    if state.margin is not None:
      metrics["margin"] = state.margin
    return after, metrics

  # the output is sharded like the input: the donated buffers can hold it
  return jax.jit(
    step,
    in_shardings=(setup.state_shardings, batch_sharding(setup.mesh)),
    out_shardings=(setup.state_shardings, None),
    donate_argnames="state",
  )
