"""Runs the benchmarks of `fgclip_jax.evals` on the parameters of a running training."""

import collections
import functools
import traceback
from collections.abc import Callable, Sequence

import jax

from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.evals import registry
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.storage import paths
from fgclip_jax.train.distributed import agree


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

  A failing evaluator is logged, and the other evaluators and the run continue. In a run of several processes, each
  process prints its own failure, and an evaluator that fails on one process reports no numbers on any. If it fails on
  some processes (a file is missing on one machine) while the others wait for them inside a computation, the run ends
  after at most an hour.

  Args:
    evaluators: the benchmarks to run.
    model, params: the run's model; its parameters may be sharded over a mesh.
    runtime: the run's, for its dtype and attention.
    step: the step of the parameters, printed above each table.
    log: prints a message, on the main process only.
    heartbeat: called with the name of what is measured next, for the watchdog.

  Returns:
    Numbers named `eval/NAME/METRIC`, shares from 0 to 1; for NAME see `evaluator_names`.
  """
  from fgclip_jax.evals import results
  from fgclip_jax.inference.model import FGCLIP

  live = FGCLIP(model, params, Runtime(dtype=runtime.dtype, attention=runtime.attention))
  numbers: dict[str, float] = {}
  processes = jax.process_count()
  log_here = log if processes == 1 else functools.partial(print, f"process {jax.process_index()}:", flush=True)
  for evaluator, name in zip(evaluators, evaluator_names(evaluators), strict=True):
    heartbeat(f"{name}, after step {step}")
    result, failed = None, f"step {step}: {name} could not be measured"
    try:
      with jax.transfer_guard("allow"):
        result = evaluator.run(live)
    except Exception as error:  # of any kind: days of training are worth more than a benchmark
      log_here(f"{failed}: {error}")
      if not isinstance(error, OSError | ValueError):
        log_here(traceback.format_exc())
      heartbeat(f"the other processes, after {name} failed on this one")
    # all processes keep or drop the numbers together, so that they choose the same best checkpoint
    failures = agree(int(result is None), sum)
    if failures or result is None:
      if result:
        log(f"{failed} on {failures} of {processes} processes, which print why")
      continue
    log(f"step {step}: {name}\n{results.table({'': results.as_json(result)})}")
    for note in result.notes:
      log(f"note: {note}")
    numbers |= {f"eval/{name}/{metric}": found.value for metric, found in result.metrics.items()}
  return numbers
