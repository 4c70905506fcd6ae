"""Local and remote files through one set of functions; a stand-in for object storage takes the remote part."""

import os
import pathlib
import pickle
import resource
import signal
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage import paths
from tests.helpers import standin


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path):
  return str(tmp_path) if request.param == "local" else standin.remote(tmp_path)


def test_files_and_folders_are_the_same_here_and_in_storage(root):
  folder = paths.join(root, "a", "b")
  file = paths.join(folder, "1.txt")
  assert not paths.exists(file)
  paths.make_folder(folder)
  paths.make_folder(folder)
  with paths.open(file, "wb") as stream:
    stream.write(b"0123456789")
  with paths.open(paths.join(folder, "0.txt"), "w", encoding="utf-8") as stream:
    stream.write("café")
  assert paths.list_folder(folder) == ["0.txt", "1.txt"]
  assert paths.list_folder(paths.join(root, "a")) == ["b"]
  assert (paths.exists(file), paths.is_file(file), paths.is_folder(file), paths.size(file)) == (True, True, False, 10)
  assert (paths.exists(folder), paths.is_file(folder), paths.is_folder(folder)) == (True, False, True)
  with paths.open(paths.join(folder, "0.txt"), encoding="utf-8", mode="r") as stream:
    assert stream.read() == "café"
  with paths.open(file) as stream:
    stream.seek(4)
    assert stream.read(2) == b"45"


@given(offset=st.integers(0, 12), size=st.none() | st.integers(0, 12))
def test_a_part_of_a_file_is_a_slice_of_its_bytes(tmp_path_factory, offset, size):
  file = tmp_path_factory.mktemp("part") / "1.txt"
  file.write_bytes(b"0123456789")
  expected = b"0123456789"[offset : None if size is None else offset + size]
  assert paths.read(str(file), offset, size) == paths.read(standin.remote(file), offset, size) == expected


@pytest.mark.parametrize("storage", ["bucket", "s3"])
@pytest.mark.parametrize("content", [b"", b"0123456789"])
def test_a_part_of_an_object_may_begin_at_its_end(request, storage, content):
  file = paths.join(request.getfixturevalue(storage), f"part-{len(content)}")
  with paths.open(file, "wb") as stream:
    stream.write(content)
  for offset, size in ((0, None), (0, 4), (4, 4), (8, 4), (10, None), (10, 4), (11, 1)):
    assert paths.read(file, offset, size) == content[offset : None if size is None else offset + size]


def test_what_is_missing_is_not_found(root):
  for function in (paths.open, paths.read, paths.size, paths.list_folder, paths.fingerprint):
    with pytest.raises(FileNotFoundError):
      function(paths.join(root, "nothing"))


def test_a_fingerprint_changes_with_the_file(root, tmp_path):
  file = tmp_path / "1.txt"
  file.write_bytes(b"one")
  path = paths.join(root, "1.txt")
  before = paths.fingerprint(path)
  assert before == paths.fingerprint(path)
  assert before["size"] == 3
  file.write_bytes(b"four")
  assert paths.fingerprint(path) != before


def test_local_paths_become_absolute_and_urls_stay(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert paths.absolute("a") == str(tmp_path / "a")
  assert paths.absolute("gs://bucket/a") == "gs://bucket/a"
  assert paths.join("gs://bucket", "a", "b") == "gs://bucket/a/b"


def test_storage_without_its_package_names_the_package(monkeypatch):
  for package, scheme in (("gcsfs", "gs"), ("s3fs", "s3")):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    # a test before may have used it
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
  with pytest.raises(ValueError, match="gs://bucket/a.*pip install gcsfs"):
    paths.exists("gs://bucket/a")
  with pytest.raises(ValueError, match="s3://bucket/a.*pip install s3fs"):
    paths.read("s3://bucket/a")
  with pytest.raises(ValueError, match="nowhere://a.*no known kind of storage"):
    paths.size("nowhere://a")


def _make_irregular(folder) -> dict[str, str]:
  """Makes a pipe, links to a pipe and to a device, and a socket; returns what each is called, by path."""
  os.mkfifo(folder / "pipe")
  (folder / "link").symlink_to(folder / "pipe")
  (folder / "zero").symlink_to("/dev/zero")
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(folder / "socket"))
  names = {"pipe": "a named pipe", "link": "a named pipe", "zero": "a device", "socket": "a socket"}
  return {str(folder / name): called for name, called in names.items()}


def test_only_regular_files_are_read(tmp_path):
  for path, called in _make_irregular(tmp_path).items():
    assert not paths.is_file(path)
    for read in (paths.read, paths.open, lambda path: paths.open(path, "r", encoding="utf-8")):
      with pytest.raises(paths.NotRegularFileError) as caught:
        read(path)
      assert str(caught.value) == f"{path!r} is {called}, and only regular files are read"
      assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
  with pytest.raises(IsADirectoryError):
    paths.open(str(tmp_path))


