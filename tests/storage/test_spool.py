"""Files that grow in object storage."""

import pathlib
import threading

import pytest

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import AccessRefusedError
from fgclip_jax.storage.spool import SpooledFile


@pytest.fixture
def store(monkeypatch, tmp_path):
  """What is in the store, by path; with `fails` set, it cannot be written."""
  held, written, failed = {}, threading.Event(), threading.Semaphore(0)

  def put(local, path):
    if held.get("fails"):
      failed.release()
      raise RuntimeError("no network")
    held[path] = pathlib.Path(local).read_bytes()
    written.set()

  monkeypatch.setattr(paths, "put", put)
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  monkeypatch.setattr(paths, "exists", held.__contains__)
  monkeypatch.setattr(paths, "read", held.__getitem__)
  held["written"], held["failed"] = written, failed
  return held


def test_what_is_there_is_continued(store, tmp_path):
  store["gs://b/x"] = b"1\n"
  file = SpooledFile("gs://b/x")
  file.add(b"2\n")
  assert store["gs://b/x"] == b"1\n"
  file.close()
  assert store["gs://b/x"] == b"1\n2\n"
  assert not list(tmp_path.iterdir())


def test_it_is_put_once_in_a_while_and_when_asked(store):
  file = SpooledFile("gs://b/x", every=0.01)
  file.add(b"1")
  assert store["written"].wait(10)
  file.close()
  file = SpooledFile("gs://b/y", every=1000.0)
  store["written"].clear()
  file.add(b"1")
  file.flush()
  assert store["written"].wait(10)
  file.close()


def test_a_lost_network_is_said_once_and_made_up_for(store, capsys):
  store["fails"] = True
  file = SpooledFile("gs://b/x", every=0.01)
  file.add(b"1")
  for _ in range(3):
    assert store["failed"].acquire(timeout=10)
  store["fails"] = False
  file.add(b"2")
  file.close()
  assert store["gs://b/x"] == b"12"
  assert capsys.readouterr().out.count("cannot be written (no network)") == 1


def test_what_cannot_be_put_stays_on_the_disk(store, capsys, tmp_path):
  store["fails"] = True
  file = SpooledFile("gs://b/x.jsonl", last_tries=0.0)
  file.add(b"1")
  file.close()
  (left,) = tmp_path.iterdir()
  assert left.read_bytes() == b"1"
  assert f"gs://b/x.jsonl lacks its end, which is in {left}" in capsys.readouterr().out


def test_a_network_that_is_down_at_the_start_is_no_empty_file(store, monkeypatch):
  def down(path):
    raise PermissionError("401")

  monkeypatch.setattr(paths, "exists", down)
  with pytest.raises(AccessRefusedError):
    SpooledFile("gs://b/x")
