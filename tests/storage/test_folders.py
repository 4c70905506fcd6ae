"""Folders as people have them: hidden files, systems' own, links in circles, names that are not UTF-8."""

import os

import pytest

from fgclip_jax.storage import folders
from fgclip_jax.storage.skip_report import SkipReport
from tests.helpers import standin


def make(root, *files):
  for file in files:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def walk(folder, suffixes=("",)):
  skips = SkipReport()
  return list(folders.walk(str(folder), skips, suffixes)), dict(skips.counts)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_what_nobody_put_there_is_left_out_and_counted(tmp_path, where):
  """The folders and files of Jupyter, macOS, Windows, Synology, QNAP and ext4; nested files are listed."""
  stray = (".ipynb_checkpoints", "__MACOSX", "__macosx", "@eaDir", "lost+found", "#recycle", "$RECYCLE.BIN", ".git")
  make(tmp_path, "cat/x.jpg", "cat/sub/deep/y.jpg", "dog/x.jpg", "z.jpg", *(f"{name}/x.jpg" for name in stray))
  make(tmp_path, "cat/._x.jpg", "cat/.hidden.jpg", "cat/Thumbs.db", "cat/DESKTOP.INI", "dog/.ipynb_checkpoints/x.jpg")
  folder = str(tmp_path) if where == "local" else standin.remote(tmp_path)
  found, counts = walk(folder, (".jpg",))
  assert found == ["z.jpg", "cat/x.jpg", "cat/sub/deep/y.jpg", "dog/x.jpg"]
  assert counts == {"folder_hidden": 9, "file_hidden": 2}
  assert walk(folder)[1] == {"folder_hidden": 9, "file_hidden": 4}
  skips = SkipReport()
  assert folders.list_folders(folder, skips) == ["cat", "dog"] and skips.counts == {"folder_hidden": 8}


def test_the_folder_itself_may_be_hidden(tmp_path):
  make(tmp_path, ".cache/lost+found/a.jpg", ".cache/lost+found/b/c.jpg")
  assert walk(tmp_path / ".cache" / "lost+found") == (["a.jpg", "b/c.jpg"], {})


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path):
  root, other = tmp_path / "root", tmp_path / "other"
  make(root, "a/1.jpg", "b/2.jpg", ".store/v2/3.jpg")
  make(other, "4.jpg", "in/5.jpg")
  (root / "loop").symlink_to(root)
  (root / "a" / "up").symlink_to("..")
  (root / "a" / "over").symlink_to(tmp_path)
  (root / "a" / "to_b").symlink_to(root / "b")
  (root / "c").symlink_to(other)
  (root / "d").symlink_to(other / "in")
  (root / "e").symlink_to(root / ".store" / "v2")  # as data stores lay out their versions
  (root / "f").symlink_to(root / ".store" / "v2")
  (other / "back").symlink_to(root)
  (root / "self").symlink_to("self")
  (root / "gone").symlink_to("nowhere")
  found, counts = walk(root)
  assert found == ["gone", "self", "a/1.jpg", "b/2.jpg", "c/4.jpg", "c/in/5.jpg", "e/3.jpg"]
  assert counts == {"folder_hidden": 1, "folder_loop": 3, "folder_read_already": 4}
  skips = SkipReport()
  assert folders.list_folders(str(root), skips) == ["a", "b", "c", "d", "e", "f"]
  assert skips.counts == {"folder_hidden": 1, "folder_loop": 1}


def test_links_that_multiply_paths_end_soon(tmp_path):
  """20 folders that all lead to all others have more paths than could ever be walked."""
  for one in range(20):
    make(tmp_path, f"{one:02}/x.jpg")
    for two in range(20):
      (tmp_path / f"{one:02}" / f"to{two}").symlink_to(tmp_path / f"{two:02}")
  found, counts = walk(tmp_path)
  assert len(found) == 20 and counts == {"folder_loop": 20, "folder_read_already": 380}


def test_pipes_are_yielded_and_never_opened(tmp_path):
  os.mkfifo(tmp_path / "pipe.jpg")
  (tmp_path / "zero.jpg").symlink_to("/dev/zero")
  assert walk(tmp_path, (".jpg",)) == (["pipe.jpg", "zero.jpg"], {})


def test_names_that_are_not_utf8_are_left_out_by_name(tmp_path):
  make(tmp_path, "a.jpg", "köln/b.jpg")
  odd = os.fsencode(tmp_path) + b"/k\xf6ln"
  os.mkdir(odd)
  for name in (b"/c.jpg", b"/d.jpg"):
    with open(odd + name, "wb") as file:
      file.write(b"x")
  skips = SkipReport()
  assert list(folders.walk(str(tmp_path), skips)) == ["a.jpg", "köln/b.jpg"]
  assert skips.counts == {"id_not_unicode": 2} and "udcf6ln" in skips.summary(4, "files")
  assert folders.list_folders(str(tmp_path), skips) == ["köln"] and skips.counts["folder_not_unicode"] == 1


def test_folders_that_cannot_be_listed_are_counted_and_a_missing_one_is_an_error(tmp_path, monkeypatch):
  make(tmp_path, "a/1.jpg", "b/2.jpg")
  scan = folders.paths.scan_folder

  def refuse(path):
    if path.endswith("/a"):
      raise PermissionError(13, "Permission denied", path)
    return scan(path)

  monkeypatch.setattr(folders.paths, "scan_folder", refuse)
  assert walk(tmp_path) == (["b/2.jpg"], {"folder_not_readable": 1})
  for function in (lambda path: walk(path), lambda path: folders.list_folders(path, SkipReport())):
    with pytest.raises(FileNotFoundError):
      function(str(tmp_path / "none"))


@pytest.mark.parametrize("where", ["local", "remote"])
def test_the_files_of_one_folder_are_listed_without_hidden_ones(tmp_path, where):
  make(tmp_path, "b.tar", "a.TAR", "._a.tar", "Thumbs.db", "c.txt", "d.tar/e.tar")
  folder, skips = str(tmp_path) if where == "local" else standin.remote(tmp_path), SkipReport()
  assert folders.list_files(folder, (".tar",), skips) == ["a.TAR", "b.tar"] and skips.counts == {"file_hidden": 1}
  assert folders.list_files(folder) == ["a.TAR", "b.tar", "c.txt"]
