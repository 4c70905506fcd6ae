"""Says what a run waits for when nothing has moved for a while."""

import threading
import time


class Watchdog:
  """Prints a line, again and again, while the run stays at one thing for longer than it should.

  Args:
    seconds: how long one thing may take before a line, and between lines; 0 never says anything.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._what, self._since = "the start", time.monotonic()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    if seconds:
      self._thread.start()

  def heartbeat(self, what: str) -> None:
    """Tells what the run does from now on; any call shows that it moves."""
    self._what, self._since = what, time.monotonic()

  def close(self) -> None:
    """Ends it."""
    self._ended.set()
    if self._seconds:
      self._thread.join()

  def _watch(self) -> None:
    said = 0.0
    while not self._ended.wait(min(self._seconds / 4, 5.0)):
      what, waited = self._what, time.monotonic() - self._since
      said = min(said, waited)  # it has moved since
      if waited - said >= self._seconds:
        said = waited
        print(f"waiting for {waited:.0f} s now: {what}", flush=True)
