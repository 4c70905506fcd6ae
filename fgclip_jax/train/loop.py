"""A training run, from config to last checkpoint. `train` is the whole of it; `TrainLoop` is the part with steps."""

import collections
import contextlib
import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fgclip_jax.data.loader import Loader
from fgclip_jax.data.packing import describe_rows
from fgclip_jax.data.tokenizers import files
from fgclip_jax.inference.programs import use_compilation_cache
from fgclip_jax.models.params import abstract_params, count
from fgclip_jax.storage import atomic, paths
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.distributed import agree
from fgclip_jax.train.evaluation import measure
from fgclip_jax.train.flops import StepFlops, count_flops
from fgclip_jax.train.goodput.timeline import COMPILE, DATA, EVALUATE, SAVE, STEP, Timeline
from fgclip_jax.train.guard import NUMBERS, Guard, NonFiniteError
from fgclip_jax.train.logger import Clock, duration, open_metrics
from fgclip_jax.train.loggers.samples import BatchSample, Gallery
from fgclip_jax.train.mesh import (
  check_batch,
  check_memory,
  choose_mesh,
  data_shards,
  local_memory,
  local_shards,
  make_mesh,
  mesh_text,
  to_devices,
)
from fgclip_jax.train.optimizer import freezes
from fgclip_jax.train.preemption import PreemptedError, Preemption
from fgclip_jax.train.profile import Profile
from fgclip_jax.train.resume import check_changes
from fgclip_jax.train.state import TrainSetup, TrainState, first_state
from fgclip_jax.train.step import make_step
from fgclip_jax.train.watchdog import Watchdog
from fgclip_jax.train.workdir import Lease, make_workdir
from fgclip_jax.weights import native

CONFIG_FILE = "config.json"
Log = Callable[[str], object]


def train(run: RunConfig, workdir: str) -> TrainState:
  """Trains until `run.steps`, continuing from the newest good checkpoint in `workdir`. Returns the last state.

  Raises:
    Errors of `open_run` and `train_steps`.
  """
  return train_steps(*open_run(run, workdir))


def open_run(run: RunConfig, workdir: str, began: float | None = None) -> tuple["TrainLoop", TrainState]:
  """Opens all that a run needs, and returns its loop and first state; no step has been compiled.

  `began`: when this start of the run began, in seconds since 1970, for its timeline; None: now.

  Raises:
    ValueError: data, weights or checkpoints that do not fit the config; or another run trains in the workdir.
    OSError: data or weights that are not there, or a workdir that cannot be written.
  """
  log = print if jax.process_index() == 0 else lambda *_: None
  setup = run.setup(open_mesh(run, log))
  use_compilation_cache(run.compilation_cache)
  make_workdir(workdir)
  first = jax.process_index() == 0
  lease = Lease(workdir, log) if first else None  # before checkpoints: opening them removes half ones
  timeline = Timeline(workdir if first else None, began)
  try:
    return _open_run(run, workdir, setup, lease, timeline, log)
  except BaseException as error:
    timeline.end(type(error).__name__)
    if lease:
      lease.close()
    raise


def _open_run(
  run: RunConfig, workdir: str, setup: TrainSetup, lease: Lease | None, timeline: Timeline, log: Log
) -> tuple["TrainLoop", TrainState]:
  agree(0)  # the lease is held
  # exact resume: the number of steps made decides which batch comes next, the learning rate, and every random key
  guard = run.guard
  checkpoints = Checkpoints(workdir, run.keep, guard.max_failed_saves, log, run.checkpoint, guard.outage_seconds)
  changes: list[str] = []

  def check(before: dict[str, Any]) -> None:
    changes[:] = check_changes(before, run.values, workdir)  # of the checkpoint that is tried last

  state = checkpoints.restore(setup.state_shardings, setup.abstract_state, check)
  begin = checkpoints.restored
  loader = open_loader(run, setup.mesh, begin, log)  # data that cannot be read ends the run before anything is compiled

  if state is None:
    state = first_state(run.init_from, setup, log)
  else:
    log(f"continuing {workdir} from step {begin}{'; changed since: ' if changes else ''}{', '.join(changes)}")
  if jax.process_index() == 0:
    write_config(run, workdir)
  return TrainLoop(run, workdir, setup, loader, checkpoints, begin, log, lease, timeline), state


