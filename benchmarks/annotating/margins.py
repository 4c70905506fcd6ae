"""Margins of `--check` on rendered scenes, where every negative is known to be wrong.

A margin is good if few negatives score higher by it, and most would if the negative were the true caption and the
positive the false one.
"""

import argparse

import numpy as np

from benchmarks.machine import machine
from fgclip_jax.annotate.boxes.own import BATCH, compare_regions
from fgclip_jax.annotate.rules.negatives import Drawer, count_values
from fgclip_jax.prepare.sources import scenes

MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--scenes", type=int, default=100)
  parser.add_argument("--model", required=True, help="a run or model folder")
  parser.add_argument("--shapes", choices=[*scenes.CANVASES], default="square")


def run(options: argparse.Namespace) -> int:
  """Prints a table."""
  print(machine("numpy", "jax"), end="\n\n")
  records = [scenes.make_record(0, index, "validation", options.shapes) for index in range(options.scenes)]
  drawer = Drawer(frequencies=count_values(region.short for record in records for region in record.regions))
  differences: list[float] = []
  for start in range(0, len(records), BATCH):
    some = records[start : start + BATCH]
    texts = [
      [
        (region.short, *(each.text for each in drawer.draw(region.short, 10, start + seed, record.long)))
        for region in record.regions
      ]
      for seed, record in enumerate(some)
    ]
    boxes = [np.asarray([region.box for region in record.regions], np.float32) for record in some]
    for of_picture in compare_regions(options.model, [record.image for record in some], boxes, texts):
      differences += [float(cosine - row[0]) for row in of_picture for cosine in row[1:]]
  found = np.asarray(differences)
  print(f"| margin | of {len(found):,} wrong ones score higher | the same, if they were true |\n| ---: | ---: | ---: |")
  for margin in MARGINS:
    print(f"| {margin:g} | {(found > margin).mean():.1%} | {(-found > margin).mean():.1%} |")
  return 0
