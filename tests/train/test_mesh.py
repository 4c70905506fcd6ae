"""The mesh, and where parameters and batches lie."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from fgclip_jax.data.loader import Repeats
from fgclip_jax.data.patch_rows import pack_patches
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.models.config import PRESETS, preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.train import mesh as mesh_module
from fgclip_jax.train.mesh import (
  batch_sharding,
  check_batch,
  check_memory,
  choose_mesh,
  data_shards,
  local_shards,
  make_mesh,
  mesh_text,
  pad_rows,
  param_sharding,
  parse_mesh,
  possible_meshes,
  shard_params,
  to_devices,
)
from tests.helpers.compiling import tpus

GIB = 2**30


def described(platform: str, processes: int, each: int, slices: int = 1) -> list:
  """Devices that are only described, in the order of their processes; without a torus."""
  return [
    types.SimpleNamespace(
      id=i,
      process_index=i // each,
      platform=platform,
      device_kind="a device",
      slice_index=i * slices // processes // each,
    )
    for i in range(processes * each)
  ]


# ---- its shape


@pytest.mark.parametrize("sizes, memory", [({}, 4 * GIB), ({"fsdp": 2}, 2 * GIB), ({"fsdp": 2, "tensor": 2}, GIB)])
def test_a_state_that_does_not_fit_is_refused(sizes, memory):
  mesh = make_mesh(sizes)
  check_memory(mesh, 4 * GIB, memory)
  with pytest.raises(ValueError, match="take 4 GiB of the memory of a device" if not sizes else "smaller model"):
    check_memory(mesh, 4 * GIB + 8, memory)


def test_simulated_devices_share_the_memory_of_the_machine():
  check_memory(make_mesh({}), 1 << 20)
  with pytest.raises(ValueError, match="of the memory of this machine, which has .* GiB: take a smaller model"):
    check_memory(make_mesh({}), 1 << 60)


@given(st.fixed_dictionaries({}, optional={axis: st.integers(1, 1024) for axis in ("data", "fsdp", "tensor")}))
def test_the_text_of_a_mesh_is_read_back(sizes):
  text = ",".join(f"{axis}={size}" for axis, size in sizes.items())
  if sizes:
    assert parse_mesh(text) == sizes
  full = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
  assert parse_mesh(mesh_text(full)) == full
  assert parse_mesh("auto") is None


@pytest.mark.parametrize(
  "text", ["", "8", "data=8;fsdp=1", "model=8", "data=-1", "data=0", "fsdp=2,fsdp=4", "fsdp=2.0"]
)
def test_texts_that_are_no_mesh(text):
  with pytest.raises(ValueError, match="config.mesh must be 'auto', or sizes of the axes data, fsdp, tensor as in"):
    parse_mesh(text)


def test_sizes_that_are_not_given():
  assert dict(make_mesh({}).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh({"fsdp": 2, "tensor": 2}).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert dict(make_mesh({}, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
  assert data_shards(make_mesh({"fsdp": 2, "tensor": 2})) == 4


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"data": 3}, r"'?data=3,fsdp=1,tensor=1'? does not fit 8 devices \(cpu\): it takes 3; possible: 'data=8,fsdp=1,"),
    ({"data": 16, "fsdp": 2}, "it takes 32; possible: .*'data=2,fsdp=2,tensor=2'"),
    ({"fsdp": 3}, "it takes 6; possible: "),
    ({"data": 0, "fsdp": 8}, "must be positive"),
    ({"model": 8}, r"has the axes .*not \['model'\]"),
  ],
)
def test_impossible_meshes(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(sizes)


@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4, 6]), st.sampled_from(["tpu", "gpu"]), st.data())
def test_fsdp_and_tensor_stay_within_a_slice_or_node(groups, each, platform, data):
  """And every mesh that is listed as possible can be made, of every device once."""
  devices = described(platform, groups, each, slices=groups)
  fast = {device.id: device.id // each for device in devices}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_module.jax, "make_mesh", lambda shape, axes, axis_types, devices: types.SimpleNamespace(
      devices=np.asarray(devices).reshape(shape)))  # fmt: skip
    possible = possible_meshes(devices)
    assert possible[0] == {"data": groups * each, "fsdp": 1, "tensor": 1}
    assert {math.prod(sizes.values()) for sizes in possible} == {groups * each}
    array = mesh_module._arrange(data.draw(st.sampled_from(possible)), data.draw(st.permutations(devices)))
    assert sorted(device.id for device in array.flat) == [device.id for device in devices]
    for row in array:
      assert len({fast[device.id] for device in row.flat}) == 1
    if groups > 1:
      with pytest.raises(ValueError, match=f"must lie within a slice or a node, of which there are {groups}"):
        make_mesh({"fsdp": groups * each}, devices)


def test_nodes_of_gpus():
  one_each = described("gpu", 16, 1, slices=2)  # a process for each GPU: JAX takes nodes for slices
  assert [len(group) for group in mesh_module._fast_groups(one_each)] == [8, 8]
  by_node = described("gpu", 4, 8)
  assert [{d.process_index for d in group} for group in mesh_module._fast_groups(by_node)] == [{0}, {1}, {2}, {3}]
  with pytest.raises(ValueError, match=r"different numbers of devices: \[8, 8, 8, 4\]"):
    make_mesh({}, by_node[:28])


@pytest.mark.parametrize("sizes", [{"fsdp": 16}, {"fsdp": 4, "tensor": 2}])
def test_a_mesh_of_two_slices(sizes):
  devices = tpus("v5e:4x4", slices=2)
  mesh = make_mesh(sizes, devices)
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert mesh.devices.size == 32 and {len(set(block.ravel())) for block in slices} == {1}
  assert slices[0].flat[0] == 0 and slices[-1].flat[0] == 1


def test_a_mesh_that_does_not_lie_on_the_torus():
  devices = tpus("v5p:4x4x2")
  assert dict(make_mesh({"fsdp": 8}, devices).shape) == {"data": 4, "fsdp": 8, "tensor": 1}
  devices = tpus("v5p:8x8x4")
  with pytest.raises(
    ValueError, match="no products of the torus's axes; possible: 'data=256,fsdp=1,tensor=1'"
  ) as caught:
    make_mesh({"data": 16, "fsdp": 16}, devices)
  possible = str(caught.value).partition("possible: ")[2]
  assert "'data=32,fsdp=8,tensor=1'" in possible and "data=16,fsdp=16" not in possible


# ---- the shape that is chosen


def test_the_chosen_mesh_holds_the_state_in_a_small_part_of_the_memory():
  """Sizes as of ViT-L/14@336 with AdamW, 428 M parameters."""
  state = 428_000_000 * 12
  v5e, v5p = tpus("v5e:16x16"), tpus("v5p:8x8x4")
  assert choose_mesh(v5e, state, 61_440, 15 * GIB) == {"data": 32, "fsdp": 8, "tensor": 1}
  assert choose_mesh(v5e, state, 61_440) == {"data": 32, "fsdp": 8, "tensor": 1}  # 16 GiB are assumed
  assert choose_mesh(v5p, state, 61_440, 95 * GIB) == {"data": 256, "fsdp": 1, "tensor": 1}
  assert choose_mesh(v5e, 20 * state, 61_440, 16 * GIB)["fsdp"] == 16  # no more than that
  assert choose_mesh(v5p, 20 * state, 61_440, 16 * GIB)["fsdp"] == 8  # as 16 x 16 does not lie on this torus
  assert choose_mesh(tpus("v5e:4x4", slices=2), 20 * state, 1024)["fsdp"] == 16


@given(st.sampled_from([1, 2, 4]), st.sampled_from([2, 4, 8]), st.integers(1, 10**12), st.integers(1, 200))
def test_the_chosen_mesh_is_the_smallest_group_that_does(nodes, each, state, memory):
  devices = described("gpu", nodes, each)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_module.jax, "make_mesh", lambda shape, axes, axis_types, devices: types.SimpleNamespace(
      devices=np.asarray(devices).reshape(shape)))  # fmt: skip
    sizes = choose_mesh(devices, state, nodes * each * 3, memory * GIB)
  assert math.prod(sizes.values()) == nodes * each and sizes["tensor"] == 1
  assert state / sizes["fsdp"] <= memory * GIB / 16 or sizes["fsdp"] == each
  assert sizes["fsdp"] == 1 or state / (sizes["fsdp"] / 2) > memory * GIB / 16


def test_simulated_devices_share_nothing():
  assert choose_mesh(jax.devices(), 10**15, 16) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_a_batch_that_does_not_divide_is_an_error_with_those_that_do():
  with pytest.raises(
    ValueError, match="batch_size 10 must divide over 8 data shards: take 8 or 16, or a config.mesh of "
  ):
    choose_mesh(jax.devices(), 1, 10)
  with pytest.raises(ValueError) as caught:
    check_batch({"data": 4, "fsdp": 1, "tensor": 2}, 6, jax.devices(), micro_batches=3)
  assert str(caught.value) == (
    "config.data.batch_size 6 must divide over 4 data shards x 3 micro-batches: take 12, or a config.mesh of "
    "'data=2,fsdp=1,tensor=4', 'data=1,fsdp=2,tensor=4', 'data=1,fsdp=1,tensor=8'"
  )
  check_batch({"data": 2, "fsdp": 1, "tensor": 4}, 6, jax.devices(), micro_batches=3)


# ---- where parameters and batches lie


@pytest.mark.parametrize("name", PRESETS)
def test_every_weight_of_every_preset_has_its_place(name):
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  leaves = flatten(abstract_params(preset(name)))
  shardings = flatten(shard_params(abstract_params(preset(name)), mesh))
  assert set(shardings) == set(leaves)
  sizes = dict.fromkeys((True, False), 0)
  for key, leaf in leaves.items():
    parts = np.prod(leaf.shape, dtype=int) // np.prod(shardings[key].shard_shape(leaf.shape), dtype=int)
    sizes[parts > 1] += leaf.size
    if "blocks" in key and key.endswith("kernel"):
      assert parts == 4, key
  # nearly all of the memory is split
  assert sizes[False] < 0.02 * sizes[True] or name in ("tiny", "tiny_resnet", "scenes")


def test_an_axis_that_does_not_divide_is_left_out():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  assert param_sharding("text/token_embedding", (49408, 32), mesh).spec == PartitionSpec("fsdp", None)
  assert param_sharding("text/token_embedding", (49407, 32), mesh).spec == PartitionSpec(None, None)
  assert param_sharding("vision/transformer/blocks/mlp/down/kernel", (2, 64, 31), mesh).spec == PartitionSpec(
    None, "tensor", None
  )
  assert param_sharding("temperature/global", (), mesh).spec == PartitionSpec()


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}, {"data": 8}], ids=str)
def test_batches_are_split_over_data_and_fsdp(sizes):
  mesh = make_mesh(sizes)
  shards = data_shards(mesh)
  rows = np.arange(shards * 3 * 5).reshape(shards, 3, 5)
  batch = {"tokens": rows, "segment": rows + 1, "position": rows + 2, "short_eot": np.arange(2 * shards).reshape(-1, 2)}
  arrays = to_devices(batch, mesh)
  for key, value in batch.items():
    assert arrays[key].sharding.is_equivalent_to(batch_sharding(mesh), value.ndim)
    assert {shard.data.shape for shard in arrays[key].addressable_shards} == {(1, *value.shape[1:])}
    np.testing.assert_array_equal(arrays[key], value)


def test_the_data_shards_of_a_process(monkeypatch):
  """Where fsdp runs along a torus's side, a host's 2 x 2 chips hold pieces of two rows."""
  mesh = make_mesh({"fsdp": 16}, tpus("v5e:16x16"))
  owners = np.vectorize(lambda device: device.process_index)(mesh.devices).ravel()
  fed = []
  for process in range(64):
    monkeypatch.setattr(mesh_module.jax, "process_index", lambda process=process: process)
    shards = local_shards(mesh)
    assert [owners[i] for i in shards] == [process] * 4
    assert shards[3] - shards[0] == 17  # no neighbours
    fed += shards
  assert sorted(fed) == list(range(256))
  # tensor over the chips of four hosts: they feed the same shards
  mesh = make_mesh({"tensor": 16}, tpus("v5e:4x4"))
  for process in range(4):
    monkeypatch.setattr(mesh_module.jax, "process_index", lambda process=process: process)
    assert local_shards(mesh) == (0,)


def test_processes_agree_on_the_rows_of_text(monkeypatch):
  rng = np.random.default_rng(0)
  batch = {key: rng.integers(1, 9, (8, 3, 5)) for key in ("tokens", "segment", "position")} | {"short_eot": np.ones(8)}
  padded = pad_rows(batch, 7)
  for key in ("tokens", "segment", "position"):
    np.testing.assert_array_equal(padded[key][:, :3], batch[key])
    assert padded[key].shape == (8, 7, 5) and not padded[key][:, 3:].any()
  np.testing.assert_array_equal(padded["short_eot"], batch["short_eot"])

  # another process needs four
  monkeypatch.setattr(mesh_module, "agree", lambda value, choose: choose([value, 4 * 4]))
  arrays = to_devices(batch, make_mesh({"data": 8}))
  np.testing.assert_array_equal(arrays["tokens"], jnp.asarray(pad_rows(batch, 4)["tokens"]))
  assert "repeated_record" not in arrays


def test_processes_agree_on_the_patches_of_pictures(monkeypatch):
  """Another process has more rows, shorter ones, and a larger budget; and more rows of text."""
  layout = PatchLayout(8, patch_size=2, row_length=20)
  patches = [np.full((count, 12), count, np.uint8) for count in range(1, 9)]
  batch = pack_patches(patches, [(1, count) for count in range(1, 9)], 8, layout)
  batch |= {key: np.ones((8, 1, 4), np.int32) for key in ("tokens", "segment", "position")}
  sent = []

  def agree(value, choose):
    sent.append(value)
    return choose([value, 3 << 88 | 16 << 64 | 12 << 40 | 2 << 2])

  monkeypatch.setattr(mesh_module, "agree", agree)
  arrays = to_devices(batch, make_mesh({"data": 8}))
  assert len(sent) == 1 and arrays["tokens"].shape == (8, 2, 4)
  assert arrays["patches"].shape == (8, 3, 20, 12) and arrays["patch_slot"].shape == (8, 1, 12)
  for shard, count in enumerate(range(1, 9)):
    slots = np.asarray(arrays["patch_slot"])[shard, 0]
    assert (slots[:count] >= 0).all() and (slots[count:] == -1).all()
    np.testing.assert_array_equal(np.asarray(arrays["patches"])[shard].reshape(60, 12)[slots[:count]], patches[shard])


@pytest.mark.parametrize(
  "flags, repeated", [([0], 0), ([1], 0), ([2], 1), ([0, 1, 0], 0), ([0, 0, 2], 1), ([1, 0, 1], 1), ([2, 2, 2], 1)]
)
def test_processes_agree_on_whether_a_batch_holds_a_record_twice(monkeypatch, flags, repeated):
  """One has replaced a bad record: the others have not. Two have: they may have taken the same one."""
  for own in range(len(flags)):
    others = [(own + 3 * place + 1) * 4 + flag for place, flag in enumerate(flags) if place != own]
    monkeypatch.setattr(mesh_module, "agree", lambda value, choose, others=others: choose([value, *others]))
    rows, found, patches = mesh_module.agree_on_batch(2, Repeats(flags[own]))
    assert found == bool(repeated) and patches == (0, 0, 0)
    assert rows == max([2, *(value // 4 for value in others)])
