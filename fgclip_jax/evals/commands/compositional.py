"""`evaluate compositional`."""

import argparse

from fgclip_jax.evals.registry import add_limit, add_mode
from fgclip_jax.evals.tasks.compositional import READERS, Compositional

SHORT = "compositional sets: SugarCrepe, ARO, Winoground and sets of their forms"
TEXT = """Whether a picture fits its caption better than a caption with the same words in other roles. Of Winoground,
which has two pictures and two captions a question: text, image and group score."""
EXAMPLE = "sugarcrepe --model M --annotations sugarcrepe/*.json --images coco/val2017 --output sugarcrepe.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("dataset", choices=tuple(READERS), help="the form of the annotations")
  parser.add_argument(
    "--annotations", required=True, nargs="+", metavar="FILE", help="their files, one for each category"
  )
  parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the pictures")
  add_mode(parser)
  add_limit(parser, "questions of each file")


def make(options: argparse.Namespace) -> Compositional:
  names = ("dataset", "images", "mode", "limit", "allow")
  values = {name: getattr(options, name) for name in names}
  return Compositional(annotations=tuple(options.annotations), **values)
