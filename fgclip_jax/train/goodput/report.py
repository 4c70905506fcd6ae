"""Adds up where a run's time went, over all its starts."""

import dataclasses
import json
from typing import Any

from fgclip_jax.storage import paths
from fgclip_jax.train.goodput.timeline import COMPILE, DATA, EVALUATE, PHASES, SAVE, START, STEP, TIMELINE_FILE
from fgclip_jax.train.logger import duration

# the rows of the table: key of --json, and what it says
ROWS = {
  "productive": "productive steps",
  "lost": "steps that were lost, and made again",
  "compiling": "compiling",
  "data": "waiting for data",
  "saving": "saving",
  "evaluating": "evaluating and drawing",
  "starting": "the first start: imports, weights, data",
  "restarting": "restarts: the same, again",
  "idle": "between attempts, or after the last line of a killed one",
}
_ROW_OF = {COMPILE: "compiling", DATA: "data", SAVE: "saving", EVALUATE: "evaluating"}


@dataclasses.dataclass
class Attempt:
  """One start of a run.

  Attributes:
    began, ended: in microseconds since 1970; the end is that of its last line.
    first: the step it went on from; None: it never came to a step.
    last: the last step that is recorded.
    reason: how it ended; empty: it was killed, or runs still.
    spans: of each, the steps after which and up to which it goes (None: no step yet), and microseconds by phase.
  """

  began: int
  ended: int
  first: int | None = None
  last: int | None = None
  reason: str = ""
  spans: list[tuple[tuple[int, int] | None, dict[str, int]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Goodput:
  """Where the time went.

  Attributes:
    microseconds: by the keys of `ROWS`; they add up to `total`.
    total: from the first start to the last line.
    steps: that count, those of the newest attempt and what it went on from.
    lost_steps: made and lost.
    attempts: in order.
    left_out: lines that cannot be read.
  """

  microseconds: dict[str, int]
  total: int
  steps: int
  lost_steps: int
  attempts: tuple[Attempt, ...]
  left_out: int = 0

  def as_json(self) -> dict[str, Any]:
    """For `--json`: seconds, which add up as they are written."""
    return {
      "goodput": round(self.microseconds["productive"] / max(self.total, 1), 6),
      "wall_seconds": self.total / 1e6,
      "seconds": {name: micro / 1e6 for name, micro in self.microseconds.items()},
      "steps": self.steps,
      "lost_steps": self.lost_steps,
      "restarts": len(self.attempts) - 1,
      "attempts": [
        {"began": each.began / 1e6, "ended": each.ended / 1e6, "first_step": each.first, "last_step": each.last,
         "end": each.reason or "killed, or still running"}
        for each in self.attempts
      ],
      "damaged_lines": self.left_out,
    }  # fmt: skip

  def table(self) -> str:
    """For people."""
    lines = [f"{'':<58}{'time':>12}{'share':>8}"]
    for name, text in ROWS.items():
      micro = self.microseconds[name]
      lines.append(f"{text:<58}{_time(micro):>12}{micro / max(self.total, 1):>8.1%}")
    lines.append(f"{'all, from the first start to the last line':<58}{_time(self.total):>12}{1:>8.1%}")
    lost = f", {self.lost_steps} made and lost" if self.lost_steps else ""
    lines += ["", f"{self.steps} steps{lost}; {len(self.attempts)} starts:"]
    for number, each in enumerate(self.attempts, 1):
      steps = "no step" if each.first is None else f"steps {each.first + 1} to {each.last}"
      if each.first is not None and each.first == each.last:
        steps = f"no step after {each.first}"
      end = each.reason or "killed, or still running"
      lines.append(f"  {number}: {steps}, in {_time(each.ended - each.began)}; {end}")
    return "\n".join(lines)


def read(workdir: str) -> Goodput:
  """Where the time of a run went.

  Raises:
    FileNotFoundError: the folder has no timeline.
    ValueError: it has no line that can be read.
  """
  path = paths.join(workdir, TIMELINE_FILE)
  if not paths.exists(path):
    raise FileNotFoundError(f"there is no {path!r}: name the folder of a run (runs of earlier versions have none)")
  attempts, left_out = _read_attempts(paths.read(path).splitlines())
  if not attempts:
    raise ValueError(f"{path!r} has no line that can be read")
  return add_up(attempts, left_out)


def add_up(attempts: list[Attempt], left_out: int = 0) -> Goodput:
  """Adds up attempts, in the order of their starts."""
  found, lost_steps = dict.fromkeys(ROWS, 0), 0
  kept = _last_kept(attempts)
  for number, attempt in enumerate(attempts):
    if number:
      found["idle"] += max(attempt.began - attempts[number - 1].ended, 0)
    limit = kept[number]
    for steps, phases in attempt.spans:
      for phase, micro in phases.items():
        if phase == START:
          found["restarting" if number else "starting"] += micro
        elif phase == STEP:
          lost = _lost(steps, limit, micro)
          found["lost"] += lost
          found["productive"] += micro - lost
        else:
          found[_ROW_OF[phase]] += micro
      lost_steps += max(steps[1] - max(steps[0], limit), 0) if steps else 0
  made = [each.last for each in attempts if each.last is not None]
  return Goodput(found, sum(found.values()), made[-1] if made else 0, lost_steps, tuple(attempts), left_out)


def _last_kept(attempts: list[Attempt]) -> list[int]:
  """Of each attempt, the last step that a later one has not made again."""
  kept, limit = [], 2**62
  for attempt in reversed(attempts):
    kept.append(limit)
    if attempt.first is not None:
      limit = min(limit, attempt.first)
  return kept[::-1]


def _lost(steps: tuple[int, int] | None, limit: int, micro: int) -> int:
  """The part of a span's time for steps after `limit`; a span that goes over it is divided by its steps."""
  if steps is None or steps[1] <= limit:
    return 0
  if steps[0] >= limit:
    return micro
  return micro * (steps[1] - limit) // (steps[1] - steps[0])


def _read_attempts(lines: list[bytes]) -> tuple[list[Attempt], int]:
  """The attempts of a file, and how many of its lines cannot be read."""
  found: dict[str, Attempt] = {}
  left_out = 0
  for raw in lines:
    try:
      _take(json.loads(raw), found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
      left_out += 1  # half a line of a run that was killed, or damage
  return sorted(found.values(), key=lambda each: each.began), left_out


def _take(line: dict[str, Any], found: dict[str, Attempt]) -> None:
  at = round(line["time"] * 1_000_000)
  if line["event"] == "start":
    found[line["attempt"]] = Attempt(began=at, ended=at)
    return
  attempt = found[line["attempt"]]
  if line["event"] == "end":
    attempt.reason = str(line["reason"])
    return
  parts = {name: int(micro) for name, micro in line["microseconds"].items() if name in PHASES}
  steps = None if line["after_step"] is None else (int(line["after_step"][0]), int(line["after_step"][1]))
  attempt.spans.append((steps, parts))
  attempt.ended += sum(parts.values())
  if steps:
    attempt.first = steps[0] if attempt.first is None else attempt.first
    attempt.last = steps[1]


def _time(micro: int) -> str:
  """h:mm:ss, and tenths where it is short."""
  return f"{micro / 1e6:.1f} s" if micro < 60e6 else duration(micro / 1e6)
