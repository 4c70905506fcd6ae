"""What several processes hold is read once: one replica of an array reads it, and sends it to the others.

Nothing may be sent before every process has read its part well: one that cannot read would leave the others waiting in
an exchange. So reading (`choose_readers` says by which devices) and sending (`broadcast`) are apart, and the processes
agree in between.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_GROUP_BYTES = 2**28  # of a device's shards that are sent together: what sending takes beside the state itself


def choose_readers(wanted: Any) -> Any:
  """The shardings to read arrays with, so that no part of an array is read by more than one process.

  An array has a replica for each place on the mesh axes that its sharding leaves out. One of these reads it: not the
  same for all arrays, but so that all processes read about as many bytes. An array whose replicas are each within a
  process is left to that process, which reads once for all of its devices.

  Args:
    wanted: a tree of shapes with shardings.

  Returns:
    The same tree, with the sharding over one replica's devices where several processes hold the same.
  """
  leaves, structure = jax.tree.flatten(wanted)
  chosen = {i: leaf.sharding for i, leaf in enumerate(leaves) if isinstance(leaf.sharding, NamedSharding)}
  loads = np.zeros(1 + max((_processes(each.mesh).max() for each in chosen.values()), default=0), np.int64)
  for i in sorted(chosen, key=lambda i: -math.prod(leaves[i].shape)):  # the largest first, for even loads
    reader = _reader(leaves[i].shape, leaves[i].dtype.itemsize, chosen[i], loads)
    leaves[i] = jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype, sharding=reader)
  return jax.tree.unflatten(structure, leaves)


def _reader(shape: tuple[int, ...], itemsize: int, sharding: NamedSharding, loads: np.ndarray) -> NamedSharding:
  """The sharding over the replica whose busiest process reads least so far; adds what each reads to its load."""
  mesh, left_out = sharding.mesh, _left_out(sharding)
  assert isinstance(mesh, Mesh)
  places = tuple(mesh.shape[axis] for axis in left_out)
  # [replica, part]: which process holds a part of a replica
  axes = [mesh.axis_names.index(axis) for axis in left_out]
  holders = np.moveaxis(_processes(mesh), axes, range(len(axes))).reshape(math.prod(places), -1)
  if (holders == holders[0]).all():
    return sharding
  replica = int(loads[holders].max(axis=1).argmin())
  np.add.at(loads, holders[replica], math.prod(sharding.shard_shape(shape)) * itemsize)
  at = dict(zip(left_out, map(int, np.unravel_index(replica, places)), strict=True))
  kept = tuple(slice(at[axis], at[axis] + 1) if axis in at else slice(None) for axis in mesh.axis_names)
  return NamedSharding(Mesh(mesh.devices[kept], mesh.axis_names, axis_types=mesh.axis_types), sharding.spec)


@functools.lru_cache(maxsize=8)
def _processes(mesh: Mesh) -> np.ndarray:
  """The process of each device of a mesh."""
  return np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)


def _left_out(sharding: NamedSharding) -> tuple[str, ...]:
  """The mesh axes along which an array is replicated."""
  used = {axis for part in sharding.spec if part for axis in (part if isinstance(part, tuple) else (part,))}
  return tuple(axis for axis in sharding.mesh.axis_names if axis not in used)


def broadcast(read: Any, wanted: Any) -> Any:
  """Sends what one replica has read to the others, bit for bit; all processes call it together.

  Bounded memory beside the state: arrays are sent in groups, and what was read of a group is freed.

  Args:
    read: a tree of arrays, laid out as `choose_readers` says.
    wanted: the tree of shapes with shardings that it was asked for.

  Returns:
    The arrays, laid out as wanted; those that lay so already are the same ones.
  """
  arrays, structure = jax.tree.flatten(read)
  targets = [leaf.sharding for leaf in jax.tree.leaves(wanted)]
  group: list[int] = []
  size = 0
  for i, (array, target) in enumerate(zip(arrays, targets, strict=True)):
    if array.sharding.device_set == target.device_set:
      continue
    bytes_here = math.prod(target.shard_shape(array.shape)) * array.dtype.itemsize
    if group and size + bytes_here > _GROUP_BYTES:
      _send(arrays, targets, group)
      group, size = [], 0
    group.append(i)
    size += bytes_here
  if group:
    _send(arrays, targets, group)
  return jax.tree.unflatten(structure, arrays)


def _send(arrays: list[jax.Array], targets: list[NamedSharding], group: list[int]) -> None:
  """Replaces the arrays of a group by what all devices of their targets have got."""
  wanted = [(arrays[i].shape, targets[i]) for i in group]

  def add(stacks: list[jax.Array]) -> list[jax.Array]:
    return [_sum_replicas(stack, shape, target) for stack, (shape, target) in zip(stacks, wanted, strict=True)]

  stacks = [_stack_replicas(arrays[i], targets[i]) for i in group]
  sent = jax.block_until_ready(jax.jit(add, out_shardings=[target for _, target in wanted])(stacks))
  for i, array in zip(group, sent, strict=True):
    arrays[i].delete()
    arrays[i] = array


def _stack_replicas(array: jax.Array, target: NamedSharding) -> jax.Array:
  """All replicas, one after another along the first axis: the one that was read, and zeros for the others.

  A device's shard of this is as large as its shard of the array, so that what was read is not copied.
  """
  shape, part_shape = (each or (1,) for each in (array.shape, target.shard_shape(array.shape)))
  read = {shard.device: shard.data for shard in array.addressable_shards}
  parts = [
    read[device].reshape(part_shape) if device in read else jnp.zeros(part_shape, array.dtype, device=device)
    for device in target.addressable_devices
  ]
  replicas = math.prod(target.mesh.shape[axis] for axis in _left_out(target))
  sharding = NamedSharding(target.mesh, _stack_spec(target))
  return jax.make_array_from_single_device_arrays((replicas * shape[0], *shape[1:]), sharding, parts)


def _stack_spec(target: NamedSharding) -> PartitionSpec:
  first, *rest = target.spec or (None,)
  split = first if isinstance(first, tuple) else () if first is None else (first,)
  return PartitionSpec((*_left_out(target), *split), *rest)


def _sum_replicas(stack: jax.Array, shape: tuple[int, ...], target: NamedSharding) -> jax.Array:
  """The one replica of a stack that was read: as all others are zeros, the sum of their bits as integers."""
  left_out, dtype = _left_out(target), stack.dtype

  def add(part: jax.Array) -> jax.Array:
    if dtype == jnp.bool_:
      words = part.astype(jnp.uint8)
    else:
      words = jax.lax.bitcast_convert_type(part, jnp.dtype(f"uint{8 * dtype.itemsize}"))
    # in 32 bits at least, as not every kind of device adds shorter integers of other devices
    wide = words if dtype.itemsize >= 4 else words.astype(jnp.uint32)
    total = jax.lax.psum(wide, left_out).astype(words.dtype)
    whole = total.astype(dtype) if dtype == jnp.bool_ else jax.lax.bitcast_convert_type(total, dtype)
    return whole.reshape(target.shard_shape(shape))

  return jax.shard_map(add, mesh=target.mesh, in_specs=_stack_spec(target), out_specs=target.spec)(stack)
