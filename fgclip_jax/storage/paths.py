"""One set of functions for files on this machine and in object storage: paths with `://` go through fsspec.

Local paths go to the functions of `os` directly. `gs://` needs the package gcsfs, `s3://` the package s3fs. A URL that
cannot be used here is refused wherever it comes first, by a `ValueError` that says what can be: it never becomes the
name of a local folder.

Only regular files are read: a pipe would wait for a writer for ever, and a device such as `/dev/zero` has no end.
"""

import builtins
import contextlib
import errno
import io
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Collection
from typing import Any

# where a file can be fetched, and none can be put
_READ_ONLY = ("http", "https", "data", "git", "github", "zip", "tar")
_ONE_SLASH = re.compile(r"(gs|gcs|s3|s3a|az|abfs|abfss|hdfs|https?|file):/(?!/)")
_BUCKETS = ("gs", "gcs", "s3", "s3a")
_BUCKET_URLS = tuple(f"{scheme}://" for scheme in _BUCKETS)
ORBAX = ("gs",)  # what Orbax reads and writes beside local paths


class NotRegularFileError(OSError):
  """What stands at a local path is neither a regular file nor a folder, but a pipe, a device or a socket."""

  def __init__(self, path: str, mode: int):
    super().__init__(errno.EINVAL, f"is {_describe(mode)}, and only regular files are read", path)
    self._mode = mode

  def __str__(self) -> str:
    return f"{self.filename!r} {self.strerror}"

  def __reduce__(self):
    return type(self), (self.filename, self._mode)


def is_remote(path: str) -> bool:
  """Whether a path is a URL, such as `gs://bucket/folder`.

  Raises:
    ValueError: it lacks a slash of a URL, and would be taken for a folder of this machine.
  """
  if "://" in path:
    return True
  if _ONE_SLASH.match(path):
    raise ValueError(f"{path!r} is no URL: write {path.replace(':/', '://', 1)!r} (or ./{path} for a local folder)")
  return False


def check(path: str, what: str, schemes: Collection[str] | None = None, write: bool = False) -> None:
  """Refuses a URL that cannot work where it is given; asks no network. Local paths pass.

  Args:
    path: the path.
    what: what it is, for the message, such as `--workdir`.
    schemes: the schemes that can be used there; None: all that fsspec knows.
    write: it is written to.

  Raises:
    ValueError: says what can be given.
  """
  if not is_remote(path):
    return
  scheme, _, rest = path.partition("://")
  can = "a local path" + "".join(f", or {each}://" for each in schemes or ("gs", "s3"))
  if (schemes is not None and scheme not in schemes) or (write and scheme.split("::")[-1] in _READ_ONLY):
    raise ValueError(f"{what} {path!r} cannot be {'written to' if write else 'used'}: give {can}")
  if schemes is None and write and scheme == "memory":
    raise ValueError(f"{what} {path!r} would end with this process: give {can}")
  if scheme in _BUCKETS and not rest.partition("/")[0]:
    raise ValueError(f"{what} {path!r} names no bucket: write {scheme}://BUCKET/FOLDER")
  try:
    _resolve(path)
  except ValueError as error:
    raise ValueError(f"{what}: {error}; or give a local path") from error


def open(path: str, mode: str = "rb", **options: Any) -> Any:  # fsspec has file types of its own
  """Opens a file as `open` does; one opened for reading bytes can seek.

  Raises:
    NotRegularFileError: it is to be read, and is a pipe, a device or a socket.
    OSError: it cannot be opened.
  """
  if not is_remote(path):
    if mode.startswith("r"):
      options["opener"] = _open_regular
    return builtins.open(path, mode, **options)
  from fsspec.spec import AbstractBufferedFile

  system, name = _resolve(path)
  file = system.open(name, mode, **options)
  if mode == "rb" and isinstance(file, AbstractBufferedFile):  # which typed code does not know as a file
    file.name = path  # pyright: ignore[reportAttributeAccessIssue]
    return io.BufferedReader(file, 1 << 16)  # pyright: ignore[reportArgumentType] - it has what raw files have
  return file


