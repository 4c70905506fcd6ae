"""Two processes: they restore the same step, whatever one of them has lost, and read what both hold once."""

import os
import socket
import subprocess
import sys

import pytest

# The arguments: this process, the coordinator, the workdirs, and a folder that only this process uses as its disk.
PROCESS = """
import os, shutil, sys
import jax, numpy as np
from fgclip_jax.train.distributed import agree, start
index, coordinator, orbax, plain, disk = int(sys.argv[1]), *sys.argv[2:]
peers = start(coordinator, 2, index, heartbeat_timeout=60.0)
import tests.helpers.standin
from jax.sharding import NamedSharding, PartitionSpec
from fgclip_jax.storage import paths
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.checkpoints.orbax_store import OrbaxStore
from fgclip_jax.train.checkpoints.settings import CheckpointConfig, Keep
from fgclip_jax.train.checkpoints.shard_store import ShardStore
from fgclip_jax.train.mesh import make_mesh
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.state import make_state

mesh = make_mesh({mesh}, jax.devices())
abstract = jax.eval_shape(lambda: make_state(make_optimizer(OptimizerConfig()), {{
  "kernel": jax.numpy.zeros((8, 600)), "temperature": jax.numpy.zeros(())}}))
shardings = jax.tree.map(
  lambda leaf: NamedSharding(mesh, PartitionSpec("fsdp") if leaf.shape[:1] == (8,) else PartitionSpec()), abstract)

def value(step, leaf):
  return (np.random.default_rng(step).normal(size=leaf.shape) * 9).astype(leaf.dtype)

def state(step):
  make = lambda leaf, where: jax.make_array_from_callback(leaf.shape, where, lambda at: value(step, leaf)[at])
  return jax.tree.map(make, abstract, shardings)

reads = []  # of this process from the workdir: the bytes of each, None for one that has failed

def recorded(load):
  def load_and_record(store, wanted):
    reads.append(None)
    found = load(store, wanted)
    reads[-1] = sum(part.data.nbytes for leaf in jax.tree.leaves(found) for part in leaf.addressable_shards)
    return found
  return load_and_record

for store in (OrbaxStore, ShardStore):
  store.load = recorded(store.load)

def damage(folder):  # one array
  files = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
  with open(max(files, key=os.path.getsize), "r+b") as file:
    if folder.endswith("params"):
      file.truncate(os.path.getsize(file.name) // 2)
    file.write(b"bad")  # no longer than the first array, a count

def begin(workdir):
  said = []
  checkpoints = Checkpoints(workdir, Keep(newest=5), log=said.append,
    config=CheckpointConfig(local_every=1, local_folder=disk, local_newest=2))
  return checkpoints, checkpoints.restore(shardings, abstract), said

def restored(workdir, step):
  checkpoints, found, said = begin(workdir)
  assert checkpoints.restored == step, (checkpoints.restored, step, said)
  for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
    for shard in leaf.addressable_shards:
      np.testing.assert_array_equal(np.asarray(shard.data), value(step, like)[shard.index])
  return checkpoints

for workdir in (orbax, plain):
  checkpoints, found, _ = begin(workdir)
  assert found is None
  checkpoints.save(3, state(3), {{}})
  for step in (4, 5):
    checkpoints.save_local(step, state(step), {{}})
  checkpoints.close()
  (own,) = os.listdir(disk)
  own = os.path.join(disk, own)
  assert sorted(os.listdir(own)) == ["4", "5"]
  checkpoints = restored(workdir, 5)
  for step in (6, 7):
    checkpoints.save_local(step, state(step), {{}})
  checkpoints.close()
  if index == 1:  # what process 0 holds of step 7 is of no use alone
    shutil.rmtree(os.path.join(own, "7"))
  restored(workdir, 6).close()
  if index == 1:  # damage is met when all have begun to read
    with open(os.path.join(own, "6", "part-1.bin"), "r+b") as file:
      file.write(b"damaged")
  restored(workdir, 5).close()
  if index == 1:
    shutil.rmtree(disk)
  checkpoints = restored(workdir, 3)
  checkpoints.save(8, state(8), {{}}, at_once=True)
  checkpoints.close()
  reads.clear()
  restored(workdir, 8).close()
  assert agree(reads[0], sum) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract)), reads
  if index == 0:
    damage(os.path.join(workdir.removeprefix("stand-in://"), "checkpoints/8", "params" if workdir == orbax else ""))
  reads.clear()
  restored(workdir, 3).close()
  assert agree(int(reads[0] is None), sum) == 1, reads  # the other has read its part well, and does not wait
  agree(0)
  shutil.rmtree(disk, ignore_errors=True)
print("done", index)
peers.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2}, {"fsdp": 4}], ids=str)
def test_a_disk_that_one_of_two_processes_has_lost(tmp_path, root, mesh):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    coordinator = f"localhost:{free.getsockname()[1]}"
  environment = os.environ | {
    "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }  # fmt: skip
  workdirs = [str(tmp_path / "orbax"), f"stand-in://{tmp_path}/plain"]
  (tmp_path / "plain").mkdir()  # as a run makes its workdir
  code = PROCESS.format(mesh=mesh)
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", code, str(index), coordinator, *workdirs, str(tmp_path / f"disk-{index}")],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for index in range(2)
  ]  # fmt: skip
  try:
    outputs = [process.communicate(timeout=200)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
