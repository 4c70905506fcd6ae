"""`evaluate classify`."""

import argparse

from fgclip_jax.evals.registry import add_limit, add_mode
from fgclip_jax.evals.tasks.classification import SETS, Classification
from fgclip_jax.evals.templates import TEMPLATES

SHORT = "zero-shot classification: ImageNet, ImageNet-v2, any folder of folders, TensorFlow Datasets"
TEXT = """Top-1, top-5 and mean accuracy per class of pictures among class names, each the mean of its prompts."""
EXAMPLE = "imagenet --model M --images imagenet/val --output in1k.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("dataset", choices=SETS, help="the kind of data set")
  parser.add_argument(
    "--images", required=True, metavar="DIR", help="a folder with a sub-folder for each class; of tfds: its name"
  )
  parser.add_argument("--classes", metavar="FILE", help="class names, for `folder` (default: the sub-folders' names)")
  parser.add_argument(
    "--labels",
    metavar="FILE",
    help="lines `FILE CLASS`, or a class on each line, for pictures that lie in one folder (default: in sub-folders)",
  )
  parser.add_argument("--split", default="test", help="of tfds (default: %(default)s)")
  parser.add_argument("--data_dir", metavar="DIR", help="of tfds, where data sets lie (default: ~/tensorflow_datasets)")
  parser.add_argument(
    "--templates", choices=sorted(TEMPLATES), default="openai80", help="prompts for a class (default: %(default)s)"
  )
  add_mode(parser)
  add_limit(parser)


def make(options: argparse.Namespace) -> Classification:
  names = ("dataset", "images", "classes", "labels", "split", "data_dir", "templates", "mode", "limit", "allow")
  return Classification(**{name: getattr(options, name) for name in names})
