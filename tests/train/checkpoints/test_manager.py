"""Checkpoints: what is saved comes back bit for bit, and what is half written or foreign does not."""

import os
import shutil

import jax
import jax.numpy as jnp
import pytest
from orbax.checkpoint import v1 as ocp

from fgclip_jax.models.params import flatten
from fgclip_jax.storage import paths
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.train.optimizer import OptimizerConfig, make_optimizer
from fgclip_jax.train.state import make_state
from fgclip_jax.weights.native import FOLDER, keeps_average, read_params
from tests.helpers.states import CONFIG, assert_same, make_params, make_train_state, restored, saved, shardings_of


@pytest.mark.parametrize(
  "config",
  [
    {},
    {"clip_norm": 1.0},
    {"margin": True},
    {"rules": (("^vision", "frozen", 1.0),), "ema": True},
    {"name": "adafactor", "moment_dtype": "bfloat16"},
    {"name": "lion"},
    {"name": "muon", "ema": True},
  ],
  ids=str,
)
def test_a_state_comes_back_bit_for_bit_and_where_it_lay(tmp_path, config):
  state = make_train_state(5, **config)
  checkpoints = Checkpoints(str(tmp_path))
  assert checkpoints.latest is None
  checkpoints.save(5, state, CONFIG)
  checkpoints.save(5, state, CONFIG)  # once is enough
  checkpoints.close()
  back = restored(tmp_path, state)
  assert_same(back, state)
  assert jax.tree.map(lambda leaf: leaf.sharding, back) == jax.tree.map(lambda leaf: leaf.sharding, state)


def test_a_margin_begins_and_ends_with_its_term(tmp_path, capsys):
  """The objective may change between two starts of a run."""
  with_one, without = make_train_state(2, margin=True), make_train_state(2)
  saved(tmp_path / "without", [2])
  assert_same(restored(tmp_path / "without", with_one), without.replace(margin=jnp.float32(0.0)))
  assert "checkpoint 2 has no margin of objective.hard_rank: it begins with 0" in capsys.readouterr().out
  saved(tmp_path / "with", [2], margin=True)
  assert_same(restored(tmp_path / "with", without), without)
  assert_same(restored(tmp_path / "with", with_one), with_one)


def test_the_config_is_saved_with_it(tmp_path):
  saved(tmp_path, [3])
  checkpoints = Checkpoints(str(tmp_path))
  assert checkpoints.latest == 3
  assert checkpoints.saved_config() == CONFIG
  checkpoints.close()


def test_which_are_kept(tmp_path):
  assert saved(tmp_path / "newest", range(1, 6), Keep(newest=2)) == [4, 5]
  assert saved(tmp_path / "some", range(1, 8), Keep(newest=1, every=3)) == [3, 6, 7]
  losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
  assert saved(tmp_path / "least", range(1, 6), Keep(newest=1, best=2), losses) == [2, 3, 5]
  assert saved(tmp_path / "most", range(1, 6), Keep(newest=1, best=1, mode="max"), losses) == [4, 5]
  # nothing is known of a metric that the run does not have
  assert 5 in saved(tmp_path / "other", range(1, 6), Keep(newest=1, best=1, metric="accuracy"), losses)


def test_the_newest_is_restored(tmp_path):
  saved(tmp_path, [1, 2])
  assert_same(restored(tmp_path, make_train_state()), make_train_state(2))


def test_a_half_written_checkpoint_is_ignored(tmp_path):
  saved(tmp_path, [1, 2])
  broken = tmp_path / FOLDER / "9.orbax-checkpoint-tmp"  # as a run that is killed while it saves leaves it
  shutil.copytree(tmp_path / FOLDER / "2", broken)
  for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
    os.remove(broken / name)
  shutil.rmtree(broken / "optimizer")
  assert_same(restored(tmp_path, make_train_state()), make_train_state(2))
  assert_same(read_params(str(tmp_path)), make_params(2))
  assert saved(tmp_path, [9])[-1] == 9  # and it is in nobody's way
  assert_same(restored(tmp_path, make_train_state()), make_train_state(9))


