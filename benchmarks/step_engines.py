"""One engine in a process of its own: checks its losses, then times forward and backward passes. Linux, glibc.

Neither JAX nor PyTorch is imported before its engine is made, so that the memory counted is one engine's.
"""

import ctypes
import dataclasses
import statistics
import time

import numpy as np
import safetensors.numpy

from fgclip_jax.models.config import ModelConfig

LOSS, GRADIENT = 1e-4, 1e-3  # by how much engines may differ: loss terms, and gradient norms relative to their size

Terms = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Job:
  """What an engine is to do.

  Attributes:
    engine: `packed`, `padded` (ours) or `pytorch`.
    model: the model's size.
    weights: a safetensors file in the PyTorch format of FG-CLIP.
    batches: as `assemble` makes them for ours, as `step_batches.collate` for PyTorch.
    steps: timed steps per batch.
    limit: no further round of timed steps begins after so many seconds; there is always one.
    cores: threads.
    expected: for each batch the loss terms and `gradient_norm` to be met; None takes what comes.
    unroll: blocks of ours that are unrolled; 0: all.
    remat: what ours recomputes in the backward pass, see `Runtime`.
    trace: a folder for a profile of one step per batch after the timed ones; empty: none.
  """

  engine: str
  model: ModelConfig
  weights: str
  batches: list[dict[str, np.ndarray]]
  steps: int
  limit: float
  cores: int
  expected: list[Terms] | None
  unroll: int = 0
  remat: str = "none"
  trace: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
  """What an engine did.

  Attributes:
    seconds: forward and backward of a batch, the mean over batches of each one's median.
    steps: timed steps per batch.
    spread: the smallest and largest time of a batch, over its median, at worst.
    cores: how many cores the timed steps kept busy; far below those given: the machine had other work, or waited.
    update: an AdamW update, in seconds, the median.
    first: the first pass over all batches, compilation included, in seconds.
    peak: the most memory resident during the timed forward and backward passes, in bytes.
    terms: for each batch its loss terms and `gradient_norm`.
    difference: by how much the terms differ from those expected, at most.
  """

  seconds: float
  steps: int
  spread: tuple[float, float]
  cores: float
  update: float
  first: float
  peak: int
  terms: list[Terms]
  difference: float


def run(job: Job) -> Result:
  """Does the job.

  Raises:
    ValueError: the engine computes something else than expected.
  """
  engine = PyTorch(job) if job.engine == "pytorch" else Ours(job)
  batches = [engine.place(batch) for batch in job.batches]
  begin = time.perf_counter()
  terms = [{**engine.step(batch), "gradient_norm": engine.gradient_norm()} for batch in batches]
  first = time.perf_counter() - begin
  difference = compare(job.engine, terms, job.expected) if job.expected else 0.0
  reset_peak()
  begin, busy, seconds = time.perf_counter(), time.process_time(), []
  while not seconds or (len(seconds) < job.steps and time.perf_counter() - begin < job.limit):
    seconds.append([timed(engine.step, batch) for batch in batches])
  cores = (time.process_time() - busy) / float(np.sum(seconds))
  peak = read_peak()
  if job.trace:
    engine.profile(batches, job.trace)
  for _ in range(2):
    engine.update()  # twice, since the first state does not yet lie as the later ones, and compiles apart
  update = statistics.median(timed(engine.update) for _ in range(job.steps))
  medians = np.median(seconds, axis=0)
  return Result(
    seconds=float(np.mean(medians)),
    steps=len(seconds),
    spread=(float(np.min(seconds / medians)), float(np.max(seconds / medians))),
    cores=cores,
    update=update,
    first=first,
    peak=peak,
    terms=terms,
    difference=difference,
  )


def timed(function, *args) -> float:
  """Seconds that a call takes."""
  begin = time.perf_counter()
  function(*args)
  return time.perf_counter() - begin


def compare(engine: str, found: list[Terms], expected: list[Terms]) -> float:
  """The largest difference; a ValueError lists those that are too large."""
  faults, largest = [], 0.0
  for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
    if ours.keys() != theirs.keys():
      raise ValueError(f"{engine} computes {sorted(ours)}, expected {sorted(theirs)}")
    for name, value in theirs.items():
      size, allowed = (value, GRADIENT) if name == "gradient_norm" else (max(abs(value), 1.0), LOSS)
      difference = abs(ours[name] - value) / size
      largest = max(largest, difference)
      if not difference <= allowed:
        faults.append(f"batch {number}, {name}: {ours[name]:.6f}, expected {value:.6f}")
  if faults:
    raise ValueError(f"{engine} computes something else, so its speed means nothing:\n  " + "\n  ".join(faults))
  return largest


def reset_peak() -> None:
  """Starts the count of the most resident memory anew, without what compilation has freed."""
  ctypes.CDLL(None).malloc_trim(0)
  with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
    file.write("5")


