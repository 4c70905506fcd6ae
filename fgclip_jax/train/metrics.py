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
    begin: the step that the run continues from; what was written of later ones is dropped.
  """

  def __init__(self, workdir: str, total_steps: int, begin: int = 0):
    self._total_steps = total_steps
    path = os.path.join(workdir, METRICS_FILE)
    kept = _lines_until(path, begin)
    self._file = open(path, "w", encoding="utf-8")
    self._file.writelines(kept)
    self._board = tensorboardX.SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=begin + 1)

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


def _lines_until(path: str, step: int) -> list[str]:
  """The lines of steps up to this one; a run that was killed may have written more, and half a line."""
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8") as file:
    return [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]


def duration(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
