"""Locks that one process holds at a time: a lock on a local file, or a marker in object storage."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from typing import IO

from fgclip_jax.storage import paths

_TRIES = 60  # one second apart


class LockedError(ValueError):
  """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def hold(path: str, what: str, wait: bool = False) -> Iterator[None]:
  """Holds a lock.

  A local lock ends with its process, however that ends. Object storage has no locks: there the lock is an object that
  names its holder. Of two processes that start at the same moment, at least one sees the other's object. A process that
  was killed leaves its object behind; the next process on the same machine notices that its holder is gone, but on
  another machine the object has to be deleted by hand.

  Args:
    path: the lock's file or object.
    what: what the holder does, for the message.
    wait: wait for another process to finish, a minute at most.

  Raises:
    LockedError: another process holds it.
  """
  take = _hold_object if paths.is_remote(path) else _hold_file
  with contextlib.ExitStack() as stack:
    for attempt in itertools.count():
      try:
        stack.enter_context(take(path, what))
        break
      except LockedError:
        if not wait or attempt == _TRIES:
          raise
        time.sleep(1.0)
    yield


@contextlib.contextmanager
def _hold_file(path: str, what: str) -> Iterator[None]:
  with open_lock(path) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise LockedError(f"another process is {what}") from error
    yield


def open_lock(path: str) -> IO[bytes]:
  """Opens a local file for `flock`, and makes it where there is none; its content is left as it is.

  Raises:
    ValueError: there is something else than a file: a link is never followed.
    OSError: it cannot be opened.
  """
  try:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
  except OSError as error:
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
      raise ValueError(f"{path!r} is to be a lock, and is a link or no file; remove it") from error
    raise
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise ValueError(f"{path!r} is to be a lock, and is no file; remove it")
  return os.fdopen(descriptor, "r+b")


@contextlib.contextmanager
def _hold_object(path: str, what: str) -> Iterator[None]:
  mine = {"host": socket.gethostname(), "process": os.getpid(), "key": uuid.uuid4().hex, "since": time.ctime()}
  _refuse(path, what, None)
  paths.write(path, json.dumps(mine).encode())
  _refuse(path, what, mine["key"])  # again: another process may have written its marker over this one meanwhile
  try:
    yield
  finally:
    paths.remove(path)


def _refuse(path: str, what: str, key: str | None) -> None:
  """Raises `LockedError` if the marker is that of another process that may be alive."""
  if not paths.exists(path):
    return
  holder = json.loads(paths.read(path))
  gone = holder["host"] == socket.gethostname() and not _is_alive(holder["process"])
  if holder["key"] != key and not gone:
    who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    raise LockedError(f"another process is {what} ({who}); if it was killed, delete {path}")


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
