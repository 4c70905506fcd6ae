"""Arrays in plain files, one part for each process: what is read is what was written, on any devices, or an error."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.storage import paths
from fgclip_jax.weights.checkpoint_files import shard_files
from fgclip_jax.weights.checkpoint_files.shard_files import Parts, to_host, write_part
from tests.helpers import standin


def sharding(shape: tuple[int, int], *spec) -> NamedSharding:
  devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
  return NamedSharding(jax.sharding.Mesh(devices, ("data", "fsdp")), PartitionSpec(*spec))


def tree(shape=(2, 4)):
  rng = np.random.default_rng(0)
  return {
    "a": {"kernel": jax.device_put(jnp.asarray(rng.normal(size=(8, 6)), jnp.float32), sharding(shape, "fsdp"))},
    "half": jax.device_put(jnp.asarray(rng.normal(size=(4, 4)), jnp.bfloat16), sharding(shape, None, "fsdp")),
    "count": jax.device_put(jnp.int32(7), sharding(shape)),
  }


def wanted(like, shape=(2, 4), spec=()):
  where = sharding(shape, *spec)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where if leaf.ndim else sharding(shape)), like
  )


@pytest.mark.parametrize("every_replica", [False, True])
@pytest.mark.parametrize(
  ("shape", "spec"), [((2, 4), ("fsdp",)), ((1, 1), ()), ((4, 2), ("data", "fsdp")), ((1, 2), ("fsdp",))]
)
def test_what_was_written_is_read_on_any_devices(tmp_path, every_replica, shape, spec):
  values = tree()
  write_part(str(tmp_path), 0, to_host(values, every_replica), {"save": "x", "step": 5})
  for folder in (str(tmp_path), standin.remote(tmp_path)):
    parts = Parts(folder, [0], "x")
    assert parts.notes[0]["step"] == 5
    assert parts.shapes["a/kernel"] == jax.ShapeDtypeStruct((8, 6), jnp.float32)
    back = parts.read(wanted(values, shape, spec))
    for one, two in zip(jax.tree.leaves(values), jax.tree.leaves(back), strict=True):
      assert one.dtype == two.dtype and np.asarray(one).tobytes() == np.asarray(two).tobytes()
      assert two.sharding == sharding(shape, *spec) or not two.ndim


def test_each_value_is_written_once(tmp_path):
  values = tree()
  data, _ = write_part(str(tmp_path), 0, to_host(values, every_replica=True), {})
  assert os.path.getsize(data) == sum(leaf.nbytes for leaf in jax.tree.leaves(values))


def test_parts_of_several_processes_make_the_whole(tmp_path):
  values = tree()
  host = to_host(values, every_replica=False)
  for number in range(2):
    own = {
      name: shard_files.HostArray(
        array.shape,
        {start: piece for i, (start, piece) in enumerate(array.pieces.items()) if i % 2 == number},
        array.dtype,
      )
      for name, array in host.items()
    }
    write_part(str(tmp_path), number, own, {})
  assert shard_files.part_numbers(str(tmp_path)) == [0, 1]
  back = Parts(str(tmp_path), [0, 1]).read(wanted(values))
  jax.tree.map(np.testing.assert_array_equal, values, back)
  with pytest.raises(OSError, match="a part of a/kernel is not here"):
    Parts(str(tmp_path), [0]).read(wanted(values))


def test_another_dtype_is_cast_to(tmp_path):
  values = tree()
  write_part(str(tmp_path), 0, to_host(values, every_replica=False), {})
  halves = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding), wanted({"a": values["a"]})
  )
  back = Parts(str(tmp_path), [0]).read(halves)
  np.testing.assert_array_equal(back["a"]["kernel"], values["a"]["kernel"].astype(jnp.bfloat16))


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "description", "other save"])
def test_damage_is_an_error(tmp_path, damage):
  values = tree()
  data, description = write_part(str(tmp_path), 0, to_host(values, every_replica=False), {"save": "x"})
  with open(data, "rb") as file:
    content = bytearray(file.read())
  if damage == "bit":
    content[len(content) // 2] ^= 1
    paths.write(data, bytes(content))
  elif damage == "cut":
    os.truncate(data, len(content) - 1)
  elif damage == "gone":
    os.remove(data)
  elif damage == "description":
    with open(description, encoding="utf-8") as file:
      found = json.load(file)
    found["arrays"]["a/kernel"]["pieces"] = [{"start": "x"}]
    paths.write(description, json.dumps(found).encode())
  with pytest.raises((OSError, ValueError)):
    Parts(str(tmp_path), [0], "y" if damage == "other save" else "x").read(wanted(values))


def test_a_checkpoint_is_complete_with_its_marker(tmp_path):
  values = tree()
  for step in (3, 7, 9):
    write_part(str(tmp_path / str(step)), 0, to_host(values, every_replica=False), {"save": "x"})
  for step, content in ((3, {"format": 1, "save": "x", "parts": 1}), (7, {"format": 1, "save": "x", "parts": 2})):
    paths.write(str(tmp_path / str(step) / shard_files.MARKER), json.dumps(content).encode())
  (tmp_path / "9" / shard_files.MARKER).write_text('{"format": 1, "sa')  # half written
  assert shard_files.complete_steps(str(tmp_path), "damaged-") == [3, 7]
  (tmp_path / "damaged-3").touch()
  assert shard_files.complete_steps(str(tmp_path), "damaged-") == [7]
  assert shard_files.complete_steps(str(tmp_path / "nothing"), "damaged-") == []
  marker, parts = shard_files.open_parts(str(tmp_path / "3"))
  assert marker["save"] == "x" and set(parts.shapes) == {"a/kernel", "half", "count"}
  with pytest.raises(FileNotFoundError):
    shard_files.open_parts(str(tmp_path / "7"))
  with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
    shard_files.open_parts(str(tmp_path / "9"))
