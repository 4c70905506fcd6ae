"""What several processes hold is read once and sent to the others, bit for bit."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgclip_jax.train.checkpoints import replicas
from fgclip_jax.train.checkpoints.replicas import broadcast, choose_readers
from fgclip_jax.train.mesh import AXES, make_mesh

SPECS = [(), ("fsdp",), (None, "tensor"), (("fsdp", "tensor"),), ("tensor", "fsdp"), (None, "data")]
DTYPES = ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool"]


class Device(types.SimpleNamespace):
  """A device that is only described."""

  def __hash__(self):
    return self.id


def described_mesh(sizes, processes: int) -> Mesh:
  each = math.prod(sizes) // processes
  devices = [Device(id=i, process_index=i // each, platform="cpu", device_kind="") for i in range(math.prod(sizes))]
  return Mesh(np.array(devices, object).reshape(sizes), AXES)


def shapes(mesh: Mesh, chosen) -> dict[int, jax.ShapeDtypeStruct]:
  return {
    i: jax.ShapeDtypeStruct(
      (16, 8 + 8 * i)[: max(len(spec), dims)], dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )
    for i, (spec, dims, dtype) in enumerate(chosen)
  }


arrays_of_any_kind = st.lists(st.tuples(st.sampled_from(SPECS), st.integers(0, 2), st.sampled_from(DTYPES)), max_size=9)


@settings(deadline=None)
@given(st.permutations([1, 2, 4]), st.sampled_from([1, 2, 4, 8]), arrays_of_any_kind)
def test_each_part_is_read_by_one_process(sizes, processes, chosen):
  wanted = shapes(described_mesh(sizes, processes), chosen)
  for i, asked in choose_readers(wanted).items():
    holders: dict[tuple, set[int]] = {}
    for which, leaf in (("wanted", wanted[i]), ("asked", asked)):
      for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        holders.setdefault((which, str(index)), set()).add(device.process_index)
    parts = {index for _, index in holders}
    assert all(len(holders["asked", index]) == 1 for index in parts)
    assert all(holders["asked", index] <= holders["wanted", index] for index in parts)
    if all(len(holders["wanted", index]) == 1 for index in parts):
      assert asked.sharding == wanted[i].sharding  # the process puts what it reads on all of its devices
    else:
      assert asked.sharding.num_devices == len(parts)


def test_all_processes_read_about_as_much():
  mesh = described_mesh((8, 4, 1), 8)
  wanted = shapes(mesh, [((), 2, "float32"), (("fsdp",), 2, "float32"), ((None, "fsdp"), 2, "bfloat16")] * 40)
  loads = np.zeros(8)
  for leaf in choose_readers(wanted).values():
    for device in leaf.sharding.device_set:
      loads[device.process_index] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  assert loads.sum() == sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
  assert loads.max() < 1.1 * loads.min()


def odd_values(shape, dtype: str, rng) -> np.ndarray:
  """Any bits at all: NaNs with payloads, signalling ones, negative zeros, denormals, infinities."""
  if dtype == "bool":
    return rng.random(shape) < 0.5
  kind = jnp.dtype(dtype)
  bits = rng.integers(0, 256, (*shape, kind.itemsize), np.uint8)
  values = np.ascontiguousarray(bits).view(kind)[..., 0]
  special = {"float32": [0x7F800001, 0xFFC12345, 0x80000000, 1, 0xFF800000]}.get(dtype, [])
  for i, word in enumerate(special[: values.size]):
    values.reshape(-1).view(np.uint32)[i] = word
  return values


def test_what_is_sent_keeps_every_bit(monkeypatch):
  monkeypatch.setattr(replicas, "_GROUP_BYTES", 3000)  # several groups
  mesh, rng = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), np.random.default_rng(0)
  kinds = [(SPECS[i % len(SPECS)], 2, dtype) for i, dtype in enumerate(DTYPES)]
  wanted = shapes(mesh, [*kinds, ((), 0, "float32"), ((), 0, "bool")])
  values = {i: odd_values(leaf.shape, leaf.dtype.name, rng) for i, leaf in wanted.items()}
  # as with a process for each device: one process alone would read for all of its devices
  monkeypatch.setattr(replicas, "_processes", lambda mesh: np.arange(mesh.size).reshape(mesh.devices.shape))
  asked = choose_readers(wanted)
  read = {i: jax.device_put(values[i], asked[i].sharding) for i in asked}
  sent = broadcast(read, wanted)
  for i, array in sent.items():
    assert array.sharding == wanted[i].sharding and array.dtype == wanted[i].dtype
    assert read[i].is_deleted() == (asked[i].sharding != wanted[i].sharding)
    for shard in array.addressable_shards:
      assert np.asarray(shard.data).tobytes() == values[i][shard.index].tobytes(), (wanted[i], shard)


def test_nothing_is_sent_within_one_process():
  wanted = shapes(make_mesh({"data": 4, "fsdp": 2}), [(spec, 2, "float32") for spec in SPECS])
  asked = choose_readers(wanted)
  assert asked == wanted
  read = {i: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding) for i, leaf in asked.items()}
  assert all(array is read[i] for i, array in broadcast(read, wanted).items())
