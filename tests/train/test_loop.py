"""Whole runs: what they write, where their weights come from, and that continuing changes nothing."""

import json
import os
import shutil
import signal

import chex
import jax
import ml_collections
import numpy as np
import pytest

from configs import common
from fgclip_jax.models.config import ModelConfig, preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.models.positions import resize
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train import loop
from fgclip_jax.train.config import RunConfig, read_config
from fgclip_jax.train.guard import NonFiniteError
from fgclip_jax.train.loop import train
from fgclip_jax.train.preemption import PreemptedError
from fgclip_jax.train.resume import ConfigChangedError
from fgclip_jax.train.state import read_weights
from fgclip_jax.train.step import make_step
from fgclip_jax.weights import formats as folders
from fgclip_jax.weights import huggingface, native, open_clip
from fgclip_jax.weights.clip_to_fgclip import fgclip_config
from fgclip_jax.weights.huggingface_names import stretch_positions
from fgclip_jax.weights.native import FOLDER, read_params
from tests.helpers.processes import run_two

CLIP = preset("tiny").replace(text={"long_length": None})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=40, validation=1, workers=1)
  return folder


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory) -> str:
  """A PyTorch-format folder of a plain CLIP with random weights."""
  folder = str(tmp_path_factory.mktemp("clip"))
  huggingface.write(folder, CLIP, random_weights(CLIP))
  return folder


def random_weights(model: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(model)).items()}
  flat = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
  flat |= {name: np.asarray(2.6, np.float32) for name in shapes if name.startswith("temperature")}
  return flat | {name: flat[name] + 1 for name in shapes if name.endswith("scale")}


@pytest.fixture(scope="module", autouse=True)
def steps_compiled_once(quick):
  """Runs of this file with the same settings share one compiled step."""
  cache = {}

  def make(*settings, **savings):
    key = (settings, tuple(savings.items()))
    if key not in cache:
      cache[key] = quick(make_step(*settings, **savings))
    return cache[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "make_step", make)
    yield


def make_run(folder: str, weights: str, /, **changes) -> RunConfig:
  """Stage 2 of a tiny model in six steps, on a mesh with all three axes."""
  config = common.get_config()
  config.model, config.steps, config.init_from = "tiny", 6, weights
  config.log_every, config.checkpoint_every = 2, 3
  # one row holds all captions of a shard, so that one program runs every step
  config.data.update({"path": folder, "batch_size": 8, "boxes": 1, "row_length": 512, "workers": 0})
  # eps above rounding: where a gradient is zero but for rounding, Adam would make a whole step of its sign
  config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 1, "eps": 1e-4})
  config.runtime.update({"dtype": "float32", "remat": "none"})
  config.objective.hard_rank = 0.2  # whose margin is part of the state
  config.mesh = "data=2,fsdp=2,tensor=2"
  config.update(ml_collections.ConfigDict(changes))
  return read_config(config)


def read_metrics(workdir) -> list[dict]:
  """The metrics without what depends on the clock."""
  timed = ("time", "second", "wait", "tflop")
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
  return [{key: value for key, value in line.items() if not any(part in key for part in timed)} for line in lines]


@pytest.fixture(scope="module")
def full(data, clip_weights, tmp_path_factory):
  """An uninterrupted run: its folder and last state."""
  workdir = str(tmp_path_factory.mktemp("full"))
  return workdir, train(make_run(data, clip_weights), workdir)


def assert_same(one, two):
  for (path, first), second in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True):
    assert np.asarray(first).tobytes() == np.asarray(second).tobytes(), path


def test_what_a_run_writes(full, data, clip_weights):
  workdir, state = full
  assert int(state.step) == 6
  assert sorted(name for name in os.listdir(os.path.join(workdir, FOLDER)) if name.isdigit()) == ["3", "6"]
  metrics = read_metrics(workdir)
  assert [line["step"] for line in metrics] == [1, 2, 3, 4, 6]  # the first, every second, and those that are saved
  assert {"loss", "loss_global_long", "loss_global_short", "loss_regional", "loss_hard_negative"} <= set(metrics[0])
  assert {"gradient_norm", "learning_rate", "temperature_global"} <= set(metrics[0])
  assert metrics[-1]["loss"] < metrics[0]["loss"]
  assert metrics[0]["margin"] == 0 and metrics[0]["hard_boxes"] > 0 and float(state.margin) != metrics[-1]["margin"]
  assert os.listdir(os.path.join(workdir, "tensorboard"))
  with open(os.path.join(workdir, "config.json"), encoding="utf-8") as file:
    written = json.load(file)
  assert written == json.loads(json.dumps(make_run(data, clip_weights).values))
  assert native.read_config(workdir) == preset("tiny")


