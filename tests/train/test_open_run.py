"""What a run meets before its first step: folders that cannot be written, data that is too small, what it says."""

import json
import os
import resource
import shutil

import jax
import pytest

from configs import common
from fgclip_jax import cli
from fgclip_jax.train.config import RunConfig, read_config
from fgclip_jax.train.loop import make_workdir, open_run, train, write_config
from fgclip_jax.weights.native import FOLDER


@pytest.fixture(scope="module", autouse=True)
def promotion():
  """That of dtypes which Optax's own code needs."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def make_run(data: str, **changes) -> RunConfig:
  """Two steps of a tiny plain CLIP on one device."""
  config = common.get_config()
  config.model, config.kind, config.steps, config.log_every = "tiny", "clip", 2, 1
  config.objective.update({"global_long": 0.0, "regional": 0.0, "hard_negative": 0.0})
  config.model_changes.update({"vision": {"depth": 1}, "text": {"depth": 1}})
  config.data.update({"path": data, "batch_size": 4, "boxes": 0, "workers": 0})
  config.optimizer.warmup_steps, config.checkpoint_every, config.mesh = 1, 1, "data=1,fsdp=2,tensor=4"
  config.update_from_flattened_dict(changes)
  return read_config(config)


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory) -> str:
  """The folder of a finished run, with the checkpoints of steps 1 and 2."""
  folder = str(tmp_path_factory.mktemp("made"))
  train(make_run(toy), folder)
  assert sorted(os.listdir(os.path.join(folder, FOLDER))) == ["1", "2"]
  return folder


def close(opened) -> None:
  loop, _ = opened
  with loop:
    pass


def test_changes_are_named_once_where_a_checkpoint_is_damaged(made, toy, tmp_path, capsys):
  folder = shutil.copytree(made, tmp_path / "run")
  os.remove(folder / FOLDER / "2" / "params" / "manifest.ocdbt")
  close(open_run(make_run(toy, log_every=7, **{"data.prefetch": 2}), str(folder)))
  out = capsys.readouterr().out
  assert out.count("log_every 1 -> 7") == out.count("data.prefetch 4 -> 2") == 1
  assert f"continuing {folder} from step 1; changed since: " in out


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over(made, toy, tmp_path):
  folder = shutil.copytree(made, tmp_path / "run")
  for step in "12":
    os.remove(folder / FOLDER / step / "params" / "manifest.ocdbt")
  for _ in range(2):  # also where a launcher tries again
    with pytest.raises(ValueError, match="now called damaged-1, damaged-2.*another --workdir") as caught:
      open_run(make_run(toy), str(folder))
    assert cli.exit_code(caught.value) == cli.WRONG_USAGE


def test_a_key_that_is_new_is_no_change_that_matters(made, toy, tmp_path, capsys):
  """Runs of earlier versions go on; a batch larger than their data needs the switch."""
  folder = shutil.copytree(made, tmp_path / "run")
  with pytest.raises(ValueError, match="data.repeat_in_batch=True"):
    open_run(make_run(toy, **{"data.batch_size": 64}), str(tmp_path / "new"))
  close(open_run(make_run(toy, **{"data.repeat_in_batch": True}), str(folder)))
  assert "changed since: data.repeat_in_batch False -> True" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("file", "'.*file' is a file; name a folder"),
    ("file/below", "Not a directory"),
    ("dangling", "is a file; name a folder"),
    ("x" * 300, "name too long"),
    ("/proc/nothing", "No such file|not permitted"),
    ("/dev/null", "is a file; name a folder"),
  ],
)
def test_a_workdir_that_cannot_be_one(tmp_path, path, message):
  (tmp_path / "file").touch()
  (tmp_path / "dangling").symlink_to("nowhere")
  with pytest.raises(OSError, match=message) as caught:
    make_workdir(str(tmp_path / path))
  assert cli.exit_code(caught.value) == cli.WRONG_USAGE
  assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_old_config(toy, tmp_path):
  write_config(make_run(toy), str(tmp_path))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  text = (tmp_path / "config.json").read_text()
  limit = (tmp_path / "model.json").stat().st_size + 1
  assert limit < len(text)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    with pytest.raises(OSError, match="File too large: '.*config.json'") as caught:
      write_config(make_run(toy, log_every=5), str(tmp_path))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert cli.exit_code(caught.value) == cli.FAILED  # it may pass
  assert (tmp_path / "config.json").read_text() == text
  assert sorted(os.listdir(tmp_path)) == ["config.json", "model.json"]


def test_a_batch_that_holds_a_record_twice_is_counted_and_said(toy, tmp_path, capsys):
  run = make_run(toy, **{"data.batch_size": 28, "data.repeat_in_batch": True, "steps": 3})
  train(run, str(tmp_path))
  out = capsys.readouterr().out
  assert out.count("holds a record more than once") == 1 and "step 1: where a batch" in out
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  repeated = [line["data/repeated"] for line in lines]
  assert repeated[0] >= 5 and repeated == sorted(repeated)  # 28 of 23 records
