"""Records what a run does with its time, as lines of `WORKDIR/timeline.jsonl`.

Each start of the run is an attempt: a line `start`, lines `span`, and a line `end` unless it was killed. A span says,
in microseconds, what the time since the line before went to; its parts add up to that exactly.
"""

import contextlib
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax

from fgclip_jax.storage import paths
from fgclip_jax.train.logger import open_append

TIMELINE_FILE = "timeline.jsonl"
# what the host does, where the devices do nothing meanwhile
STEP, START, COMPILE, DATA, SAVE, EVALUATE = "step", "start", "compile", "data", "save", "evaluate"
PHASES = (STEP, START, COMPILE, DATA, SAVE, EVALUATE)
_SPAN_SECONDS = 10.0  # between lines, at least: what a run that is killed leaves unrecorded


class Timeline:
  """What one attempt does with its time; only one process of a run records.

  The host is in one phase at a time. Time in which the devices compute a step counts as `step`, whatever the host does
  meanwhile: waiting for the next batch is no loss then.

  Args:
    workdir: the run's folder; None: nothing is recorded.
    began: when the attempt began, in seconds since 1970, e.g. the start of the process; None: now.
  """

  def __init__(self, workdir: str | None, began: float | None = None):
    now, self._zero = time.time(), time.monotonic_ns()
    age = max(now - began, 0.0) if began is not None else 0.0
    self._zero -= int(age * 1e9)
    self._began = now - age
    self._file = None if workdir is None else open_append(paths.join(workdir, TIMELINE_FILE))
    self._attempt, self._phase = uuid.uuid4().hex[:8], START
    self._phases: list[tuple[str, int, int]] = []  # what the host did since the last line: phase, from, to
    self._since = self._written = self._zero
    self._step: int | None = None  # the last one that a line has
    self._last = 0  # the last one that is done
    self._ended = self._file is None
    self._busy = _Busy() if self._file is not None else None
    self._write("start", self._zero, {"host": os.uname().nodename, "devices": jax.device_count()})

  def begin(self, step: int) -> None:
    """The start is over: the next step is the one after `step`."""
    self._step = self._last = step
    self._switch(STEP)
    self.write_span()

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """What the host does in this block."""
    before = self._phase
    self._switch(name)
    try:
      yield
    finally:
      self._switch(before)

  def dispatched(self, metrics: Any) -> None:
    """A step was given to the devices; `metrics` are arrays that are there when it is done."""
    if self._busy:
      self._busy.add(metrics)

  def done(self, step: int, drained: bool) -> None:
    """A step is done; `drained`: nothing is under way, so that a run may go on from here later."""
    self._last = step
    if drained or time.monotonic_ns() - self._written > _SPAN_SECONDS * 1e9:
      self.write_span()

  def write_span(self) -> None:
    """Writes a line of what was done since the last one."""
    self._switch(self._phase)
    end = self._since
    parts: dict[str, int] = dict.fromkeys(PHASES, 0)
    busy = self._busy.take(end) if self._busy else []
    for name, first, last in self._phases:
      covered = 0 if name == START else sum(max(min(b, last) - max(a, first), 0) for a, b in busy)
      parts[name] += last - first - covered
      parts[STEP] += covered
    self._phases = []
    micro = {name: nano // 1000 for name, nano in parts.items()}
    total = (end - self._zero) // 1000 - (self._written - self._zero) // 1000
    micro[self._phase] += total - sum(micro.values())  # what rounding left
    first = self._step
    self._written, self._step = end, self._last if first is not None else None
    steps = [first, self._last] if first is not None else None
    self._write("span", end, {"after_step": steps, "microseconds": {k: v for k, v in micro.items() if v}})

  def end(self, reason: str) -> None:
    """The attempt ends; further calls do nothing."""
    if self._ended:
      return
    self.write_span()
    self._write("end", self._written, {"reason": reason, "step": self._last})
    self._ended = True
    if self._busy and self._file:
      self._busy.close()
      self._file.close()

  def _switch(self, name: str) -> None:
    now = time.monotonic_ns()
    self._phases.append((self._phase, self._since, now))
    self._phase, self._since = name, now

  def _write(self, event: str, at: int, values: dict[str, Any]) -> None:
    if self._ended or self._file is None:
      return
    seconds = round(self._began + (at - self._zero) // 1000 / 1e6, 6)
    line = {"time": seconds, "event": event, "attempt": self._attempt, **values}
    self._file.add((json.dumps(line) + "\n").encode())


class _Busy:
  """When the devices had a step to compute: a thread waits for each step, as the host looks only now and then."""

  def __init__(self):
    self._under_way: dict[int, int] = {}  # by number, since when
    self._spans: list[tuple[int, int]] = []
    self._lock, self._number = threading.Lock(), 0
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=self._work, name="timeline", daemon=True).start()

  def add(self, metrics: Any) -> None:
    with self._lock:
      self._number += 1
      self._under_way[self._number] = time.monotonic_ns()
    self._queue.put((self._number, metrics))

  def take(self, now: int) -> list[tuple[int, int]]:
    """The spans since the last call, in order and apart from each other; a step under way is busy until now."""
    with self._lock:
      spans = self._spans + [(since, now) for since in self._under_way.values()]
      self._spans = []
      self._under_way = dict.fromkeys(self._under_way, now)
    apart: list[tuple[int, int]] = []
    for first, last in sorted(spans):
      if apart and first <= apart[-1][1]:
        apart[-1] = (apart[-1][0], max(apart[-1][1], last))
      elif last > first:
        apart.append((first, last))
    return apart

  def close(self) -> None:
    self._queue.put(None)

  def _work(self) -> None:
    while (entry := self._queue.get()) is not None:
      number, metrics = entry
      with contextlib.suppress(Exception):  # the loop meets it, too
        jax.block_until_ready(metrics)
      now = time.monotonic_ns()
      with self._lock:
        self._spans.append((self._under_way.pop(number), now))
      del metrics, entry


def process_start() -> float:
  """When this process began, in seconds since 1970; now where the system does not say."""
  now = time.time()
  try:
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
      ticks = int(file.read().rpartition(")")[2].split()[19])  # the field `starttime`, since the machine started
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
  except (OSError, AttributeError, ValueError, IndexError):
    return now
  return now - age if 0 <= age < 3600 else now
