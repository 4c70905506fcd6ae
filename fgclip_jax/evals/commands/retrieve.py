"""`evaluate retrieve`."""

import argparse

from fgclip_jax.evals.datasets.caption_sets import READERS
from fgclip_jax.evals.registry import add_limit, add_mode
from fgclip_jax.evals.tasks.retrieval import ImageTextRetrieval

SHORT = "retrieval of pictures and captions, each way: COCO, Flickr30k, ShareGPT4V-1K, DCI, Urban1k, your own pairs"
TEXT = """R@1, R@5 and R@10: a picture's captions among all captions, and a caption's picture among all pictures."""
EXAMPLE = "coco --model M --annotations captions_val2017.json --images coco/val2017 --output coco.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("dataset", choices=tuple(READERS), help="the form of the annotations")
  parser.add_argument("--annotations", required=True, metavar="PATH", help="their file; of dci and urban1k the folder")
  parser.add_argument("--images", metavar="DIR", help="the folder of the pictures (default: that of the annotations)")
  parser.add_argument(
    "--kind", choices=("short", "long"), help="the model's path for captions (default: long for sets of long captions)"
  )
  parser.add_argument("--split", default="test", help="of flickr30k (default: %(default)s)")
  parser.add_argument(
    "--skip_empty", action="store_true", help="of dci: without the pictures whose caption is empty (203 of 7,805)"
  )
  add_mode(parser)
  add_limit(parser)


def make(options: argparse.Namespace) -> ImageTextRetrieval:
  names = ("dataset", "annotations", "images", "kind", "split", "skip_empty", "mode", "limit", "allow")
  return ImageTextRetrieval(**{name: getattr(options, name) for name in names})
