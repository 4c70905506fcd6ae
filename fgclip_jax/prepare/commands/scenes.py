"""`prepare scenes`: the embedded data set."""

import argparse

from fgclip_jax.cli import add_workers, positive
from fgclip_jax.prepare import cli

SHORT = "rendered scenes; needs no download"
TEXT = """
Renders the embedded data set, which needs no download: scenes of three objects that differ in size, colour, pattern
and shape, with boxes, captions and hard negatives. Validation scenes show combinations that are never trained on.
"""
EXAMPLE = "--output data/scenes --train 20000 --validation 256"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument(
    "--train", type=positive, default=20000, metavar="N", help="training scenes (default: %(default)s)"
  )
  parser.add_argument(
    "--validation", type=positive, default=256, metavar="N", help="validation scenes (default: %(default)s)"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
  add_workers(parser)


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import scenes

  scenes.write(options.output, options.train, options.validation, options.seed, options.workers)
  cli.print_next("quickstart", options.output)