def train_steps(loop: "TrainLoop", state: TrainState) -> TrainState:
  """Trains to the run's last step, and returns the last state.

  Raises:
    PreemptedError: the run was asked to end, and has saved.
    NonFiniteError: too many steps in a row changed nothing; the last good state is saved.
    OSError: too many checkpoints in a row could not be saved; or a worker process has died.
    ValueError: too many bad records.
  """
  with loop:
    return loop.run(state)


def open_mesh(run: RunConfig, log: Log) -> Mesh:
  """The mesh that the config names, or a good one for these devices; prints the model and the mesh."""
  devices, processes = jax.devices(), jax.process_count()
  state_bytes, memory_bytes = run.state_bytes(), local_memory()
  mesh = make_mesh(run.mesh or choose_mesh(devices, state_bytes, run.data.batch_size, memory_bytes), devices)
  check_batch(mesh.shape, run.data.batch_size, devices, run.runtime.micro_batches)
  check_memory(mesh, state_bytes, memory_bytes)
  log(
    f"{'FG-CLIP' if run.model.fine_grained else 'CLIP'} {run.values['model']}: "
    f"{count(abstract_params(run.model)) / 1e6:.1f} M parameters, {run.model.vision.image_size} px"
  )
  log(
    f"mesh {mesh_text(mesh.shape)}{'' if run.mesh else ' (auto)'}: {len(devices)} x {devices[0].device_kind}"
    + (f" in {processes} processes" if processes > 1 else " in one process")
  )
  return mesh


def open_loader(run: RunConfig, mesh: Mesh, begin: int, log: Log) -> Loader:
  """The loader of this process's data shards, from the batch of step `begin + 1`; prints what it has found."""
  loader = Loader(
    run.data,
    run.layout(),
    run.model.vision.image_size,
    seed=run.seed,
    shards=data_shards(mesh),
    local_shards=local_shards(mesh),
    start=begin,
    pixels=run.model.vision.pixels,
  )
  log(f"{loader.records} records, {loader.epoch_steps:.1f} steps an epoch; steps {begin} to {run.steps}")
  for line in loader.sources if run.data.mixture else ():
    log(line)
  for line in describe_rows(loader.layout):
    log(line)
  return loader


def write_config(run: RunConfig, workdir: str) -> None:
  """Writes the model's size, the file of its tokenizer if it has one, and the whole config into the run's folder."""
  native.write_model_file(workdir, run.model)
  files.copy(run.model.text.tokenizer, workdir)
  with atomic.file(paths.join(workdir, CONFIG_FILE)) as path, open(path, "w", encoding="utf-8") as file:
    json.dump(run.values, file, indent=2)
    file.write("\n")


class Batch(NamedTuple):
  """A step's batch.

  Attributes:
    arrays: the global arrays, [G, ...], on the devices.
    flops: operations that the step takes, this process's part.
    records: the numbers of this process's records, [local shards, b].
    samples: of its images, to be drawn after the step.
  """

  arrays: dict[str, jax.Array]
  flops: StepFlops
  records: np.ndarray
  samples: list[BatchSample]


class InFlight(NamedTuple):
  """A step that the devices have been given; its metrics are arrays which may not be computed yet."""

  step: int
  metrics: dict[str, jax.Array]
  flops: StepFlops
  records: np.ndarray


