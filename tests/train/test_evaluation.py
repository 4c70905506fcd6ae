"""Benchmarks in a run: on its live, sharded parameters, into its metrics."""

import json
import os
import re

import jax
import numpy as np
import pytest

from configs import common
from fgclip_jax import evaluate
from fgclip_jax.evals import guards
from fgclip_jax.evals.evaluator import Evaluator, Metric, Result
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from fgclip_jax.models import params as parameters
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train import evaluation, loop
from fgclip_jax.train.config import read_config
from tests.train.test_logger import read_events

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=16, validation=6, workers=1)
  return folder


def test_a_run_measures_its_sharded_parameters(data, tmp_path, monkeypatch, capsys, quick):
  make_step = loop.make_step
  monkeypatch.setattr(loop, "make_step", lambda *settings, **savings: quick(make_step(*settings, **savings)))
  config = common.get_config()
  config.model, config.steps, config.mesh = "tiny", 2, "data=2,fsdp=2,tensor=2"
  config.data.update({"path": data, "batch_size": 8, "boxes": 1, "row_length": 512, "workers": 0})
  config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0})
  config.runtime.update({"dtype": "float32", "remat": "none"})
  config.evals = (
    f"records --data {data}",
    f"retrieve pairs --annotations {tmp_path}/broken.csv",
    f"records --data {data}",
  )
  config.eval_every = 1
  config.image_every = 2
  (tmp_path / "broken.csv").write_text("image,text\n")
  workdir = str(tmp_path / "run")
  loop.train(read_config(config), workdir)
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
  lines = [line for line in lines if any(key.startswith("eval/") for key in line)]
  assert [line["step"] for line in lines] == [1, 2]
  expected = evaluate.evaluate(api.load(workdir), data)
  assert len(expected) == 15
  for name in ("records", "records 2"):
    found = {key: lines[1][f"eval/{name}/{key}"] for key in expected}
    assert found == pytest.approx({key: metric["value"] for key, metric in expected.items()}, abs=1e-6)
  out = capsys.readouterr().out
  assert "step 2: retrieve pairs could not be measured" in out and "broken.csv" in out
  assert "step 2: records 2\n" in out and "long captions: image to text, R@1" in out
  tags = [(event.step, value.tag) for event in read_events(tmp_path / "run") for value in event.summary.value]
  assert [step for step, tag in tags if tag in ("samples/batch", "samples/heat_maps")] == [2, 2]


def small_run(data):
  config = common.get_config()
  config.model, config.steps, config.mesh = "tiny", 3, "data=8"
  config.data.update({"path": data, "batch_size": 8, "boxes": 1, "row_length": 512, "workers": 0})
  config.optimizer.warmup_steps = 0
  config.checkpoint_every = config.eval_every = 1
  config.evals = (f"records --data {data}",)
  config.keep.update({"newest": 1, "best": 1, "metric": "eval/records/long_image_to_text_r1", "mode": "max"})
  return config


def test_the_best_checkpoint_by_an_evaluation_is_kept(data, tmp_path, monkeypatch, capsys, quick):
  make_step = loop.make_step
  monkeypatch.setattr(loop, "make_step", lambda *settings, **savings: quick(make_step(*settings, **savings)))
  name = "eval/records/long_image_to_text_r1"
  numbers = ({name: 0.5}, {name: 0.9}, {"eval/records/other": 1.0})
  monkeypatch.setattr(loop, "measure", lambda *a: dict(numbers[a[4] - 1]))
  loop.train(read_config(small_run(data)), str(tmp_path / "run"))
  assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["2", "3"]
  told = [line for line in capsys.readouterr().out.splitlines() if "is not among the numbers" in line]
  assert told == [f"step 3: keep.metric {name!r} is not among the numbers: eval/records/other"]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"evals": ()}, "is of no evaluation of this run: there are none, as config.evals is empty"),
    ({"evals": ("records --data d", "records --data e")}, ""),
    ({"evals": ("fgovd --annotations a --images b",)}, "there are 'eval/fgovd/...'"),
    ({"eval_every": 2}, "config.checkpoint_every=1 must be a multiple of config.eval_every=2"),
    ({"keep": {"mode": "min"}}, "config.keep.mode must be 'max' with config.keep.metric='eval/records/long_image"),
  ],
)
def test_checkpoints_that_are_kept_by_an_evaluation_need_one_each(data, change, message):
  config = small_run(data)
  config.update(change)
  if not message:
    assert read_config(config, check_data=False).keeps_by_eval
    return
  with pytest.raises(ValueError, match=re.escape(message)):
    read_config(config, check_data=False)