def read_peak() -> int:
  """The most memory that was resident since then, in bytes."""
  with open("/proc/self/status", encoding="ascii") as file:
    line = next(line for line in file if line.startswith("VmHWM:"))
  return int(line.split()[1]) * 1024


class Ours:
  """fgclip_jax."""

  def __init__(self, job: Job):
    import jax

    jax.config.update("jax_platforms", "cpu")
    from fgclip_jax.losses.objective import Objective
    from fgclip_jax.models.params import abstract_params, flatten, unflatten
    from fgclip_jax.models.transformer import Runtime
    from fgclip_jax.train.mesh import make_mesh, shard_params, to_devices
    from fgclip_jax.train.optimizer import OptimizerConfig, apply_updates, make_optimizer
    from fgclip_jax.train.step import make_loss
    from fgclip_jax.weights.huggingface_names import from_theirs

    self._jax, mesh = jax, make_mesh({"data": 1}, jax.devices()[:1])
    shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(job.model)).items()}
    flat = from_theirs(safetensors.numpy.load_file(job.weights), job.model, shapes)
    params = unflatten({name: jax.numpy.array(leaf) for name, leaf in flat.items()})
    self.params = jax.device_put(params, shard_params(params, mesh))
    loss = make_loss(job.model, Objective(), Runtime(unroll=job.unroll, remat=job.remat), mesh)
    self._step, self._key = jax.jit(jax.value_and_grad(loss, has_aux=True)), jax.random.key(0)
    self.place = lambda batch: to_devices(batch, mesh)
    config = OptimizerConfig(total_steps=1000)
    optimizer = make_optimizer(config)

    def update(gradients, params, opt_state):
      updates, opt_state = optimizer.update(gradients, opt_state, params)
      return apply_updates(config, params, updates), opt_state

    self._start, self._opt_state = optimizer.init, None
    self._update = jax.jit(update, donate_argnums=(1, 2))

  def step(self, batch) -> Terms:
    """Forward and backward; the gradients are kept until the next one."""
    self.gradients = None
    (_, (terms, _)), self.gradients = self._step(self.params, batch, self._key)
    self._jax.block_until_ready(self.gradients)
    return {name: float(value) for name, value in terms.items()}

  def gradient_norm(self) -> float:
    """Of the last step."""
    leaves = self._jax.tree.leaves(self.gradients)
    return float(np.linalg.norm([np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in leaves]))

  def update(self) -> None:
    """AdamW with the last step's gradients."""
    if self._opt_state is None:
      self._opt_state = self._start(self.params)
    self.params, self._opt_state = self._update(self.gradients, self.params, self._opt_state)
    self._jax.block_until_ready(self.params)

  def profile(self, batches, folder: str) -> None:
    """Writes a trace for TensorBoard or Perfetto."""
    with self._jax.profiler.trace(folder):
      for batch in batches:
        self.step(batch)


class PyTorch:
  """The published code's computation, see `step_pytorch.py`."""

  def __init__(self, job: Job):
    import safetensors.torch
    import step_pytorch
    import torch

    torch.set_num_threads(job.cores)
    self._torch, self._losses, self.place = torch, step_pytorch.losses, step_pytorch.to_tensors
    self.model = step_pytorch.make_model(job.model)
    if self.model.text_model.config._attn_implementation != "sdpa":
      raise ValueError("transformers did not take sdpa attention")
    self.model.load_state_dict(safetensors.torch.load_file(job.weights))
    self._optimizer = None

  def step(self, batch) -> Terms:
    """Forward and backward; the gradients are kept until the next one."""
    self.model.zero_grad(set_to_none=True)
    terms = self._losses(self.model, batch)
    terms["total"].backward()
    return {name: value.item() for name, value in terms.items()}

  def gradient_norm(self) -> float:
    """Of the last step."""
    gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
    return float(np.linalg.norm([float(gradient.double().norm()) for gradient in gradients]))

  def update(self) -> None:
    """AdamW with the last step's gradients, fused; nothing is decayed that ours does not decay."""
    if self._optimizer is None:
      named = [(name, p) for name, p in self.model.named_parameters() if p.grad is not None]
      kept = [p for name, p in named if "bias" in name or "norm" in name or "layrnorm" in name]
      rest = [p for name, p in named if not any(p is other for other in kept)]
      groups = [{"params": rest, "weight_decay": 0.001}, {"params": kept, "weight_decay": 0.0}]
      self._optimizer = self._torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.999), eps=1e-8, fused=True)
    self._optimizer.step()

  def profile(self, batches, folder: str) -> None:
    """Writes a trace for Perfetto."""
    import os

    os.makedirs(folder, exist_ok=True)
    with self._torch.profiler.profile() as profiler:
      for batch in batches:
        self.step(batch)
    profiler.export_chrome_trace(os.path.join(folder, "pytorch.json"))
