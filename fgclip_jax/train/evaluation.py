"""Runs the benchmarks of `fgclip_jax.evals` on the parameters of a running training."""

import collections
import functools
import traceback
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import jax
import numpy as np

from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.evals import registry
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.distributed import agree

if TYPE_CHECKING:
  from fgclip_jax.inference.model import FGCLIP

Found = TypeVar("Found")


def read_evals(lines: Sequence[str], check_data: bool = True) -> tuple[Evaluator, ...]:
  """The evaluators of `config.evals`: each line is a command of `python -m fgclip_jax.evaluate`, without the model.

  Args:
    lines: the commands.
    check_data: looks for the files that they read.

  Raises:
    ValueError: no such command, or wrong options; the message names the line.
    FileNotFoundError: a file or folder is missing; the message names the line.
  """
  evaluators = []
  for place, line in enumerate(lines):
    try:
      evaluators.append(registry.parse(line))
      if check_data:
        _check_files(evaluators[-1])
    except (FileNotFoundError, ValueError) as error:
      raise type(error)(f"config.evals[{place}]: {error}") from error
  return tuple(evaluators)


def _check_files(evaluator: Evaluator) -> None:
  """Raises a FileNotFoundError for the first of an evaluator's files and folders that is missing."""
  for entry in evaluator.files():
    path, split = entry if isinstance(entry, tuple) else (entry, None)
    if not paths.exists(path):
      raise FileNotFoundError(f"there is no {path!r}")
    if split:
      find_shards(path, split)


def evaluator_names(evaluators: Sequence[Evaluator]) -> list[str]:
  """The evaluators' names in a run's metrics; the second of the same name is followed by ` 2`, and so on."""
  times: collections.Counter = collections.Counter()
  names = []
  for evaluator in evaluators:
    times[evaluator.name] += 1
    names.append(evaluator.name if times[evaluator.name] == 1 else f"{evaluator.name} {times[evaluator.name]}")
  return names


def measure(
  evaluators: Sequence[Evaluator],
  model: ModelConfig,
  params: Params,
  runtime: Runtime,
  step: int,
  log: Callable[[str], object],
  heartbeat: Callable[[str], None],
) -> dict[str, float]:
  """Runs evaluators on the parameters of a run, without moving them; every process of the run must call it.

  A failing evaluator is logged and counted, and the other evaluators and the run continue. In a run of several
  processes, each process prints its own failure, and an evaluator that fails on one process (a file is missing on one
  machine), or reads other data there, is skipped on all: they meet before every computation on the devices, so that
  none waits inside one that another never starts.

  Args:
    evaluators: the benchmarks to run.
    model, params: the run's model; its parameters may be sharded over a mesh.
    runtime: the run's, for its dtype and attention.
    step: the step of the parameters, printed above each table.
    log: prints a message, on the main process only.
    heartbeat: called with the name of what is measured next, for the watchdog.

  Returns:
    Numbers named `eval/NAME/METRIC`, shares from 0 to 1; for NAME see `evaluator_names`. If any evaluator was skipped,
    `eval/skipped` is their number.
  """
  from fgclip_jax.evals import results

  live = live_model(model, params, runtime)
  numbers: dict[str, float] = {}
  skipped = 0
  for evaluator, name in zip(evaluators, evaluator_names(evaluators), strict=True):
    heartbeat(f"{name}, after step {step}")
    result = run_together(functools.partial(evaluator.run, live), f"step {step}: {name}", log, heartbeat)
    if result is None:
      skipped += 1
      continue
    log(f"step {step}: {name}\n{results.table({'': results.as_json(result)})}")
    for note in result.notes:
      log(f"note: {note}")
    numbers |= {f"eval/{name}/{metric}": found.value for metric, found in result.metrics.items()}
  return numbers | ({"eval/skipped": float(skipped)} if skipped else {})


def live_model(model: ModelConfig, params: Params, runtime: Runtime) -> "FGCLIP":
  """The public model on a run's parameters, which stay where they are."""
  from fgclip_jax.inference.model import FGCLIP

  return FGCLIP(model, params, Runtime(dtype=runtime.dtype, attention=runtime.attention))


def run_together(
  compute: Callable[[], Found], what: str, log: Callable[[str], object], heartbeat: Callable[[str], None]
) -> Found | None:
  """Computes something with a live model, whose programs every process of the run must start in the same order.

  A failure is logged, and never ends the run. In a run of several processes, each prints its own failure, and what
  fails on one of them, or differs there, is given up on all.

  Args:
    compute: what to run; it returns no None.
    what: its name and step, for messages.
    log: prints a message, on the main process only.
    heartbeat: called when this process waits for the others, for the watchdog.

  Returns:
    The result; None if it failed on any process.
  """
  from fgclip_jax.inference import programs

  result, failed, meeting = None, f"{what} could not be measured", _Meeting()
  log_here = log
  if jax.process_count() > 1:
    log_here = functools.partial(print, f"process {jax.process_index()}:", flush=True)
  try:
    with jax.transfer_guard("allow"), programs.announced(meeting.before_program):
      result = compute()
  except _OthersError:
    pass  # said below
  except Exception as error:  # of any kind: days of training are worth more than a benchmark
    log_here(f"{failed}: {first_line(error)}")
    if not isinstance(error, OSError | ValueError):
      log_here(traceback.format_exc())
    heartbeat(f"the other processes, after {what} failed on this one")
  # all processes keep or drop the result together, so that they choose the same best checkpoint
  others = meeting.end(result is not None)
  if others:
    log(f"{failed}: {others}; it is skipped")
  return None if others else result


class _OthersError(RuntimeError):
  """An evaluation ends here since it ended in another process, or differs there."""


class _Meeting:
  """The processes of a run during one evaluation: each computation begins on all of them, or on none.

  A computation of a sharded model waits for every process. One that failed never starts it, and the others would wait
  for long; so they compare what they are about to compute, from host to host, which takes a millisecond.
  """

  def __init__(self):
    self._alone = jax.process_count() == 1
    self._over: str | None = None  # why
    self._lost: Exception | None = None

  def before_program(self, *arguments: np.ndarray) -> None:
    """Meets the others before a computation; raises an `_OthersError` if they do not all begin the same."""
    if not self._alone:
      self._meet(functools.reduce(lambda code, each: zlib.crc32(np.asarray(each).tobytes(), code), arguments, 0))
      if self._over:
        raise _OthersError(self._over)

  def end(self, done: bool) -> str:
    """Meets the others after the evaluation; returns why it must be skipped because of them, or an empty text.

    Raises:
      TimeoutError, ConnectionError: the others are lost.
    """
    if self._lost is not None:
      raise self._lost
    if not self._alone and self._over is None:
      self._meet(_DONE if done else _FAILED)
    return self._over or ""

  def _meet(self, code: int) -> None:
    try:
      found = agree(code, _compare)
    except Exception as error:
      self._lost = error
      raise
    if found <= _FIRST_FAILED:
      self._over = f"process {_FIRST_FAILED - found} of {jax.process_count()} failed, and prints why"
    elif found == _DIFFERENT:
      self._over = "the processes do not read the same data; do all machines have the same files?"


_DONE, _FAILED, _DIFFERENT, _FIRST_FAILED = -1, -2, -3, -10  # beside checksums, which are not negative


def _compare(codes: list[int]) -> int:
  """What all processes do: the code that they share, or which one failed, or that they differ."""
  if _FAILED in codes:
    return _FIRST_FAILED - codes.index(_FAILED)
  return codes[0] if len(set(codes)) == 1 else _DIFFERENT
