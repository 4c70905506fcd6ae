"""Estimates a run on devices that need not be present: compiles its step for them, counts, and prices at peak rates."""

import collections
import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.plan.batch import ASSUMED, Captions, abstract_batch, assumed_batch, patch_slots, row_budget
from fgclip_jax.plan.hardware import GIB, Topology
from fgclip_jax.plan.hlo import KINDS, Collective, HloProgram
from fgclip_jax.plan.jaxpr import matrix_operations
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.flops import count_flops
from fgclip_jax.train.mesh import batch_sharding, choose_mesh, data_shards, param_sharding, possible_meshes
from fgclip_jax.train.optimizer import freezes
from fgclip_jax.train.step import make_step


@dataclasses.dataclass
class StepEstimate:
  """The plan of a run on a mesh. Bytes and operations are those of one step; seconds and hours are estimates.

  `memory`, `collectives`, `checks` and `estimate` are None where the step does not compile or does not fit; `problem`
  then says why and `advice` what to change.
  """

  run: dict[str, Any]
  topology: dict[str, Any]
  mesh: dict[str, int]
  batch: dict[str, int]
  operations: dict[str, int] | None = None
  compile_seconds: float | None = None
  problem: str = ""
  advice: tuple[str, ...] = ()
  memory: dict[str, int] | None = None
  collectives: dict[str, dict[str, int]] | None = None
  checks: dict[str, Any] | None = None
  estimate: dict[str, float] | None = None
  flags: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def fits(self) -> bool:
    """Whether the step compiles and fits into the devices' memory."""
    return not self.problem


def estimate_step(
  run: RunConfig,
  topology: Topology,
  mesh: Mesh,
  captions: Captions = ASSUMED,
  flags: dict[str, str] | None = None,
) -> StepEstimate:
  """Compiles the run's step for a mesh of devices that need not be there, and reads what it takes.

  `flags`: of the compiler, by name.
  """
  shards, batch_size, size = data_shards(mesh), run.data.batch_size, run.model.vision.image_size
  layout, images = run.layout(), batch_size // shards
  rows = row_budget(layout, images, captions)
  plan = StepEstimate(
    run={
      "model": run.values["model"],
      "steps": run.steps,
      "remat": run.runtime.remat,
      "micro_batches": run.runtime.micro_batches,
    },
    topology={"name": topology.name, "devices": mesh.size, "slices": topology.slices, "kind": topology.chip.kind},
    mesh=dict(mesh.shape),
    batch={"images": batch_size, "images_per_shard": images, "row_length": layout.row_length, "rows_per_shard": rows},
    flags=flags or {},
  )
  if layout.patches:
    plan.batch |= dict(zip(("patch_rows_per_shard", "patches_per_row"), patch_slots(layout, images), strict=True))
  setup = run.setup(mesh)
  step, state = make_step(setup), setup.abstract_state
  batch = abstract_batch(layout, shards, images, rows, size)
  traced = step.trace(state, batch)
  counted = matrix_operations(traced.jaxpr.jaxpr, mesh.size)
  work = count_flops(
    run.model,
    run.objective,
    assumed_batch(layout, shards, images, rows, size, captions),
    patch_dropout=run.patch_dropout,
    frozen_image_tower=freezes(run.optimizer.rules, state.params, "vision"),
  )
  plan.operations = {"useful": work.useful, "executed": sum(counted.values()), "float32": counted["float32"]}

  sizes = _state_bytes(state, setup.state_shardings)
  sizes["batch"] = _device_bytes(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))
  begin = time.monotonic()
  try:
    compiled = traced.lower().compile(compiler_options=_options(flags or {}))
  except jax.errors.JaxRuntimeError as error:
    plan.problem = first_line(error)
    plan.advice = _advise(run, mesh, topology, needed_bytes(plan.problem), sizes)
    return plan
  plan.compile_seconds = time.monotonic() - begin

  analysis, limit = compiled.memory_analysis(), topology.chip.memory
  peak = analysis.peak_memory_in_bytes
  plan.memory = {"limit": limit, "peak": peak, **sizes, "rest": max(peak - sum(sizes.values()), 0)}
  if peak > limit:  # GPUs' compiler does not look
    plan.problem = f"it needs {peak / GIB:.2f} GiB on each device, which has {limit / GIB:.2f}"
    plan.advice = _advise(run, mesh, topology, peak, sizes)
    return plan

  program = HloProgram(compiled.as_text(), mesh.size)
  collectives = program.collectives()
  plan.collectives = _by_kind(collectives)
  plan.checks = {
    "donated_bytes": analysis.alias_size_in_bytes,
    "output_bytes": analysis.output_size_in_bytes,
    "batch_by_batch_arrays": sorted(shape for shape in program.shapes() if is_square(shape, batch_size)),
    "whole_weight_all_reduces": whole_weight_all_reduces(run, mesh, collectives),
  }
  plan.estimate = _estimate(plan, topology, mesh, counted, program.traffic(), collectives, run.steps)
  return plan


def _options(flags: dict[str, str]) -> dict[str, str | bool]:
  """Flags as JAX takes them: XLA's own switches as booleans, those of libtpu as texts."""
  switches = {"true": True, "false": False}
  return {name: switches.get(value, value) if name.startswith("xla_gpu_") else value for name, value in flags.items()}


def is_square(shape: tuple[int, ...], batch_size: int) -> bool:
  """Whether an array has the whole batch along two of its axes."""
  return shape.count(batch_size) > 1


