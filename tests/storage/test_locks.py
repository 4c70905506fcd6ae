"""Locks: one process at a time, on a local disk and in object storage."""

import json
import os
import subprocess
import sys
import threading

import pytest

from fgclip_jax.storage import locks, paths
from tests.helpers import standin


@pytest.fixture(params=["local", "remote"])
def path(request, tmp_path):
  path = tmp_path / "train.lock"
  return str(path) if request.param == "local" else standin.remote(path)


def test_a_lock_is_held_by_one_at_a_time(path):
  with locks.hold(path, "baking"):
    with pytest.raises(locks.LockedError, match="another process is baking"):
      with locks.hold(path, "baking"):
        pass
  with locks.hold(path, "baking"):
    pass


def test_a_lock_ends_with_an_error(path):
  with pytest.raises(KeyError):
    with locks.hold(path, "baking"):
      raise KeyError
  with locks.hold(path, "baking"):
    pass


def test_a_lock_can_be_waited_for(path, monkeypatch):
  waited, release = threading.Event(), threading.Event()
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: (waited.set(), release.wait(30)))
  order = []

  def second():
    with locks.hold(path, "baking", wait=True):
      order.append("second")

  thread = threading.Thread(target=second)
  with locks.hold(path, "baking"):
    thread.start()
    assert waited.wait(30)
    order.append("first")
  release.set()
  thread.join(30)
  assert order == ["first", "second"]


def test_a_marker_of_a_killed_process_of_this_machine_is_ignored(tmp_path):
  path = standin.remote(tmp_path / "train.lock")
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  marker = {"host": locks.socket.gethostname(), "process": gone.pid, "key": "a", "since": "then"}
  paths.write(path, json.dumps(marker).encode())
  with locks.hold(path, "baking"):
    assert json.loads(paths.read(path))["process"] == os.getpid()


def test_a_marker_of_another_machine_says_how_to_go_on(tmp_path):
  path = standin.remote(tmp_path / "train.lock")
  paths.write(path, json.dumps({"host": "elsewhere", "process": 1, "key": "a", "since": "then"}).encode())
  with pytest.raises(locks.LockedError, match=r"process 1 on elsewhere, since then.*delete stand-in://.*train.lock"):
    with locks.hold(path, "baking"):
      pass


def test_a_link_or_a_pipe_is_never_taken_for_a_lock(tmp_path):
  target = tmp_path / "precious"
  target.write_text("text")
  (tmp_path / "link.lock").symlink_to(target)
  (tmp_path / "dangling.lock").symlink_to(tmp_path / "none")
  os.mkfifo(tmp_path / "pipe.lock")
  (tmp_path / "folder.lock").mkdir()
  for name in ("link", "dangling", "pipe", "folder"):
    path = str(tmp_path / f"{name}.lock")
    with pytest.raises(ValueError, match=f"{name}.lock' is to be a lock, and is .*; remove it"), locks.hold(path, "x"):
      pass
  assert target.read_text() == "text"
  assert not (tmp_path / "none").exists()


def test_what_a_lock_file_holds_stays(tmp_path):
  (tmp_path / "a.lock").write_text("text")
  with locks.hold(str(tmp_path / "a.lock"), "x"):
    pass
  assert (tmp_path / "a.lock").read_text() == "text"
