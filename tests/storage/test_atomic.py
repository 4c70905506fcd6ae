"""Outputs are there whole or not at all."""

import errno
import os
import pathlib
import sqlite3
import stat
import subprocess
import threading
import time

import pytest

from fgclip_jax.storage import atomic
from tests.helpers import standin


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
  before = os.umask(request.param)
  yield request.param
  os.umask(before)


def _mode(path):
  return stat.S_IMODE(os.stat(path).st_mode)


def _names(folder):
  return sorted(os.listdir(folder))


def _write(path, text="new"):
  with open(path, "w") as file:
    file.write(text)


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
  path = tmp_path / "out.npz"
  path.write_text("old")
  with atomic.file(path) as temporary:
    assert temporary.endswith(".npz") and os.path.dirname(temporary) == str(tmp_path)
    _write(temporary)
    assert path.read_text() == "old"
  assert path.read_text() == "new" and _names(tmp_path) == ["out.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_the_old_file_and_no_remains(before, error, tmp_path):
  path = tmp_path / "out.json"
  if before:
    path.write_text(before)
  with pytest.raises(error), atomic.file(path) as temporary:
    _write(temporary)
    raise error
  assert _names(tmp_path) == (["out.json"] if before else [])
  assert not before or path.read_text() == before


def test_the_umask_decides_the_modes(umask, tmp_path):
  with atomic.file(tmp_path / "a") as temporary:
    os.remove(temporary)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600))  # as safetensors does
  with atomic.folder(tmp_path / "b") as temporary:
    os.mkdir(os.path.join(temporary, "sub"), 0o700)
    os.close(os.open(os.path.join(temporary, "sub", "c"), os.O_WRONLY | os.O_CREAT, 0o600))
  assert _mode(tmp_path / "a") == _mode(tmp_path / "b" / "sub" / "c") == 0o666 & ~umask
  assert _mode(tmp_path / "b") == _mode(tmp_path / "b" / "sub") == 0o777 & ~umask


@pytest.mark.parametrize("make", [atomic.file, atomic.folder])
@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError('I/O error: Os { code: 28, message: "No space left on device" }'),
  ],
)
def test_a_full_disk_names_the_output(error, make, tmp_path):
  with pytest.raises(OSError) as caught, make(tmp_path / "out"):
    raise error
  assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "out")
  assert not _names(tmp_path)


def test_errors_name_the_output_and_other_errors_stay(tmp_path):
  with pytest.raises(FileNotFoundError) as caught, atomic.file(tmp_path / "none" / "out"):
    pass
  assert caught.value.filename == str(tmp_path / "none" / "out")
  with pytest.raises(FileNotFoundError) as caught, atomic.file(tmp_path / "out"):
    (tmp_path / "input").read_text()
  assert caught.value.filename == str(tmp_path / "input")
  (tmp_path / "file").write_text("")
  with pytest.raises(NotADirectoryError, match="file"), atomic.folder(tmp_path / "file"):
    pass
  with pytest.raises(IsADirectoryError), atomic.file(tmp_path):
    pass
  assert _names(tmp_path) == ["file"]


def test_links_are_followed(tmp_path):
  (tmp_path / "target").write_text("old")
  (tmp_path / "link").symlink_to("target")
  (tmp_path / "later").symlink_to(tmp_path / "made")
  (tmp_path / "folder").mkdir()
  (tmp_path / "to_folder").symlink_to("folder")
  for name in ("link", "later"):
    with atomic.file(tmp_path / name) as temporary:
      _write(temporary, name)
  with atomic.folder(tmp_path / "to_folder") as temporary:
    _write(os.path.join(temporary, "x"))
  assert (tmp_path / "target").read_text() == "link" and (tmp_path / "made").read_text() == "later"
  assert (tmp_path / "link").is_symlink() and (tmp_path / "to_folder").is_symlink()
  assert _names(tmp_path / "folder") == ["x"]


def test_a_pipe_and_a_device_are_written_to(tmp_path):
  os.mkfifo(tmp_path / "fifo")
  found = []
  reader = threading.Thread(target=lambda: found.append((tmp_path / "fifo").read_text()))
  reader.start()
  for path in (tmp_path / "fifo", "/dev/null"):
    with atomic.file(path) as temporary:
      _write(temporary)
  reader.join(10)
  assert found == ["new"] and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_remote_file_is_whole_or_not_there(tmp_path):
  path = standin.remote(tmp_path / "out")
  with pytest.raises(ValueError), atomic.file(path) as temporary:
    _write(temporary)
    raise ValueError
  assert not (tmp_path / "out").exists()
  with atomic.file(path) as temporary:
    _write(temporary)
  assert (tmp_path / "out").read_text() == "new"