def whole_weight_all_reduces(run: RunConfig, mesh: Mesh, collectives: list[Collective]) -> int:
  """Bytes of all-reduces of whole block weights though their gradients are needed in parts only."""

  def sizes(shape):
    return tuple(sorted(size for size in shape if size > 1))

  kernels = [
    (leaf.shape, param_sharding(name, leaf.shape, mesh).shard_shape(leaf.shape))
    for name, leaf in flatten(abstract_params(run.model)).items()
    if "blocks/" in name and name.endswith("kernel")
  ]
  # the part of one may look like the whole of another
  whole = {sizes(shape[1:]) for shape, _ in kernels} - {sizes(part[1:]) for _, part in kernels}
  return sum(
    collective.times * collective.size
    for collective in collectives
    if collective.kind == "all-reduce" and any(sizes(shape) in whole for shape in collective.shapes)
  )


def needed_bytes(message: str) -> int | None:
  """The memory that a compiler's refusal says a program needs."""
  found = re.search(r"\(([\d.]+)([KMGT])i?B?\) exceeds", message) or re.search(r"[Uu]sed ([\d.]+)([KMGT])", message)
  return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) if found else None


def _advise(
  run: RunConfig, mesh: Mesh, topology: Topology, needed: int | None, sizes: dict[str, int]
) -> tuple[str, ...]:
  """What to change so that a step fits, most useful first."""
  limit, held, advice = topology.chip.memory, sum(sizes.values()), []
  images, parts = run.data.batch_size // data_shards(mesh), run.runtime.micro_batches
  if held > limit / 2 and mesh.shape["fsdp"] < mesh.size:
    state = (held - sizes["batch"]) / GIB
    advice.append(f"a mesh with a larger fsdp: parameters and optimizer take {state:.1f} GiB of each device")
  if run.runtime.remat != "full":
    advice.append("--config.runtime.remat=full: keep of each block its input alone, at a quarter more operations")
  factor = max((needed - held) / max(limit - held, 1), 1.0) if needed else 2.0
  enough = [count for count in _divisors(images) if count >= parts * factor and count > parts]
  if enough:
    advice.append(f"--config.runtime.micro_batches={enough[0]}: the towers hold one part of the batch at a time")
  smaller = int(run.data.batch_size / factor) // data_shards(mesh) * data_shards(mesh)
  if 0 < smaller < run.data.batch_size:
    advice.append(f"--config.data.batch_size={smaller}: another objective, as fewer pairs are contrasted")
  advice.append("more devices")
  return tuple(advice)


def _divisors(number: int) -> list[int]:
  return [count for count in range(1, number + 1) if number % count == 0]


def _device_bytes(shapes: Any, shardings: Any) -> int:
  """Bytes of a tree of arrays on one device."""
  leaves = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
  return sum(jax.tree.leaves(leaves))


def _state_bytes(state: Any, shardings: Any) -> dict[str, int]:
  fields = {"parameters": ("params",), "optimizer": ("opt_state", "ema")}
  return {
    name: sum(_device_bytes(getattr(state, part), getattr(shardings, part)) for part in parts)
    for name, parts in fields.items()
  }


def _by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
  table = {}
  for kind in KINDS:
    chosen = [collective for collective in collectives if collective.kind == kind]
    if chosen:
      table[kind] = {
        "times": sum(collective.times for collective in chosen),
        "asynchronous": sum(collective.times for collective in chosen if collective.asynchronous),
        "bytes": sum(collective.times * collective.size for collective in chosen),
        "sent": round(sum(collective.times * collective.sent for collective in chosen)),
      }
  return table


def network_rate(group: tuple[int, ...], mesh: Mesh, topology: Topology) -> float:
  """Bytes a second that a device sends in a collective among these devices of the mesh."""
  index = {device: number for number, device in enumerate(topology.devices)}
  devices = mesh.devices.ravel()
  places = collections.Counter(index[devices[number]] // topology.per_slice for number in group)
  if len(places) < 2:
    return topology.chip.near_rate
  # the network cards of all members in a slice or host share the work
  return min(topology.chip.near_rate, max(places.values()) * topology.chip.far_rate)


def _estimate(plan, topology, mesh, counted, traffic, collectives, steps) -> dict[str, float]:
  chip = topology.chip
  operations = counted["other"] + chip.float32_passes * counted["float32"]
  parts = {
    "matrix_seconds": operations / (mesh.size * chip.peak),
    "memory_seconds": traffic / chip.memory_rate,
    "network_seconds": sum(
      collective.times * collective.sent / network_rate(collective.group, mesh, topology) for collective in collectives
    ),
  }
  step = {"overlapped": max(parts.values()), "in_turn": sum(parts.values())}
  hours = {name: seconds * steps / 3600 for name, seconds in step.items()}
  return {
    **parts,
    "memory_bytes": float(traffic),
    **{f"step_seconds_{name}": seconds for name, seconds in step.items()},
    **{f"hours_{name}": value for name, value in hours.items()},
    **{f"chip_hours_{name}": value * mesh.size for name, value in hours.items()},
    "useful_share_of_peak": plan.operations["useful"] / (step["overlapped"] * mesh.size * chip.peak),
  }


def choose(run: RunConfig, topology: Topology) -> dict[str, int]:
  """The mesh that the run would take on these devices."""
  if run.mesh:
    return run.mesh
  return choose_mesh(topology.devices, run.state_bytes(), run.data.batch_size, topology.chip.memory)


def mesh_choices(run: RunConfig, topology: Topology) -> list[dict[str, int]]:
  """Meshes worth trying: fsdp groups of up to 64 devices, no tensor parallelism.

  Towers of this size gain nothing from splitting a matrix product, which costs two all-reduces of activations a block.
  """
  return [
    sizes
    for sizes in possible_meshes(topology.devices)
    if sizes["tensor"] == 1
    and sizes["fsdp"] in (1, 4, 8, 16, 32, 64)
    and run.data.batch_size % len(topology.devices) == 0
  ]
