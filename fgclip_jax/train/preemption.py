"""Machines that are taken away: on SIGTERM or Ctrl-C a run saves and leaves."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: started again, the run continues


class PreemptedError(Exception):
  """The run was asked to end, and has saved before its last step."""


class Preemption:
  """Notices a request to end the run, and ends the process in time.

  SIGTERM, and a first Ctrl-C, ask for an end; a second Ctrl-C interrupts at once. In a run of several processes all of
  them agree on the step after which they save, whichever of them was asked, through JAX's coordination service. The
  service also passes on the maintenance notice that some TPU machines get.

  Args:
    grace: seconds after which the process ends in any case; a half-written checkpoint is never read.
  """

  def __init__(self, grace: float):
    self._grace, self._asked, self._timer = grace, threading.Event(), None
    self._handlers: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
      return  # Python allows signal handlers in the main thread only
    # with several processes, JAX handles SIGTERM itself
    signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    for number in signals:
      self._handlers[number] = signal.signal(number, self._ask)

  def reached(self, step: int) -> bool:
    """Whether the run must save and end after this step; the same on every process."""
    if jax.process_count() > 1:
      if not multihost_utils.reached_preemption_sync_point(step):
        return False
      self._begin_grace()
      return True
    return self._asked.is_set()

  def close(self) -> None:
    """Restores the signal handlers at the end of the run."""
    if self._timer is not None:
      self._timer.cancel()
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    self._handlers = {}

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
