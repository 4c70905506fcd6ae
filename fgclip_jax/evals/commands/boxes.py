"""`evaluate boxes`."""

import argparse

from fgclip_jax.evals.registry import add_limit
from fgclip_jax.evals.tasks.box_classification import BoxClassification
from fgclip_jax.evals.templates import TEMPLATES

SHORT = "classification of boxes: COCO's 80 classes, LVIS' 1,203, Open Images"
TEXT = """Which of all classes is in each box of the annotations: top-1 and top-5, for LVIS also by the classes'
frequency. Boxes around crowds and boxes without a size are left out and counted."""
EXAMPLE = "--model M --annotations lvis_v1_val.json --images coco --output lvis.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--annotations",
    required=True,
    metavar="FILE",
    help="instances_val2017.json, lvis_v1_val.json, or of Open Images validation-annotations-bbox.csv",
  )
  parser.add_argument(
    "--images",
    required=True,
    metavar="DIR",
    help="the folder of the images: for COCO val2017, for LVIS the one that holds train2017 and val2017",
  )
  parser.add_argument("--classes", metavar="FILE", help="of Open Images: class-descriptions-boxable.csv")
  parser.add_argument(
    "--templates", choices=sorted(TEMPLATES), default="openai80", help="prompts for a class (default: %(default)s)"
  )
  add_limit(parser)


def make(options: argparse.Namespace) -> BoxClassification:
  names = ("annotations", "images", "classes", "templates", "limit", "allow")
  return BoxClassification(**{name: getattr(options, name) for name in names})
