"""The device mesh, and where parameters and batches lie on it."""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fgclip_jax.models.parameters import Params, flatten, unflatten

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
TEXT_ROWS = ("tokens", "segment", "position")  # the arrays of a batch that hold text, [G, R, L]

# the first pattern found in a parameter's name places it; an axis that does not divide a dimension is left out
PLACEMENT: tuple[tuple[str, PartitionSpec], ...] = (
  (r"blocks/.*(query|key|value|up)/kernel", PartitionSpec(None, "fsdp", "tensor")),
  (r"blocks/.*(out|down)/kernel", PartitionSpec(None, "tensor", "fsdp")),
  (r"blocks/.*(query|key|value|up)/bias", PartitionSpec(None, "tensor")),
  (r"token_embedding", PartitionSpec("fsdp", None)),  # by rows: split along its width, XLA would gather every token
  (r"(patch_embedding|_projection)/kernel", PartitionSpec("fsdp", None)),
  (r"", PartitionSpec()),
)


def make_mesh(sizes: dict[str, int], devices: Any = None) -> Mesh:
  """A mesh with the axes `data`, `fsdp`, `tensor`.

  Args:
    sizes: of each axis; one of them may be -1: what the others leave. Axes not named are 1.
    devices: all devices by default.

  Raises:
    ValueError: an unknown axis, or sizes whose product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  unknown = set(sizes) - set(AXES)
  if unknown:
    raise ValueError(f"mesh has the axes {AXES}, not {sorted(unknown)}")
  shape = [sizes.get(axis, 1) for axis in AXES]
  if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
    raise ValueError(f"mesh sizes must be positive, at most one -1, got {dict(zip(AXES, shape, strict=True))}")
  known = math.prod(size for size in shape if size != -1)
  shape = [len(devices) // known if size == -1 else size for size in shape]
  if math.prod(shape) != len(devices):
    raise ValueError(f"a mesh of {dict(zip(AXES, shape, strict=True))} does not fit {len(devices)} devices")
  return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def place(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """Where the parameter of this name and shape lies."""
  spec = next(spec for pattern, spec in PLACEMENT if re.search(pattern, name))
  fits = [
    axis if axis is not None and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False)
  ]
  return NamedSharding(mesh, PartitionSpec(*fits))


def place_params(params: Params, mesh: Mesh) -> Any:
  """The sharding of every parameter."""
  return unflatten({name: place(name, leaf.shape, mesh) for name, leaf in flatten(params).items()})


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over `data` and `fsdp` along their first axis."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def activation_sharding(mesh: Mesh) -> NamedSharding | None:
  """How activations, [B, T, heads, channels], are split: batch over its axes, heads over `tensor`; None: one device."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, "tensor", None)) if mesh.size > 1 else None


def data_shards(mesh: Mesh) -> int:
  """G: into how many parts a global batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def pad_rows(batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
  """The batch with empty rows of text added up to `rows` per shard; ends of captions stay where they are."""
  missing = rows - batch["tokens"].shape[1]
  return batch | {key: np.pad(batch[key], ((0, 0), (0, missing), (0, 0))) for key in TEXT_ROWS}


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's part of a batch as global arrays."""
  sharding = batch_sharding(mesh)
  place_all = functools.partial(jax.make_array_from_process_local_data, sharding)
  with jax.transfer_guard("allow"):  # with several processes JAX takes these transfers for implicit ones
    # the text last: where processes have to agree, they wait for the devices, and the images are on their way by then
    arrays = {key: place_all(value) for key, value in batch.items() if key not in TEXT_ROWS}
    if jax.process_count() > 1:
      counts = multihost_utils.process_allgather(np.asarray(batch["tokens"].shape[1], np.int32))
      batch = pad_rows(batch, int(np.max(counts)))  # each process took the budget that its own captions need
    return arrays | {key: place_all(batch[key]) for key in TEXT_ROWS}
