"""Which endpoint a request goes to, and how many may be in flight at each: least in flight, and AIMD.

Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain, 1989): each good answer adds `1 / limit` to
an endpoint's limit, and a window in which more than a fifth of the answers were "busy" halves it. A few busy answers
among many good ones change nothing: they are signs of a server that is used to its full capacity.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from fgclip_jax.annotate.servers.endpoints import Endpoint
from fgclip_jax.annotate.servers.faults import ServerError

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds
_WINDOW = 16  # answers at least, between two decisions on a limit
_BUSY_SHARE = 0.2
_POLL = 0.2  # seconds after which a request that waits looks again


class StoppedError(Exception):
  """The run has ended while a request waited."""


def draw_wait(failures: int) -> float:
  """Seconds to wait after so many failures in a row: full jitter, up to a limit that doubles each time.

  Clients that failed together do not come back together (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter).
  """
  return random.uniform(0.0, min(FIRST_WAIT * 2.0 ** min(failures, 16), LONGEST_WAIT))


class Lane:
  """An endpoint with its limit and its state. Only `Balancer` changes it, under its lock.

  Attributes:
    endpoint: the endpoint.
    in_flight: requests that are there now.
    sent: requests that were given to it.
    outages: how often it was found to be off and came back, by which waits before that are known to be void.
  """

  def __init__(self, endpoint: Endpoint, capacity: int):
    self.endpoint, self.capacity = endpoint, capacity
    self.limit = float(capacity)
    self.in_flight = self.sent = self.outages = 0
    self.off = False  # one request at a time finds out whether it is back
    self.closed_until = 0.0
    self._probes = 0
    self._window = self._busy = self._limited = 0

  def has_room(self) -> bool:
    """Whether one more request may go there."""
    return self.in_flight < (1 if self.off else int(self.limit))

  def record_answer(self) -> None:
    """After an answer, whatever it says."""
    if self.off:
      self.off, self.closed_until, self.outages = False, 0.0, self.outages + 1
      self._window = self._busy = self._limited = 0
    self._probes = 0
    self.limit = min(self.limit + 1.0 / self.limit, float(self.capacity))
    self._window += 1
    self._decide()

  def record_busy(self, limited: bool) -> None:
    """After a response that the server is busy, or none in time; `limited`: it has said so with status 429."""
    self._window += 1
    self._busy += 1
    self._limited += limited
    if self.off:
      self.turn_off()
    self._decide()

  def turn_off(self) -> None:
    """After a connection that could not be made, or a window without an answer: it is tried again after a while."""
    now = time.monotonic()
    if not self.off or now >= self.closed_until:
      self.closed_until = now + draw_wait(self._probes)
      self._probes += 1
    self.off = True

  def _decide(self) -> None:
    if self._window < max(_WINDOW, int(self.limit)):
      return
    if self._busy == self._window and not self._limited:
      self.turn_off()
    elif self._busy > _BUSY_SHARE * self._window:
      self.limit = max(float(int(self.limit) // 2), 1.0)
    self._window = self._busy = self._limited = 0


# Until when a request goes to an endpoint no more, with the endpoint's `outages` when that was said.
Waits = dict[Lane, tuple[int, float]]


class Balancer:
  """Hands endpoints to requests.

  Attributes:
    lanes: the endpoints with their state.
  """

  def __init__(self, endpoints: Sequence[Endpoint], in_flight: int, patience: float, log: Callable[[str], object]):
    """Makes it.

    Args:
      endpoints: where requests may go.
      in_flight: requests at each endpoint at the same time, at most.
      patience: seconds without an answer from any endpoint after which the run ends.
      log: prints a line.
    """
    self.lanes = [Lane(endpoint, in_flight) for endpoint in endpoints]
    self._patience, self._log = patience, log
    self._changed = threading.Condition()
    self._last_answer = time.monotonic()
    self._last_fault = ""

  def begin(self) -> None:
    """At the start of a run: time without requests is no time without answers."""
    with self._changed:
      self._last_answer = time.monotonic()

  @contextlib.contextmanager
  def lease(self, waits: Waits, stopped: threading.Event) -> Iterator[Lane]:
    """Waits for an endpoint that may have one more request; the request is in flight for the length of the block.

    Args:
      waits: until when this request goes to an endpoint no more.
      stopped: whether the run has ended.

    Raises:
      ServerError: no endpoint has answered for too long.
      StoppedError: the run has ended.
    """
    lane = self._take(waits, stopped)
    try:
      yield lane
    finally:
      with self._changed:
        lane.in_flight -= 1
        self._changed.notify()

  def _take(self, waits: Waits, stopped: threading.Event) -> Lane:
    with self._changed:
      while not stopped.is_set():
        now = time.monotonic()
        opens = {lane: max(lane.closed_until, _until(lane, waits)) for lane in self.lanes}
        free = [lane for lane in self.lanes if opens[lane] <= now and lane.has_room()]
        if free:
          lane = min(free, key=lambda lane: (lane.in_flight, lane.sent))
          lane.in_flight += 1
          lane.sent += 1
          return lane
        if now - self._last_answer > self._patience and self._last_fault:
          raise ServerError(
            f"no model server has answered for {self._patience:.0f} s (the last fault: {self._last_fault}); what is "
            "answered is kept: see to the servers, then the same command goes on"
          )
        self._changed.wait(min(max(min(opens.values()) - now, 0.005), _POLL))
    raise StoppedError

  def record_answer(self, lane: Lane) -> None:
    """After an answer, whatever it says."""
    with self._changed:
      back = lane.off
      lane.record_answer()
      self._last_answer = time.monotonic()
    if back:
      self._log(f"{lane.endpoint.address} answers again")

  def record_busy(self, lane: Lane, limited: bool, detail: str) -> None:
    """After a response that the server is busy (`limited`: with status 429), or none in time."""
    with self._changed:
      before = lane.off
      lane.record_busy(limited)
      self._last_fault = f"{lane.endpoint.address}: {detail}"
    if lane.off and not before:
      self._log_off(lane, detail)

  def turn_off(self, lane: Lane, detail: str) -> None:
    """After a connection that could not be made, or a server that fails at whatever it is asked."""
    with self._changed:
      before = lane.off
      lane.turn_off()
      self._last_fault = f"{lane.endpoint.address}: {detail}"
    if not before:
      self._log_off(lane, detail)

  def _log_off(self, lane: Lane, detail: str) -> None:
    self._log(f"{lane.endpoint.address} is off ({detail}); trying again until it answers")


def _until(lane: Lane, waits: Waits) -> float:
  outages, until = waits.get(lane, (lane.outages, 0.0))
  return until if outages == lane.outages else 0.0
