"""The device mesh, and how parameters, activations and batches are sharded over it.

Axes: `data` replicates the parameters, `fsdp` splits parameters and optimizer state, both split the batch; `tensor`
splits attention heads and the hidden layers of the MLPs.
"""

import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fgclip_jax.data.loader import Repeats
from fgclip_jax.data.patch_rows import pad_patch_rows
from fgclip_jax.models.params import Params, flatten, unflatten
from fgclip_jax.train.distributed import agree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
TEXT_ROWS = ("tokens", "segment", "position")  # the arrays of a batch that hold text, [G, R, L]
PATCH_ROWS = ("patches", "patch_segment", "patch_place", "patch_slot")  # those that hold patches of pictures

# the first pattern found in a parameter's name decides; an axis that does not divide a dimension is left out. Block
# parameters are stacked, [depth, in, out]. `query key value up` split their outputs over `tensor` and `out down` their
# inputs, so that a pair of them needs one all-reduce (Megatron-LM, arXiv 1909.08053 section 3)
SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r"blocks/.*(query|key|value|up)/kernel", PartitionSpec(None, "fsdp", "tensor")),
  (r"blocks/.*(out|down)/kernel", PartitionSpec(None, "tensor", "fsdp")),
  (r"blocks/.*(query|key|value|up)/bias", PartitionSpec(None, "tensor")),
  (r"(conv\d|shortcut)/kernel", PartitionSpec(None, None, None, "fsdp")),  # the outputs; of stacked blocks, the inputs
  (r"(pool|_pooling|_head)/(query|key|value|mlp/up)/kernel", PartitionSpec("fsdp", "tensor")),
  (r"(_pooling|_head)/(out|mlp/down)/kernel", PartitionSpec("tensor", "fsdp")),
  (r"token_embedding", PartitionSpec("fsdp", None)),  # by rows: split along its width, XLA would gather every token
  (r"(patch_embedding|_projection)/kernel", PartitionSpec("fsdp", None)),
  (r"", PartitionSpec()),
)

_STATE_SHARE = 1 / 16  # of a device's memory: parameters and optimizer state that take more are split further
_LARGEST_FSDP = 16  # over more devices, shards are smaller than a TPU's tiles, and XLA all-reduces whole weights
_LEAST_MEMORY = 16 * 2**30  # bytes of the smallest accelerators in use


# ---- the mesh's shape


def parse_mesh(text: str) -> dict[str, int] | None:
  """Reads `config.mesh`: `auto`, which is None, or sizes of axes as in `data=32,fsdp=8,tensor=1`.

  Raises:
    ValueError: neither of them.
  """
  if text == "auto":
    return None
  sizes: dict[str, int] = {}
  for part in text.split(","):
    axis, _, size = part.strip().partition("=")
    if axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
      raise ValueError(
        f"config.mesh must be 'auto', or sizes of the axes {', '.join(AXES)} as in 'data=32,fsdp=8,tensor=1' (data is "
        f"what the others leave, fsdp and tensor are 1 unless given), got {text!r}"
      )
    sizes[axis] = int(size)
  return sizes


def mesh_text(sizes: Any) -> str:
  """Axis sizes as text that `parse_mesh` reads."""
  return ",".join(f"{axis}={sizes[axis]}" for axis in AXES)


def choose_mesh(devices: Any, state_bytes: int, batch_size: int, memory_bytes: int | None = None) -> dict[str, int]:
  """A good mesh: small groups that share the state (`fsdp`) inside data parallelism.

  The groups are the smallest in which the state takes no more than a sixteenth of each device's memory, of at most 16
  devices, and stay within a slice or a node, whose network is fast. Simulated devices (CPU) share nothing.

  Args:
    devices: present ones, or those of a topology.
    state_bytes: of parameters and optimizer state together.
    batch_size: images of a global batch.
    memory_bytes: of one device; None takes 16 GiB.

  Returns:
    The size of every axis.

  Raises:
    ValueError: the batch does not divide over the devices.
  """
  allowed = (memory_bytes or _LEAST_MEMORY) * _STATE_SHARE
  most = 1 if devices[0].platform == "cpu" else _LARGEST_FSDP
  choices = [sizes for sizes in possible_meshes(devices) if sizes["tensor"] == 1 and sizes["fsdp"] <= most]
  chosen = next((sizes for sizes in choices if state_bytes / sizes["fsdp"] <= allowed), choices[-1])
  check_batch(chosen, batch_size, devices)
  return chosen


