"""`prepare pairs`: images with captions of one's own."""

import argparse

from fgclip_jax.data.commands import common

SHORT = "images with captions of your own"
TEXT = (
  """
Converts images with captions of your own: a JSON-lines file (.jsonl), a JSON list (.json), or CSV (.csv, .tsv).

Fields: `image` (a path under IMAGES), `short` (or `caption`), optionally `long`, and in JSON optionally `regions`:
  {"image": "a/1.jpg", "short": "two dogs", "long": "two dogs play on ...", "regions": [
    {"box": [0.1, 0.2, 0.6, 0.9], "short": "a brown dog", "long": "...", "negatives": ["a white dog", ...]}]}
A box is x1, y1, x2, y2 as fractions of the image's width and height.
"""
  + common.IMAGE_CHECK
)
EXAMPLE = "--captions captions.jsonl --images photos --output data/photos"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  common.add_output(parser)
  parser.add_argument("--captions", required=True, metavar="FILE", help="JSON lines, a JSON list, or CSV")
  common.add_images(parser)
  common.add_conversion(parser, name="pairs")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.data import images, pairs

  captions = pairs.check_captions(options.captions)
  common.convert(options, pairs.Pairs((captions,), images.Folder(options.images)))
