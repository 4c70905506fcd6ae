"""`prepare flickr30k`: Flickr30k Entities."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "Flickr30k Entities' captions and boxes"
TEXT = (
  """
Converts Flickr30k Entities.

ENTITIES holds the folders Sentences and Annotations. An image's short caption is the first of its five. A region is
one thing that captions name: its caption is the first phrase for it, its box is drawn around all boxes of that thing.
There are no long captions.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = (
  "--entities flickr30k_entities --ids flickr30k_entities/train.txt --images flickr30k-images --output data/f30k"
)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--entities", required=True, metavar="DIR", help="the folder with Sentences and Annotations")
  parser.add_argument("--ids", metavar="FILE", help="the images to take, by their numbers: train.txt (default: all)")
  cli.add_images(parser)
  cli.add_conversion(parser, name="flickr30k")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import flickr30k, image_store

  folder = image_store.Folder(options.images)
  state = cli.tables_folder(options)
  cli.convert(options, flickr30k.make(state, options.entities, options.ids, folder))
