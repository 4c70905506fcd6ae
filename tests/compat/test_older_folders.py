"""Folders that version 0.1.0 wrote before the package was laid out by layer: read, continued, measured and embedded.

`data/` holds them as they were written: `data` (16 rendered scenes for training, 8 for validation), `run` (three steps
of the quickstart's stage 2 with a very small model), `model` (the run, converted to PyTorch's format and back), and
`result.json` (the evaluation of `run` on `data`).
"""

import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest

from configs import quickstart
from fgclip_jax import embed, evaluate
from fgclip_jax.data import dataset_folder
from fgclip_jax.models.params import unflatten
from fgclip_jax.prepare.__main__ import main as prepare
from fgclip_jax.train.config import read_config
from fgclip_jax.train.loop import train
from fgclip_jax.weights import formats

FOLDER = pathlib.Path(__file__).parent / "data"
TOWERS = {"vision": {"width": 16, "mlp_width": 16}, "text": {"width": 8, "heads": 2, "mlp_width": 16}}


@pytest.fixture
def older(tmp_path, monkeypatch) -> pathlib.Path:
  """A copy of the folders, which name each other by relative paths, as the current one."""
  folder = shutil.copytree(FOLDER, tmp_path / "older")
  monkeypatch.chdir(folder)
  return folder


def read_metrics(run: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_data_set_is_as_it_was_written(older, capsys):
  checksums = json.loads((older / "data" / "checksums.json").read_text())
  assert checksums
  assert prepare(["verify", "data"]) == 0, capsys.readouterr()
  assert dataset_folder.find_shards("data", "train") and dataset_folder.find_shards("data", "validation")


@pytest.mark.slow
def test_the_run_goes_on(older, capsys):
  """The command that began it, with two more steps."""
  config = quickstart.get_config("stage2")
  config.update({"model": "tiny", "init_from": "", "steps": 5, "log_every": 1, "checkpoint_every": 3})
  config.model_changes.update(TOWERS)
  config.data.update({"path": "data", "batch_size": 8, "workers": 0})
  config.optimizer.warmup_steps, config.keep.newest, config.resume_changed = 1, 1, True
  before = read_metrics(older / "run")
  with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
    state = train(read_config(config), "run")
  printed = capsys.readouterr().out
  assert "continuing run from step 3; changed since: " in printed and "steps 3 -> 5" in printed
  chex.assert_tree_all_finite(state)
  assert int(state.step) == 5 and int(state.skipped) == 0
  after = read_metrics(older / "run")
  assert [line["step"] for line in after] == [1, 2, 3, 4, 5] and after[:3] == before
  assert set(before[0]) <= set(after[-1])
  assert [path.name for path in (older / "run" / "checkpoints").iterdir() if path.name.isdigit()] == ["5"]


@pytest.mark.parametrize("name", ["run", "model"])
def test_it_is_measured_as_it_was(older, name):
  assert evaluate.main(["--model", name, "--data", "data", "--output", "new.json"]) == 0
  new, old = (json.loads((older / file).read_text()) for file in ("new.json", "result.json"))
  for key in ("format", "benchmark", "metrics", "records", "skipped", "notes"):
    assert new[key] == old[key], key
  assert new["model"]["fingerprint"] == old["model"]["fingerprint"]
  assert {key: new["settings"].get(key) for key in old["settings"]} == old["settings"] | {"model": name}


def test_older_results_are_compared_with_new_ones(older, capsys):
  assert evaluate.main(["--model", "model", "--data", "data", "--output", "new.json"]) == 0
  capsys.readouterr()
  assert evaluate.main(["--compare", "result.json", "new.json"]) == 0
  assert "R@10" in capsys.readouterr().out


def test_run_and_model_hold_the_same_weights(older):
  (one, run, _), (two, model, _) = (formats.read(name) for name in ("run", "model"))
  assert one == two
  chex.assert_trees_all_equal(unflatten(run), unflatten(model), strict=True)


@pytest.mark.parametrize(
  "what", [["--texts", "texts.txt", "--kind", "long"], ["--regions", "data", "--split", "validation"]], ids=" ".join
)
def test_run_and_model_embed(older, what):
  (older / "texts.txt").write_text("a red circle\na blue square left of a green star\n")
  found = {}
  for name in ("run", "model"):
    assert embed.main(["--model", name, *what, "--output", f"{name}.npy"]) == 0
    found[name] = np.load(f"{name}.npy")
  assert found["run"].shape == ((24, 16) if what[0] == "--regions" else (2, 16))
  np.testing.assert_allclose(np.linalg.norm(found["run"], axis=-1), 1, rtol=1e-5)
  chex.assert_trees_all_equal(found["run"], found["model"], strict=True)
