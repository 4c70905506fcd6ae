"""Machines that are taken away: on SIGTERM or Ctrl-C a run saves and leaves."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL: started again, the run goes on


class PreemptedError(Exception):
  """The run has saved and ended before its last step, because it was told to."""


class Preemption:
  """Notices that the run is told to end, and sees to it that it has ended in time.

  SIGTERM, and a first Ctrl-C, ask for an end; a second Ctrl-C interrupts at once. In a run of several processes all of
  them agree on the step after which they save, whichever of them was told; JAX's coordination service carries it, and
  also the announcement of maintenance that some TPU machines get.

  Args:
    grace: seconds after which the process ends in any case; what is half written then is never picked.
  """

  def __init__(self, grace: float):
    self._grace, self._asked, self._timer = grace, threading.Event(), None
    self._before: dict[int, object] = {}
    if threading.current_thread() is not threading.main_thread():
      return  # Python allows signal handlers in the main thread only
    # JAX takes SIGTERM itself where a run has several processes
    signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    for number in signals:
      self._before[number] = signal.signal(number, self._ask)

  def reached(self, step: int) -> bool:
    """Whether the run is to save and end after this step; the same on every process."""
    if jax.process_count() > 1:
      if not multihost_utils.reached_preemption_sync_point(step):
        return False
      self._begin_grace()
      return True
    return self._asked.is_set()

  def close(self) -> None:
    """The run has ended: signals do again what they did before."""
    if self._timer is not None:
      self._timer.cancel()
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _ask(self, number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and (self._asked.is_set() or jax.process_count() > 1):
      raise KeyboardInterrupt
    name = signal.Signals(number).name
    print(f"{name}: saving after this step, at most {self._grace:.0f} s", flush=True)
    self._asked.set()
    self._begin_grace()

  def _begin_grace(self) -> None:
    if self._timer is None:
      self._timer = threading.Timer(self._grace, self._give_up)
      self._timer.daemon = True
      self._timer.start()

  def _give_up(self) -> None:
    print(f"not saved within {self._grace:.0f} s; the next run goes on from the checkpoint before", flush=True)
    os._exit(EXIT_CODE)
