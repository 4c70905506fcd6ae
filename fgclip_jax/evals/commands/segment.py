"""`evaluate segment`."""

import argparse

from fgclip_jax.evals.datasets import class_lists
from fgclip_jax.evals.registry import add_limit
from fgclip_jax.evals.tasks.segmentation import Segmentation
from fgclip_jax.evals.templates import TEMPLATES

SHORT = "segmentation without training: VOC, ADE-150, PASCAL Context, COCO-Stuff"
TEXT = """The mean intersection over union and the share of right pixels, of each pixel's best class by the dense
features."""
EXAMPLE = "--model M --images ade/images/validation --labels ade/annotations/validation --classes ade150"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the images")
  parser.add_argument(
    "--labels", required=True, metavar="DIR", help="the folder of label maps: PNG or TIFF files of class numbers"
  )
  parser.add_argument(
    "--classes",
    required=True,
    metavar="LIST",
    help=f"one of {', '.join(class_lists.lists())}; or a text file with a class on each line, more names of it parted "
    "by semicolons",
  )
  parser.add_argument("--split", metavar="FILE", help="the names of the images, one on each line (default: all)")
  parser.add_argument(
    "--reduce_zero_label",
    action=argparse.BooleanOptionalAction,
    help="do not count pixels of level 0; level 1 is the first class (default: as the list's benchmark has it)",
  )
  parser.add_argument(
    "--ignore_label",
    type=int,
    default=255,
    metavar="N",
    help="the level of pixels that are not counted; 65535 in most files of 16 bits (default: %(default)s)",
  )
  parser.add_argument(
    "--label_suffix", default=".png", metavar="END", help="what the names of label maps end with (default: %(default)s)"
  )
  parser.add_argument(
    "--templates", choices=sorted(TEMPLATES), default="openai80", help="prompts for a class (default: %(default)s)"
  )
  add_limit(parser)


def make(options: argparse.Namespace) -> Segmentation:
  names = ("images", "labels", "classes", "split", "reduce_zero_label", "ignore_label", "label_suffix", "templates")
  return Segmentation(**{name: getattr(options, name) for name in (*names, "limit", "allow")})
