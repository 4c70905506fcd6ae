"""The commands of `python -m fgclip_jax.evaluate`, a module for each; the train loop reads them too (`config.evals`).

A module has `SHORT` (a line of help), `TEXT` (what it does), `EXAMPLE` (arguments), `add_options(parser)`, and
`make(options)`, which returns an `Evaluator`.
"""

import argparse
import glob
import importlib
import os
import shlex
from typing import NoReturn

from fgclip_jax.cli import positive
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.storage import paths

# in the order of --help
COMMANDS = ("records", "classify", "retrieve", "boxes", "fgovd", "detect", "segment", "compositional", "probe")


def add_to(parser: argparse.ArgumentParser, name: str) -> None:
  """Adds a command's options, and how to make its evaluator, to a parser."""
  module = importlib.import_module(f"fgclip_jax.evals.registry.{name}")
  module.add_options(parser)
  parser.set_defaults(make=module.make)


def parse(text: str) -> Evaluator:
  """The evaluator of a line as the command takes it, without the model: `classify imagenet --images DIR`.

  Patterns (`fgovd/*.jsonl`) stand for the files on this machine that match, as they do in a shell.

  Raises:
    ValueError: no such command, wrong options, or a pattern that no file matches.
  """
  name, *arguments = [each for word in shlex.split(text) or [""] for each in _expand(word)]
  if name not in COMMANDS:
    raise ValueError(f"{text!r} must begin with one of {', '.join(COMMANDS)}")
  parser = _Parser(prog=name, add_help=False)
  add_to(parser, name)
  add_allow(parser)
  options = parser.parse_args(arguments)
  return options.make(options)


def add_allow(parser: argparse._ActionsContainer) -> None:
  """Adds `--allow`."""
  parser.add_argument(
    "--allow",
    type=_names,
    default=(),
    metavar="GUARD,...",
    help="switch guards off: resolution (images of another size than in training), cut_texts (texts too long for the "
    "model or its path)",
  )


def add_limit(parser: argparse.ArgumentParser, things: str = "pictures") -> None:
  """Adds `--limit`."""
  parser.add_argument("--limit", type=positive, metavar="N", help=f"read only the first N {things}")


def add_mode(parser: argparse.ArgumentParser) -> None:
  """Adds `--mode`."""
  parser.add_argument(
    "--mode",
    choices=("squash", "center_crop"),
    help="how pictures are made square (default: squash for an FG-CLIP, center_crop for a plain CLIP)",
  )


def _expand(word: str) -> list[str]:
  """The files that a pattern matches, sorted; a word that is no pattern, or is a file, as it is."""
  if not glob.has_magic(word) or os.path.exists(word) or paths.is_remote(word):
    return [word]
  found = sorted(glob.glob(word))
  if not found:
    raise ValueError(f"no file matches {word!r}")
  return found


def _names(text: str) -> tuple[str, ...]:
  from fgclip_jax.evals.guards import check_names

  try:
    return check_names([name.strip() for name in text.split(",") if name.strip()])
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise ValueError(f"{self.prog}: {message}")