@pytest.mark.parametrize("item", ["params", "optimizer"])
@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, os.path.getsize(path) // 2)])
def test_of_damaged_checkpoints_the_newest_good_one_is_taken(tmp_path, capsys, item, damage):
  saved(tmp_path, [1, 2, 3])
  damage(tmp_path / FOLDER / "2" / item / "manifest.ocdbt")
  data = tmp_path / FOLDER / "3" / item / "d"
  damage(data / os.listdir(data)[0])
  assert_same(restored(tmp_path, make_train_state()), make_train_state(1))
  lines = capsys.readouterr().out.splitlines()
  for step, line in zip((3, 2), lines, strict=True):
    assert line.startswith(f"checkpoint {step} cannot be read, is now called 'damaged-{step}' and not used: ")
  assert sorted(os.listdir(tmp_path / FOLDER)) == ["1", "damaged-2", "damaged-3"]
  assert saved(tmp_path, [2, 3]) == [1, 2, 3]  # the run comes there again
  assert_same(restored(tmp_path, make_train_state()), make_train_state(3))


def test_a_bit_that_the_disk_has_changed(tmp_path):
  saved(tmp_path, [1, 2], width=5000)  # Orbax itself checks small arrays only
  path = max((tmp_path / FOLDER / "2" / "params").rglob("d/*"), key=os.path.getsize)
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  path.write_bytes(data)
  with pytest.raises(OSError, match="1 arrays are not what was saved, e.g. params/vision/kernel"):
    read_params(str(tmp_path))
  assert_same(restored(tmp_path, make_train_state(width=5000)), make_train_state(1, width=5000))
  assert sorted(os.listdir(tmp_path / FOLDER)) == ["1", "damaged-2"]


def test_a_checkpoint_that_describes_itself_wrongly(tmp_path, capsys):
  saved(tmp_path, [1, 2])
  path = tmp_path / FOLDER / "2" / "_CHECKPOINT_METADATA"
  path.write_text(path.read_text().replace("performance", "perforxance"))
  assert_same(restored(tmp_path, make_train_state()), make_train_state(1))
  assert "checkpoint 2 cannot be read, is now called 'damaged-2' and not used: its metad" in capsys.readouterr().out


def test_no_checkpoint_is_left(tmp_path):
  assert restored(tmp_path, make_train_state()) is None
  saved(tmp_path, [1])
  os.remove(tmp_path / FOLDER / "1" / "_CHECKPOINT_METADATA")  # the config is in there
  with pytest.raises(ValueError, match="no checkpoint in .* can be read .*now called damaged-1.* another --workdir"):
    restored(tmp_path, make_train_state())


class FullDisk:
  """Makes saves fail, some at once and some later, as a full disk does."""

  def __init__(self, monkeypatch):
    self.faults = []
    original = ocp.training.Checkpointer.save_checkpointables_async

    def save(checkpointer, step, items, **kwargs):
      fault = self.faults.pop(0) if self.faults else ""
      if fault == "at once":
        raise OSError("No space left on device")
      response = original(checkpointer, step, items, **kwargs)
      return self if fault and response.result() else response

    monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", save)

  def result(self):
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore of it")


def test_a_failed_save_is_told_and_tried_again_at_the_next(tmp_path, monkeypatch, capsys):
  disk = FullDisk(monkeypatch)
  disk.faults = ["", "at once", "at once", ""]
  checkpoints = Checkpoints(str(tmp_path), Keep(newest=1))
  for step in (1, 2, 3, 4):
    checkpoints.save(step, make_train_state(step), CONFIG)
  checkpoints.close()
  assert capsys.readouterr().out.splitlines() == [
    f"the checkpoint of step {step} could not be saved (No space left on device); the last good one is step 1; "
    f"trying again at the next save ({number} of 3 failures in a row)"
    for number, step in ((1, 2), (2, 3))
  ]
  assert os.listdir(tmp_path / FOLDER) == ["4"]


@pytest.mark.parametrize("fault", ["at once", "later"])
def test_too_many_failed_saves_in_a_row(tmp_path, monkeypatch, fault):
  disk = FullDisk(monkeypatch)
  checkpoints = Checkpoints(str(tmp_path), Keep(newest=1), max_failed_saves=2, log=lambda line: None)
  checkpoints.save(1, make_train_state(1), CONFIG)
  checkpoints.wait()
  disk.faults = [fault] * 2
  with pytest.raises(OSError, match="step 3 .*No space left on device.*; 2 saves in a row have failed"):
    for step in (2, 3):
      checkpoints.save(step, make_train_state(step), CONFIG)
      checkpoints.wait()


