"""Locks that one process holds at a time: a lock on a local file, or a marker in object storage."""

import contextlib
import fcntl
import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator

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
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise LockedError(f"another process is {what}") from error
    yield


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