class Probe:
  """Says what it is given."""

  name = "probe"

  def settings(self):
    return {}

  def files(self):
    return []

  def run(self, model, progress=False):
    notes = guards.check_resolution(model)
    self.model = model
    return Result({"share": Metric(0.25, None, 4)}, {}, 4, notes=(*notes, "a note"))


def test_the_model_is_the_live_parameters_where_they_lie():
  assert isinstance(Probe(), Evaluator)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.P())
  params = jax.tree.map(
    lambda leaf: jax.device_put(np.zeros(leaf.shape, np.float32), sharding), parameters.abstract_params(TINY)
  )
  probe, said, places = Probe(), [], []
  with jax.transfer_guard("disallow"):
    found = evaluation.measure([probe], TINY, params, Runtime(), 7, said.append, places.append)
  assert found == {"eval/probe/share": 0.25} and places == ["probe, after step 7"]
  assert "note: a note" in said and said[0].startswith("step 7: probe")
  assert jax.tree.leaves(probe.model.params)[0] is jax.tree.leaves(params)[0]


def test_whatever_fails_in_a_benchmark_is_told_and_the_others_go_on():
  class Failing(Probe):
    name = "failing"

    def run(self, model, progress=False):
      raise RuntimeError("out of memory")

  params, said = parameters.abstract_params(TINY), []
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
  found = evaluation.measure([Failing(), Probe()], TINY, params, Runtime(), 7, said.append, lambda _: None)
  assert found == {"eval/probe/share": 0.25, "eval/skipped": 1}
  assert said[0] == "step 7: failing could not be measured: out of memory"
  assert said[1].startswith("Traceback")


def test_the_files_of_evals_are_looked_for_before_a_run_begins(tmp_path):
  for name in ("b.jsonl", "a.jsonl"):
    (tmp_path / name).write_text("")
  line = f"fgovd --annotations {tmp_path}/*.jsonl --images"
  (evaluator,) = evaluation.read_evals([f"{line} {tmp_path}"])
  assert evaluator.annotations == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")
  with pytest.raises(FileNotFoundError, match=r"config.evals\[0\]: there is no 'nowhere'"):
    evaluation.read_evals([f"{line} nowhere"])
  folders = f"--images {tmp_path} --labels {tmp_path}"
  for wrong, message in (
    (f"segment {folders} --classes voc22", "there is no 'voc22'"),
    (f"segment {folders} --classes voc21 --split val.txt", "there is no 'val.txt'"),
    (f"records --data {tmp_path}", "no shard of split 'validation'"),
  ):
    with pytest.raises(FileNotFoundError, match=rf"config.evals\[1\]: {message}"):
      evaluation.read_evals([f"segment {folders} --classes voc21", wrong])
  with pytest.raises(ValueError, match=r"config.evals\[0\]: no file matches .*csv"):
    evaluation.read_evals([line.replace("jsonl", "csv")])
  assert evaluation.read_evals(
    ["classify tfds --images cifar10", f"boxes --annotations {tmp_path}/a.jsonl --images {tmp_path}"]
  )


def test_evals_are_read_before_a_run_begins():
  (evaluator,) = evaluation.read_evals(["classify folder --images 'a b' --templates openai7 --allow cut_texts"], False)
  assert (evaluator.name, evaluator.images, evaluator.allow) == ("classify folder", "a b", ("cut_texts",))
  for line, message in (
    ("", "must begin with one of records"),
    ("classfy imagenet", "must begin with one of records"),
    ("records", "the following arguments are required: --data"),
    ("records --data d --model m", "unrecognized arguments: --model m"),
    ("records --data d --allow all", "allow takes resolution, cut_texts, got 'all'"),
  ):
    with pytest.raises(ValueError, match=rf"config.evals\[1\]: .*{message}"):
      evaluation.read_evals(["records --data d", line], check_data=False)
  config = common.get_config()
  config.evals = ("nothing",)
  with pytest.raises(ValueError, match=r"config.evals\[0\]: 'nothing' must begin with"):
    read_config(config, check_data=False)
