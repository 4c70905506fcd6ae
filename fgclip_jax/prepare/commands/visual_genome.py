"""`prepare visual_genome`: Visual Genome's region descriptions."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "Visual Genome's region descriptions"
TEXT = (
  """
Converts Visual Genome's region descriptions.

IMAGES holds the folders VG_100K and VG_100K_2. Regions are the described boxes. The images have no captions of their
own: the short caption is the phrase of an image's largest box. There are no long captions.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = "--image_data image_data.json --regions region_descriptions.json --images images --output data/vg"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--image_data", required=True, metavar="FILE", help="image_data.json")
  parser.add_argument("--regions", required=True, metavar="FILE", help="region_descriptions.json")
  cli.add_images(parser)
  cli.add_conversion(parser, name="visual_genome")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.prepare.sources import image_store, visual_genome

  folder = image_store.Folder(options.images)
  state = cli.tables_folder(options)
  cli.convert(options, visual_genome.make(state, options.image_data, options.regions, folder))
