"""Checkpoints on local disks: the newest of both tiers is taken, and only of the run's own past."""

import json
import os
import shutil

import jax
import pytest

from fgclip_jax.train.checkpoints.local_tier import ATTEMPTS_FILE
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.checkpoints.settings import CheckpointConfig, Keep
from fgclip_jax.train.resume import ConfigChangedError
from tests.helpers.states import CONFIG, assert_same, make_train_state, shardings_of


@pytest.fixture
def start(tmp_path):
  """Starts the run: its checkpoints, the restored state, and the lines that were logged."""
  opened = []

  def start(check=lambda config: None, like=None, **config):
    said = []
    settings = CheckpointConfig(**{"local_every": 1, "local_folder": str(tmp_path / "disk"), **config})
    checkpoints = Checkpoints(str(tmp_path / "run"), Keep(newest=9), log=said.append, config=settings)
    opened.append(checkpoints)
    like = make_train_state() if like is None else like
    state = checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like), check)
    return checkpoints, state, said

  yield start
  for each in opened:
    each.close()


def run_folder(tmp_path):
  (folder,) = (tmp_path / "disk").iterdir()
  return folder


def steps(tmp_path) -> list[str]:
  return sorted(os.listdir(run_folder(tmp_path)), key=int)


def save(checkpoints, local=(), durable=()) -> None:
  for step in sorted({*local, *durable}):
    if step in local:
      checkpoints.save_local(step, make_train_state(step), CONFIG)
    if step in durable:
      checkpoints.save(step, make_train_state(step), CONFIG)
  checkpoints.close()


@pytest.mark.parametrize("ema", [False, True])
def test_the_newest_of_both_tiers_is_taken(tmp_path, start, ema):
  checkpoints, state, _ = start()
  assert state is None and checkpoints.restored == 0
  for step in (4, 6):
    checkpoints.save_local(step, make_train_state(step, ema=ema), CONFIG)
  checkpoints.save(5, make_train_state(5, ema=ema), CONFIG)
  checkpoints.close()
  like = make_train_state(ema=ema)
  checkpoints, state, said = start(like=like)
  assert checkpoints.restored == 6 and checkpoints.latest == 5
  assert said == ["restored from the local disk"]
  assert_same(state, make_train_state(6, ema=ema))
  assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings_of(like)
  checkpoints.save(7, make_train_state(7, ema=ema), CONFIG)
  checkpoints.close()
  checkpoints, state, said = start(like=like)
  assert checkpoints.restored == 7 and said == []
  assert_same(state, make_train_state(7, ema=ema))


def test_few_are_kept_and_none_after_the_last_step(tmp_path, start):
  checkpoints, _, _ = start()
  for step in range(1, 5):
    checkpoints.save_local(step, make_train_state(step), CONFIG)
  checkpoints._local.wait()
  assert steps(tmp_path) == ["4"]
  checkpoints.finish()
  assert os.listdir(tmp_path / "disk") == []
  checkpoints, _, _ = start(local_newest=2)
  for step in range(1, 5):
    checkpoints.save_local(step, make_train_state(step), CONFIG)
  checkpoints._local.wait()
  assert steps(tmp_path) == ["3", "4"]


def test_a_damaged_one_is_removed_and_the_next_is_taken(tmp_path, start):
  save(start()[0], local=[4], durable=[3])
  (data,) = run_folder(tmp_path).glob("4/*.bin")
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  checkpoints, state, said = start()
  assert checkpoints.restored == 3
  assert said[0].startswith("the local checkpoint of step 4 is not used, and removed: ")
  assert_same(state, make_train_state(3))
  assert steps(tmp_path) == []


def test_half_written_ones_and_other_files_are_not_taken(tmp_path, start):
  save(start()[0], local=[4], durable=[3])
  for step in (5, 6):
    (run_folder(tmp_path) / str(step)).mkdir()
  shutil.copy(run_folder(tmp_path) / "4" / "part-0.bin", run_folder(tmp_path) / "5")
  (run_folder(tmp_path) / "6" / "part-0.json").write_text("{")
  (run_folder(tmp_path) / "notes").touch()
  checkpoints, _, _ = start()
  assert checkpoints.restored == 4


def test_a_disk_that_is_gone(tmp_path, start):
  save(start()[0], local=[4], durable=[3])
  shutil.rmtree(tmp_path / "disk")
  checkpoints, state, _ = start()
  assert checkpoints.restored == 3
  assert_same(state, make_train_state(3))


def test_another_future_of_the_run_is_not_taken(tmp_path, start):
  """A machine that comes back holds states of steps that the run has made again meanwhile, perhaps otherwise."""
  save(start()[0], local=[9], durable=[3])
  shutil.move(tmp_path / "disk", tmp_path / "away")
  save(start()[0], local=[5], durable=[4])  # goes on from 3
  shutil.rmtree(tmp_path / "disk")
  shutil.move(tmp_path / "away", tmp_path / "disk")
  checkpoints, _, said = start()
  assert checkpoints.restored == 4 and said == []
  attempts = json.loads((tmp_path / "run" / ATTEMPTS_FILE).read_text())["attempts"]
  assert [began for _, began in attempts] == [0, 3, 4]


def test_another_run_in_a_folder_of_that_name_is_not_taken(tmp_path, start):
  save(start()[0], local=[9])
  shutil.rmtree(tmp_path / "run")
  checkpoints, state, _ = start()
  assert state is None and checkpoints.restored == 0


def test_the_tier_can_be_turned_off_and_on(tmp_path, start):
  save(start()[0], local=[5], durable=[3])
  save(start(local_every=0)[0], durable=[4])  # from 3: what is on the disk is another future from now on
  assert start()[0].restored == 4
  assert not start(local_every=0)[0].local_due(5)


def test_a_changed_config_is_found(tmp_path, start):
  save(start()[0], local=[4])

  def check(config):
    assert config == CONFIG
    raise ConfigChangedError("changed")

  with pytest.raises(ConfigChangedError):
    start(check)


def test_a_full_disk_ends_nothing(tmp_path, start, monkeypatch):
  from fgclip_jax.train.checkpoints import local_tier

  checkpoints, _, said = start()
  with monkeypatch.context() as patch:
    patch.setattr(local_tier.shard_files, "write_part", lambda *_: raise_full())
    for step in (1, 2, 3):
      checkpoints.save_local(step, make_train_state(step), CONFIG)
    checkpoints._local.wait()
  assert len(said) == 1 and "of step 1 could not be saved in" in said[0] and "No space left" in said[0]
  checkpoints.save_local(4, make_train_state(4), CONFIG)
  checkpoints._local.wait()
  assert said[1:] == ["local checkpoints are saved again, at step 4"]


def raise_full():
  raise OSError("No space left on device")


def test_folders_that_cannot_be_used(tmp_path, start, monkeypatch):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="config.checkpoint.local_folder: .* cannot be written"):
    start(local_folder=str(tmp_path / "file" / "x"))
  monkeypatch.setattr(os, "getuid", lambda: 12345)
  monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
  with pytest.raises(ValueError, match="belongs to another user"):
    start(local_folder="")
  for wrong in ({"local_every": -1}, {"local_newest": 0}, {"local_folder": "gs://bucket/x"}):
    with pytest.raises(ValueError):
      CheckpointConfig(**wrong)