def _fill(folder, **files):
  for name, text in files.items():
    os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
    _write(os.path.join(folder, name), text)


def test_a_folder_and_those_above_it_are_made(tmp_path):
  with atomic.folder(tmp_path / "a" / "b") as temporary:
    _fill(temporary, **{"x": "1", "sub/y": "2"})
    assert not (tmp_path / "a" / "b").exists()
  assert _names(tmp_path / "a") == ["b"] and _names(tmp_path / "a" / "b") == ["sub", "x"]
  with pytest.raises(KeyError), atomic.folder(tmp_path / "c" / "d" / "e"):
    raise KeyError
  assert _names(tmp_path) == ["a"]


def _earlier(path):
  _fill(
    path, **{"x": "old", "params/a": "old", "model-1.bin": "old", "mine": "mine", ".hidden": "mine", "sub/z": "mine"}
  )


def _tree(path):
  return {
    os.path.relpath(os.path.join(base, name), path): pathlib.Path(base, name).read_text()
    for base, _, files in os.walk(path)
    for name in files
  }


def test_a_folder_keeps_what_is_not_replaced(tmp_path):
  _earlier(tmp_path / "out")
  with atomic.folder(tmp_path / "out", ("model-*.bin",)) as temporary:
    _fill(temporary, **{"x": "new", "params/b": "new"})
  assert _tree(tmp_path / "out") == {
    "x": "new", "params/b": "new", "mine": "mine", ".hidden": "mine", "sub/z": "mine"
  }  # fmt: skip
  assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_swap_that_fails_is_undone(failing, error, tmp_path, monkeypatch):
  _earlier(tmp_path / "out")
  before, count, rename = _tree(tmp_path / "out"), iter(range(100)), os.rename

  def fails(start, end):
    if next(count) == failing:
      raise error
    rename(start, end)

  monkeypatch.setattr(atomic.os, "rename", fails)
  with pytest.raises(type(error)), atomic.folder(tmp_path / "out", ("model-*.bin",)) as temporary:
    _fill(temporary, **{"x": "new", "params/b": "new"})
  assert next(count) > failing
  assert _tree(tmp_path / "out") == before


def test_a_disk_that_is_full_in_truth(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
    pytest.skip("needs the right to mount a file system")
  try:
    _earlier(disk)
    before = _tree(disk)
    with pytest.raises(OSError) as caught, atomic.folder(disk) as temporary:
      _fill(temporary, x="1" * 1_000_000)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(disk)
    with pytest.raises(OSError) as caught, atomic.file(disk / "x") as temporary:
      _write(temporary, "1" * 1_000_000)
    assert caught.value.filename == str(disk / "x")
    assert _tree(disk) == before
  finally:
    subprocess.run(["umount", disk])


@pytest.mark.parametrize(
  "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), sqlite3.OperationalError("database or disk is full")]
)
def test_temporary_files_that_have_no_room_are_named(tmp_path, error):
  with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/tmp") as found:
    with atomic.scratch(str(tmp_path)):
      raise error
  assert found.value.errno == errno.ENOSPC and not os.listdir(tmp_path)


def test_an_output_that_is_written_in_place_is_named(tmp_path):
  with pytest.raises(OSError, match="No space left on device: 'x'"), atomic.named("x"):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with pytest.raises(KeyError), atomic.named("x"):
    raise KeyError("another fault")


def test_threads_that_go_on_writing_after_a_failure_leave_nothing(tmp_path):
  """Orbax makes folders in threads, which do not stop at once when its call has failed."""
  late = threading.Event()

  def write_late(made):
    late.wait()
    time.sleep(0.02)
    os.makedirs(os.path.join(made, "params"), exist_ok=True)

  def fail():
    with atomic.folder(tmp_path / "out") as made:
      thread = threading.Thread(target=write_late, args=(made,))
      thread.start()
      threads.append(thread)
      late.set()
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  threads: list[threading.Thread] = []
  with pytest.raises(OSError, match="No space left"):
    fail()
  threads[0].join()
  assert not os.listdir(tmp_path)