def test_a_link_to_a_file_is_read_and_a_circle_of_links_is_an_error(tmp_path):
  (tmp_path / "file").write_bytes(b"text")
  (tmp_path / "link").symlink_to("file")
  (tmp_path / "circle").symlink_to("circle")
  assert paths.read(str(tmp_path / "link")) == b"text"
  assert not paths.is_file(str(tmp_path / "circle"))
  with pytest.raises(OSError, match="symbolic links"):
    paths.open(str(tmp_path / "circle"))


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path):
  (tmp_path / "precious").write_text("text")
  (tmp_path / "a.json.tmp").symlink_to(tmp_path / "precious")
  paths.write(str(tmp_path / "a.json"), b"new")
  assert (tmp_path / "precious").read_text() == "text"
  assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.json", "precious"]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
  (tmp_path / "a.json").write_bytes(b"old")
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # as a full disk: writing fails without a file's name
  try:
    with pytest.raises(OSError, match="a.json") as caught:
      paths.write(str(tmp_path / "a.json"), bytes(100_000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)
  assert caught.value.filename == str(tmp_path / "a.json")
  assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]


@pytest.mark.parametrize("name", ["http://a.b/c.jpg", "d/s3://a/c.jpg", "simplecache::http://a.b/c.jpg"])
def test_a_name_from_a_file_is_never_a_url(tmp_path, name, monkeypatch):
  """Whatever the folder is; the file of such a path is found as any other program finds it."""
  monkeypatch.chdir(tmp_path)
  for folder in ("", ".", str(tmp_path)):
    joined = paths.join(folder, name)
    assert not paths.is_remote(joined)
    pathlib.Path(joined).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(folder, name).write_bytes(b"x")
    assert paths.read(joined) == b"x"
  assert paths.join("gs://bucket/folder", "a", "b.jpg") == "gs://bucket/folder/a/b.jpg"


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("s3://bucket/run", "--workdir 's3://bucket/run' cannot be written to: give a local path, or gs://"),
    ("https://host/run", "cannot be written to"),
    ("gs:///run", "names no bucket"),
    ("gs:/bucket/run", "is no URL: write 'gs://bucket/run'"),
  ],
)
def test_urls_that_cannot_hold_a_run_are_refused(path, message):
  with pytest.raises(ValueError, match=message):
    paths.check(path, "--workdir", paths.ORBAX, write=True)


def test_unknown_schemes_are_refused_everywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for function in (paths.exists, paths.make_folder, paths.read, paths.list_folder, paths.remove, paths.identity):
    with pytest.raises(ValueError, match="names no known kind of storage"):
      function("nowhere://a/b")
    with pytest.raises(ValueError, match="is no URL"):
      function("s3:/a/b")
  assert os.listdir(tmp_path) == []


def test_folders_are_copied_to_object_storage_and_back(tmp_path):
  (tmp_path / "in" / "deep").mkdir(parents=True)
  (tmp_path / "in" / "deep" / "b").write_bytes(b"2")
  (tmp_path / "in" / "a").write_bytes(b"1")
  there = standin.remote(tmp_path / "there")
  paths.upload(str(tmp_path / "in"), there)
  assert paths.find(there) == ["a", "deep/b"]
  paths.download(there, str(tmp_path / "out"))
  assert (tmp_path / "out" / "deep" / "b").read_bytes() == b"2"
  assert paths.parent(there) == standin.remote(tmp_path)
  assert paths.base_name(f"{there}/") == "there"


def test_a_folder_is_looked_at_before_a_library_opens_its_files(tmp_path):
  (tmp_path / "a" / "b").mkdir(parents=True)
  (tmp_path / "a" / "b" / "file").touch()
  (tmp_path / "a" / "nowhere").symlink_to("nothing")
  paths.check_regular(str(tmp_path))
  (tmp_path / "a" / "b" / "zero").symlink_to("/dev/zero")
  with pytest.raises(paths.NotRegularFileError, match="zero' is a device"):
    paths.check_regular(str(tmp_path))


def test_a_network_that_is_down_is_no_missing_file(tmp_path, monkeypatch):
  """fsspec's own `isfile` says so, and a run would begin its metrics again."""
  (tmp_path / "a").touch()
  path = standin.remote(tmp_path / "a")
  assert paths.exists(path) and paths.is_file(path)

  def down(self, path, **kwargs):
    raise ConnectionError("down")

  monkeypatch.setattr(standin.StandIn, "info", down)
  for function in (paths.exists, paths.is_file, paths.is_folder, paths.remove):
    with pytest.raises(ConnectionError):
      function(path)
