"""A tiny model with random parameters, and files as the benchmarks of boxes, detection and segmentation have them."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.evals import average_precision
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config as presets
from tests.helpers.toy_models import init

SIDE = 32  # of the model's images
CLASSES = ["cat", "dog", "cup", "boat"]


@functools.cache
def model() -> FGCLIP:
  config = presets.preset("tiny")
  return FGCLIP(config, init(config, 0))


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


def pack(image, box, score, label):
  """Detections of a picture."""
  arrays = np.asarray(box, np.float32), np.asarray(score, np.float32), np.asarray(label, np.int32)
  return average_precision.Detections(np.full(len(score), image, np.int32), *arrays)


def coco_stats(data, used, detections, most):
  """What pycocotools gives."""
  coco, cocoeval = (
    pytest.importorskip(f"pycocotools.{name}", reason="needs pycocotools, see requirements-dev.txt")
    for name in ("coco", "cocoeval")
  )

  truth = coco.COCO()
  rows = np.flatnonzero(np.isin(data.image, used))
  annotations = [
    {"id": int(row) + 1, "image_id": int(data.image[row]), "category_id": int(data.label[row]), "area": data.area[row]}
    | {"bbox": data.box[row].tolist(), "iscrowd": int(data.crowd[row])}
    for row in rows
  ]
  sizes = [{"id": n, "width": data.images[n].width, "height": data.images[n].height} for n in used]
  classes = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
  truth.dataset = {"images": sizes, "annotations": annotations, "categories": classes}
  truth.createIndex()
  results = []
  for number, box, value, name in zip(
    *(getattr(detections, f.name) for f in dataclasses.fields(detections)), strict=True
  ):
    corners = box.astype(np.float64) * ([sizes[used.index(number)][each] for each in ("width", "height")] * 2)
    sides = [*corners[:2].tolist(), *(corners[2:] - corners[:2]).tolist()]
    results.append({"image_id": int(number), "category_id": int(name), "bbox": sides, "score": float(value)})
  evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
  evaluation.evaluate()
  evaluation.accumulate()
  evaluation.summarize()
  # pycocotools' own first number is of 100 detections
  precision = evaluation.eval["precision"][..., 0, -1]
  parts = precision, precision[0], precision[5]
  return [part[part > -1].mean() for part in parts]
