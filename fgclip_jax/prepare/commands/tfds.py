"""`prepare tfds`: a data set of TensorFlow Datasets."""

import argparse

from fgclip_jax.prepare import cli

SHORT = "a data set of TensorFlow Datasets"
TEXT = (
  """
Converts a data set of TensorFlow Datasets that has images and captions. TensorFlow is not needed, but the data set has
to be on this machine, in ArrayRecord files (`tfds build NAME --file_format=array_record`).

DATASET is its folder, or its name. Of a field with several captions, as captions/text, the first is taken.
"""
  + cli.IMAGE_CHECK
)
EXAMPLE = (
  "--dataset ~/tensorflow_datasets/coco_captions/2014/1.1.0 --caption_field captions/text --output data/coco_captions"
)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--dataset", required=True, metavar="DIR_OR_NAME", help="the data set's folder or name")
  parser.add_argument("--data_dir", metavar="DIR", help="where named ones lie (default: ~/tensorflow_datasets)")
  parser.add_argument("--from_split", default="train", metavar="NAME", help="its split (default: %(default)s)")
  parser.add_argument("--image_field", default="image", metavar="NAME", help="(default: %(default)s)")
  parser.add_argument("--caption_field", default="captions/text", metavar="NAME", help="(default: %(default)s)")
  parser.add_argument("--long_field", metavar="NAME", help="the field of the long caption")
  cli.add_conversion(parser, name="tfds")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  import os

  from fgclip_jax.prepare.sources import tfds

  names = options.image_field, options.caption_field, options.long_field
  dataset = os.path.expanduser(options.dataset)
  cli.convert(options, tfds.find(dataset, options.data_dir, options.from_split, *names))