def local_memory() -> int | None:
  """Bytes of a device's memory, as the process with the least sees it; None where a device does not say (CPU)."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return agree(stats.get("bytes_limit", 0), min) or None


def check_memory(mesh: Mesh, state_bytes: int, memory_bytes: int | None = None) -> None:
  """Raises a ValueError where a device's part of the state alone is larger than its memory.

  Args:
    mesh: the devices.
    state_bytes: of parameters and optimizer state together.
    memory_bytes: of one device; None: devices share the memory of their machine (CPU).
  """
  needed, place = state_bytes / (mesh.shape["fsdp"] * mesh.shape["tensor"]), "a device"
  if memory_bytes is None:
    needed, place = needed * len(mesh.local_devices), "this machine"
    memory_bytes = agree(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), min)
  if needed > memory_bytes:
    raise ValueError(
      f"the parameters and the optimizer's state take {needed / 2**30:,.0f} GiB of the memory of {place}, which has "
      f"{memory_bytes / 2**30:,.0f} GiB: take a smaller model, or more devices (mesh.fsdp)"
    )


def make_mesh(sizes: dict[str, int], devices: Any = None) -> Mesh:
  """A mesh with the axes `data`, `fsdp`, `tensor`; the last two stay within a slice or a node.

  Args:
    sizes: of each axis; `data` is what the others leave, and they are 1, unless given.
    devices: all devices by default; those of a topology (`jax.experimental.topologies`) do as well.

  Raises:
    ValueError: an unknown axis, or sizes that do not fit the number of devices, their slices or their torus; lists the
      sizes that do.
  """
  devices = list(jax.devices() if devices is None else devices)
  unknown = set(sizes) - set(AXES)
  if unknown:
    raise ValueError(f"mesh has the axes {AXES}, not {sorted(unknown)}")
  rest = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
  full = {"data": sizes.get("data", max(len(devices) // max(rest, 1), 1)), **{a: sizes.get(a, 1) for a in AXES[1:]}}
  if min(full.values()) < 1:
    raise ValueError(f"mesh sizes must be positive, got {full}")
  arranged = _arrange(full, devices)
  if isinstance(arranged, str):
    raise ValueError(
      f"a mesh of {mesh_text(full)} does not fit {len(devices)} devices ({devices[0].device_kind}): {arranged}; "
      f"possible: {_listed(possible_meshes(devices))}"
    )
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def possible_meshes(devices: Any) -> list[dict[str, int]]:
  """Every mesh that these devices can form: by `tensor`, then by `fsdp`, ascending."""
  devices = list(devices)
  group = len(_fast_groups(devices)[0])
  divisors = [size for size in range(1, group + 1) if group % size == 0]
  meshes = [
    {"data": len(devices) // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
    for tensor in divisors
    for fsdp in divisors
    if group % (fsdp * tensor) == 0
  ]
  return [sizes for sizes in meshes if not isinstance(_arrange(sizes, devices), str)]


def check_batch(sizes: Any, batch_size: int, devices: Any, micro_batches: int = 1) -> None:
  """Raises a ValueError unless a global batch divides over the data shards and their micro-batches.

  The message lists batch sizes that this mesh takes, and meshes that take this batch size.

  Args:
    sizes: of the mesh's axes.
    batch_size: images of a global batch.
    devices: the mesh's.
    micro_batches: the number of parts that a data shard's images are divided into.
  """
  parts = sizes["data"] * sizes["fsdp"] * micro_batches
  if batch_size % parts == 0:
    return
  fits = [m for m in possible_meshes(devices) if batch_size % (m["data"] * m["fsdp"] * micro_batches) == 0]
  raise ValueError(
    f"config.data.batch_size {batch_size} must divide over {sizes['data'] * sizes['fsdp']} data shards"
    + (f" x {micro_batches} micro-batches" if micro_batches > 1 else "")
    + f": take {max(batch_size // parts, 1) * parts}"
    + (f" or {(batch_size // parts + 1) * parts}" if batch_size > parts else "")
    + (f", or a config.mesh of {_listed(fits)}" if fits else "")
  )


def _listed(meshes: list[dict[str, int]], most: int = 12) -> str:
  shown = [repr(mesh_text(sizes)) for sizes in meshes[:most]]
  return ", ".join(shown) + (f" and {len(meshes) - most} more" if len(meshes) > most else "")


def _fast_groups(devices: list[Any]) -> list[list[Any]]:
  """Devices by the fast network that joins them: a TPU slice, a node of GPUs; all of them elsewhere."""
  # a process has all GPUs of its node, or one of them; with one each, JAX counts the node as a slice
  by_node = devices[0].platform in ("gpu", "cuda", "rocm") and len({d.process_index for d in devices}) < len(devices)

  def group(device):
    return device.process_index if by_node else getattr(device, "slice_index", 0)

  groups: dict[int, list[Any]] = {}
  for device in devices:
    groups.setdefault(group(device), []).append(device)
  if len({len(members) for members in groups.values()}) > 1:
    raise ValueError(f"slices or nodes have different numbers of devices: {[len(g) for g in groups.values()]}")
  return [groups[key] for key in sorted(groups)]


def _arrange(sizes: dict[str, int], devices: list[Any]) -> np.ndarray | str:
  """The devices as an array with the mesh's axes; or a text that says why they cannot be."""
  if math.prod(sizes.values()) != len(devices):
    return f"it takes {math.prod(sizes.values())}"
  groups = _fast_groups(devices)
  if sizes["data"] % len(groups):
    return f"fsdp and tensor must lie within a slice or a node, of which there are {len(groups)}: they must divide data"
  shape = (sizes["data"] // len(groups), sizes["fsdp"], sizes["tensor"])
  types = (AxisType.Auto,) * len(AXES)
  try:
    blocks = [jax.make_mesh(shape, AXES, axis_types=types, devices=group).devices for group in groups]
  except NotImplementedError:  # JAX's, where an axis is no product of the torus's axes
    return "its axes are no products of the torus's axes"
  return np.concatenate(blocks)  # along `data`: its all-reduce of gradients alone crosses the slow network


# ---- shardings


def param_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """The sharding of the parameter of this name and shape, by `SHARDING_RULES`."""
  spec = next(spec for pattern, spec in SHARDING_RULES if re.search(pattern, name))
  fits = [
    axis if axis is not None and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False)
  ]
  return NamedSharding(mesh, PartitionSpec(*fits))


