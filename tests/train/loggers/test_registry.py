"""The services, each with its real library in its offline mode; those that are not installed are skipped."""

import importlib.util
import json
import sqlite3
import time

import pytest
from PIL import Image

from fgclip_jax.train.loggers import registry
from fgclip_jax.train.loggers.protocol import IDS_FILE, RunInfo


def make_info(logger: str, workdir, **changes) -> RunInfo:
  return RunInfo(logger, str(workdir), "toys", "runs/one", {"data.path": "scenes", "steps": 5, "ema": None} | changes)


def log(info: RunInfo, steps, failed: bool = False) -> None:
  """One start of a run that logs some steps, the last with a picture and a table."""
  logger = registry.open_logger(info)
  for step in steps:
    logger.log_scalars(step, {"loss": 1.0 / step, "eval/records (b)/r1": float("nan")}, 1.5e9 + step)
  logger.log_image(steps[-1], "samples/batch", Image.new("RGB", (30, 20), "red"), "captions")
  logger.log_table(steps[-1], "samples/texts", ("place", "boxes"), [("a|b", 1), ("c\nd", 2)])
  logger.close(failed)


def needs(library: str) -> None:
  if importlib.util.find_spec(library) is None:
    pytest.skip(f"needs {library}, see requirements-loggers.txt")


def test_wandb(tmp_path, monkeypatch):
  needs("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.chdir(tmp_path)
  log(make_info("wandb", tmp_path), [1, 2], failed=True)
  kept = make_info("wandb", tmp_path).kept()
  log(make_info("wandb", tmp_path), [2, 3])
  assert make_info("wandb", tmp_path).kept() == kept
  files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{kept['id']}.wandb"))
  assert len(files) == 2  # two parts of one run, which `wandb sync` joins
  end = time.monotonic() + 30  # wandb's own process may write a little later
  while not all(b"loss" in file.read_bytes() and b"scenes" in file.read_bytes() for file in files):
    assert time.monotonic() < end
    time.sleep(0.05)
  assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/samples/batch*.png"))


def test_wandb_without_a_key_does_not_ask_at_the_terminal(tmp_path, monkeypatch):
  needs("wandb")
  for name in ("WANDB_MODE", "WANDB_API_KEY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  with pytest.raises(RuntimeError, match="set WANDB_API_KEY or run `wandb login`, or set WANDB_MODE=offline"):
    registry.open_logger(make_info("wandb", tmp_path))


def test_trackio(tmp_path, monkeypatch):
  needs("trackio")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  trackio_utils = pytest.importorskip("trackio.utils")
  for module in (trackio_utils, pytest.importorskip("trackio.sqlite_storage")):
    monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
  log(make_info("trackio", tmp_path), [1, 2])
  log(make_info("trackio", tmp_path), [2, 3])
  with sqlite3.connect(tmp_path / "trackio" / "toys.db") as base:
    rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
  assert {name for name, _, _ in rows} == {make_info("trackio", tmp_path).kept()["name"]}
  assert [step for _, step, metrics in rows if "loss" in json.loads(metrics)] == [1, 2, 2, 3]
  assert any(b"trackio.image" in metrics for _, _, metrics in rows)


def test_mlflow(tmp_path, monkeypatch):
  needs("mlflow")
  monkeypatch.chdir(tmp_path)
  # a database, the default, takes five seconds to make; newer versions ask before they use files
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
  log(make_info("mlflow", tmp_path), [1, 2], failed=True)
  log(make_info("mlflow", tmp_path, steps=9), [2, 3])
  from mlflow import MlflowClient

  client, run_id = MlflowClient(), make_info("mlflow", tmp_path).kept()["run_id"]
  (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
  assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "runs/one", "FINISHED")
  assert (run.data.params["steps"], run.data.tags["config.steps"]) == ("5", "9")
  assert [metric.step for metric in client.get_metric_history(run_id, "loss")] == [1, 2, 2, 3]
  assert "eval/records _b_/r1" in run.data.metrics
  assert {file.path for file in client.list_artifacts(run_id)} == {"images", "tables"}


def test_names_are_checked_before_anything_starts(monkeypatch):
  assert registry.check(("wandb, trackio", "wandb"), installed=False) == ("wandb", "trackio")
  with pytest.raises(ValueError, match="no 'tensorboard', there are wandb, trackio, mlflow; .* always written"):
    registry.check(("tensorboard",))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="'mlflow' needs the library 'mlflow': pip install mlflow"):
    registry.check(("mlflow",))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"wandb": 3}', b"\xff"])
def test_a_damaged_file_of_ids_is_as_none(tmp_path, content):
  (tmp_path / IDS_FILE).write_bytes(content)
  info = make_info("wandb", tmp_path)
  assert info.kept() == {}
  info.keep(id="1")
  make_info("trackio", tmp_path).keep(name="2")
  assert info.kept() == {"id": "1"}
