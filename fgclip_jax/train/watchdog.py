"""Logs what a run waits for when it has made no progress for a while."""

import threading
import time


class Watchdog:
  """Prints a line at intervals while one stage of the run takes longer than it should.

  Args:
    seconds: how long a stage may take before the first line, and the interval between lines; 0: never prints.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._what, self._since = "the start", time.monotonic()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    if seconds:
      self._thread.start()

  def heartbeat(self, what: str) -> None:
    """Names the stage that begins now; any call is progress."""
    self._what, self._since = what, time.monotonic()

  def close(self) -> None:
    """Stops the thread."""
    self._ended.set()
    if self._seconds:
      self._thread.join()

  def _watch(self) -> None:
    reported = 0.0
    while not self._ended.wait(min(self._seconds / 4, 5.0)):
      what, waited = self._what, time.monotonic() - self._since
      reported = min(reported, waited)  # smaller after a heartbeat
      if waited - reported >= self._seconds:
        reported = waited
        print(f"waiting for {waited:.0f} s now: {what}", flush=True)
