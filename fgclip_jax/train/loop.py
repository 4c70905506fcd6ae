"""A training run, from config to last checkpoint."""

import json
import os
import time
from typing import Any

import jax
import numpy as np

from fgclip_jax.data.loader import Loader
from fgclip_jax.models.parameters import abstract_params, count, unflatten
from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.train.checkpoint import Checkpoints
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.mesh import data_shards, make_mesh, to_devices
from fgclip_jax.train.metrics import Metrics, duration
from fgclip_jax.train.optimizer import make_optimizer
from fgclip_jax.train.state import TrainState, init_state, make_state, state_from, state_shardings
from fgclip_jax.train.step import make_step
from fgclip_jax.weights import folder as folders
from fgclip_jax.weights import huggingface, native

CONFIG_FILE = "config.json"


def train(run: RunConfig, workdir: str) -> TrainState:
  """Trains until `run.steps`, continuing from the newest checkpoint in `workdir`. Returns the last state."""
  # ---- mesh and data
  mesh = make_mesh(run.mesh)
  processes, chief = jax.process_count(), jax.process_index() == 0
  shards = data_shards(mesh)
  if run.data.batch_size % shards:
    raise ValueError(f"config.data.batch_size {run.data.batch_size} must divide over {shards} data shards")
  say = print if chief else lambda *_: None
  model = run.model
  say(
    f"{'FG-CLIP' if model.fine_grained else 'CLIP'} {run.values['model']}: {count(abstract_params(model)) / 1e6:.1f} M "
    f"parameters, {model.vision.image_size} px; mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}"
  )

  # ---- data, from where the newest checkpoint stands; before the state, which compiles
  os.makedirs(workdir, exist_ok=True)
  checkpoints = Checkpoints(workdir, run.keep, run.keep_every)
  begin = checkpoints.latest or 0
  loader = Loader(
    run.data,
    run.layout(run.data.batch_size // shards),
    model.vision.image_size,
    seed=run.seed,
    shards=shards // processes,
    process_index=jax.process_index(),
    process_count=processes,
    start=begin,
  )
  say(f"{loader.records} records, {loader.epoch_steps:.1f} steps an epoch; steps {begin} to {run.steps}")

  # ---- state: the newest checkpoint, given weights, or random
  optimizer = make_optimizer(run.optimizer)
  if checkpoints.latest is not None:
    shardings = state_shardings(model, optimizer, mesh)
    abstract = jax.eval_shape(lambda: make_state(optimizer, abstract_like(model)))
    state = checkpoints.restore(shardings, abstract)
    say(f"continuing {workdir} from step {begin}")
  elif run.init_from:
    state = state_from(model, optimizer, mesh, read_weights(run.init_from, model))
    say(f"weights from {run.init_from}")
  else:
    state = init_state(model, optimizer, mesh, run.seed)
    say("random weights")
  if chief:
    native.write_model_file(workdir, model)
    with open(os.path.join(workdir, CONFIG_FILE), "w", encoding="utf-8") as file:
      json.dump(run.values, file, indent=2)
      file.write("\n")
  step_function = make_step(model, run.objective, run.optimizer, run.runtime, mesh)

  # ---- steps
  metrics = Metrics(workdir, run.steps, begin) if chief else None
  clock = Clock(run.data.batch_size, loader)
  try:
    for step in range(begin + 1, run.steps + 1):
      batch = to_devices(next(loader), mesh)
      state, values = step_function(state, batch)
      saving = step % run.checkpoint_every == 0 or step == run.steps
      if saving or step % run.log_every == 0 or step == begin + 1:
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        values |= clock.lap(step)
        if metrics:
          metrics.write(step, values)
          metrics.progress(step, values, clock.seconds_per_step)
        # before saving: a checkpoint with NaN in it is none
        if not np.isfinite(values["loss"]) or not np.isfinite(values["gradient_norm"]):
          raise FloatingPointError(
            f"the loss is {values['loss']}, its gradient's norm {values['gradient_norm']} at step {step}; the last "
            f"checkpoint is step {checkpoints.latest}. Try a lower learning rate, or config.runtime.dtype=float32"
          )
      if saving:
        checkpoints.save(step, state, run.values)
  finally:
    loader.close()
    checkpoints.close()
    if metrics:
      metrics.close()
  say(f"trained to step {run.steps} in {duration(clock.total)}" if begin < run.steps else "nothing left to do")
  return state


def abstract_like(model: ModelConfig) -> Any:
  """Zeros in the shape of the parameters, for `jax.eval_shape`."""
  return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), abstract_params(model))


def read_weights(folder: str, model: ModelConfig) -> Any:
  """The parameters of a model folder, made FG-CLIP where the run's model is one; a ValueError if they do not fit."""
  config, flat, _ = folders.read(folder)
  if model.fine_grained and not config.fine_grained:
    config, flat = huggingface.to_fgclip(config, flat)
  if config != model:
    ours, theirs = _flat_dict(model.to_dict()), _flat_dict(config.to_dict())
    different = ", ".join(f"{key} {theirs[key]} (config: {ours[key]})" for key in ours if ours[key] != theirs[key])
    if any(key.split(".")[-1] != "temperature_init" for key in ours if ours[key] != theirs[key]):
      raise ValueError(
        f"config.init_from: the weights in {folder!r} are of another model: {different}; "
        "set config.model=from_weights to take the size from the weights"
      )
  return unflatten(flat)


def _flat_dict(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in values.items():
    flat |= _flat_dict(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


class Clock:
  """Images per second and the share of time spent waiting for data, between log points."""

  def __init__(self, batch_size: int, loader: Loader):
    self._batch_size, self._loader = batch_size, loader
    self._begin = self._last = time.perf_counter()
    self._last_step: int | None = None
    self._waited, self.seconds_per_step = 0.0, 0.0

  def lap(self, step: int) -> dict[str, float]:
    """What happened since the last lap; the first one holds compilation, so no speed is derived from it."""
    now = time.perf_counter()
    seconds, waited = now - self._last, self._loader.waited - self._waited
    if self._last_step is not None:
      self.seconds_per_step = seconds / max(step - self._last_step, 1)
    self._last, self._last_step, self._waited = now, step, self._loader.waited
    speed = self._batch_size / self.seconds_per_step if self.seconds_per_step else 0.0
    bad = {f"bad_records/{kind}": float(number) for kind, number in self._loader.bad.items()}
    return {"images_per_second": speed, "data_wait_share": waited / max(seconds, 1e-9), **bad}

  @property
  def total(self) -> float:
    """Seconds since the start."""
    return time.perf_counter() - self._begin