class Stopped(Exception):
  pass


def test_continuing_changes_nothing(full, data, clip_weights, tmp_path, monkeypatch, capsys):
  batches = []

  def stop_after_four(batch, mesh, repeats):
    batches.append(batch)
    if len(batches) > 4:
      raise Stopped
    return to_devices(batch, mesh, repeats)

  to_devices = loop.to_devices
  with monkeypatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(loop, "to_devices", stop_after_four)
    train(make_run(data, clip_weights), str(tmp_path))
  assert sorted(os.listdir(tmp_path / FOLDER)) == ["3"]
  state = train(make_run(data, clip_weights), str(tmp_path))
  assert f"continuing {tmp_path} from step 3\n" in capsys.readouterr().out
  assert_same(state, full[1])
  assert read_metrics(tmp_path) == read_metrics(full[0])
  assert_same(read_params(str(tmp_path)), full[1].params)


def test_a_finished_run_has_nothing_left_to_do(full, data, clip_weights, capsys):
  workdir, state = full
  before = read_metrics(workdir)
  again = train(make_run(data, clip_weights), workdir)
  assert "nothing left to do" in capsys.readouterr().out
  assert_same(again, state)
  assert read_metrics(workdir) == before


def test_a_changed_config_is_seen(full, data, clip_weights, tmp_path, capsys):
  workdir = str(shutil.copytree(full[0], tmp_path / "run"))
  with pytest.raises(ConfigChangedError, match="optimizer.b1 0.9 -> 0.5, steps 6 -> 5; .*resume_changed=True"):
    train(make_run(data, clip_weights, steps=5, optimizer={"b1": 0.5}), workdir)
  with pytest.raises(ConfigChangedError, match="seed 0 -> 1; give another --workdir"):
    train(make_run(data, clip_weights, seed=1), workdir)
  train(make_run(data, clip_weights, steps=5, optimizer={"b1": 0.5}, log_every=7, resume_changed=True), workdir)
  changed = "log_every 2 -> 7, optimizer.b1 0.9 -> 0.5, resume_changed False -> True, steps 6 -> 5"
  assert f"from step 6; changed since: {changed}\n" in capsys.readouterr().out


# ---- runs that are told to end, and numbers that are not finite


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_saves_and_goes_on_later(full, data, clip_weights, tmp_path, monkeypatch, number):
  def tell_at_four(step, *settings):
    def told(state, batch):
      if int(jax.device_get(state.step)) == 3:
        os.kill(os.getpid(), number)
      return step(state, batch)

    return told

  before = signal.getsignal(number)
  with monkeypatch.context() as patch, pytest.raises(PreemptedError, match="saved step 4 of 6"):
    make = loop.make_step
    patch.setattr(loop, "make_step", lambda *settings, **savings: tell_at_four(make(*settings, **savings)))
    train(make_run(data, clip_weights), str(tmp_path))
  assert signal.getsignal(number) is before
  assert sorted(os.listdir(tmp_path / FOLDER)) == ["3", "4"]
  assert_same(train(make_run(data, clip_weights), str(tmp_path)), full[1])
  # as if nothing had been; but the first step of a run is always logged, and averages since the last line begin anew
  averages = ("packing_efficiency", "executed_per_useful_flop")
  one, two = (
    [{name: value for name, value in line.items() if name not in averages} for line in read_metrics(folder)]
    for folder in (full[0], tmp_path)
  )
  assert [line for line in two if line["step"] != 5] == one


