"""Outputs that are there whole or not at all.

A new output is made beside the old one and takes its place when it is whole. A failure of any kind (a full disk,
Ctrl-C) leaves the old one as it was and nothing of the new one. The umask decides the modes of all files, whatever the
library that wrote them chose.
"""

import contextlib
import errno
import fnmatch
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence

from fgclip_jax.storage import paths

_PATIENCE = 3.0  # seconds
_NO_SPACE = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS") if hasattr(errno, name))


@contextlib.contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[str]:
  """Makes a file.

  The block writes the file at the path that it is given, which lies in the same folder and has the same ending. When
  the block ends, the file replaces the one at `path`. A link at `path` stays, and what it leads to is replaced. A
  device or a pipe is written to. The folder must exist. `path` may be a URL.

  Raises:
    IsADirectoryError: there is a folder at `path`.
    OSError: names `path`, also where the disk is full.
  """
  path = os.fspath(path)
  remote = paths.is_remote(path)
  if not remote and os.path.isdir(path):
    raise IsADirectoryError(errno.EISDIR, "is a folder, and a file is to be written", path)
  if remote or (os.path.exists(path) and not os.path.isfile(path)):  # a URL, /dev/stdout, a FIFO
    with tempfile.TemporaryDirectory() as folder, named(path, folder):
      yield (made := os.path.join(folder, os.path.basename(path)))
      if remote:
        paths.publish(made, path)
      else:
        with open(made, "rb") as source, open(path, "wb") as target:
          shutil.copyfileobj(source, target)
    return
  target = os.path.realpath(path)
  temporary = _beside(target)
  with named(path, temporary):
    try:
      with open(temporary, "xb") as created:
        mode = stat.S_IMODE(os.fstat(created.fileno()).st_mode)
      yield temporary
      _finish(temporary, mode)
      os.replace(temporary, target)
    except BaseException:
      with contextlib.suppress(OSError):
        os.remove(temporary)
      raise


@contextlib.contextmanager
def folder(path: str | os.PathLike[str], owned: Sequence[str] = ()) -> Iterator[str]:
  """Makes a folder, or replaces some of what one holds.

  The block fills the empty folder that it is given. When the block ends, and there is no folder at `path`, that one is
  moved there. Otherwise its files and folders replace those of the same names, those that match a pattern of `owned`
  go, and all others stay. A link at `path` stays, and what it leads to is changed. Folders above `path` are made.

  Args:
    path: the folder. In object storage, where nothing can be moved, the new files are made on this machine and put
      there when the block ends, one after another; what else belongs to the earlier output goes after that.
    owned: patterns of the names that belong to the earlier output, such as `model-*.safetensors`.

  Raises:
    NotADirectoryError: there is something else at `path`.
    OSError: names `path`, also where the disk is full.
  """
  path = os.fspath(path)
  if paths.is_remote(path):
    with tempfile.TemporaryDirectory() as made, named(path, made):
      yield made
      _replace_remote(made, path, owned)
    return
  target = os.path.realpath(path)
  if os.path.lexists(target) and not os.path.isdir(target):
    raise NotADirectoryError(errno.ENOTDIR, "is no folder, and one is to be written", path)
  exists = os.path.isdir(target)
  # inside a folder that exists: it may be a mount, and the one above it may be closed to us
  temporary = _beside(os.path.join(target, "new") if exists else target)
  with named(path, temporary), _parents(os.path.dirname(temporary)):
    try:
      os.mkdir(temporary)
      made = os.path.join(temporary, "new")
      os.mkdir(made)
      yield made
      mode = stat.S_IMODE(os.stat(made).st_mode)
      for base, folders, files in os.walk(made):
        for name in folders:
          _finish(os.path.join(base, name), mode)
        for name in files:
          _finish(os.path.join(base, name), mode & 0o666)
      if exists:
        _swap(made, target, os.path.join(temporary, "old"), owned)
      else:
        os.rename(made, target)
    except Exception:
      _remove(temporary)
      raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: str) -> None:
  """Removes a folder in which threads of a library that has failed (Orbax) may go on making files for a moment."""
  end, gone = time.monotonic() + _PATIENCE, False
  while time.monotonic() < end and not gone:
    shutil.rmtree(path, ignore_errors=True)
    time.sleep(0.1)
    gone = not os.path.lexists(path)  # and has not come back


def _replace_remote(made: str, path: str, owned: Sequence[str]) -> None:
  """Puts a folder's files into object storage, and removes those of an earlier output that they do not replace."""
  before = paths.find(path)
  paths.upload(made, path)
  new = {os.path.relpath(os.path.join(base, name), made) for base, _, names in os.walk(made) for name in names}
  tops = {name.split(os.sep)[0] for name in new}
  for name in before:
    top = name.split("/")[0]
    if name.replace("/", os.sep) not in new and (top in tops or _matches(top, owned)):
      paths.remove(paths.join(path, name))


@contextlib.contextmanager
def scratch(beside: str | None = None) -> Iterator[str]:
  """Makes a folder for temporary files, which goes when the block ends.

  Args:
    beside: the folder to make it in; None: that of the system, or `TMPDIR`.

  Raises:
    OSError: also where the disk is full, and then it names the folder.
  """
  with tempfile.TemporaryDirectory(dir=beside) as made, named(made):
    yield made


