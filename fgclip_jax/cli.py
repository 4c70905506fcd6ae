"""Options that several commands share."""

import argparse

from fgclip_jax.storage import workers


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
