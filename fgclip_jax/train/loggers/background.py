"""A logger that may be slow or fail, kept away from the training loop."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.loggers.protocol import Logger

_MOST_CALLS, _MOST_IMAGES = 20_000, 40  # that wait; beyond that the oldest is dropped
_MOST_TRIES = 20  # of one call
_PAUSES = (1.0, 300.0)  # seconds after a first failure, and at most
_CLOSE_SECONDS = 20.0  # what a run waits for a logger at its end: machines that are taken away give about a minute


@dataclasses.dataclass
class _Call:
  method: str
  arguments: tuple[Any, ...]
  tries: int = 0


class BackgroundLogger:
  """Runs a logger in a thread: calls return at once, and what fails is tried again later.

  A failure never reaches the run. It is printed when it begins and when it is over, and counted.

  Args:
    name: to print.
    open_logger: makes the logger; called in the thread, again where it fails.
    log: prints a line.
    pauses: seconds to wait after a first failure, doubled after each further one, and the most.

  Attributes:
    failures: calls that raised, so far.
    dropped: calls that were given up.
  """

  def __init__(
    self,
    name: str,
    open_logger: Callable[[], Logger],
    log: Callable[[str], object] = lambda line: print(line, flush=True),
    pauses: tuple[float, float] = _PAUSES,
  ):
    self._name, self._open, self._log, self._pauses = name, open_logger, log, pauses
    self._logger: Logger | None = None
    self._calls: collections.deque[_Call] = collections.deque()
    self._changed = threading.Condition()
    self._closing, self._abandoned = False, False
    self.failures, self.dropped = 0, 0
    self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
    self._thread.start()

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    """As `Logger`; returns at once."""
    self._add(_Call("log_scalars", (step, dict(values), seconds)))

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    """As `Logger`; returns at once."""
    self._add(_Call("log_image", (step, name, image, caption)))

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """As `Logger`; returns at once."""
    self._add(_Call("log_table", (step, name, columns, rows)))

  def close(self, failed: bool, seconds: float = _CLOSE_SECONDS) -> None:
    """Waits for what is left, at most so many seconds; prints what was not sent."""
    with self._changed:
      self._calls.append(_Call("close", (failed,)))
      self._closing = True
      self._changed.notify()
    self._thread.join(seconds)
    with self._changed:
      self._abandoned = True  # a thread that hangs in its library ends with the process
      left = sum(call.method != "close" for call in self._calls) + self.dropped
    if left:
      self._log(f"{self._name}: {left} entries were not sent ({self.failures} failures); metrics.jsonl has the numbers")
    elif self._thread.is_alive():
      self._log(f"{self._name}: not finished within {seconds:.0f} s; what it has not sent yet may be missing there")

  def _add(self, call: _Call) -> None:
    with self._changed:
      self._calls.append(call)
      images = [each for each in self._calls if each.method == "log_image"] if call.method == "log_image" else []
      if len(images) > _MOST_IMAGES:
        self._calls.remove(images[0])
        self.dropped += 1
      elif len(self._calls) > _MOST_CALLS:
        self._calls.popleft()
        self.dropped += 1
      self._changed.notify()

  def _work(self) -> None:
    pause, failing = self._pauses[0], False
    while (call := self._next()) is not None:
      try:
        if self._logger is None:
          self._logger = self._open()
        getattr(self._logger, call.method)(*call.arguments)
      except (Exception, SystemExit) as error:  # libraries raise anything; training is worth more than its plots
        self.failures += 1
        call.tries += 1
        if not failing:
          self._log(f"{self._name}: {first_line(error)}; training goes on, and what is missing is sent when it can be")
        failing = True
        if not self._return(call, pause):
          return
        pause = min(2 * pause, self._pauses[1])
        continue
      if failing:
        self._log(f"{self._name}: works again after {self.failures} failures")
      pause, failing = self._pauses[0], False
      if call.method == "close":
        return

  def _next(self) -> _Call | None:
    """The next call, once there is one; None: no more are wanted."""
    with self._changed:
      self._changed.wait_for(lambda: self._calls or self._abandoned)
      return None if self._abandoned else self._calls.popleft()

  def _return(self, call: _Call, pause: float) -> bool:
    """Puts a call that failed back, and waits; returns whether to go on."""
    with self._changed:
      if call.tries >= _MOST_TRIES:
        self.dropped += 1
      elif call.tries % 3 == 0 and call.method != "close":
        self._calls.insert(len(self._calls) - self._closing, call)  # the fault may be its own: the others first
      else:
        self._calls.appendleft(call)
      # at the end of a run there is no time for long pauses
      self._changed.wait_for(lambda: self._abandoned or self._closing, timeout=pause)
      closed = self._closing
      if closed:
        self._changed.wait_for(lambda: self._abandoned, timeout=min(pause, 1.0))
      return not self._abandoned and not (call.method == "close" and call.tries >= 3)