def check_apart(source: str, files: Iterable[str], output: str, owned: Sequence[str] = ()) -> None:
  """Refuses an output folder that is the input, holds it, lies in it, or holds a link to it that would be replaced.

  Args:
    source: the input: a file or a folder.
    files: the files that are read.
    output: the folder, which need not exist.
    owned: see `folder`.

  Raises:
    ValueError: says which.
  """
  if paths.is_remote(source) or paths.is_remote(output):
    ours, theirs = (paths.identity(path) for path in (output, source))
    if ours == theirs:
      raise ValueError(f"output {output!r} is the input; name another")
    if f"{ours}/".startswith(f"{theirs}/") or f"{theirs}/".startswith(f"{ours}/"):
      raise ValueError(f"output {output!r} and the input {source!r} lie in each other; name another")
    return
  if os.path.isdir(source):
    if os.path.isdir(output) and os.path.samefile(source, output):
      raise ValueError(f"output {output!r} is the input folder; name another")
    if _is_in(output, source):
      raise ValueError(f"output {output!r} lies in the input folder {source!r}; name another")
  if not os.path.isdir(output):
    return
  if _is_in(source, output):
    raise ValueError(f"output {output!r} holds the input {source!r}; name another")
  for each in check_links(source, files, output, owned):
    if _is_in(each, output):
      raise ValueError(f"output {output!r} holds the input: {each!r} is a link into it; name another")


def check_links(source: str, files: Iterable[str], output: str, owned: Sequence[str]) -> Iterable[str]:
  """Refuses an output folder that holds a link to the input that would be replaced; see `check_apart`.

  Returns:
    The files that are there.

  Raises:
    ValueError: says which link.
  """
  found, files = {}, list(files)
  if not os.path.isdir(output):
    return []
  for each in files:
    with contextlib.suppress(OSError):  # a link that leads nowhere, in a folder
      found[_identity(each)] = each
  folders = {_identity(folder) for folder in {os.path.dirname(os.path.realpath(each)) for each in files}}
  replaced = [name for name in os.listdir(output) if _matches(name, owned)]
  inside = [os.path.join(output, name) for name in replaced]
  for each in inside:
    inside += [os.path.join(base, name) for base, _, names in os.walk(each) for name in names]
  for each in inside:
    with contextlib.suppress(OSError):
      if (same := found.get(_identity(each))) or (os.path.isdir(each) and _identity(each) in folders):
        raise ValueError(f"output {output!r} holds a link to the input: {each!r} is {same or source!r}; name another")
  return found.values()


def _is_in(path: str, folder: str) -> bool:
  """Whether a path, which need not exist, lies in a folder, links followed."""
  parent, seen = os.path.realpath(path), ""
  while parent != seen:
    parent, seen = os.path.dirname(parent), parent
    if os.path.isdir(parent) and os.path.samefile(parent, folder):
      return True
  return False


def _identity(path: str) -> tuple[int, int]:
  found = os.stat(path)
  return found.st_dev, found.st_ino


def _matches(name: str, patterns: Sequence[str]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _swap(made: str, target: str, old: str, owned: Sequence[str]) -> None:
  """Moves everything in `made` into `target`, and what it replaces into `old`; undoes that where it fails."""
  new = os.listdir(made)
  leaving = [name for name in os.listdir(target) if name in new or _matches(name, owned)]
  os.mkdir(old)
  moves = [(os.path.join(target, name), os.path.join(old, name)) for name in leaving]
  moves += [(os.path.join(made, name), os.path.join(target, name)) for name in new]
  done = []
  try:
    for start, end in moves:
      done.append((start, end))  # first: Ctrl-C may come between a move and its record
      _move(start, end)
  except BaseException:
    for start, end in reversed(done):
      if os.path.lexists(end) and not os.path.lexists(start):
        _move(end, start)
    raise


def _move(start: str, end: str) -> None:
  try:
    os.rename(start, end)
  except OSError as error:
    if error.errno != errno.EXDEV:  # overlay file systems (Docker) refuse to rename folders of their lower layers
      raise
    shutil.move(start, end)


def _beside(path: str) -> str:
  """A path in the same folder that is in use by nobody; short, hidden, with the same ending."""
  start, end = os.path.splitext(os.path.basename(path))
  return os.path.join(os.path.dirname(path), f".{start[:40]}.{uuid.uuid4().hex[:8]}.tmp{end[:20]}")


def _finish(path: str, mode: int) -> None:
  """Gives a file or a folder its mode, and has a file written out, which is when some disks say that they are full."""
  if os.path.islink(path):
    return
  if stat.S_IMODE(os.stat(path).st_mode) != mode:
    os.chmod(path, mode)
  if os.path.isfile(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


@contextlib.contextmanager
def _parents(path: str) -> Iterator[None]:
  """Makes a folder and those above it; a failure of the block removes those that were made."""
  made = []
  while path and not os.path.isdir(path):
    made.append(path)
    path = os.path.dirname(path)
  try:
    for each in reversed(made):
      os.mkdir(each)
    yield
  except BaseException:
    for each in made:
      with contextlib.suppress(OSError):  # another process may have put something there
        os.rmdir(each)
    raise


@contextlib.contextmanager
def named(path: str, temporary: str | None = None) -> Iterator[None]:
  """Has errors about a full disk name an output; libraries' own such errors become OSErrors.

  Args:
    path: the output.
    temporary: its temporary copy, which no error is to name.
  """
  try:
    yield
  except OSError as error:
    name = error.filename
    ours = temporary is not None and isinstance(name, str) and name.startswith(temporary)
    if ours or (name is None and error.errno in _NO_SPACE):
      assert error.errno is not None
      raise OSError(error.errno, error.strerror, path) from error
    raise
  except Exception as error:
    # safetensors and Orbax; SQLite
    if any(text in str(error) for text in (os.strerror(errno.ENOSPC), "database or disk is full")):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from error
    raise
