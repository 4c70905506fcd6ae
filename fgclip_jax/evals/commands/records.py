"""`evaluate records`."""

import argparse

from fgclip_jax.evals.registry import add_limit
from fgclip_jax.evals.tasks.dataset import Records

SHORT = "captions, regions and hard negatives of a prepared data set (also without the word `records`)"
TEXT = """Retrieval by short and long captions, classification of regions among all region captions (or the data set's
declared classes), and matching of a region with its caption among its hard negatives: all in one pass."""
EXAMPLE = "--model runs/stage2 --data data/scenes --output stage2.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--data", required=True, metavar="DIR", help="a record folder, as `python -m fgclip_jax.prepare` writes it"
  )
  parser.add_argument("--split", default="validation", help="the split of the data (default: %(default)s)")
  add_limit(parser, "records")


def make(options: argparse.Namespace) -> Records:
  return Records(options.data, options.split, options.limit, options.allow)
