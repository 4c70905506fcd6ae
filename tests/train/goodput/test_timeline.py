"""What a run records of its time, and what is added up from it."""

import json
import time

import jax.numpy as jnp
import pytest

from fgclip_jax import goodput
from fgclip_jax.train.goodput import report, timeline
from fgclip_jax.train.goodput.timeline import COMPILE, DATA, EVALUATE, SAVE, START, STEP, TIMELINE_FILE, Timeline


def lines(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / TIMELINE_FILE).read_text().splitlines()]


class Slow:
  """Stands for a step's metrics: there after so many seconds."""

  def __init__(self, seconds: float):
    self.end = time.monotonic() + seconds

  def block_until_ready(self):
    time.sleep(max(self.end - time.monotonic(), 0))
    return self


def test_each_part_of_the_time_and_their_sum(tmp_path):
  began = time.time() - 1.5
  record = Timeline(str(tmp_path), began)
  record.begin(10)
  with record.phase(COMPILE):
    time.sleep(0.05)
  record.dispatched(Slow(0.2))
  with record.phase(DATA):  # the devices compute for 0.2 s of it
    time.sleep(0.3)
  record.done(11, drained=True)
  with record.phase(SAVE):
    time.sleep(0.05)
  with record.phase(EVALUATE):
    time.sleep(0.05)
  record.end("finished")
  record.end("again")
  start, starting, first, second, end = lines(tmp_path)
  assert (start["event"], end["event"], end["reason"], end["step"]) == ("start", "end", "finished", 11)
  assert starting["microseconds"].keys() <= {START, STEP} and starting["microseconds"][START] >= 1_500_000
  assert first["after_step"] == [10, 11] and second["after_step"] == [11, 11]
  parts = first["microseconds"]
  assert 150_000 < parts[STEP] and 50_000 <= parts[COMPILE] and 60_000 < parts[DATA] < 180_000
  assert min(second["microseconds"][name] for name in (SAVE, EVALUATE)) >= 50_000
  for before, line in zip([start, starting, first], [starting, first, second], strict=True):
    assert round((line["time"] - before["time"]) * 1e6) == sum(line["microseconds"].values())
  found = report.read(str(tmp_path))
  assert found.total == sum(found.microseconds.values()) == round((end["time"] - start["time"]) * 1e6)
  assert (found.steps, found.lost_steps, len(found.attempts)) == (11, 0, 1)


def test_arrays_are_waited_for(tmp_path):
  record = Timeline(str(tmp_path))
  record.begin(0)
  record.dispatched({"loss": jnp.float32(1)})
  record.end("finished")
  Timeline(None).end("nothing is recorded")
  assert len(lines(tmp_path)) == 4
  assert 0 <= time.time() - timeline.process_start() < 3600


def write(folder, *attempts) -> None:
  """Attempts as a start and spans: (seconds, name, start, [(after, up to, {phase: microseconds})], end)."""
  with open(folder / TIMELINE_FILE, "w", encoding="utf-8") as file:
    for name, at, spans, reason in attempts:
      file.write(json.dumps({"time": at, "event": "start", "attempt": name}) + "\n")
      for steps, parts in spans:
        line = {"time": 0.0, "event": "span", "attempt": name, "after_step": steps, "microseconds": parts}
        file.write(json.dumps(line) + "\n")
      if reason:
        file.write(json.dumps({"time": 0.0, "event": "end", "attempt": name, "reason": reason, "step": 0}) + "\n")


def test_a_run_that_was_killed_and_went_on(tmp_path, capsys):
  million = 1_000_000
  write(
    tmp_path,
    ("a", 1000.0, [
      (None, {"start": 5 * million}), ([0, 100], {"step": 100 * million, "compile": 7 * million}),
      ([100, 130], {"step": 30 * million, "data": 3 * million, "save": million}),
    ], ""),
    # ends before a step, e.g. for lack of data
    ("b", 1200.0, [(None, {"start": 4 * million})], "FileNotFoundError"),
    ("c", 1300.0, [
      (None, {"start": 6 * million}), ([100, 140], {"step": 40 * million}),
      ([140, 200], {"step": 60 * million, "evaluate": 9 * million}),
    ], "PreemptedError"),
    # the newest checkpoint was damaged: a span of the attempt before is lost in part
    ("d", 1500.0, [(None, {"start": 6 * million}), ([150, 210], {"step": 60 * million})], "finished"),
  )  # fmt: skip
  with open(tmp_path / TIMELINE_FILE, "a", encoding="utf-8") as file:
    file.write('{"time": 1501.0, "event": "sp')
  found = report.read(str(tmp_path))
  seconds = {name: micro / million for name, micro in found.microseconds.items()}
  assert seconds == {
    "productive": 100 + 40 + 10 + 60, "lost": 30 + 50, "compiling": 7, "data": 3, "saving": 1, "evaluating": 9,
    "starting": 5, "restarting": 16, "idle": (1200 - 1146) + (1300 - 1204) + (1500 - 1415),
  }  # fmt: skip
  assert found.total == sum(found.microseconds.values()) == (1566 - 1000) * million
  assert (found.steps, found.lost_steps, found.left_out) == (210, 30 + 50, 1)

  assert goodput.main([str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert f"{tmp_path}: {210 / 566:.1%} goodput" in out and "1 damaged lines" in out
  assert "  2: no step, in 4.0 s; FileNotFoundError\n" in out and "  1: steps 1 to 130, in 2:26; killed" in out
  assert goodput.main([str(tmp_path), "--json"]) == 0
  values = json.loads(capsys.readouterr().out)
  assert sum(values["seconds"].values()) == values["wall_seconds"] == 566.0
  assert (values["restarts"], values["lost_steps"], values["goodput"]) == (3, 80, round(210 / 566, 6))


@pytest.mark.parametrize(
  "content, message", [(None, "there is no"), (b"", "no line that can be read"), (b"\0\xff\n[]\n", "no line")]
)
def test_no_timeline(tmp_path, capsys, content, message):
  if content is not None:
    (tmp_path / TIMELINE_FILE).write_bytes(content)
  assert goodput.main([str(tmp_path)]) == 1
  assert message in capsys.readouterr().err
