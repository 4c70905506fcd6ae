"""`prepare coco`: COCO's captions and instances."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "COCO's captions and boxes"
TEXT = (
  """
Converts COCO's captions and, with --instances, its boxes.

An image's short caption is the first of its five; the others are not used. Its regions are the boxes of its instances
with the names of their classes as captions; boxes around crowds are left out. There are no long captions.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = (
  "--captions captions_train2017.json --instances instances_train2017.json --images train2017 --output data/coco"
)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument(
    "--captions", required=True, nargs="+", metavar="FILE", help="captions_train2017.json or the like"
  )
  parser.add_argument("--instances", default=[], nargs="+", metavar="FILE", help="instances_train2017.json or the like")
  cli.add_images(parser)
  cli.add_conversion(parser, name="coco")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import coco, image_store

  folder = image_store.Folder(options.images)
  cli.convert(options, coco.make(cli.tables_folder(options), options.captions, options.instances, folder))
