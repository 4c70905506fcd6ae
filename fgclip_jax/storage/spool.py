"""Files in object storage that grow: objects cannot be appended to, so they are spooled here and put whole."""

import os
import tempfile
import threading

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import first_line, retry

PUT_EVERY = 60.0  # seconds
_LAST_TRIES = 120.0  # seconds for which the last put is tried again


class SpooledFile:
  """A file in object storage that is appended to; begins with what is there already.

  It grows on this machine's disk, and a thread puts it once in a while, so that no caller waits for the network. A put
  that fails is repeated with the next one, and a line says so once. What could not be put by the end stays on the disk,
  and a line says where.

  Args:
    path: a URL.
    every: seconds between puts.
    last_tries: seconds for which the last put is tried again.

  Raises:
    UnreachableError, AccessRefusedError: what is there cannot be read.
  """

  def __init__(self, path: str, every: float = PUT_EVERY, last_tries: float = _LAST_TRIES):
    self._path, self._every, self._last_tries = path, every, last_tries
    there = retry(lambda: paths.read(path) if paths.exists(path) else b"", path)
    descriptor, self._local = tempfile.mkstemp(prefix="fgclip-spool-", suffix=f"-{paths.base_name(path)}")
    self._spool = os.fdopen(descriptor, "r+b")
    self._spool.write(there)
    self._spool.flush()
    self._lock, self._wanted = threading.Lock(), threading.Event()
    self._put, self._failed, self._ended = len(there), False, False  # `_put`: bytes of it that are there
    self._thread = threading.Thread(target=self._keep, name=f"puts {path}", daemon=True)
    self._thread.start()

  def add(self, piece: bytes) -> None:
    """Appends a piece."""
    with self._lock:
      self._spool.seek(0, 2)
      self._spool.write(piece)
      self._spool.flush()

  def flush(self) -> None:
    """Has the file put now, in the background."""
    self._wanted.set()

  def close(self) -> None:
    """Puts what is not there yet, and returns when that is done or has failed."""
    self._ended = True
    self._wanted.set()
    self._thread.join()
    self._spool.close()
    if os.path.getsize(self._local) == self._put:
      os.remove(self._local)
    else:
      print(f"{self._path} lacks its end, which is in {self._local}", flush=True)

  def _keep(self) -> None:
    while not self._ended:
      self._wanted.wait(self._every)
      self._wanted.clear()
      self._put_all(0.0)
    self._put_all(self._last_tries)  # what came between the last put and `close`

  def _put_all(self, seconds: float) -> None:
    size = os.path.getsize(self._local)
    if size == self._put:
      return
    try:
      retry(lambda: paths.put(self._local, self._path), self._path, lambda line: None, seconds)
      # what has been added meanwhile may be in it or not
      self._put, self._failed = size, False
    except Exception as error:  # each storage has error types of its own
      if not self._failed:
        reason = first_line(error.__cause__ or error)
        print(f"{self._path} cannot be written ({reason}); what is missing follows when it can", flush=True)
      self._failed = True
