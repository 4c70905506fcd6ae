"""What several commands share: options, and files that come with the package."""

import argparse
import os
import pathlib

from fgclip_jax.storage import workers


def shipped(folder: str) -> pathlib.Path:
  """The folder `configs` or `examples`: beside the package in a checkout, inside it where it is installed."""
  package = pathlib.Path(__file__).resolve().parent
  return package / folder if (package / folder).is_dir() else package.parent / folder


def shipped_file(folder: str, name: str) -> str:
  """A file of such a folder, as it is typed in the current folder."""
  path = shipped(folder) / name
  return os.path.relpath(path) if path.is_relative_to(pathlib.Path.cwd()) else str(path)


def positive(text: str) -> int:
  """Reads an option's number, which must be at least 1."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
  return value


def add_workers(parser: argparse.ArgumentParser) -> None:
  """Adds `--workers`."""
  parser.add_argument(
    "--workers",
    type=positive,
    default=workers.count_processors(),
    metavar="N",
    help="processes; the result does not depend on it (default: one per processor, %(default)s here)",
  )
