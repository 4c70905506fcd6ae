"""A run in a bucket alone: data, weights, checkpoints, metrics and what is made of them; the same as on a disk."""

import json
import os

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from fgclip_jax import convert, embed, evaluate, show
from fgclip_jax.inference import programs
from fgclip_jax.models.config import preset
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.storage import paths
from fgclip_jax.train import loop
from fgclip_jax.train.guard import Guard, GuardConfig
from fgclip_jax.train.profile import Profile
from fgclip_jax.weights import formats, native
from tests.helpers.tiny_runs import random_weights, tiny_run

STEPS, TINY = 3, preset("tiny")


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


def test_reports_pictures_and_lists_of_images(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  root, flat = f"{bucket}/pictures", random_weights(TINY)
  scenes.write(f"{root}/scenes", train=2, validation=1, workers=1)
  assert prepare.main(["inspect", f"{root}/scenes", "--output", f"{root}/page.html", "--workers", "1"]) == 0
  assert b"<figure>" in paths.read(f"{root}/page.html") and paths.read(f"{root}/page.jpg").startswith(b"\xff\xd8")

  native.write(str(tmp_path / "model"), TINY, flat)
  paths.upload(str(tmp_path / "model"), f"{root}/model")
  assert show.main(["--model", f"{root}/model", "--data", f"{root}/scenes", "--output", f"{root}/new/heat.png"]) == 0
  heat = paths.read(f"{root}/new/heat.png")
  for name in ("a.png", "b/c.png", ".hidden/d.png", "b/notes.txt"):
    paths.write(f"{root}/photos/{name}", heat)
  for place, (given, ids) in enumerate(
    {
      "photos": ["a.png", "b/c.png"],
      "photos/*.png": [f"{root}/photos/a.png"],
      "photos/**/*.png": [f"{root}/photos/a.png", f"{root}/photos/b/c.png"],
    }.items()
  ):
    output = f"{root}/{place}.npy"
    assert embed.main(["--model", f"{root}/model", "--images", f"{root}/{given}", "--output", output]) == 0
    assert paths.read(f"{root}/{place}.ids.txt").decode().splitlines() == ids
  assert os.listdir(tmp_path) == ["model"]


def test_what_a_run_writes_on_occasion(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  root = f"{bucket}/occasions"
  numbers = {"loss": float("nan"), "gradient_norm": 1.0, "skipped_updates": 1.0, "skipped_in_a_row": 1.0}
  Guard(GuardConfig(), root, lambda number: f"record {number}", print).look(3, numbers, np.arange(2))
  assert json.loads(paths.read(f"{root}/bad_steps/step-3.json"))["records"] == {"0": "record 0", "1": "record 1"}
  profile, double = Profile((1, 1), root), jax.jit(lambda x: 2 * x)
  profile.before(1)
  double(np.ones(3, np.float32)).block_until_ready()
  profile.after(1)
  assert any(name.endswith(".xplane.pb") for name in paths.find(f"{root}/profile"))

  options = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.0}
  before = {name: getattr(jax.config, name) for name in options}
  try:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    programs.use_compilation_cache(f"{root}/programs")
    compilation_cache.reset_cache()
    jax.jit(lambda x: x * 3 + 1)(np.ones(5, np.float32)).block_until_ready()
    assert any(name.endswith("-cache") for name in paths.find(f"{root}/programs"))
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
  with pytest.raises(ValueError, match="the compilation cache 's3://b/c' cannot be .*: give a local path, or gs://"):
    programs.use_compilation_cache("s3://b/c")
  assert os.listdir(tmp_path) == []


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


@pytest.mark.slow
def test_s3_and_a_local_disk_hold_what_a_disk_would(s3, one_step, toy, tmp_path, monkeypatch, capsys):
  """Killed before anything is in the bucket, the run goes on from the local disk."""
  local = {"checkpoint.local_every": 1, "checkpoint.local_folder": str(tmp_path / "local")}
  at_once = tiny_run("clip", toy, steps=STEPS)
  loop.train(at_once, str(tmp_path / "run"))
  run = tiny_run("clip", toy, steps=STEPS, checkpoint_every=STEPS, **local)
  kill_after(2, run, f"{s3}/smoke", monkeypatch)
  capsys.readouterr()
  loop.train(run, f"{s3}/smoke")
  out = capsys.readouterr().out
  assert "restored from the local disk" in out and "continuing s3://tests/smoke from step 1" in out
  _, one, _ = formats.read(str(tmp_path / "run"))
  _, two, _ = formats.read(f"{s3}/smoke")
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert os.listdir(tmp_path / "local") == []
  lines = [json.loads(line)["step"] for line in paths.read(f"{s3}/smoke/metrics.jsonl").splitlines()]
  assert lines == [1, 2, 3]
  assert {"config.json", "model.json", "checkpoints", "timeline.jsonl", "tensorboard"} <= set(
    paths.list_folder(f"{s3}/smoke")
  )
  texts = ["--texts", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "texts.npy")]
  (tmp_path / "texts.txt").write_text("a red cup\n")
  assert embed.main(["--model", f"{s3}/smoke", *texts]) == 0
