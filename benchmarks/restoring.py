"""How many bytes two data-parallel processes read when they restore a checkpoint from a bucket.

  python benchmarks/restoring.py

Two processes with a mesh of data=2 save four random matrices and their optimizer's state into a bucket on this
machine, and restore them through a proxy that counts the bytes of the server's answers. Needs requirements-gcs.txt and
requirements-dev.txt.
"""

import argparse
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["JAX_PLATFORMS"] = "cpu"

from faulting.network import serve
from machine import machine

from tests.helpers import buckets

PACKAGES = ("jax", "orbax-checkpoint", "tensorstore", "gcsfs")
# the arguments: this process, the coordinator, the workdir, the array's width; saves where there is no checkpoint
PROCESS = """
import sys, time
import jax, numpy as np
from fgclip_jax.train.distributed import agree, start
index, coordinator, workdir, width = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
peers = start(coordinator, 2, index)
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.mesh import make_mesh
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.state import make_state
mesh = make_mesh({"data": 2})
make_params = lambda: {f"kernel_{i}": jax.numpy.zeros((width, width)) for i in range(4)}
abstract = jax.eval_shape(lambda: make_state(make_optimizer(OptimizerConfig()), make_params()))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
shardings = jax.tree.map(lambda leaf: everywhere, abstract)
rng = np.random.default_rng(0)
checkpoints = Checkpoints(workdir)
begin = time.monotonic()
state = checkpoints.restore(shardings, abstract)
agree(0)
seconds = time.monotonic() - begin
if state is None:
  fill = lambda leaf: jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), everywhere)
  state = jax.tree.map(fill, abstract)
  checkpoints.save(1, state, {}, at_once=True)
  print(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
else:
  print(seconds)
checkpoints.close()
peers.close()
"""


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--width", type=int, default=1024, help="of the state's arrays (default: %(default)s)")
  options = parser.parse_args(argv)
  with serve(seed=0) as network:
    size = int(run(f"{network.bucket}/run", options.width, network.environment))
    before = network.proxy.answered
    seconds = float(run(f"{network.bucket}/run", options.width, network.environment))
    read = network.proxy.answered - before
  print(machine(*PACKAGES) + "\n")
  print(
    f"a checkpoint of {size / 1e6:.1f} MB: {read / 1e6:.1f} MB read, {read / size:.2f} times as many, {seconds:.1f} s"
  )
  return 0


def run(workdir: str, width: int, environment: dict[str, str]) -> str:
  """Runs both processes; returns the last line of the first."""
  coordinator = f"localhost:{buckets.free_port()}"
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(index), coordinator, workdir, str(width)],
      env=os.environ | environment | {"PYTHONPATH": root, "JAX_NUM_CPU_DEVICES": "1"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  outputs = [process.communicate()[0] for process in processes]
  if any(process.returncode for process in processes):
    raise RuntimeError("\n".join(["a process failed:", *outputs]))
  return [line for line in outputs[0].splitlines() if line.strip()][-1]


if __name__ == "__main__":
  sys.exit(main())