def read(path: str, offset: int = 0, size: int | None = None) -> bytes:
  """Returns `size` bytes of a file from `offset` on (None: to its end), or fewer at the end of the file.

  Raises:
    NotRegularFileError: it is a pipe, a device or a socket.
    OSError: it cannot be read.
  """
  if is_remote(path):
    system, name = _resolve(path)
    end = None if size is None else offset + size
    try:
      return system.cat_file(name, start=offset or None, end=end)
    except Exception:  # each storage has an error of its own for a range that begins at the end
      if system.size(name) > offset:
        raise
      return b""
  with open(path) as file:
    if size is not None:  # `read` takes as much memory as it is asked for
      size = min(size, max(os.fstat(file.fileno()).st_size - offset, 0))
    file.seek(offset)
    return file.read(-1 if size is None else size)


def exists(path: str) -> bool:
  """Whether there is a file or a folder at a path."""
  if not is_remote(path):
    return os.path.exists(path)
  return _kind(path) is not None


def is_file(path: str) -> bool:
  """Whether there is a regular file at a path."""
  if not is_remote(path):
    return os.path.isfile(path)
  return _kind(path) == "file"


def _kind(path: str) -> str | None:
  """What is at a URL, as fsspec calls it; None: nothing.

  fsspec's own `exists` and `isfile` say of many stores that nothing is there when the network is down.
  """
  system, name = _resolve(path)
  try:
    return system.info(name)["type"]
  except (FileNotFoundError, NotADirectoryError):
    return None


def check_regular(folder: str) -> None:
  """Looks at all files below a local folder, for libraries that open them without looking.

  Raises:
    NotRegularFileError: one is a pipe, a device or a socket.
  """
  for base, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(base, name)
      with contextlib.suppress(FileNotFoundError):  # removed since, or a link that leads nowhere
        _refuse_irregular(path, os.stat(path).st_mode)


def is_folder(path: str) -> bool:
  """Whether there is a folder at a path."""
  if not is_remote(path):
    return os.path.isdir(path)
  return _kind(path) == "directory"


def make_folder(path: str) -> None:
  """Makes a folder and those above it; one that is there already is left as it is."""
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)
    return
  system, name = _resolve(path)
  if not path.startswith(_BUCKET_URLS):  # where there are no folders, and asking for the bucket may be forbidden
    system.makedirs(name, exist_ok=True)


def size(path: str) -> int:
  """Returns the size of a file in bytes; raises `FileNotFoundError` if there is none."""
  if not is_remote(path):
    return os.path.getsize(path)
  system, name = _resolve(path)
  return system.size(name)


def list_folder(path: str) -> list[str]:
  """Lists the names in a folder, sorted; raises `FileNotFoundError` if there is no folder."""
  if not is_remote(path):
    return sorted(os.listdir(path))
  system, name = _resolve(path)
  names = (posixpath.basename(entry.rstrip("/")) for entry in system.ls(name, detail=False))
  return sorted(entry for entry in set(names) if entry)  # some stores list an empty name for the folder itself


def scan_folder(path: str) -> list[tuple[str, bool]]:
  """Lists the names in a folder, sorted, each with whether it is a folder or a link to one."""
  if not is_remote(path):
    with os.scandir(path) as entries:
      return sorted((entry.name, _leads_to_folder(entry)) for entry in entries)
  system, name = _resolve(path)
  entries = {entry["name"].rstrip("/"): entry["type"] == "directory" for entry in system.ls(name, detail=True)}
  entries.pop(name.rstrip("/"), None)  # some stores list the folder itself
  return sorted((posixpath.basename(entry), is_folder) for entry, is_folder in entries.items())


def join(path: str, *parts: str) -> str:
  """Joins the parts of a path. Whether it is a URL depends on the first alone: the others may be names from a file."""
  parts = tuple(part.replace("://", ":/") for part in parts)  # to a file system the two are one
  if is_remote(path):
    return posixpath.join(path, *parts)
  joined = os.path.join(path, *parts)
  return f"./{joined}" if _ONE_SLASH.match(joined) else joined


def parent(path: str) -> str:
  """Returns the folder that a path lies in; of a local one without a folder, the current one."""
  if is_remote(path):
    return path.rstrip("/").rpartition("/")[0]
  return os.path.dirname(os.path.abspath(path))


def base_name(path: str) -> str:
  """Returns the last part of a path."""
  return posixpath.basename(path.rstrip("/")) if is_remote(path) else os.path.basename(os.path.normpath(path))


def identity(path: str) -> str:
  """Returns a path that two names of the same place have in common: links are followed."""
  if not is_remote(path):
    return os.path.realpath(path)
  system, name = _resolve(path)
  return system.unstrip_protocol(name.rstrip("/"))


def absolute(path: str) -> str:
  """Returns a path that means the same in any current folder."""
  return path if is_remote(path) else os.path.abspath(path)


