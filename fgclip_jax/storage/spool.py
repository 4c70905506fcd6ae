"""Files in object storage that grow: objects cannot be appended to, so they are spooled here and put whole."""

import tempfile
import threading

from fgclip_jax.storage import paths

PUT_EVERY = 60.0  # seconds


class SpooledFile:
  """A file in object storage that is appended to; begins with what is there already.

  A thread puts it once in a while, so that no caller waits for the network. A put that fails is repeated with the next
  one, and a line says so once.

  Args:
    path: a URL.
    every: seconds between puts.
  """

  def __init__(self, path: str, every: float = PUT_EVERY):
    self._path, self._every = path, every
    self._spool = tempfile.TemporaryFile()
    self._lock, self._wanted = threading.Lock(), threading.Event()
    if paths.exists(path):
      self._spool.write(paths.read(path))
    self._put, self._failed, self._ended = self._spool.tell(), False, False  # `_put`: bytes of it that are there
    self._thread = threading.Thread(target=self._keep, name=f"puts {path}", daemon=True)
    self._thread.start()

  def add(self, piece: bytes) -> None:
    """Appends a piece."""
    with self._lock:
      self._spool.seek(0, 2)
      self._spool.write(piece)

  def flush(self) -> None:
    """Has the file put now, in the background."""
    self._wanted.set()

  def close(self) -> None:
    """Puts what is not there yet, and returns when that is done or has failed."""
    self._ended = True
    self._wanted.set()
    self._thread.join()
    self._spool.close()

  def _keep(self) -> None:
    while not self._ended:
      self._wanted.wait(self._every)
      self._wanted.clear()
      self._put_all()
    self._put_all()  # what came between the last put and `close`

  def _put_all(self) -> None:
    with self._lock:
      self._spool.seek(0)
      content = self._spool.read()
    if len(content) == self._put:
      return
    try:
      paths.write(self._path, content)
      self._put, self._failed = len(content), False
    except Exception as error:  # each storage has error types of its own
      if not self._failed:
        print(f"{self._path} cannot be written ({error}); what is missing follows when it can", flush=True)
      self._failed = True
