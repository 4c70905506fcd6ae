"""`evaluate detect`."""

import argparse

from fgclip_jax.evals.registry import add_limit, positive
from fgclip_jax.evals.tasks.detection import Detection
from fgclip_jax.evals.templates import TEMPLATES

SHORT = "open-vocabulary detection without training: proposals of a detector, named by the model"
TEXT = """Average precision by COCO's or LVIS' rules (needs faster-coco-eval: pip install -r requirements-evals.txt). A
proposal's score for a class is the geometric mean of its own score and the softmax of its feature over all classes."""
EXAMPLE = "--model M --annotations lvis_v1_val.json --images coco --proposals boxes.json --output detection.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--annotations", required=True, metavar="FILE", help="the true boxes: instances_val2017.json or lvis_v1_val.json"
  )
  parser.add_argument(
    "--images",
    required=True,
    metavar="DIR",
    help="the folder of the images: for COCO val2017, for LVIS the one that holds train2017 and val2017",
  )
  parser.add_argument(
    "--proposals",
    metavar="FILE",
    help="boxes as COCO's results have them: a JSON list of image_id, bbox (left, top, width, height in pixels), score "
    "(default: a grid of boxes)",
  )
  parser.add_argument(
    "--max_proposals", type=positive, default=300, metavar="N", help="the best of an image (default: %(default)s)"
  )
  parser.add_argument("--keep_classes", action="store_true", help="score proposals for their own category_id alone")
  parser.add_argument(
    "--templates", choices=sorted(TEMPLATES), default="openai80", help="prompts for a class (default: %(default)s)"
  )
  parser.add_argument(
    "--scale",
    type=_scale,
    default=100.0,
    metavar="S",
    help="what cosines are multiplied by before the softmax; `model`: its learned scale (default: %(default)g)",
  )
  parser.add_argument(
    "--nms",
    type=float,
    default=0.5,
    metavar="IOU",
    help="the overlap above which the worse of two boxes of a class is dropped; 1 drops none (default: %(default)s)",
  )
  parser.add_argument(
    "--fixed_ap",
    action="store_true",
    help="count the 10,000 best detections of a class in all images, not the best of an image, as LLMDet's numbers do",
  )
  add_limit(parser)


def make(options: argparse.Namespace) -> Detection:
  names = ("annotations", "images", "proposals", "max_proposals", "keep_classes", "templates", "nms", "fixed_ap")
  scale = None if options.scale == "model" else options.scale
  return Detection(scale=scale, **{name: getattr(options, name) for name in (*names, "limit", "allow")})


def _scale(text: str) -> float | str:
  return text if text == "model" else float(text)
