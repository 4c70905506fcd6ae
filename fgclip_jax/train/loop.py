"""A training run, from config to last checkpoint."""

import collections
import contextlib
import functools
import json
import os
import time
from typing import Any

import jax

from fgclip_jax.data.loader import Loader
from fgclip_jax.inference.programs import use_compilation_cache
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import abstract_params, count, unflatten
from fgclip_jax.models.positions import resize
from fgclip_jax.train.checkpoint import Checkpoints
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.evaluation import measure
from fgclip_jax.train.flops import count_flops
from fgclip_jax.train.guard import NUMBERS, Guard, NonFiniteError
from fgclip_jax.train.logger import Clock, Metrics, duration
from fgclip_jax.train.mesh import (
  check_batch,
  choose_mesh,
  data_shards,
  local_memory,
  local_shards,
  make_mesh,
  mesh_text,
  to_devices,
)
from fgclip_jax.train.optimizer import freezes, make_optimizer
from fgclip_jax.train.preemption import PreemptedError, Preemption
from fgclip_jax.train.resume import check_changes, flat_dict
from fgclip_jax.train.state import TrainState, abstract_state, init_state, size_in_bytes, state_from, state_shardings
from fgclip_jax.train.step import make_step
from fgclip_jax.train.watchdog import Watchdog
from fgclip_jax.weights import clip_to_fgclip, native
from fgclip_jax.weights import formats as folders

CONFIG_FILE = "config.json"


