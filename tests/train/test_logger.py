"""The numbers of a run: files that continue, and a progress line."""

import collections
import json
import os
import resource

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from fgclip_jax.data.loader import Loader
from fgclip_jax.storage.skip_report import SkipReport
from fgclip_jax.train.flops import StepFlops
from fgclip_jax.train.logger import METRICS_FILE, Clock, Metrics, _record, duration


def read(folder) -> list[dict]:
  with open(os.path.join(folder, METRICS_FILE), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def write(folder, steps, total: int = 100, begin: int = 0):
  metrics = Metrics(str(folder), total, begin)
  for step in steps:
    metrics.write(step, {"loss": step / 10})
  metrics.close()


def test_one_json_line_a_step(tmp_path):
  write(tmp_path, [1, 2])
  lines = read(tmp_path)
  assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.1), (2, 0.2)]
  assert lines[1]["time"] >= lines[0]["time"]
  assert any(name.startswith("events.out.tfevents") for name in os.listdir(tmp_path / "tensorboard"))


def test_continuing_drops_what_was_written_after_the_checkpoint(tmp_path):
  write(tmp_path, [10, 20, 30])
  with open(tmp_path / METRICS_FILE, "a", encoding="utf-8") as file:
    file.write('{"step": 4')  # killed while it wrote
  write(tmp_path, [30, 40], begin=20)
  assert [line["step"] for line in read(tmp_path)] == [10, 20, 30, 40]
  write(tmp_path, [10])  # from the start again
  assert [line["step"] for line in read(tmp_path)] == [10]


def read_events(folder) -> list[Event]:
  """Those of the newest file."""
  data, events = max((folder / "tensorboard").iterdir()).read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + length]))
    assert data[: 16 + length] == _record(events[-1])  # checksums too
    data = data[16 + length :]
  return events


def test_what_tensorboard_reads(tmp_path):
  write(tmp_path, [21, 22], begin=20)
  version, start, *events = read_events(tmp_path)
  assert version.file_version == "brain.Event:2"
  assert start.step == 21 and start.session_log.status == start.session_log.START
  values = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
  assert values == [(21, "loss", pytest.approx(2.1)), (22, "loss", pytest.approx(2.2))]


def test_a_record_is_as_tensorboardx_writes_it(tmp_path):
  writer = EventsWriter(str(tmp_path / "events"))
  event = Event(wall_time=1.5, step=3, file_version="brain.Event:2")
  writer.write_event(event)
  writer.close()
  (path,) = tmp_path.iterdir()
  assert path.read_bytes().endswith(_record(event))


def test_on_a_full_disk_a_run_goes_on_and_nothing_is_lost(tmp_path, capsys):
  write(tmp_path, [10, 20])
  metrics = Metrics(str(tmp_path), 100, 20)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (120, before[1]))  # in the middle of a line
    for step in range(30, 300, 10):
      metrics.write(step, {"loss": step / 10})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  said = capsys.readouterr().out.splitlines()
  assert len(said) == 2 and "metrics.jsonl cannot be written (File too large)" in "".join(said)  # once for each file
  metrics.close()
  assert [line["step"] for line in read(tmp_path)] == [*range(10, 300, 10)]
  assert [event.step for event in read_events(tmp_path)][2:] == [*range(30, 300, 10)]


@pytest.mark.parametrize(
  "damage",
  [b"\0" * 40 + b"\n", b'{"step": 15\n', b"[1, 2]\n", b'{"step": "15"}\n', b"\xff\xfe\n", b"[" * 10**5 + b"\n"],
  ids=repr,
)
def test_damaged_lines_are_left_out_and_said(tmp_path, capsys, damage):
  write(tmp_path, [10, 20, 30])
  path = tmp_path / "metrics.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + damage + b"".join(lines[1:]))
  Metrics(str(tmp_path), 100, 20).close()
  assert path.read_bytes() == b"".join(lines[:2])
  assert capsys.readouterr().out == f"{path}: 1 damaged lines are left out, the first is line 2\n"


def test_a_metrics_file_that_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "metrics.jsonl")
  with pytest.raises(OSError, match="metrics.jsonl' is a named pipe"):
    Metrics(str(tmp_path), 100)


def test_progress_line(tmp_path, capsys):
  metrics = Metrics(str(tmp_path), total_steps=100)
  values = {"loss": 2.5, "loss_global_short": 1.25, "learning_rate": 1e-4, "images_per_second": 64.0}
  metrics.progress(40, values, seconds_per_step=2.0)
  metrics.progress(100, {**values, "mfu": 0.5}, seconds_per_step=2.0)
  metrics.progress(1, {**values, "images_per_second": 0.0}, seconds_per_step=0.0)
  metrics.close()
  first, second, unmeasured = capsys.readouterr().out.splitlines()
  assert first == "step 40/100  loss 2.5000 (global_short 1.250)  lr 1.00e-04  64.0 images/s  left 2:00"
  assert "64.0 images/s (50% MFU)" in second and second.endswith("left 0:00")
  assert unmeasured == "step 1/100  loss 2.5000 (global_short 1.250)  lr 1.00e-04"


@pytest.mark.parametrize(
  "seconds, text", [(0.0, "0:00"), (59.6, "1:00"), (61.0, "1:01"), (3599.0, "59:59"), (7325.0, "2:02:05")]
)
def test_duration(seconds, text):
  assert duration(seconds) == text


class WaitingLoader(Loader):
  """A loader without data, of which the clock reads what it has counted."""

  def __init__(self):
    self.waited, self.skips = 0.0, SkipReport(counts=collections.Counter(image_truncated=2))
    self.examples, self.boxes_lost, self.repeated = {"finehard": 60, "pairs": 20}, 5, 3


def test_clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr("fgclip_jax.train.logger.time.perf_counter", lambda: now[0])
  loader = WaitingLoader()
  clock = Clock(batch_size=8, loader=loader)

  def run(steps: int, seconds: float, waited: float):
    for _ in range(steps):
      clock.count(StepFlops(useful=int(3e12), executed=int(6e12), tokens=30, slots=40))
    now[0] += seconds
    loader.waited += waited

  run(1, 50.0, 1.0)  # the first step compiles
  first = clock.lap(1)
  assert first["images_per_second"] == 0.0 and clock.seconds_per_step == 0.0
  run(10, 20.0, 5.0)
  second = clock.lap(11)
  assert clock.seconds_per_step == 2.0
  assert second["images_per_second"] == 4.0
  assert second["data_wait_share"] == 0.25
  assert second["packing_efficiency"] == 0.75
  assert second["executed_per_useful_flop"] == 2.0
  assert second["useful_tflops_per_step"] == pytest.approx(3.0)
  assert second["data/repeated"] == 3.0
  assert second["useful_tflop_per_second"] == pytest.approx(1.5)
  assert second["bad_records/image_truncated"] == 2.0
  assert second["data/examples/finehard"] == 60.0 and second["data/examples/pairs"] == 20.0
  assert second["data/boxes_lost"] == 5.0
  assert clock.total == 70.0
