"""Average precision of boxes by COCO's or LVIS' rules, and the choice of detections for "Fixed AP"."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int32

from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.evaluator import Metric

_CLASSES = 64  # measured at once: memory grows with images times classes
_THRESHOLDS = {"ap50": 0, "ap75": 5}  # places of overlaps 0.5 and 0.75 among 0.5, 0.55, ... 0.95


@dataclasses.dataclass(frozen=True)
class Detections:
  """Detected boxes.

  Attributes:
    image: the number of each box's image.
    box: x1 y1 x2 y2 as fractions of the image's width and height.
    score, label: the score and the number of the class.
  """

  image: Int32[np.ndarray, "N"]
  box: Float32[np.ndarray, "N 4"]
  score: Float32[np.ndarray, "N"]
  label: Int32[np.ndarray, "N"]

  def take(self, rows: np.ndarray) -> "Detections":
    """A selection of rows."""
    return Detections(self.image[rows], self.box[rows], self.score[rows], self.label[rows])


def join(parts: Sequence[Detections]) -> Detections:
  """Concatenates detections."""
  names = [field.name for field in dataclasses.fields(Detections)]
  return Detections(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def average_precision(data: instances.Instances, used: Sequence[int], detections: Detections) -> dict[str, Metric]:
  """Metrics `detection_ap`, `_ap50`, `_ap75`, for LVIS also `_ap_rare`, `_ap_common`, `_ap_frequent`.

  Each is the mean over the classes that have a true box, and is left out if there is no such class. LVIS' rules apply
  to classes with a frequency; detections reduced by `that_count` give the same numbers in less memory. The caller
  limits the number of detections of an image or a class.

  Args:
    data: the true boxes.
    used: the numbers of the images that were measured.
    detections: the detections in these images.

  Raises:
    ValueError: the package `faster-coco-eval` is not installed.
  """
  lvis = bool(data.frequencies)
  images, starts = _image_layout(data, used), range(0, len(data.names), _CLASSES)
  precision = np.concatenate([_precision(data, images, detections, first) for first in starts])
  values = {"ap": precision.mean(1)} | {name: precision[:, place] for name, place in _THRESHOLDS.items()}
  for key, name in instances.FREQUENCIES.items() if lvis else ():
    values[f"ap_{name}"] = precision.mean(1)[np.asarray(data.frequencies) == key]
  count = int((~data.crowd[np.isin(data.image, used)]).sum())
  return {
    f"detection_{name}": Metric(float(np.nanmean(value)), None, count)
    for name, value in values.items()
    if np.isfinite(value).any()
  }


def best_of_class(
  detections: Detections, classes: int, most: int
) -> tuple[Detections, Float32[np.ndarray, "{classes}"]]:
  """The `most` best detections of each class, of equal ones the first; and the score that further ones must exceed.

  That score is -inf for a class with fewer detections.
  """
  order = np.lexsort((-detections.score, detections.label))
  first = np.searchsorted(detections.label[order], np.arange(classes + 1))
  kept = order[np.arange(len(order)) - first[detections.label[order]] < most]
  full = np.flatnonzero(np.diff(first) >= most)
  floor = np.full(classes, -np.inf, np.float32)
  floor[full] = detections.score[order[first[full] + most - 1]]
  return detections.take(np.sort(kept)), floor


def that_count(data: instances.Instances, detections: Detections) -> Detections:
  """The detections that LVIS' rules count: of classes known to be, or not to be, in their image."""
  absent = [(row, data.class_number[each]) for row, image in enumerate(data.images) for each in image.absent]
  row, label = np.asarray(absent, np.int64).reshape(-1, 2).T
  known = np.concatenate([row, data.image]) * len(data.names) + np.concatenate([label, data.label])
  found = detections.image.astype(np.int64) * len(data.names) + detections.label
  return detections.take(np.isin(found, known))


def in_pixels(data: instances.Instances, detections: Detections) -> Float64[np.ndarray, "N 4"]:
  """Left, top, width and height of detections, in the unit of the true boxes."""
  size = np.asarray([(image.width, image.height) * 2 for image in data.images], np.float64).reshape(-1, 4)
  box = detections.box * size[detections.image]
  box[:, 2:] -= box[:, :2]
  return box


def _precision(
  data: instances.Instances, images: list[dict], detections: Detections, first: int
) -> Float64[np.ndarray, "C 10"]:
  """The precision of `_CLASSES` classes from number `first`, at each overlap; NaN for a class without a true box."""
  try:
    from faster_coco_eval import COCO, COCOeval_faster
  except ImportError as error:
    raise ValueError(f"detection needs faster-coco-eval: pip install -r requirements-evals.txt ({error})") from error
  within = range(first, min(first + _CLASSES, len(data.names)))
  mine = detections.take((detections.label >= within.start) & (detections.label < within.stop))
  rows = zip(mine.image.tolist(), mine.label.tolist(), in_pixels(data, mine).tolist(), mine.score.tolist(), strict=True)
  # an empty segmentation keeps the package from making one of each box
  found = [
    {"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": []}
    for image, label, box, score in rows
  ]
  api = COCO(_coco_layout(data, images, within), print_function=_say_nothing)
  found = api.loadRes(found)
  evaluation = COCOeval_faster(api, found, "bbox", print_function=_say_nothing, lvis_style=bool(data.frequencies))
  evaluation.params.maxDets = [max(len(mine.label), 1)]
  evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
  evaluation.evaluate()
  precision = evaluation.eval["precision"][:, :, :, 0, 0].mean(1).T
  return np.where(precision < 0, np.nan, precision)


def _say_nothing(*_: object) -> None:
  """Prints nothing."""


def _image_layout(data: instances.Instances, used: Sequence[int]) -> list[dict]:
  """The images in COCO's layout, with numbers for ids."""
  images = []
  for number in used:
    image = data.images[number]
    lists = {"neg_category_ids": image.absent, "not_exhaustive_category_ids": image.incomplete}
    numbers = {name: [data.class_number[identity] for identity in ids] for name, ids in lists.items()}
    images.append({"id": number, "width": image.width, "height": image.height, **numbers})
  return images


def _coco_layout(data: instances.Instances, images: list[dict], within: range) -> dict[str, list[dict]]:
  """The true boxes of some classes in these images in COCO's layout, with numbers for ids."""
  used = [image["id"] for image in images]
  rows = np.isin(data.image, used) & (data.label >= within.start) & (data.label < within.stop)
  annotations = [
    {
      "id": row + 1,  # the package takes 0 for no match
      "image_id": int(data.image[row]),
      "category_id": int(data.label[row]),
      "bbox": data.box[row].tolist(),
      "area": float(data.area[row]),
      "iscrowd": int(data.crowd[row]),
    }
    for row in np.flatnonzero(rows).tolist()
  ]
  frequencies = data.frequencies or [""] * len(data.names)
  categories = [{"id": number, "name": data.names[number], "frequency": frequencies[number]} for number in within]
  return {"images": images, "annotations": annotations, "categories": categories}
