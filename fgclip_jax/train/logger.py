"""Where a run's numbers go: a progress line, TensorBoard, and JSON lines."""

import io
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import jax
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - generated
from tensorboardX.record_writer import masked_crc32c

from fgclip_jax.data.loader import Loader
from fgclip_jax.storage import atomic, paths
from fgclip_jax.storage.spool import SpooledFile
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.flops import StepFlops, peak_flops
from fgclip_jax.train.loggers.protocol import Logger, RunInfo
from fgclip_jax.train.loggers.registry import open_loggers
from fgclip_jax.train.resume import flat_dict

METRICS_FILE = "metrics.jsonl"


class Metrics:
  """Writes numbers by step into a run's folder, and hands them to other loggers; only one process of a run should.

  With a full disk the run continues, and the numbers are written when there is room again.

  Args:
    workdir: the run's folder; in object storage the files are put there every minute, by `flush` and by `close`.
    total_steps: for the time left.
    begin: the step that the run continues from; lines of later steps are dropped.
    loggers: further ones, those of `config.loggers`.
  """

  def __init__(self, workdir: str, total_steps: int, begin: int = 0, loggers: Sequence[Logger] = ()):
    self._total_steps = total_steps
    self._files = (JsonLines(workdir, begin), TensorBoard(workdir, begin))
    self._loggers = (*self._files, *loggers)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the values of a step."""
    now = time.time()
    for logger in self._loggers:
      logger.log_scalars(step, values, now)

  def write_image(self, step: int, name: str, image: Image.Image, caption: str = "") -> None:
    """Writes a picture that was drawn after a step."""
    for logger in self._loggers:
      logger.log_image(step, name, image, caption)

  def write_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table that was made after a step."""
    for logger in self._loggers:
      logger.log_table(step, name, columns, rows)

  def progress(self, step: int, values: dict[str, float], seconds_per_step: float) -> None:
    """Prints one line; speed and time left are in it once they have been measured (`seconds_per_step` is not 0)."""
    terms = "  ".join(f"{name.removeprefix('loss_')} {v:.3f}" for name, v in values.items() if name.startswith("loss_"))
    line = f"step {step}/{self._total_steps}  loss {values['loss']:.4f} ({terms})  lr {values['learning_rate']:.2e}"
    if seconds_per_step:
      mfu = f" ({values['mfu']:.0%} MFU)" if "mfu" in values else ""
      left = duration((self._total_steps - step) * seconds_per_step)
      line += f"  {values['images_per_second']:.1f} images/s{mfu}  left {left}"
    print(line, flush=True)

  def flush(self) -> None:
    """Has what was written put into object storage, in the background; on a disk it is already."""
    for logger in self._files:
      logger.flush()

  def close(self, failed: bool = False) -> None:
    """Writes what could not be written earlier; `failed`: the run did not end well."""
    for logger in self._loggers:
      logger.close(failed)


def open_append(path: str) -> "AppendFile | SpooledFile":
  """A file of this machine or in object storage that pieces are appended to."""
  return SpooledFile(path) if paths.is_remote(path) else AppendFile(path)


def open_metrics(run: RunConfig, workdir: str, begin: int) -> Metrics:
  """The files of metrics, and the config's loggers."""
  name = run.run_name or "/".join(workdir.rstrip("/").split("/")[-2:])
  config = flat_dict(run.values)
  loggers = open_loggers(run.loggers, lambda each: RunInfo(each, workdir, run.project, name, config, begin))
  return Metrics(workdir, run.steps, begin, loggers)


class JsonLines:
  """`WORKDIR/metrics.jsonl`: a line for each logged step; it takes no pictures and no tables."""

  def __init__(self, workdir: str, begin: int):
    path = paths.join(workdir, METRICS_FILE)
    _keep_until(path, begin)
    self._file = open_append(path)

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    self._file.add((json.dumps({"step": step, "time": seconds, **values}) + "\n").encode())

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    pass

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    pass

  def flush(self) -> None:
    self._file.flush()

  def close(self, failed: bool) -> None:
    self._file.close()