def train(run: RunConfig, workdir: str) -> TrainState:
  """Trains until `run.steps`, continuing from the newest good checkpoint in `workdir`. Returns the last state.

  Raises:
    PreemptedError: the run was told to end, and has saved.
    NonFiniteError: too many steps in a row changed nothing; the last good state is saved.
    OSError: too many checkpoints in a row could not be saved; or a worker process has died.
    ValueError: data or checkpoints that do not fit the config, or too many bad records.
  """
  # ---- mesh and data
  devices = jax.devices()
  processes, chief = jax.process_count(), jax.process_index() == 0
  say = print if chief else lambda *_: None
  model, optimizer, ema = run.model, make_optimizer(run.optimizer), run.ema_decay is not None
  abstract = abstract_state(model, optimizer, ema)
  sizes = run.mesh or choose_mesh(devices, size_in_bytes(abstract), run.data.batch_size, local_memory())
  mesh = make_mesh(sizes, devices)
  check_batch(mesh.shape, run.data.batch_size, devices, run.runtime.micro_batches)
  say(
    f"{'FG-CLIP' if model.fine_grained else 'CLIP'} {run.values['model']}: {count(abstract_params(model)) / 1e6:.1f} M "
    f"parameters, {model.vision.image_size} px"
  )
  say(
    f"mesh {mesh_text(mesh.shape)}{'' if run.mesh else ' (auto)'}: {len(devices)} x {devices[0].device_kind}"
    + (f" in {processes} processes" if processes > 1 else " in one process")
  )
  use_compilation_cache(run.compilation_cache)

  # ---- what the run continues from; then data, which is looked at before anything is compiled
  os.makedirs(workdir, exist_ok=True)
  checkpoints = Checkpoints(workdir, run.keep, run.guard.max_failed_saves, say)
  changes: list[str] = []
  shardings = state_shardings(model, optimizer, mesh, ema)
  state = checkpoints.restore(
    shardings, abstract, lambda before: changes.extend(check_changes(before, run.values, workdir))
  )
  begin = checkpoints.latest or 0
  loader = Loader(
    run.data,
    run.layout(),
    model.vision.image_size,
    seed=run.seed,
    shards=data_shards(mesh),
    local_shards=local_shards(mesh),
    start=begin,
    pixels=model.vision.pixels,
  )
  say(f"{loader.records} records, {loader.epoch_steps:.1f} steps an epoch; steps {begin} to {run.steps}")
  for line in loader.sources if run.data.mixture else ():
    say(line)
  buckets = loader.layout.row_buckets
  say(
    f"text in rows of {loader.layout.row_length} tokens, {', '.join(map(str, buckets))} a data shard: "
    f"{len(buckets)} shapes, each compiled when a batch first needs it (most need the first few)"
  )

  # ---- state: the checkpoint's, given weights, or random
  if state is not None:
    say(f"continuing {workdir} from step {begin}{'; changed since: ' if changes else ''}{', '.join(changes)}")
  elif run.init_from:
    state = state_from(model, optimizer, mesh, read_weights(run.init_from, model), ema)
    say(f"weights from {run.init_from}{', averaged over its steps' if folders.is_averaged(run.init_from) else ''}")
  else:
    state = init_state(model, optimizer, mesh, run.seed, ema)
    say("random weights")
  if chief:
    native.write_model_file(workdir, model)
    with open(os.path.join(workdir, CONFIG_FILE), "w", encoding="utf-8") as file:
      json.dump(run.values, file, indent=2)
      file.write("\n")

  # ---- the step, one for each image size
  @functools.cache
  def step_for(image_size: int):
    savings = {"patch_dropout": run.patch_dropout, "image_size": image_size, "ema_decay": run.ema_decay}
    return make_step(model, run.objective, run.optimizer, run.runtime, mesh, seed=run.seed, **savings)

  def size_at(step: int) -> int:
    return [size for start, size in run.progressive if start < step][-1] if run.progressive else model.vision.image_size

  frozen_image_tower = freezes(run.optimizer.rules, state.params, "vision")

  def next_batch(step: int):
    """The batch of a step, on the devices, its work and its records; placed while the step before is under way."""
    watchdog.heartbeat(f"data for step {step}")
    batch = next(loader)
    work = count_flops(
      model,
      run.objective,
      batch,
      image_size=size_at(step),
      patch_dropout=run.patch_dropout,
      frozen_image_tower=frozen_image_tower,
    )
    return to_devices(batch, mesh), work, batch["record"]

  # ---- steps: the host runs ahead by `in_flight` steps and reads a step's metrics when it is done
  metrics = Metrics(workdir, run.steps, begin) if chief else None
  clock = Clock(run.data.batch_size, loader, len(devices), data_shards(mesh) // len(local_shards(mesh)))
  watchdog, guard = Watchdog(run.guard.watchdog_seconds), Guard(run.guard, workdir, loader.where, say)
  preemption, profile = Preemption(run.guard.grace_seconds), Profile(run.profile, workdir)
  under_way: collections.deque = collections.deque()

  def finish_one() -> dict[str, float]:
    """Waits for the earliest step under way, and looks at its numbers."""
    step, values, work, records = under_way.popleft()
    watchdog.heartbeat(f"step {step}, on the devices")
    jax.block_until_ready(values)
    clock.count(work)
    logged = _saves(run, step) or step % run.log_every == 0 or step == begin + 1
    wanted = values if logged else {name: values[name] for name in NUMBERS}
    numbers = {name: float(value) for name, value in jax.device_get(wanted).items()}
    if logged:
      numbers |= clock.lap(step)
      if metrics:
        metrics.write(step, numbers)
        metrics.progress(step, numbers, clock.seconds_per_step)
    guard.look(step, numbers, records)
    return numbers

  def evaluate(step: int) -> dict[str, float]:
    """Measures the parameters as they are; no step is under way."""
    start = time.perf_counter()
    numbers = measure(run.evals, model, state.params, run.runtime, step, say, watchdog.heartbeat)
    if metrics and numbers:
      metrics.write(step, numbers)
    clock.pause(time.perf_counter() - start)
    if run.keeps_by_eval and run.keep.metric not in numbers:
      say(f"step {step}: keep.metric {run.keep.metric!r} is not among the numbers: {', '.join(numbers)}")
    return numbers

  step = begin
  with contextlib.ExitStack() as opened:
    for thing in (preemption, watchdog, loader, checkpoints, profile, *filter(None, [metrics])):
      opened.callback(thing.close)
    # a batch's transfer is explicit; anything implicit in the loop would stall the devices
    opened.enter_context(jax.transfer_guard("disallow"))
    try:
      ahead = next_batch(step + 1) if step < run.steps else None
      while ahead is not None:
        step += 1
        batch, *told = ahead
        profile.before(step)
        state, values = step_for(size_at(step))(state, batch)
        under_way.append((step, values, *told))
        ends = preemption.reached(step)
        ahead = next_batch(step + 1) if step < run.steps and not ends else None
        halts = ends or _saves(run, step) or profile.ends(step) or _evaluates(run, step)
        while len(under_way) > (0 if halts else run.in_flight - 1):
          numbers = finish_one()
        profile.after(step)
        evaluates = _evaluates(run, step) and not ends
        if evaluates and run.keeps_by_eval:  # the checkpoint is kept or not by what comes out
          numbers |= evaluate(step)
        if ends or _saves(run, step):
          watchdog.heartbeat(f"the checkpoint of step {step}")
          checkpoints.save(step, state, run.values, numbers, at_once=ahead is None)
        if ends:
          raise PreemptedError(f"told to end: saved step {step} of {run.steps}; the same command goes on from there")
        if evaluates and not run.keeps_by_eval:
          evaluate(step)
    except NonFiniteError:
      checkpoints.save(step, state, run.values, at_once=True)
      raise
  say(f"trained to step {run.steps} in {duration(clock.total)}" if begin < run.steps else "nothing left to do")
  return state


def _saves(run: RunConfig, step: int) -> bool:
  return step % run.checkpoint_every == 0 or step == run.steps


def _evaluates(run: RunConfig, step: int) -> bool:
  return bool(run.evals) and (step % run.eval_every == 0 or step == run.steps)


class Profile:
  """A profile of the steps first..last, written under `WORKDIR/profile` for TensorBoard and Perfetto."""

  def __init__(self, steps: tuple[int, ...], workdir: str):
    self._first, self._last = steps or (0, 0)
    self._folder, self._running = os.path.join(workdir, "profile"), False

  def before(self, step: int) -> None:
    """Starts before its first step."""
    if step == self._first:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._running = True

  def ends(self, step: int) -> bool:
    """Whether the steps before it, or it itself and those before, should be done: at the profile's borders."""
    return step in (self._first - 1, self._last) and self._last > 0

  def after(self, step: int) -> None:
    """Ends after its last step."""
    if self._running and step == self._last:
      self.close()
      print(f"wrote {self._folder} (a profile of steps {self._first} to {self._last})")

  def close(self) -> None:
    """Ends it wherever it is."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


def read_weights(folder: str, model: ModelConfig) -> Any:
  """The parameters of a model folder or file; a ValueError if they do not fit.

  They are made FG-CLIP where the run's model is one, and brought to its image size.
  """
  config, flat, _ = folders.read(folder)
  if model.fine_grained and not config.fine_grained:
    config, flat = clip_to_fgclip.to_fgclip(config, flat)
  params = unflatten(flat)
  if config.vision.patch_size == model.vision.patch_size:
    params, config = resize(params, config, model.vision.image_size)
  ours, theirs = (flat_dict(c.replace(temperature_init=0.0).to_dict()) for c in (model, config))
  keys = dict.fromkeys([*ours, *theirs])
  different = [f"{key} {theirs.get(key)} (config: {ours.get(key)})" for key in keys if ours.get(key) != theirs.get(key)]
  if different:
    raise ValueError(
      f"config.init_from: the weights in {folder!r} are of another model: {', '.join(different)}; "
      "set config.model=from_weights to take the size from the weights"
    )
  return params