def test_parameters_alone(tmp_path):
  saved(tmp_path, [1, 4])
  params = read_params(str(tmp_path))
  assert_same(params, make_params(4))
  assert all(len(leaf.sharding.device_set) == 1 for leaf in flatten(params).values())


def test_the_average_is_read_unless_the_raw_weights_are_asked_for(tmp_path):
  saved(tmp_path, [1, 4], ema=True)
  assert keeps_average(str(tmp_path))
  assert_same(read_params(str(tmp_path)), make_params(104))
  assert_same(read_params(str(tmp_path), ema=False), make_params(4))


def test_without_an_average_the_weights_are_read(tmp_path):
  saved(tmp_path, [4])
  assert not keeps_average(str(tmp_path))
  assert_same(read_params(str(tmp_path), ema=True), make_params(4))
  assert not (tmp_path / FOLDER / "4" / "ema").exists()


@pytest.mark.parametrize(
  "before, message", [(False, "lacks averaged weights, .* is set"), (True, "holds .* is not set")]
)
def test_an_average_neither_begins_nor_ends_within_a_run(tmp_path, before, message):
  saved(tmp_path, [2], ema=before)
  with pytest.raises(ValueError, match=f"checkpoint 2 in .* {message}: .*config.init_from to start from"):
    restored(tmp_path, make_train_state(ema=not before))


def test_moments_may_change_their_dtype(tmp_path):
  saved(tmp_path, [2])
  back = restored(tmp_path, make_train_state(moment_dtype="bfloat16"))
  expected = jax.tree.map(
    lambda leaf, like: leaf.astype(like.dtype), make_train_state(2), make_train_state(moment_dtype="bfloat16")
  )
  assert_same(back, expected)


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="has no 'checkpoints' folder"):
    read_params(str(tmp_path))
  Checkpoints(str(tmp_path)).close()
  with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
    read_params(str(tmp_path))


@pytest.mark.parametrize(
  "like, message",
  [
    (make_params(width=7), r"3 arrays differ, e.g. params/vision/kernel \(8, 6\) \(config: \(8, 7\)\)"),
    ({**make_params(), "more": {"bias": jnp.zeros(2)}}, r"params/more/bias missing \(config: \(2,\)\)"),
  ],
)
def test_another_model_is_refused(tmp_path, like, message):
  saved(tmp_path, [2])
  with pytest.raises(ValueError, match=f"checkpoint 2 in .* of another model or optimizer .*{message}"):
    restored(tmp_path, make_state(make_optimizer(OptimizerConfig()), like))


def test_another_kind_of_optimizer_is_refused(tmp_path):
  saved(tmp_path, [2])
  with pytest.raises(ValueError, match="another model or optimizer .*opt_state"):
    restored(tmp_path, make_train_state(clip_norm=1.0))


def test_a_damaged_checkpoint_in_a_bucket_is_marked(bucket, capsys):
  workdir = f"{bucket}/damaged"
  checkpoints = Checkpoints(workdir, Keep(newest=2))
  for step in (1, 2, 3):
    checkpoints.save(step, make_train_state(step), CONFIG)
  checkpoints.close()
  folder = f"{workdir}/{FOLDER}"
  assert paths.list_folder(folder) == ["2", "3"]
  for name in paths.find(f"{folder}/3/params"):
    if name.startswith("d/"):
      paths.write(f"{folder}/3/params/{name}", b"damaged")
  like = make_train_state()
  checkpoints = Checkpoints(workdir, Keep(newest=2))
  assert_same(checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like)), make_train_state(2))
  assert "checkpoint 3 cannot be read, is marked by 'damaged-3'" in capsys.readouterr().out
  assert_same(read_params(workdir), make_params(2))
  checkpoints.save(3, make_train_state(3), CONFIG)  # the run comes to this step again
  checkpoints.close()
  assert paths.list_folder(folder) == ["2", "3"]
  assert_same(read_params(workdir), make_params(3))
