"""Watches a run's numbers: steps that changed nothing, losses that jump, and the records of such steps."""

import dataclasses
import json
import math
from collections.abc import Callable

import jax
import numpy as np

from fgclip_jax.storage import paths

FOLDER = "bad_steps"  # earlier versions called it `sick`; it is written, never read
NUMBERS = ("loss", "gradient_norm", "skipped_updates", "skipped_in_a_row")  # what the guard checks
_MEMORY, _WARM_UP = 0.98, 50  # of the moving average: its decay by step, and steps before a jump is reported
_MOST_FILES = 50


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """When a run reports, retries, or gives up.

  Attributes:
    max_skipped: this many steps in a row without finite numbers end the run.
    spike_deviations: a loss this many standard deviations above its moving average is logged; 0: none is.
    max_failed_saves: this many failed checkpoints in a row end the run.
    outage_seconds: for so long it trains on while the workdir's storage cannot be reached; then it ends.
    watchdog_seconds: seconds without progress after which the run logs what it waits for; 0: never.
    grace_seconds: seconds that a run may take to save when it is asked to end.
  """

  max_skipped: int = 10
  spike_deviations: float = 8.0
  max_failed_saves: int = 3
  outage_seconds: float = 7200.0
  watchdog_seconds: float = 300.0
  grace_seconds: float = 60.0

  def __post_init__(self):
    for name in ("max_skipped", "max_failed_saves"):
      if getattr(self, name) < 1:
        raise ValueError(f"guard.{name} must be at least 1, got {getattr(self, name)}")
    for name in ("spike_deviations", "watchdog_seconds", "outage_seconds"):
      if getattr(self, name) < 0:
        raise ValueError(f"guard.{name} must not be negative, got {getattr(self, name)}")
    if self.grace_seconds <= 0:
      raise ValueError(f"guard.grace_seconds must be positive, got {self.grace_seconds}")


class NonFiniteError(FloatingPointError):
  """Too many steps in a row had no finite loss or gradient."""


class Guard:
  """Checks the numbers of every finished step.

  Args:
    config: the limits.
    workdir: the run's folder; records of reported steps are written under `WORKDIR/bad_steps`.
    where: returns the file of a record and its number in the file.
    log: prints a line.
  """

  def __init__(self, config: GuardConfig, workdir: str, where: Callable[[int], str], log: Callable[[str], object]):
    self._config, self._where, self._log = config, where, log
    self._folder, self._files = paths.join(workdir, FOLDER), 0
    self._mean, self._variance, self._seen = 0.0, 0.0, 0

  def look(self, step: int, values: dict[str, float], records: np.ndarray) -> None:
    """Logs a step whose numbers are not finite, or whose loss jumped, and writes its records.

    Args:
      step: the finished step.
      values: its numbers, `NUMBERS` among them.
      records: the numbers of this process's records in it.

    Raises:
      NonFiniteError: `max_skipped` steps in a row changed nothing.
    """
    loss, in_a_row = values["loss"], int(values["skipped_in_a_row"])
    numbers = f"the loss is {loss:.6g}, the gradient's norm {values['gradient_norm']:.6g}"
    if in_a_row:
      path = self._write(step, numbers, records)
      message = (
        f"step {step}: {numbers}; nothing was changed ({in_a_row} in a row, {values['skipped_updates']:.0f} in all)"
      )
      self._log(f"{message}; its records are in {path}")
      if in_a_row >= self._config.max_skipped:
        raise NonFiniteError(
          f"{message}; its records and those before are in {self._folder}. The weights are still those of the last "
          "good step. Try a lower learning rate, optimizer.clip_norm, or config.runtime.dtype=float32"
        )
      return
    if self._is_spike(loss):
      path = self._write(step, numbers, records)
      self._log(f"step {step}: the loss jumped to {loss:.4f} from about {self._mean:.4f}; its records are in {path}")

  def _is_spike(self, loss: float) -> bool:
    """Whether the loss is far above its moving average, which it then does not enter."""
    above = loss - self._mean
    limit = self._config.spike_deviations * math.sqrt(self._variance)
    if self._config.spike_deviations and self._seen >= _WARM_UP and above > limit:
      return True
    weight = max(1 - _MEMORY, 1 / (self._seen + 1))
    self._mean += weight * above
    self._variance = (1 - weight) * (self._variance + weight * above**2)
    self._seen += 1
    return False

  def _write(self, step: int, reason: str, records: np.ndarray) -> str:
    """Writes a step's records, one file for each process; at most some, as a bad run has many such steps."""
    process = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
    path = paths.join(self._folder, f"step-{step}{process}.json")
    self._files += 1
    if self._files > _MOST_FILES:
      return f"no file ({_MOST_FILES} have been written)"
    numbers = [int(number) for number in np.ravel(records)]
    content = {"step": step, "reason": reason, "records": {str(number): self._where(number) for number in numbers}}
    try:
      paths.make_folder(self._folder)
      with paths.open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    except (
      Exception
    ) as error:  # a full disk or a lost network is no reason to end a run; each storage has its own types
      return f"no file ({error})"
    return path
