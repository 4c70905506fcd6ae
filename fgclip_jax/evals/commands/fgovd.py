"""`evaluate fgovd`."""

import argparse

from fgclip_jax.evals.registry import add_limit
from fgclip_jax.evals.tasks.fgovd import FgOvd

SHORT = "FG-OVD: a box's description among ten that differ in attributes"
TEXT = """Top-1 for each level (hard, medium, easy, trivial), and by the kind of attribute that was changed."""
EXAMPLE = "--model M --annotations fgovd/*.jsonl --images coco --output fgovd.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--annotations", required=True, nargs="+", metavar="FILE", help="files of FG-OVD (JSON lines), one for each level"
  )
  parser.add_argument(
    "--images", required=True, metavar="DIR", help="the folder that holds COCO's train2017 and val2017: both are needed"
  )
  add_limit(parser, "rows of each file")


def make(options: argparse.Namespace) -> FgOvd:
  return FgOvd(tuple(options.annotations), options.images, options.limit, options.allow)
