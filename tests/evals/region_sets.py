"""A tiny model with random parameters, and files as the benchmarks of boxes, detection and segmentation have them."""

import functools
import json

import jax
import numpy as np
from PIL import Image

from fgclip_jax import api
from fgclip_jax.models import parameters, presets

SIDE = 32  # of the model's images


@functools.cache
def model() -> api.FGCLIP:
  rng = np.random.default_rng(0)
  config = presets.preset("tiny")
  draw = lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32)  # noqa: E731
  return api.FGCLIP(config, jax.tree.map(draw, parameters.abstract_params(config)))


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_pictures(folder, names, size=(40, 30)) -> None:
  for seed, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, *size).save(path)


def write_coco(path, images, annotations, classes, frequencies=None) -> str:
  """Images: (id, name); annotations: (id, image, class, box, further fields); classes: names by id from 1."""
  content = {
    "info": {},
    "images": [{"id": i, "file_name": name, "width": 400, "height": 300} for i, name in images],
    "annotations": [
      {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0} | more
      for i, image, category, box, more in annotations
    ],
    "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
  }
  for entry, frequency in zip(content["categories"], frequencies or [], strict=False):
    entry["frequency"] = frequency
  path.write_text(json.dumps(content))
  return str(path)