def test_numbers_that_stay_bad_end_the_run_with_the_last_good_weights(data, tmp_path, capsys):
  flat = random_weights(CLIP)
  flat["vision/class_embedding"][:] = np.nan
  huggingface.write(str(tmp_path / "weights"), CLIP, flat)
  run = make_run(data, str(tmp_path / "weights"), guard={"max_skipped": 3}, in_flight=1, keep={"newest": 1})
  with pytest.raises(NonFiniteError, match="step 3: the loss is nan, .*3 in a row, 3 in all"):
    train(run, str(tmp_path / "run"))
  assert os.listdir(tmp_path / "run" / FOLDER) == ["3"]
  stretched = read_weights(str(tmp_path / "weights"), preset("tiny"))
  assert_same(read_params(str(tmp_path / "run")), jax.tree.map(np.asarray, stretched))
  (first, *_) = sorted((tmp_path / "run" / "bad_steps").iterdir())
  assert len(json.loads(first.read_text())["records"]) == 8
  assert "step 2: the loss is nan" in capsys.readouterr().out


def test_what_a_run_says_when_a_checkpoint_is_damaged(full, data, clip_weights, tmp_path, capsys):
  workdir = shutil.copytree(full[0], tmp_path / "run")
  os.remove(workdir / FOLDER / "6" / "params" / "manifest.ocdbt")
  state = train(make_run(data, clip_weights), str(workdir))
  out = capsys.readouterr().out
  assert (
    "checkpoint 6 cannot be read, is now called 'damaged-6'" in out and f"continuing {workdir} from step 3\n" in out
  )
  assert_same(state, full[1])
  assert read_metrics(workdir) == read_metrics(full[0])


# ---- where weights come from


def test_weights_of_a_plain_clip_become_fgclip(clip_weights):
  flat, plain = flatten(read_weights(clip_weights, preset("tiny"))), random_weights(CLIP)
  assert set(flat) == set(flatten(abstract_params(preset("tiny"))))
  for name, value in plain.items():
    np.testing.assert_array_equal(flat[name], value)
  np.testing.assert_array_equal(flat["long_projection/kernel"], plain["short_projection/kernel"])
  np.testing.assert_array_equal(flat["text/long_positions"], stretch_positions(plain["text/short_positions"]))
  assert flat["temperature/regional"] == flat["temperature/hard_negative"] == plain["temperature/global"]
  # and stay a plain CLIP where that is what is trained
  assert set(flatten(read_weights(clip_weights, CLIP))) == set(plain)


def test_weights_of_a_siglip_become_fgclip2(tmp_path):
  """Of one for squares too: the patch embedding is the same array, and the run chooses its patch budget."""
  siglip = preset("tiny_siglip").replace(text={"short_length": 64})
  flat = random_weights(siglip)
  huggingface.write(str(tmp_path), siglip, flat)
  model = fgclip_config(preset("tiny_naflex").replace(text={"short_length": 64}, vision={"max_patches": 9}))
  found = flatten(read_weights(str(tmp_path), model))
  assert set(found) == set(flatten(abstract_params(model)))
  for name, value in flat.items():
    np.testing.assert_array_equal(found[name], value)
  np.testing.assert_array_equal(found["text/long_positions"], stretch_positions(flat["text/short_positions"]))
  with pytest.raises(ValueError, match=r"vision.position_grid 4 \(config: 5\)"):
    read_weights(str(tmp_path), model.replace(vision={"position_grid": 5}))


def test_weights_of_an_fgclip(tmp_path):
  flat = random_weights(preset("tiny"), seed=1)
  huggingface.write(str(tmp_path), preset("tiny"), flat)
  assert_same(flatten(read_weights(str(tmp_path), preset("tiny"))), flat)


def test_weights_of_another_image_size(clip_weights):
  """As progressive resolution has them: the positions interpolated, all else as it was."""
  same, larger = (read_weights(clip_weights, CLIP.replace(vision={"image_size": size})) for size in (32, 48))
  assert_same({**flatten(larger), "vision/positions": 0}, {**flatten(same), "vision/positions": 0})
  expected = resize(same, CLIP, 48)[0]["vision"]["positions"]
  assert larger["vision"]["positions"].shape == (1 + 6 * 6, CLIP.vision.width)
  np.testing.assert_array_equal(larger["vision"]["positions"], expected)


def test_weights_in_other_formats(tmp_path):
  flat = random_weights(CLIP)
  open_clip.write(str(tmp_path / "theirs"), CLIP, flat)
  assert_same(flatten(read_weights(str(tmp_path / "theirs"), CLIP)), flat)
  assert_same(flatten(read_weights(str(tmp_path / "theirs" / "open_clip_model.safetensors"), CLIP)), flat)
  with pytest.raises(ValueError, match=r"vision.depths None \(config: \(1, 2, 1, 3\)\)"):
    read_weights(str(tmp_path / "theirs"), preset("tiny_resnet").replace(text={"long_length": None}))


