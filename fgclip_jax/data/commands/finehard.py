"""`prepare finehard`: FineHARD's annotations and images."""

import argparse

from fgclip_jax.data.commands import common

SHORT = "FineHARD's annotations and images"
TEXT = (
  """
Converts FineHARD's annotations and images.

ANNOTATIONS is the folder of JSON files (the data set's `jsonfiles`), one JSON or JSON-lines file, or a .txt file that
lists such files, one a line. An f_path `grit-20m/data-12m/coyo_image_0/00069/000699825.jpg` (or, in older
annotations, `data/down-grit-12m/coyo_image_0/...`) is looked up as IMAGES/coyo_image_0/....
"""
  + common.IMAGE_CHECK
)
EXAMPLE = "--annotations FineHARD/jsonfiles --images FineHARD/data-12m --output data/finehard"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  common.add_output(parser)
  parser.add_argument("--annotations", required=True, metavar="PATH", help="a folder, a JSON file, or a .txt list")
  common.add_images(parser)
  common.add_conversion(parser, name="finehard")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.data import finehard, source

  files = finehard.find_annotations(options.annotations)
  common.convert(options, finehard.FineHard(files, source.Folder(options.images)))
