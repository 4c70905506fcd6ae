"""Estimates a run on devices that need not be present: compiles its step for them, counts, and prices at peak rates."""

import collections
import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fgclip_jax.data.packing import Layout
from fgclip_jax.data.record import MAX_NEGATIVES
from fgclip_jax.data.rows import best_fit, count_rows
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.plan.hardware import GIB, Topology
from fgclip_jax.plan.hlo import KINDS, Collective, HloProgram
from fgclip_jax.plan.jaxpr import matrix_operations
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.flops import count_flops
from fgclip_jax.train.mesh import batch_sharding, choose_mesh, data_shards, param_sharding, possible_meshes
from fgclip_jax.train.optimizer import freezes
from fgclip_jax.train.step import make_step

PATCH_FILL = 0.95  # the share of its patch budget that a picture is assumed to have


@dataclasses.dataclass(frozen=True)
class Captions:
  """What is assumed about the texts; the defaults are FG-CLIP's published data (arXiv 2505.05071).

  Attributes:
    long, short, region: mean tokens of a caption, with both ends.
    boxes: mean boxes per image, of which a run takes at most its `data.boxes`.
    hard_share: the share of boxes with hard negatives, ten each.
    fill: the share of a packed row that holds tokens.
  """

  long: int = 130
  short: int = 15
  region: int = 15
  boxes: float = 3.3
  hard_share: float = 0.025
  fill: float = 0.95

  def __post_init__(self):
    for name in ("long", "short", "region"):
      if not 2 <= getattr(self, name) <= 2**20:
        raise ValueError(
          f"--{name}_tokens must lie in 2..{2**20} (start and end of text count), got {getattr(self, name)}"
        )
    if not 0 <= self.boxes <= 2**10:
      raise ValueError(f"--boxes_per_image must lie in 0..{2**10}, got {self.boxes}")
    if not 0 <= self.hard_share <= 1:
      raise ValueError(f"--hard_share must lie in 0..1, got {self.hard_share}")


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


def caption_lengths(layout: Layout, images: int, captions: Captions) -> tuple[list[int], list[int]]:
  """The tokens of each short-table and each long-table caption of a shard, by the assumed means.

  Where padding is read (`layout.pad_id`) all captions are as long as their tables.
  """
  most = {long: layout.max_length(long) for long in (False, True)}
  short, region, long = captions.short, captions.region, captions.long
  if layout.pad_id is not None:
    short, region, long = most[False], most[False], most[True]
  regions, hard = region_counts(layout, images, captions)
  lengths = [min(short, most[False])] * images + [min(region, most[False])] * (regions + hard * (1 + MAX_NEGATIVES))
  return lengths, [min(long, most[True])] * (images if layout.long_length else 0)


def region_counts(layout: Layout, images: int, captions: Captions) -> tuple[int, int]:
  """The boxes of a shard, and those with hard negatives."""
  boxes = round(images * min(captions.boxes, layout.boxes))
  return boxes, round(boxes * captions.hard_share)


def row_budget(layout: Layout, images: int, captions: Captions) -> int:
  """Rows of text for a shard of `images`: its tokens over the assumed fill, or a row for each caption."""
  short, long = caption_lengths(layout, images, captions)
  if not layout.packed:
    return len(short) + len(long)
  if layout.pad_id is not None:
    return count_rows(best_fit(short + long, layout.row_length))
  return math.ceil((sum(short) + sum(long)) / (captions.fill * layout.row_length))


def abstract_batch(
  layout: Layout, shards: int, images: int, rows: int, image_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch's shapes and dtypes on the devices; `images` and `rows` are per shard. Keys as in docs/design.md."""
  boxes, text = layout.boxes, (rows, layout.row_length)
  shapes = {
    "image": ((images, image_size, image_size, 3), jnp.uint8),
    "boxes": ((images, boxes, 4), jnp.float32),
    **{key: (text, jnp.int32) for key in ("tokens", "segment", "position")},
    **{key: ((images,), jnp.int32) for key in ("box_count", "short_eot", "long_eot", "record")},
    **{key: ((images, boxes), jnp.int32) for key in ("region_eot", "region_caption")},
    "hard_box": ((images * boxes,), jnp.int32),
    "hard_eot": ((images * boxes, 1 + MAX_NEGATIVES), jnp.int32),
  }
  if layout.patches:
    del shapes["image"]
    slots, values, most = patch_slots(layout, images), layout.patches.patch_values, layout.patches.budgets[-1]
    shapes |= {
      "patches": ((*slots, values), jnp.uint8),
      "patch_segment": (slots, jnp.int32),
      "patch_place": ((*slots, 4), jnp.int32),
      "patch_slot": ((images, most), jnp.int32),
      "image_grid": ((images, 2), jnp.int32),
    }
  return {key: jax.ShapeDtypeStruct((shards, *shape), dtype) for key, (shape, dtype) in shapes.items()}


def assumed_batch(
  layout: Layout, shards: int, images: int, rows: int, image_size: int, captions: Captions
) -> dict[str, np.ndarray]:
  """A batch with captions of the assumed lengths, for counting operations: every shard alike, without contents."""
  short, long = caption_lengths(layout, images, captions)
  lengths = np.asarray(short + long)
  within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  table = np.repeat([0] * len(short) + [layout.short_length] * len(long), lengths)
  regions, hard = region_counts(layout, images, captions)

  def lay(values, shape, free):  # the first places are taken, the others are free
    flat = np.full(math.prod(shape), free, np.int32)
    flat[: len(values)] = values
    return flat.reshape(shape)

  text = (rows, layout.row_length)  # in which row a caption stands is not counted
  shard = {
    "segment": lay(np.repeat(np.arange(1, len(lengths) + 1), lengths), text, 0),
    "position": lay(within + table, text, 0),
    "short_eot": np.zeros(images, np.int32),
    "long_eot": np.zeros(images if long else 0, np.int32),
    "region_eot": lay([0] * regions, (images, layout.boxes), -1),
    "hard_eot": lay([0] * (hard * (1 + MAX_NEGATIVES)), (images * layout.boxes, 1 + MAX_NEGATIVES), -1),
    "boxes": np.broadcast_to(np.float32(0), (images, layout.boxes, 4)),
    "image": np.broadcast_to(np.uint8(0), (images, image_size, image_size, 3)),
  }
  if layout.patches:
    most, slots = layout.patches.budgets[-1], patch_slots(layout, images)
    mine = min(round(PATCH_FILL * most), math.prod(slots) // images)
    del shard["image"]
    shard["patch_segment"] = lay(np.repeat(np.arange(1, images + 1), mine), slots, 0)
    shard["patch_slot"] = np.where(np.arange(most) < mine, 0, -1)[None].repeat(images, 0)
  return {key: np.broadcast_to(value, (shards, *value.shape)) for key, value in shard.items()}


def patch_slots(layout: Layout, images: int) -> tuple[int, int]:
  """Rows of patches for a shard of `images`, and the patches of a row: as many slots as they may have patches."""
  assert layout.patches is not None
  most, length = layout.patches.budgets[-1], layout.patches.length
  return (math.ceil(images * most / length), length) if layout.packed else (images, most)


def estimate_step(
  run: RunConfig,
  topology: Topology,
  mesh: Mesh,
  captions: Captions = Captions(),
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
