"""`evaluate probe`."""

import argparse

from fgclip_jax.evals.features import LAYERS
from fgclip_jax.evals.registry import add_mode, positive
from fgclip_jax.evals.tasks.linear_probe import SETS, LinearProbe

SHORT = "linear probe and few-shot classification on frozen features"
TEXT = """Logistic regression on the features of the image tower, its decay chosen on a validation split as in CLIP's
paper, over the whole training split or, with --shots, a few pictures of each class. Needs scikit-learn:
pip install -r requirements-evals.txt"""
EXAMPLE = "folder --model M --train food/train --test food/test --output food.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("dataset", choices=SETS, help="the kind of data set")
  parser.add_argument(
    "--train", required=True, metavar="PLACE", help="a folder with a sub-folder for each class, a split, or a .npz file"
  )
  parser.add_argument("--test", required=True, metavar="PLACE", help="the same for testing")
  parser.add_argument(
    "--validation", metavar="PLACE", help="the same for choosing the decay (default: a fifth of the training split)"
  )
  parser.add_argument("--images", metavar="NAME", help="of tfds, the data set's name")
  parser.add_argument("--data_dir", metavar="DIR", help="of tfds, where data sets lie (default: ~/tensorflow_datasets)")
  parser.add_argument(
    "--layer", choices=LAYERS, default=LAYERS[0], help="features before or after the projection (default: %(default)s)"
  )
  parser.add_argument(
    "--shots", type=positive, nargs="+", default=(), metavar="K", help="learn from K pictures of each class: 1 2 4 8 16"
  )
  parser.add_argument(
    "--seeds", type=positive, default=3, metavar="N", help="draws of such pictures (default: %(default)s)"
  )
  add_mode(parser)


def make(options: argparse.Namespace) -> LinearProbe:
  names = ("dataset", "train", "test", "validation", "images", "data_dir", "layer", "seeds", "mode", "allow")
  return LinearProbe(shots=tuple(options.shots), **{name: getattr(options, name) for name in names})
