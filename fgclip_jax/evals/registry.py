"""The evaluators by the names of their commands: for `python -m fgclip_jax.evaluate`, `config.evals` and Python.

To add one, write its file in `tasks/` and add a line to `EVALUATORS`. The file has the class (see
`fgclip_jax.evals.evaluator`), `SHORT` (a line of help), `TEXT` (what is measured), `EXAMPLE` (arguments) and
`add_options(parser)`. An option sets the field of the same name.
"""

import argparse
import dataclasses
import functools
import glob
import importlib
import os
import shlex
from types import ModuleType
from typing import Any, NoReturn

from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.storage import paths

# Command: module of `tasks/` and class, in the order of --help. Modules are imported when they are first needed, as
# they import JAX and models, which drawing and most training runs do without.
EVALUATORS = {
  "records": "dataset:Records",
  "classify": "classification:Classification",
  "retrieve": "retrieval:ImageTextRetrieval",
  "boxes": "box_classification:BoxClassification",
  "fgovd": "fgovd:FgOvd",
  "detect": "detection:Detection",
  "segment": "segmentation:Segmentation",
  "compositional": "compositional:Compositional",
  "probe": "linear_probe:LinearProbe",
}
CLASSES = {place.partition(":")[2]: command for command, place in EVALUATORS.items()}


def get_module(command: str) -> ModuleType:
  """The file of an evaluator."""
  return importlib.import_module(f"fgclip_jax.evals.tasks.{EVALUATORS[command].partition(':')[0]}")


def get_class(command: str) -> type[Any]:
  """The class of an evaluator, a dataclass."""
  return getattr(get_module(command), EVALUATORS[command].partition(":")[2])


def add_to(parser: argparse.ArgumentParser, command: str) -> None:
  """Adds a command's options to a parser; the parsed options' `make(options)` returns the evaluator."""
  get_module(command).add_options(parser)
  parser.set_defaults(make=functools.partial(_make, get_class(command)))


def parse(text: str) -> Evaluator:
  """The evaluator of a command line without the model, e.g. `classify imagenet --images DIR`.

  Patterns (`fgovd/*.jsonl`) are replaced by the local files that match, as in a shell.

  Raises:
    ValueError: no such command, wrong options, or a pattern that no file matches.
  """
  from fgclip_jax.evals.options import add_allow

  command, *arguments = [each for word in shlex.split(text) or [""] for each in _expand(word)]
  if command not in EVALUATORS:
    raise ValueError(f"{text!r} must begin with one of {', '.join(EVALUATORS)}")
  parser = _Parser(prog=command, add_help=False)
  add_to(parser, command)
  add_allow(parser)
  options = parser.parse_args(arguments)
  return options.make(options)


def _make(evaluator: type[Any], options: argparse.Namespace) -> Evaluator:
  fields = {field.name for field in dataclasses.fields(evaluator)}
  values = {name: value for name, value in vars(options).items() if name in fields}
  return evaluator(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _expand(word: str) -> list[str]:
  """The files that a pattern matches, sorted; any other word, or the name of a file, as it is."""
  if not glob.has_magic(word) or os.path.exists(word) or paths.is_remote(word):
    return [word]
  found = sorted(glob.glob(word))
  if not found:
    raise ValueError(f"no file matches {word!r}")
  return found


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise ValueError(f"{self.prog}: {message}")