def fingerprint(path: str) -> dict[str, Any]:
  """Returns a JSON object that changes when a file changes: its `size`, and the time or tag of its last change."""
  if not is_remote(path):
    found = os.stat(path)
    return {"size": found.st_size, "changed": found.st_mtime_ns}
  system, name = _resolve(path)
  return {"size": system.size(name), "changed": system.ukey(name)}


def write(path: str, data: bytes) -> None:
  """Writes a file that is complete from the moment it exists.

  Raises:
    OSError: it cannot be written; the error names `path`, also where the disk is full.
  """
  if is_remote(path):
    system, name = _resolve(path)
    system.pipe_file(name, data)
    return
  temporary = f"{path}.tmp"
  try:
    if os.path.lexists(temporary):  # of a run that was killed; a link there is not followed
      os.remove(temporary)
    with builtins.open(temporary, "xb") as file:
      file.write(data)
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    if error.filename is None:  # a full disk
      error.filename = path
    raise


def publish(local: str, path: str) -> None:
  """Moves a finished local file to `path`, which is complete from the moment it exists.

  A local `path` must be on the same disk.
  """
  if not is_remote(path):
    os.replace(local, path)
    return
  system, name = _resolve(path)
  system.put_file(local, name)
  os.remove(local)


def put(local: str, path: str) -> None:
  """Copies a local file to object storage, in parts where it is large."""
  system, name = _resolve(path)
  system.put_file(local, name)


def upload(folder: str, path: str) -> None:
  """Copies the files of a local folder, at any depth, to a folder in object storage, in place of those it has."""
  system, name = _resolve(path)
  for base, _, files in os.walk(folder, topdown=False):  # the files on top last: they tell what the folder is
    below = [] if base == folder else os.path.relpath(base, folder).split(os.sep)
    make_folder(join(path, *below))
    for file in files:
      system.put_file(os.path.join(base, file), posixpath.join(name, *below, file))


def find(path: str) -> list[str]:
  """Lists the files of a folder in object storage, at any depth, relative to it; none where there is no folder."""
  system, name = _resolve(path)
  parts = [found[len(name.rstrip("/")) :].lstrip("/") for found in system.find(name)]
  # without the folder itself, as some stores list it, and without names that lead out of it
  return [part for part in parts if part and ".." not in part.split("/")]


def download(path: str, local: str) -> None:
  """Copies a file, or the files of a folder at any depth, from object storage to a local path, which must not exist."""
  system, name = _resolve(path)
  if system.isfile(name):
    system.get_file(name, local)
    return
  os.makedirs(local)
  for part in find(path):
    target = os.path.join(local, *part.split("/"))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    system.get_file(posixpath.join(name, part), target)


def remove(path: str) -> None:
  """Removes a file, or a folder with everything in it; does nothing if there is neither."""
  if not is_remote(path):
    if os.path.isdir(path):
      shutil.rmtree(path)
    elif os.path.lexists(path):
      os.remove(path)
    return
  system, name = _resolve(path)
  if _kind(path) is not None:
    system.rm(name, recursive=True)


def _open_regular(path: str, flags: int) -> int:
  """Opens a file for `builtins.open`, without waiting, and refuses all that is not regular."""
  _refuse_irregular(path, os.stat(path).st_mode)  # first, for opening a device may have effects of its own
  # Another file may stand there by now: opening a pipe must not wait.
  descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
  try:
    _refuse_irregular(path, os.fstat(descriptor).st_mode)
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


def _refuse_irregular(path: str, mode: int) -> None:
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
  if not stat.S_ISREG(mode):
    raise NotRegularFileError(path, mode)


def _describe(mode: int) -> str:
  if stat.S_ISFIFO(mode):
    return "a named pipe"
  return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself
    return False


def _resolve(path: str) -> tuple[Any, str]:
  """Returns the file system of a URL and the path in it; raises `ValueError` for a URL that cannot be used here."""
  import fsspec
  import fsspec.config

  # A listing that is kept would hide what another process has written since, or in this one another library. Orbax goes
  # through fsspec as well, and takes what is set here.
  for scheme in _BUCKETS:
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
  try:
    return fsspec.url_to_fs(path)
  except ImportError as error:
    package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}.get(path.split("://")[0])
    advice = f"pip install {package}" if package else str(error)
    raise ValueError(f"{path!r} cannot be read without a further package: {advice}") from error
  except ValueError as error:
    raise ValueError(f"{path!r} names no known kind of storage: {error}") from error
