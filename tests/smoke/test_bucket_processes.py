"""A run of two processes in one bucket, which they continue, and after them one process with half of the devices."""

import json

import chex
import jax
import numpy as np
import pytest

from fgclip_jax.storage import paths
from fgclip_jax.train import loop
from fgclip_jax.weights.native import FOLDER, read_params
from tests.helpers.processes import run_two
from tests.helpers.tiny_runs import tiny_run

STEPS = 3
# a whole run on a disk, one in a bucket, and the last step of that one again
PROCESSES = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
index, coordinator, data, weights, disk, bucket = sys.argv[1:]
from fgclip_jax.train.distributed import agree, start
from fgclip_jax.train.loop import train
from tests.smoke.test_bucket_processes import make_run, remove_last
peers = start(coordinator, 2, int(index), heartbeat_timeout=60.0)
train(make_run(data, weights), disk)
train(make_run(data, weights), bucket)
if index == "0":
  remove_last(bucket)
agree(0)
train(make_run(data, weights), bucket)
peers.close()
"""


def make_run(data: str, weights: str):
  # float32, and eps above rounding: where a gradient is zero but for rounding, Adam would make a whole step of its sign
  exact = {"runtime.dtype": "float32", "optimizer.eps": 1e-4, "optimizer.learning_rate": 1e-3}
  return tiny_run("clip", data, weights, steps=STEPS, checkpoint_every=1, **{"keep.newest": 2, **exact})


def remove_last(workdir: str) -> None:
  paths.remove(paths.join(workdir, FOLDER, str(STEPS)))


@pytest.mark.slow
def test_two_processes_on_one_bucket(bucket, toy, weights, tmp_path, root, monkeypatch):
  disk, there = str(tmp_path / "run"), f"{bucket}/processes/run"
  cache = str(tmp_path / "cache")
  zero, one = run_two(PROCESSES, root, cache, toy, weights["clip"], disk, there)
  assert "8 x cpu in 2 processes" in zero and f"continuing {there} from step {STEPS - 1}" in zero
  assert "step" not in one  # process 0 speaks
  by_disk, by_bucket = read_params(disk), read_params(there)
  jax.tree.map(np.testing.assert_array_equal, by_disk, by_bucket)
  assert losses(disk) == losses(there)
  assert not paths.exists(f"{there}/lease.json")

  remove_last(there)
  four = jax.devices()[:4]
  monkeypatch.setattr(jax, "devices", lambda *_: four)
  with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
    state = loop.train(make_run(toy, weights["clip"]), there)
  chex.assert_trees_all_close(state.params, by_disk, rtol=1e-4, atol=1e-5)
  assert losses(there) == pytest.approx(losses(disk), rel=1e-4)
  assert [name for name in paths.list_folder(f"{there}/{FOLDER}") if name.startswith("damaged")] == []


def losses(workdir: str) -> list[float]:
  return [json.loads(line)["loss"] for line in paths.read(paths.join(workdir, "metrics.jsonl")).splitlines()]