def shard_params(params: Params, mesh: Mesh) -> Any:
  """The sharding of every parameter, as a tree like `params`."""
  return unflatten({name: param_sharding(name, leaf.shape, mesh) for name, leaf in flatten(params).items()})


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over `data` and `fsdp` along their first axis."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def activation_sharding(mesh: Mesh) -> NamedSharding | None:
  """The sharding of activations [B, T, heads, channels]: B over the batch axes, heads over `tensor`."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, "tensor", None)) if mesh.size > 1 else None


def data_shards(mesh: Mesh) -> int:
  """G, the number of parts that a global batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def local_shards(mesh: Mesh) -> tuple[int, ...]:
  """The data shards that this process feeds, ascending; on a torus they need not be neighbours.

  Two processes feed the same shard where devices of both hold it, as with `tensor` over several hosts.
  """
  rows = mesh.devices.reshape(data_shards(mesh), -1)
  here = jax.process_index()
  return tuple(i for i, row in enumerate(rows) if any(device.process_index == here for device in row))


def pad_rows(batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
  """The batch with empty rows of text added up to `rows` per shard; the positions of captions stay valid."""
  missing = rows - batch["tokens"].shape[1]
  return batch | {key: np.pad(batch[key], ((0, 0), (0, missing), (0, 0))) for key in TEXT_ROWS}


def agree_on_batch(
  rows: int, repeats: Repeats, patches: tuple[int, int, int] = (0, 0, 0)
) -> tuple[int, bool, tuple[int, int, int]]:
  """What all processes' parts of a batch need: rows of text, whether a record is in it more than once, and patches.

  `patches`: rows of them, patches per row, and the budget of a picture; zeros where there are none.
  """

  def split(value: int) -> tuple[int, ...]:
    return value >> 88, value >> 64 & 0xFFFFFF, value >> 40 & 0xFFFFFF, value >> 2 & (1 << 38) - 1, value & 3

  def join(*values: int) -> int:
    packed, length, budget, rows, repeats = values
    return packed << 88 | length << 64 | budget << 40 | rows << 2 | repeats

  def combine(values: list[int]) -> int:
    *sizes, found = zip(*map(split, values), strict=True)
    return join(*map(max, sizes), min(sum(sorted(found)[-2:]), Repeats.SOME))

  *agreed, rows, found = split(agree(join(*patches, rows, repeats), combine))
  return rows, found == Repeats.SOME, (agreed[0], agreed[1], agreed[2])


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh, repeats: Repeats = Repeats.NONE) -> dict[str, jax.Array]:
  """This process's part of a batch, [its data shards, ...], as global arrays, [G, ...].

  Where the batch holds a record more than once, it gets the key `repeated_record`, by which the losses know them; the
  step is compiled once more for it.
  """
  sharding = batch_sharding(mesh)
  row = {shard: i for i, shard in enumerate(local_shards(mesh))}

  def put(value: np.ndarray) -> jax.Array:
    def part(index):  # of one device: index[0] is its data shard
      start = row[index[0].start or 0]
      return value[start : start + 1]

    return jax.make_array_from_callback((data_shards(mesh), *value.shape[1:]), sharding, part)

  has_patches = "patches" in batch
  last = (*TEXT_ROWS, *PATCH_ROWS) if has_patches else TEXT_ROWS
  with jax.transfer_guard("allow"):  # with several processes, JAX counts these transfers as implicit
    # the text comes last: its processes wait for each other to agree, while the images are already being transferred
    arrays = {key: put(value) for key, value in batch.items() if key not in last}
    # each process chose the row buckets that its captions and patches need
    patches = (*batch["patches"].shape[1:3], batch["patch_slot"].shape[2]) if has_patches else (0, 0, 0)
    rows, repeated, patches = agree_on_batch(batch["tokens"].shape[1], repeats, patches)
    batch = pad_rows(batch, rows)
    if has_patches:
      batch = pad_patch_rows(batch, *patches)
    if repeated:
      arrays["repeated_record"] = arrays["record"]
    return arrays | {key: put(batch[key]) for key in last}
