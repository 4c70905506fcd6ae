"""`prepare pairs`: images with captions of one's own."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "images with captions of your own"
TEXT = (
  """
Converts images with captions of your own: a JSON-lines file (.jsonl), a JSON list (.json), or CSV (.csv, .tsv).

Fields: `image` (a path under IMAGES), `short` (or `caption`), optionally `long`, and in JSON optionally `regions`:
  {"image": "a/1.jpg", "short": "two dogs", "long": "two dogs play on ...", "regions": [
    {"box": [0.1, 0.2, 0.6, 0.9], "short": "a brown dog", "long": "...", "negatives": ["a white dog", ...]}]}
A box is x1, y1, x2, y2 as fractions of the image's width and height.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--captions captions.jsonl --images photos --output data/photos"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--captions", required=True, metavar="FILE", help="JSON lines, a JSON list, or CSV")
  cli.add_images(parser)
  cli.add_conversion(parser, name="pairs")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import image_store, pairs

  captions = pairs.check_captions(options.captions)
  cli.convert(options, pairs.Pairs((captions,), image_store.Folder(options.images)))
