"""Checkpoints over a network that is slow, down, or refuses: nothing is lost, and nothing is taken for damage."""

import os
import threading
import time

import jax
import pytest

from fgclip_jax.storage.errors import AccessRefusedError, UnreachableError
from fgclip_jax.train.checkpoints import manager
from fgclip_jax.train.checkpoints.manager import Checkpoints
from fgclip_jax.train.checkpoints.orbax_store import OrbaxStore
from fgclip_jax.train.checkpoints.settings import Keep
from fgclip_jax.weights.native import FOLDER
from tests.helpers.states import CONFIG, assert_same, make_train_state, restored, saved, shardings_of


class Network:
  """Makes saves and reads over a network fail, as one does that is down; the store itself is one on a disk."""

  def __init__(self, monkeypatch):
    self.down = False
    self.error: Exception = ConnectionError("no route to host")
    monkeypatch.setattr(manager, "_PROBE_EVERY", 0.0)
    monkeypatch.setattr(manager, "_REACH_SECONDS", 0.5)
    for name in ("open", "begin", "describe"):
      monkeypatch.setattr(OrbaxStore, name, self._wrap(getattr(OrbaxStore, name)))
    monkeypatch.setattr(manager, "names_in", self._wrap(manager.names_in))

  def _wrap(self, original):
    def call(*arguments):
      if self.down:
        raise self.error
      return original(*arguments)

    return call


def wait_for(condition) -> None:
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def remote_checkpoints(folder, log, **options) -> Checkpoints:
  checkpoints = Checkpoints(str(folder), Keep(newest=9), log=log, **options)
  checkpoints._remote = True
  return checkpoints


def test_an_outage_is_trained_through(tmp_path, monkeypatch):
  said = []
  checkpoints = remote_checkpoints(tmp_path, said.append)
  network = Network(monkeypatch)
  checkpoints.save(1, make_train_state(1), CONFIG)
  checkpoints.wait()
  assert not checkpoints.overdue()
  network.down = True
  for step in range(2, 9):  # more than `max_failed_saves`
    checkpoints.save(step, make_train_state(step), CONFIG)
    assert not checkpoints.overdue()
  assert said[-1].startswith(
    f"step 8 is not saved: {tmp_path}/checkpoints cannot be reached (no route to host) (7 skipped)"
  )
  assert "the newest state is saved when" in said[-1] and said[-1].endswith("the last good checkpoint is step 1")
  network.down = False
  wait_for(checkpoints.overdue)
  checkpoints.save(9, make_train_state(9), CONFIG)
  checkpoints.wait()
  assert said[-1] == "step 9 is saved; 7 checkpoints were skipped before"
  assert not checkpoints.overdue() and checkpoints.latest == 9
  checkpoints.close()
  assert_same(restored(tmp_path, make_train_state()), make_train_state(9))


def test_an_outage_that_is_too_long(tmp_path, monkeypatch):
  checkpoints = remote_checkpoints(tmp_path, lambda line: None, outage_seconds=0.05)
  network = Network(monkeypatch)
  network.down = True
  with pytest.raises(
    OSError, match="has been out of reach for .*longer than guard.outage_seconds; the last good .* None"
  ):
    checkpoints.save(1, make_train_state(1), CONFIG, at_once=True)


def test_the_last_save_waits_for_the_network(tmp_path, monkeypatch):
  checkpoints = remote_checkpoints(tmp_path, lambda line: None)
  network = Network(monkeypatch)
  network.down = True
  threading.Timer(1.5, lambda: setattr(network, "down", False)).start()
  checkpoints.save(1, make_train_state(1), CONFIG, at_once=True)
  assert checkpoints.latest == 1
  checkpoints.close()


def test_a_save_that_is_slow_stalls_nothing(tmp_path, monkeypatch):
  said, ends = [], threading.Event()
  monkeypatch.setattr(manager, "_SAVE_PATIENCE", 0.1)
  checkpoints = remote_checkpoints(tmp_path, said.append)
  original = OrbaxStore.begin

  class Slow:
    def __init__(self, response):
      self.response = response

    def result(self):
      ends.wait()
      return self.response.result()

  monkeypatch.setattr(OrbaxStore, "begin", lambda *arguments: Slow(original(*arguments)))
  checkpoints.save(1, make_train_state(1), CONFIG)
  checkpoints.save(2, make_train_state(2), CONFIG)
  assert said[-1].startswith("step 2 is not saved: that of step 1 is still under way (1 skipped)")
  assert not checkpoints.overdue()
  ends.set()
  wait_for(checkpoints.overdue)
  checkpoints.save(3, make_train_state(3), CONFIG)
  checkpoints.close()
  assert checkpoints.latest == 3


def test_credentials_that_expire_are_named(tmp_path, monkeypatch):
  said = []
  checkpoints = remote_checkpoints(tmp_path, said.append, max_failed_saves=2)
  network = Network(monkeypatch)
  network.down, network.error = True, ValueError("UNAUTHENTICATED: HTTP response code: 401 for gs://b")
  checkpoints.save(1, make_train_state(1), CONFIG)
  assert "refuses access (UNAUTHENTICATED" in said[-1] and "credentials are missing, have expired or" in said[-1]
  with pytest.raises(OSError, match="refuses access .*2 saves in a row have failed"):
    checkpoints.save(2, make_train_state(2), CONFIG)


def test_a_network_that_is_down_is_no_damage(tmp_path, monkeypatch):
  saved(tmp_path, [1, 2])
  like = make_train_state()
  for error, kind, message in (
    (
      ConnectionError("no route"),
      UnreachableError,
      "could not be reached .no route.; what is stored there is as it was",
    ),
    (PermissionError("403"), AccessRefusedError, "refuses access .403.: the credentials are missing, have expired"),
  ):
    with monkeypatch.context() as patch:
      checkpoints = remote_checkpoints(tmp_path, lambda line: None)
      network = Network(patch)
      network.down, network.error = True, error
      with pytest.raises(kind, match=message):
        checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like))
      checkpoints.close()
  assert sorted(os.listdir(tmp_path / FOLDER)) == ["1", "2"]

  checkpoints = remote_checkpoints(tmp_path, lambda line: None)
  network = Network(monkeypatch)
  network.down = True
  threading.Timer(0.2, lambda: setattr(network, "down", False)).start()
  assert_same(checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like)), make_train_state(2))
  checkpoints.close()


def test_what_looks_damaged_is_read_again_over_a_network(tmp_path, monkeypatch):
  saved(tmp_path, [1, 2])
  said, like = [], make_train_state()
  checkpoints = remote_checkpoints(tmp_path, said.append)
  faults = [ValueError("cut short")]
  original = OrbaxStore.load
  monkeypatch.setattr(OrbaxStore, "load", lambda *arguments: original(*arguments) if not faults else raise_from(faults))
  assert_same(checkpoints.restore(shardings_of(like), jax.eval_shape(lambda: like)), make_train_state(2))
  assert said == ["checkpoint 2 cannot be read (cut short); reading it once more"]
  assert sorted(os.listdir(tmp_path / FOLDER)) == ["1", "2"]
  checkpoints.close()


def raise_from(faults: list[Exception]):
  raise faults.pop(0)
