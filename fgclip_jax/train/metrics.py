"""Where a run's numbers go: a progress line, TensorBoard, and JSON lines."""

import json
import os
import time

import tensorboardX

METRICS_FILE = "metrics.jsonl"


class Metrics:
  """Writes numbers by step into a run's folder; only one process of a run should.

  Args:
    workdir: the run's folder.
    total_steps: for the time left.
  """

  def __init__(self, workdir: str, total_steps: int):
    self._total_steps = total_steps
    self._file = open(os.path.join(workdir, METRICS_FILE), "a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(os.path.join(workdir, "tensorboard"))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the values of a step."""
    self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def progress(self, step: int, values: dict[str, float], seconds_per_step: float) -> None:
    """Prints one line."""
    terms = "  ".join(f"{name.removeprefix('loss_')} {v:.3f}" for name, v in values.items() if name.startswith("loss_"))
    left = (self._total_steps - step) * seconds_per_step
    print(
      f"step {step}/{self._total_steps}  loss {values['loss']:.4f} ({terms})  lr {values['learning_rate']:.2e}  "
      f"{values['images_per_second']:.1f} images/s  left {duration(left)}",
      flush=True,
    )

  def close(self) -> None:
    """Ends the files."""
    self._board.close()
    self._file.close()


def duration(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
