"""The mesh, and where parameters and batches lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fgclip_jax.models.parameters import abstract_params, flatten
from fgclip_jax.models.presets import PRESETS, preset
from fgclip_jax.train import mesh as mesh_module
from fgclip_jax.train.mesh import batch_sharding, data_shards, make_mesh, pad_rows, place, place_params, to_devices


def test_one_size_is_what_the_others_leave():
  assert dict(make_mesh({"data": -1}).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh({"data": 2, "fsdp": -1, "tensor": 2}).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert dict(make_mesh({"data": -1}, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
  assert data_shards(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})) == 4


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"data": 3}, "does not fit 8 devices"),
    ({"data": 16, "fsdp": -1}, "does not fit 8 devices"),
    ({"data": 0, "fsdp": 8}, "must be positive"),
    ({"data": -1, "fsdp": -1}, "at most one -1"),
    ({"model": 8}, r"has the axes .*not \['model'\]"),
  ],
)
def test_impossible_meshes(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(sizes)


@pytest.mark.parametrize("name", PRESETS)
def test_every_weight_of_every_preset_has_its_place(name):
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  leaves = flatten(abstract_params(preset(name)))
  shardings = flatten(place_params(abstract_params(preset(name)), mesh))
  assert set(shardings) == set(leaves)
  sizes = dict.fromkeys((True, False), 0)
  for key, leaf in leaves.items():
    parts = np.prod(leaf.shape, dtype=int) // np.prod(shardings[key].shard_shape(leaf.shape), dtype=int)
    sizes[parts > 1] += leaf.size
    if "blocks" in key and key.endswith("kernel"):
      assert parts == 4, key
  # nearly all of the memory is split
  assert sizes[False] < 0.02 * sizes[True] or name in ("tiny", "scenes")


def test_an_axis_that_does_not_divide_is_left_out():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  assert place("text/token_embedding", (49408, 32), mesh).spec == PartitionSpec("fsdp", None)
  assert place("text/token_embedding", (49407, 32), mesh).spec == PartitionSpec(None, None)
  assert place("vision/transformer/blocks/mlp/down/kernel", (2, 64, 31), mesh).spec == PartitionSpec(
    None, "tensor", None
  )
  assert place("temperature/global", (), mesh).spec == PartitionSpec()


def test_batches_are_split_over_data_and_fsdp():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  rows = np.arange(4 * 3 * 5).reshape(4, 3, 5)
  batch = {"tokens": rows, "segment": rows + 1, "position": rows + 2, "short_end": np.arange(8).reshape(4, 2)}
  arrays = to_devices(batch, mesh)
  for key, value in batch.items():
    assert arrays[key].sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in arrays[key].addressable_shards} == {(1, *value.shape[1:])}
    np.testing.assert_array_equal(arrays[key], value)


def test_processes_agree_on_the_rows_of_text(monkeypatch):
  rng = np.random.default_rng(0)
  batch = {key: rng.integers(1, 9, (2, 3, 5)) for key in ("tokens", "segment", "position")} | {"short_end": np.ones(2)}
  padded = pad_rows(batch, 7)
  for key in ("tokens", "segment", "position"):
    np.testing.assert_array_equal(padded[key][:, :3], batch[key])
    assert padded[key].shape == (2, 7, 5) and not padded[key][:, 3:].any()
  np.testing.assert_array_equal(padded["short_end"], batch["short_end"])

  # the other process needs four rows
  monkeypatch.setattr(mesh_module.jax, "process_count", lambda: 2)
  monkeypatch.setattr(mesh_module.multihost_utils, "process_allgather", lambda rows: np.stack([rows, np.int32(4)]))
  monkeypatch.setattr(mesh_module.jax, "make_array_from_process_local_data", lambda sharding, value: jnp.asarray(value))
  assert to_devices(batch, make_mesh({"data": 8}))["tokens"].shape == (2, 4, 5)
