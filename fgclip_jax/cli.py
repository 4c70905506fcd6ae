"""What several commands share: options, exit codes, and files that come with the package."""

import argparse
import errno
import os
import pathlib
import sys

from fgclip_jax.storage import workers
from fgclip_jax.storage.skip_report import printable

FAILED = 1  # exit code: it may work another time; launchers try again
WRONG_USAGE = 2  # exit code: the same command would fail again, so launchers do not try

# what the operating system says of a path that will not become right by waiting
_WRONG_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
# EINVAL: also a pipe or a device where a file is read
_WRONG_PATH_ERRNOS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)


def exit_code(error: BaseException) -> int:
  """The exit code for an error that a command meets before it has begun its work.

  `WRONG_USAGE` for values and paths that cannot work; `FAILED` for what may pass, such as a full disk or a network that
  does not answer.
  """
  if isinstance(error, OSError):
    wrong = isinstance(error, _WRONG_PATHS) or error.errno in _WRONG_PATH_ERRNOS
  else:
    wrong = isinstance(error, ValueError | ModuleNotFoundError)
  return WRONG_USAGE if wrong else FAILED


def print_error(error: BaseException | str) -> None:
  """Prints what ends a command on stderr, with control characters of names from files escaped."""
  lines = (printable(line) for line in str(error).split("\n"))
  print("error: " + "\n".join(lines), file=sys.stderr, flush=True)


def add_max_patches(parser: argparse._ActionsContainer) -> None:
  """Adds `--max_patches`, for `fgclip_jax.load`, which says what it may be."""
  parser.add_argument(
    "--max_patches",
    type=lambda text: int(text) if text.isdecimal() else text,
    metavar="N|dynamic",
    help="of models that take pictures of any shape (FG-CLIP 2, SigLIP 2 NaFlex): the most patches of a picture, or "
    "128 to 1024 by its own size (default: as the model was published)",
  )


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
