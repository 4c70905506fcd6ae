"""A run in a bucket alone: data, weights, checkpoints, metrics and what is made of them; the same as on a disk."""

import json
import os

import jax
import numpy as np
import pytest

from fgclip_jax import convert, embed, evaluate
from fgclip_jax.storage import paths
from fgclip_jax.train import loop
from fgclip_jax.weights import formats
from tests.helpers.tiny_runs import tiny_run

STEPS = 3


class Killed(BaseException):
  """Stands for the end of a process."""


@pytest.fixture
def one_step(quick, monkeypatch):
  """All runs of a test share one compiled step."""
  make, made = loop.make_step, {}

  def cached(setup, *arguments):
    return made.setdefault(arguments, quick(make(setup, *arguments)))

  monkeypatch.setattr(loop, "make_step", cached)


@pytest.mark.slow
def test_a_bucket_holds_what_a_disk_would(bucket, one_step, toy, weights, tmp_path, monkeypatch):
  where = {"disk": str(tmp_path), "bucket": f"{bucket}/smoke"}
  paths.upload(toy, f"{bucket}/smoke/data")
  paths.upload(weights["clip"], f"{bucket}/smoke/weights")
  start = {"disk": (toy, weights["clip"]), "bucket": (f"{bucket}/smoke/data", f"{bucket}/smoke/weights")}
  flat = {}
  for name, root in where.items():
    run = tiny_run("clip", *start[name], steps=STEPS, checkpoint_every=1, **{"keep.newest": 2})
    kill_after(2, run, f"{root}/run", monkeypatch)
    paths.make_folder(f"{root}/run/checkpoints/2.orbax-checkpoint-tmp")
    loop.train(run, f"{root}/run")
    _, flat[name], _ = formats.read(f"{root}/run")
    assert [step for step in paths.list_folder(f"{root}/run/checkpoints") if step.isdigit()] == ["2", "3"]
    lines = paths.read(f"{root}/run/metrics.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert len(paths.list_folder(f"{root}/run/tensorboard")) == 2
  assert not os.path.exists("gs:")
  jax.tree.map(np.testing.assert_array_equal, flat["disk"], flat["bucket"])

  paths.write(f"{bucket}/smoke/texts.txt", b"a red cup\nblue\n")
  for root in where.values():
    assert convert.main([f"{root}/run", f"{root}/theirs"]) == 0
    assert convert.main([f"{root}/theirs", f"{root}/ours"]) == 0
    texts = ["--texts", f"{bucket}/smoke/texts.txt", "--output", f"{root}/texts.npy"]
    assert embed.main(["--model", f"{root}/theirs", *texts]) == 0
    records = ["--data", f"{bucket}/smoke/data", "--split", "train", "--output", f"{root}/results.json"]
    assert evaluate.main(["--model", f"{root}/ours", *records]) == 0
  for name in ("theirs/model.safetensors", "theirs/config.json", "ours/model.json", "texts.npy", "texts.ids.txt"):
    assert paths.read(f"{where['disk']}/{name}") == paths.read(f"{where['bucket']}/{name}"), name
  disk, there = (json.loads(paths.read(f"{root}/results.json")) for root in where.values())
  assert disk["metrics"] == there["metrics"]
  assert evaluate.main(["--compare", f"{bucket}/smoke/results.json"]) == 0


def kill_after(step, run, workdir, monkeypatch):
  """Trains until a step is done; what a run does at its end is not done."""

  def finish(self, done, finish=loop.TrainLoop._finish_step):
    numbers = finish(self, done)
    if done.step == step:
      raise Killed
    return numbers

  with monkeypatch.context() as patch:
    patch.setattr(loop.TrainLoop, "_finish_step", finish)
    with pytest.raises(Killed):
      loop.train(run, workdir)