class TensorBoard:
  """`WORKDIR/tensorboard`: one file of events for each start of the run."""

  def __init__(self, workdir: str, begin: int):
    folder = paths.join(workdir, "tensorboard")
    paths.make_folder(folder)
    # TensorBoard tells events files by their seconds and sorts by name
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
    self._file = open_append(paths.join(folder, name))
    start = Event(wall_time=time.time(), step=begin + 1, session_log=SessionLog(status=SessionLog.START))
    # START tells TensorBoard to drop this step and later ones of earlier files
    self._file.add(_record(Event(wall_time=time.time(), file_version="brain.Event:2")) + _record(start))

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    events = [Event(wall_time=seconds, step=step, summary=summary.scalar(name, each)) for name, each in values.items()]
    self._file.add(b"".join(map(_record, events)))

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    image.convert("RGB").save(png := io.BytesIO(), "PNG")
    encoded = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=png.getvalue())
    self._add(step, Summary(value=[Summary.Value(tag=name, image=encoded)]))
    if caption:
      self._add(step, summary.text(f"{name}/caption", caption))

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    self._add(step, summary.text(name, "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])))

  def flush(self) -> None:
    self._file.flush()

  def close(self, failed: bool) -> None:
    self._file.close()

  def _add(self, step: int, content: Any) -> None:
    self._file.add(_record(Event(wall_time=time.time(), step=step, summary=content)))


class AppendFile:
  """An append-only file, written in whole pieces; a piece that fails is written with the next one."""

  def __init__(self, path: str):
    self._path, self._size = path, os.path.getsize(path) if os.path.exists(path) else 0
    self._left, self._failed = b"", False

  def add(self, piece: bytes) -> None:
    """Appends a piece, and prints a line when that begins to fail."""
    self._left += piece
    if not self._left:
      return
    try:
      # opened for each piece: on some file systems a file handle stays unusable after a failed write
      with open(self._path, "ab") as file:
        file.truncate(self._size)  # half a piece
        file.write(self._left)
    except OSError as error:
      if not self._failed:
        print(f"{self._path} cannot be written ({error.strerror}); what is missing follows when it can", flush=True)
      self._failed = True
      return
    self._size, self._left, self._failed = self._size + len(self._left), b"", False

  def flush(self) -> None:
    """Does nothing: pieces are written at once."""

  def close(self) -> None:
    """Writes what could not be written earlier."""
    self.add(b"")


def _record(event: Event) -> bytes:
  """An event as TensorBoard reads it: length, data, and a checksum of each (the TFRecord format)."""
  data = event.SerializeToString()
  length = struct.pack("<Q", len(data))
  return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


class Clock:
  """Speed between log points: images, useful operations, and the share of time spent waiting for data.

  Counted since the start of this process: `bad_records/KIND` and `data/boxes_lost` in this process; `data/repeated`,
  examples whose record was in their batch already; and for a mixture the examples that were loaded of each data set,
  `data/examples/NAME`, times the processes.

  Args:
    batch_size: images of a global batch.
    loader: whose waiting is counted.
    devices, processes: of the whole run.
  """

  def __init__(self, batch_size: int, loader: Loader, devices: int = 1, processes: int = 1):
    self._batch_size, self._loader, self._processes = batch_size, loader, processes
    peak = peak_flops(jax.devices()[0].device_kind)
    self._peak = None if peak is None else peak * devices
    self._begin = self._last = time.perf_counter()
    self._last_step: int | None = None
    self._waited, self.seconds_per_step = 0.0, 0.0
    self._work = StepFlops()

  def count(self, work: StepFlops) -> None:
    """Adds the operations of a finished step (this process's part)."""
    self._work += work

  def lap(self, step: int) -> dict[str, float]:
    """Metrics since the last lap; the first lap includes compilation, so it gives no speed."""
    now, work = time.perf_counter(), self._work
    seconds, waited = now - self._last, self._loader.waited - self._waited
    values = {
      "data_wait_share": waited / max(seconds, 1e-9),
      "packing_efficiency": work.tokens / max(work.slots, 1),
      "executed_per_useful_flop": work.executed / max(work.useful, 1),
    }
    if self._last_step is None:
      values["images_per_second"] = 0.0
    else:
      steps = max(step - self._last_step, 1)
      self.seconds_per_step = seconds / steps
      useful = work.useful * self._processes / seconds
      values["images_per_second"] = self._batch_size / self.seconds_per_step
      values["useful_tflops_per_step"] = work.useful * self._processes / steps / 1e12
      values["useful_tflop_per_second"] = useful / 1e12
      if self._peak:
        values["mfu"] = useful / self._peak
    self._last, self._last_step, self._waited, self._work = now, step, self._loader.waited, StepFlops()
    values |= {f"bad_records/{kind}": float(number) for kind, number in self._loader.bad.items()}
    if len(self._loader.examples) > 1:
      seen = self._loader.examples.items()
      values |= {f"data/examples/{name}": float(number * self._processes) for name, number in seen}
    if self._loader.boxes_lost:
      values["data/boxes_lost"] = float(self._loader.boxes_lost)
    if self._loader.repeated:
      values["data/repeated"] = float(self._loader.repeated)
    return values

  def pause(self, seconds: float) -> None:
    """Excludes time that was not spent on steps."""
    self._last += seconds

  @property
  def total(self) -> float:
    """Seconds since the start."""
    return time.perf_counter() - self._begin


def _keep_until(path: str, step: int) -> None:
  """Drops the lines of later steps; a run that was killed may have written more, and half a line."""
  if not (paths.exists(path) or os.path.lexists(path)):
    return
  with paths.open(path) as file:
    lines = file.readlines()
  steps = [_step_of(line) for line in lines]
  damaged = [number for number, found in enumerate(steps, 1) if found is None and lines[number - 1].endswith(b"\n")]
  if damaged:
    print(f"{path}: {len(damaged)} damaged lines are left out, the first is line {damaged[0]}", flush=True)
  kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
  if kept != lines:
    with atomic.file(path) as temporary, open(temporary, "wb") as file:
      file.writelines(kept)


def _step_of(line: bytes) -> int | None:
  """The step of a line; None where it cannot be read: after a power cut a file may hold anything."""
  try:
    step = json.loads(line)["step"] if line.endswith(b"\n") else None
  except (ValueError, TypeError, KeyError, RecursionError):
    return None
  return step if isinstance(step, int) else None


def duration(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
