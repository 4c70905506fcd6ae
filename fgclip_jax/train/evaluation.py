"""Benchmarks of `fgclip_jax.evals` on the parameters of a running training."""

import collections
import functools
import traceback
from collections.abc import Callable, Sequence

import jax

from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.evals.datasets import class_lists
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.storage import paths
from fgclip_jax.train.distributed import agree


def read_evals(lines: Sequence[str], check_data: bool = True) -> tuple[Evaluator, ...]:
  """The evaluators of `config.evals`: each line is a command of `python -m fgclip_jax.evaluate`, without the model.

  Without `check_data` their files need not be there.

  Raises:
    ValueError: no such command, or wrong options; names the line.
    FileNotFoundError: there is no such file or folder; names the line.
  """
  if not lines:
    return ()
  from fgclip_jax.evals import registry  # and with it the model that is used, which other runs do without

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
  """A FileNotFoundError for the first of an evaluator's files and folders that is not there."""
  settings = evaluator.settings()
  keys = ["data", "annotations", "labels", "proposals", "classes"]
  if settings.get("dataset") != "tfds":  # which names a data set and its splits
    keys += ["images", "train", "test", "validation"]
  if evaluator.name == "segmentation":
    keys.append("split")
  for key in keys:
    value = settings.get(key)
    for path in value if isinstance(value, tuple | list) else [value]:
      if path and path not in class_lists.lists() and not paths.exists(path):
        raise FileNotFoundError(f"there is no {path!r}")
  if "data" in settings:
    find_shards(settings["data"], settings["split"])


def evaluator_names(evaluators: Sequence[Evaluator]) -> list[str]:
  """What they are called in a run's metrics: their names, the second of a name followed by ` 2` and so on."""
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
  say: Callable[[str], object],
  at: Callable[[str], None],
) -> dict[str, float]:
  """Runs evaluators on parameters where they lie; in a run of several processes all of them must call it.

  One that fails is told of, and the others and the run go on. In a run of several processes each prints why it fails
  there, and one that fails anywhere has no numbers anywhere. Where it fails on some of them alone (a file that is
  missing on one machine) while the others need those to compute, all wait, at most an hour, and the run ends.

  Args:
    evaluators: what to measure.
    model, params: of the run; parameters may be sharded over a mesh.
    runtime: of the run, for its dtype and attention.
    step: for the tables.
    say: prints.
    at: is told what is measured next.

  Returns:
    Numbers called `eval/NAME/METRIC`, shares from 0 to 1, see `evaluator_names`.
  """
  from fgclip_jax.evals import results
  from fgclip_jax.inference.model import FGCLIP

  live = FGCLIP(model, params, Runtime(dtype=runtime.dtype, attention=runtime.attention))
  numbers: dict[str, float] = {}
  processes = jax.process_count()
  tell = say if processes == 1 else functools.partial(print, f"process {jax.process_index()}:", flush=True)
  for evaluator, name in zip(evaluators, evaluator_names(evaluators), strict=True):
    at(f"{name}, after step {step}")
    result, failed = None, f"step {step}: {name} could not be measured"
    try:
      with jax.transfer_guard("allow"):
        result = evaluator.run(live)
    except Exception as error:  # of whatever kind: days of training are worth more than a benchmark
      tell(f"{failed}: {error}")
      if not isinstance(error, OSError | ValueError):
        tell(traceback.format_exc())
      at(f"the other processes, after {name} failed on this one")
    failures = agree(int(result is None), sum)
    if failures:
      if result:
        say(f"{failed} on {failures} of {processes} processes, which print why")
      continue
    say(f"step {step}: {name}\n{results.table({'': results.as_json(result)})}")
    for note in result.notes:
      say(f"note: {note}")
    numbers |= {f"eval/{name}/{metric}": found.value for metric, found in result.metrics.items()}
  return numbers
