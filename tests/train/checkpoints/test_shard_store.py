"""Checkpoints in storage that Orbax cannot write: copied when finished, complete with the marker, checked when read."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from fgclip_jax.storage import paths
from fgclip_jax.train.checkpoints import shard_store
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.weights.checkpoint_files.shard_files import MARKER
from fgclip_jax.weights.native import FOLDER, keeps_average, read_params
from tests.helpers import standin
from tests.helpers.states import CONFIG, assert_same, make_params, make_train_state, shardings_of


def saved(workdir, steps, keep: Keep | None = None, losses=None, **state) -> list[str]:
  checkpoints = Checkpoints(workdir, keep or Keep(newest=9))
  for step in steps:
    checkpoints.save(step, make_train_state(step, **state), CONFIG, losses and {"loss": losses[step]})
  checkpoints.close()
  return paths.list_folder(f"{workdir}/{FOLDER}")


def restored(workdir, like=None, log=print):
  like = make_train_state() if like is None else like
  checkpoints = Checkpoints(workdir, log=log)
  try:
    return checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like))
  finally:
    checkpoints.close()


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_comes_back_bit_for_bit(tmp_path, ema):
  workdir = standin.remote(tmp_path / "run")
  assert saved(workdir, [1, 2], ema=ema) == ["1", "2"]
  assert paths.list_folder(f"{workdir}/{FOLDER}/2") == [MARKER, "part-0.bin", "part-0.json"]
  like = make_train_state(ema=ema)
  back = restored(workdir, like)
  assert_same(back, make_train_state(2, ema=ema))
  assert jax.tree.map(lambda leaf: leaf.sharding, back) == shardings_of(like)
  checkpoints = Checkpoints(workdir)
  assert checkpoints.saved_config() == CONFIG
  checkpoints.close()
  assert keeps_average(workdir) == ema
  assert_same(read_params(workdir), make_params(102 if ema else 2))
  assert_same(read_params(workdir, ema=False), make_params(2))
  assert not [name for name in os.listdir(tmp_path) if name.startswith("fgclip-save-")]


def test_s3_holds_a_run(s3):
  workdir = f"{s3}/run"
  assert saved(workdir, [1, 2, 3], Keep(newest=2)) == ["2", "3"]
  assert_same(restored(workdir), make_train_state(3))
  assert_same(read_params(workdir), make_params(3))


def test_which_are_kept(tmp_path):
  losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
  run = lambda name: standin.remote(tmp_path / name)  # noqa: E731
  assert saved(run("newest"), range(1, 6), Keep(newest=2)) == ["4", "5"]
  assert saved(run("some"), range(1, 6), Keep(newest=1, every=2)) == ["2", "4", "5"]
  assert saved(run("least"), range(1, 6), Keep(newest=1, best=2), losses) == ["2", "3", "5"]
  assert saved(run("most"), range(1, 6), Keep(newest=1, best=1, mode="max"), losses) == ["4", "5"]


@pytest.mark.parametrize("fault", ["no marker", "half a marker"])
def test_a_half_written_checkpoint_is_not_taken_and_goes(tmp_path, fault):
  workdir = standin.remote(tmp_path)
  saved(workdir, [1, 2])
  marker = tmp_path / FOLDER / "2" / MARKER
  if fault == "no marker":
    marker.unlink()
  else:
    os.truncate(marker, 20)
  assert_same(read_params(workdir), make_params(1))
  assert_same(restored(workdir), make_train_state(1))
  assert os.listdir(tmp_path / FOLDER) == ["1"]


@pytest.mark.parametrize("fault", ["bit", "cut", "gone", "another save"])
def test_a_damaged_checkpoint_is_marked_and_the_one_before_taken(tmp_path, fault):
  workdir, said = standin.remote(tmp_path), []
  saved(workdir, [1, 2])
  part = tmp_path / FOLDER / "2" / "part-0.bin"
  content = bytearray(part.read_bytes())
  content[len(content) // 2] ^= 1
  if fault == "bit":
    part.write_bytes(content)
  elif fault == "cut":
    os.truncate(part, 10)
  elif fault == "gone":
    part.unlink()
  else:
    shutil.copy(tmp_path / FOLDER / "1" / "part-0.json", part.with_suffix(".json"))
  assert_same(restored(workdir, log=said.append), make_train_state(1))
  assert [line.partition(" (")[0].partition(":")[0] for line in said] == [
    "checkpoint 2 cannot be read",
    "checkpoint 2 cannot be read, is marked by 'damaged-2' and not used",
  ]
  assert_same(read_params(workdir), make_params(1))
  assert saved(workdir, [2]) == ["1", "2"]  # the run comes there again
  assert_same(restored(workdir), make_train_state(2))


def test_a_save_waits_for_the_parts_of_all_processes(tmp_path, monkeypatch):
  """The description of the other's part is of an earlier save at first, then of this one."""
  workdir = standin.remote(tmp_path)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  reads = []

  def read_description(folder, number, original=shard_store.shard_files.read_description):
    found = original(folder, 0)
    reads.append(number)
    return found if number == 0 or reads.count(1) > 2 else {**found, "save": "earlier"}

  monkeypatch.setattr(shard_store.shard_files, "read_description", read_description)
  checkpoints = Checkpoints(workdir)
  checkpoints.save(1, make_train_state(1), CONFIG)
  checkpoints.wait()
  assert reads == [0, 1, 1, 1] and checkpoints.latest == 1
  with open(tmp_path / FOLDER / "1" / MARKER, encoding="utf-8") as file:
    assert json.load(file)["parts"] == 2
  checkpoints.close()


def test_a_part_that_does_not_come_is_a_failed_save(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(shard_store, "_PATIENCE", 0.1)
  said = []
  checkpoints = Checkpoints(standin.remote(tmp_path), log=said.append)
  checkpoints._store._patience = 0.1
  checkpoints.save(1, make_train_state(1), CONFIG)
  checkpoints.wait()
  assert "part 1 of" in said[0] and "has not come within 0 s" in said[0]
  assert checkpoints.latest is None
  checkpoints.close()


def test_a_run_goes_on_where_it_was_copied_to(tmp_path):
  saved(standin.remote(tmp_path / "there"), [1, 2])
  shutil.copytree(tmp_path / "there", tmp_path / "here")
  assert_same(read_params(str(tmp_path / "here")), make_params(2))
  assert_same(restored(str(tmp_path / "here")), make_train_state(2))
  assert saved(str(tmp_path / "here"), [3]) == ["1", "2", "3"]
  assert_same(restored(str(tmp_path / "here")), make_train_state(3))


def test_one_of_a_disk_does_not_go_on_elsewhere(tmp_path):
  saved(str(tmp_path), [1])
  with pytest.raises(ValueError, match="holds checkpoints that were written to a disk or to gs:// .*config.init_from"):
    Checkpoints(standin.remote(tmp_path))


def test_values_stay_exact(tmp_path):
  """Negative zeros, subnormal numbers and NaNs with a payload."""
  state = make_train_state(1)
  odd = np.array([-0.0, 1e-45, np.nan, np.inf, 0, 1], np.float32)
  odd[2:3].view(np.uint32)[:] = 0x7FC01234
  kernel = state.params["vision"]["kernel"]
  state.params["vision"]["kernel"] = jax.device_put(np.tile(odd, (8, 1)), kernel.sharding)
  checkpoints = Checkpoints(standin.remote(tmp_path))
  checkpoints.save(1, state, CONFIG, at_once=True)
  checkpoints.close()
  assert_same(restored(standin.remote(tmp_path)), state)