def test_weights_of_a_run(full):
  workdir, state = full
  config, flat, _ = folders.read(workdir)
  assert config == preset("tiny")
  assert_same(flat, flatten(state.params))
  assert_same(flatten(read_weights(workdir, preset("tiny"))), flatten(state.params))


def test_weights_that_do_not_fit(clip_weights, tmp_path):
  other = preset("tiny").replace(vision={"depth": 5}, embedding_width=24)
  with pytest.raises(ValueError, match=r"vision.depth 2 \(config: 5\), embedding_width 16 \(config: 24\)") as caught:
    read_weights(clip_weights, other)
  assert "config.model=from_weights" in str(caught.value) and repr(clip_weights) in str(caught.value)
  huggingface.write(str(tmp_path), preset("tiny"), random_weights(preset("tiny")))
  with pytest.raises(ValueError, match=r"text.long_length 248 \(config: None\)"):
    read_weights(str(tmp_path), CLIP)  # no way back


# ---- errors come before anything is compiled


def test_data_that_cannot_be_read(data, clip_weights, tmp_path, monkeypatch):
  shard = next(name for name in os.listdir(data) if "-train." in name)
  run = make_run(data, clip_weights)
  folder = tmp_path / "data"
  folder.mkdir()
  (folder / shard).touch()
  for name in ("first_state", "make_step"):
    monkeypatch.setattr(loop, name, lambda *_, **__: pytest.fail("compiled"))
  with pytest.raises(ValueError, match=f"has no record that can be read\ndamaged shard .*{shard}"):
    train(make_run(str(folder), clip_weights), str(tmp_path / "run"))
  assert run.data.path == data


def test_a_batch_that_does_not_divide(data, clip_weights, tmp_path):
  with pytest.raises(ValueError, match="config.data.batch_size 10 must divide over 4 data shards"):
    train(make_run(data, clip_weights, data={"batch_size": 10}), str(tmp_path))


def test_a_mesh_that_does_not_fit(data, clip_weights, tmp_path):
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    train(make_run(data, clip_weights, mesh="data=3"), str(tmp_path))


# ---- several processes


# trains as `make_run` says, afresh in one folder and from a checkpoint in another
PROCESS = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
index, coordinator, data, weights, *folders = sys.argv[1:]
from fgclip_jax.train.distributed import start
from fgclip_jax.train.loop import train
from tests.train.test_loop import make_run
peers = start(coordinator, 2, int(index), heartbeat_timeout=60.0)
for folder in folders:
  train(make_run(data, weights), folder)
peers.close()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(full, data, clip_weights, tmp_path, root):
  """On the mesh of one process with eight devices; and what the one has begun, the other continues."""
  by_one, last = full
  by_two, from_one, from_two = (str(tmp_path / name) for name in ("two", "from_one", "from_two"))
  shutil.copytree(by_one, from_one)
  shutil.rmtree(os.path.join(from_one, FOLDER, "6"))
  outputs = run_two(PROCESS, root, str(tmp_path / "cache"), data, clip_weights, by_two, from_one)
  assert "mesh data=2,fsdp=2,tensor=2: 8 x cpu in 2 processes" in outputs[0]
  assert f"continuing {from_one} from step 3" in outputs[0]
  assert "step 1/6" in outputs[0] and "step" not in outputs[1]  # one of them speaks
  assert_close(read_params(by_two), last.params)
  assert_close(read_params(from_one), last.params)

  shutil.copytree(by_two, from_two)
  shutil.rmtree(os.path.join(from_two, FOLDER, "6"))
  assert_close(train(make_run(data, clip_weights), from_two), last)
  for folder in (by_two, from_one, from_two):
    for one, two in zip(read_metrics(by_one), read_metrics(folder), strict=True):
      same = [name for name in one if not name.startswith(("packing", "executed"))]  # those are of process 0 alone
      assert {name: one[name] for name in same} == pytest.approx({name: two[name] for name in same}, rel=1e-4)


def assert_close(one, two):
  chex.assert_trees_all_close(one, two, rtol=1e-4, atol=1e-5)
