"""What all processes of a run do at the same time: each tries, and all learn whether all of them could."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from fgclip_jax.storage.errors import (
  AccessRefusedError,
  UnreachableError,
  back_off,
  describe_fault,
  first_line,
  storage_fault,
)
from fgclip_jax.train.distributed import agree


class Outcome(enum.IntEnum):
  """How a try ended; of several processes' outcomes, the largest counts."""

  GOOD = 0
  FAILED = 1
  UNREACHABLE = 2
  REFUSED = 3


class Attempt(NamedTuple):
  """A try of all processes: this one's result or fault, and the outcome of all."""

  value: Any
  fault: Exception | None
  outcome: Outcome

  @property
  def reason(self) -> str:
    """Why it failed, in a line."""
    return first_line(self.fault) if self.fault else "another process failed"


def attempt(action: Callable[[], Any], remote: bool, passes: tuple[type[Exception], ...] = ()) -> Attempt:
  """Calls `action` on every process.

  Args:
    action: what is tried.
    remote: whether it needs a network; a disk that refuses access is no matter of credentials.
    passes: errors that are the same on every process, and raised.
  """
  value = fault = None
  outcome = Outcome.GOOD
  try:
    value = action()
  except passes:
    raise
  except Exception as error:  # Orbax and file systems raise many types
    fault, outcome = error, Outcome.FAILED
    if kind := storage_fault(error) if remote else None:
      outcome = Outcome.REFUSED if kind is AccessRefusedError else Outcome.UNREACHABLE
  return Attempt(value, fault, Outcome(agree(int(outcome))))


def insist(
  action: Callable[[], Any],
  place: str,
  remote: bool,
  log: Callable[[str], object],
  seconds: float,
  passes: tuple[type[Exception], ...] = (),
) -> Attempt:
  """Calls `action` on every process, again and again while the network is down on any.

  Args:
    action, remote, passes: see `attempt`.
    place: for messages.
    log: prints a line, once.
    seconds: for how long it is tried.

  Returns:
    The last try, good or failed for another reason.

  Raises:
    UnreachableError, AccessRefusedError: on all processes alike.
  """
  waits, said = back_off(seconds), False
  while True:
    tried = attempt(action, remote, passes)
    if tried.outcome in (Outcome.GOOD, Outcome.FAILED):
      return tried
    if tried.outcome == Outcome.REFUSED:
      raise describe_fault(AccessRefusedError, place, tried.fault) from tried.fault
    if not said:
      log(f"{place} cannot be reached ({tried.reason[:200]}); trying again for up to {seconds:.0f} s")
    said = True
    if agree(int(next(waits, None) is None)):
      raise describe_fault(UnreachableError, place, tried.fault) from tried.fault