class TrainLoop:
  """The steps of a run, with all that watches over them; a context that closes what it opened.

  The host runs ahead of the devices by at most `run.in_flight` steps: while they compute, it loads the next batch, and
  it reads a step's metrics when that step is done.

  Args:
    run: the settings.
    workdir: the run's folder.
    setup: what the step follows from.
    loader, checkpoints: of the run; closed with the loop.
    begin: the last step already made.
    log: prints a line.
    lease: the right to train in the workdir, held by the first process; checked before each save.
  """

  def __init__(
    self,
    run: RunConfig,
    workdir: str,
    setup: TrainSetup,
    loader: Loader,
    checkpoints: Checkpoints,
    begin: int,
    log: Log,
    lease: Lease | None = None,
    timeline: Timeline | None = None,
  ):
    self._lease, self._timeline, self._compiled = lease, timeline or Timeline(None), set()
    self._run, self._setup, self._loader, self._checkpoints = run, setup, loader, checkpoints
    self._begin, self._log = begin, log
    self._metrics = open_metrics(run, workdir, begin) if jax.process_index() == 0 else None
    groups = data_shards(setup.mesh) // len(local_shards(setup.mesh))  # of processes that load different data
    self.clock = Clock(run.data.batch_size, loader, setup.mesh.size, groups)
    self._watchdog = Watchdog(run.guard.watchdog_seconds)
    self._guard = Guard(run.guard, workdir, loader.where, log)
    self._gallery = Gallery(run, loader.where, self._metrics, log)
    self._preemption, self._profile = Preemption(run.guard.grace_seconds), Profile(run.profile, workdir)
    self._in_flight: collections.deque[InFlight] = collections.deque()
    self._repeats_reported = False
    self._frozen_image_tower = freezes(run.optimizer.rules, setup.abstract_state.params, "vision")
    self._step_for = functools.cache(lambda image_size: make_step(setup, image_size))  # a program for each image size

  def __enter__(self) -> "TrainLoop":
    self._opened = contextlib.ExitStack()
    self._opened.push(lambda kind, *_: self._timeline.end(kind.__name__ if kind else "finished"))
    for part in filter(None, (self._lease, self._preemption, self._watchdog, self._loader)):
      self._opened.callback(part.close)
    self._opened.push(lambda kind, *_: self._checkpoints.close(failed=kind is not None))
    self._opened.callback(self._profile.close)
    if metrics := self._metrics:
      self._opened.push(lambda kind, *_: metrics.close(failed=kind is not None))
    # a batch's transfer is explicit; anything implicit in the loop would stall the devices
    self._opened.enter_context(jax.transfer_guard("disallow"))
    return self

  def __exit__(self, *error: Any) -> None:
    self._opened.__exit__(*error)

  def run(self, state: TrainState) -> TrainState:
    """Trains from `begin` to `run.steps`, and returns the last state; errors as for `train`."""
    run, step = self._run, self._begin
    self._timeline.begin(step)
    try:
      batch = self._next_batch(step + 1) if step < run.steps else None
      while batch is not None:
        step += 1
        self._profile.before(step)
        state, samples = self._dispatch(step, state, batch), batch.samples

        # preemption: all processes agree on the step after which they save and end
        ends = self._preemption.reached(step)
        batch = self._next_batch(step + 1) if step < run.steps and not ends else None  # while the devices compute

        # what is done with the state below waits for every step; else the earliest alone is waited for
        saves, evaluates = self._saves(step) or ends, self._evaluates(step) and not ends
        draws = self._gallery.is_due(step) and not ends
        saves_locally = self._checkpoints.local_due(step)
        saves = saves or self._checkpoints.overdue()
        drains = saves or saves_locally or draws or self._evaluates(step) or self._profile.ends(step)
        numbers = self._finish_steps(0 if drains else run.in_flight - 1)
        self._profile.after(step)
        self._timeline.done(step - len(self._in_flight), drains)

        if evaluates and run.keeps_by_eval:  # before saving: the numbers decide whether the checkpoint is kept
          numbers |= self._evaluate(step, state)
        if saves_locally:
          with self._timeline.phase(SAVE):
            self._checkpoints.save_local(step, state, run.values)
        if saves:
          self._watchdog.heartbeat(f"the checkpoint of step {step}")
          if self._lease:
            self._lease.check()
          with self._timeline.phase(SAVE):
            self._checkpoints.save(step, state, run.values, numbers, at_once=batch is None)
            if self._metrics:
              self._metrics.flush()
        if ends:
          raise PreemptedError(f"told to end: saved step {step} of {run.steps}; the same command goes on from there")
        if evaluates and not run.keeps_by_eval:  # after saving has begun: it goes on in the background
          self._evaluate(step, state)
        if draws:
          self._draw(step, state, samples)
    except NonFiniteError:
      self._checkpoints.save(step, state, run.values, at_once=True)  # bad steps changed nothing: the state is good
      raise
    self._checkpoints.finish()
    made = self._begin < run.steps
    self._log(f"trained to step {run.steps} in {duration(self.clock.total)}" if made else "nothing left to do")
    return state

  def _dispatch(self, step: int, state: TrainState, batch: Batch) -> TrainState:
    """Gives a step to the devices, and returns at once unless it has to be compiled first."""
    program = (self._image_size(step), *((name, array.shape) for name, array in batch.arrays.items()))
    with self._timeline.phase(STEP if program in self._compiled else COMPILE):
      state, metrics = self._step_for(self._image_size(step))(state, batch.arrays)
    self._compiled.add(program)
    self._timeline.dispatched(metrics)
    self._in_flight.append(InFlight(step, metrics, batch.flops, batch.records))
    return state

  def _next_batch(self, step: int) -> Batch:
    """Loads the batch of a step and begins to send it to the devices."""
    self._watchdog.heartbeat(f"data for step {step}")
    with self._timeline.phase(DATA):
      batch = next(self._loader)
    flops = count_flops(
      self._setup.model,
      self._setup.objective,
      batch,
      image_size=self._image_size(step),
      patch_dropout=self._setup.patch_dropout,
      frozen_image_tower=self._frozen_image_tower,
    )
    arrays = to_devices(batch, self._setup.mesh, self._loader.repeats)
    if "repeated_record" in arrays and not self._repeats_reported:
      self._repeats_reported = True
      self._log(
        f"step {step}: where a batch holds a record more than once, its pictures are not each other's negatives"
      )
    return Batch(arrays, flops, batch["record"], self._gallery.take(step, batch))

  def _finish_steps(self, most: int) -> dict[str, float]:
    """Finishes steps in flight, the earliest first, until at most `most` are left; returns the last one's numbers."""
    numbers: dict[str, float] = {}
    while len(self._in_flight) > most:
      numbers = self._finish_step(self._in_flight.popleft())
    return numbers

  def _finish_step(self, done: InFlight) -> dict[str, float]:
    """Waits for a step, logs its numbers where they are due, and lets the guard check them."""
    step = done.step
    self._watchdog.heartbeat(f"step {step}, on the devices")
    jax.block_until_ready(done.metrics)
    self.clock.count(done.flops)
    logged = self._saves(step) or step % self._run.log_every == 0 or step == self._begin + 1
    # the guard needs a few numbers of every step; all of them are copied to the host for logged steps only
    wanted = done.metrics if logged else {name: done.metrics[name] for name in NUMBERS}
    numbers = {name: float(value) for name, value in jax.device_get(wanted).items()}
    if logged:
      numbers |= self.clock.lap(step)
      if self._metrics:
        self._metrics.write(step, numbers)
        self._metrics.progress(step, numbers, self.clock.seconds_per_step)
    self._guard.look(step, numbers, done.records)
    return numbers

  def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
    """Runs the run's evaluators on the parameters; no step is in flight."""
    run, start = self._run, time.perf_counter()
    with self._timeline.phase(EVALUATE):
      numbers = measure(run.evals, run.model, state.params, run.runtime, step, self._log, self._watchdog.heartbeat)
    if self._metrics and numbers:
      self._metrics.write(step, numbers)
    self.clock.pause(time.perf_counter() - start)
    if run.keeps_by_eval and run.keep.metric not in numbers:
      self._log(f"step {step}: keep.metric {run.keep.metric!r} is not among the numbers: {', '.join(numbers)}")
    return numbers

  def _draw(self, step: int, state: TrainState, samples: list[BatchSample]) -> None:
    """Shows samples and heat maps; no step is in flight."""
    start = time.perf_counter()
    with self._timeline.phase(EVALUATE):
      self._gallery.show(step, state.params, samples, self._watchdog.heartbeat)
    self.clock.pause(time.perf_counter() - start)

  def _image_size(self, step: int) -> int:
    """The side of a step's images, in pixels: the model's, or the progressive schedule's."""
    sizes = [size for start, size in self._run.progressive if start < step]
    return sizes[-1] if sizes else self._run.model.vision.image_size

  def _saves(self, step: int) -> bool:
    return step % self._run.checkpoint_every == 0 or step == self._run.steps

  def _evaluates(self, step: int) -> bool:
    return bool(self._run.evals) and (step % self._run.eval_every == 0 or step == self._run.steps)
