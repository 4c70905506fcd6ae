"""Boxes that may hold an object: those of a file in the layout of COCO's results, or a grid."""

import array
import dataclasses
import math

import numpy as np
import tqdm
from jaxtyping import Float32, Int

from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.datasets.text_files import ERRORS, describe, lacks
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.streams import read_entries

_GRID_SIDES = (1.0, 0.5, 0.25)
_GRID_ASPECTS = (0.5, 1.0, 2.0)  # width to height
_FIELDS = 6  # columns of the proposals while the file is read: left, top, width, height, score, class


@dataclasses.dataclass(frozen=True)
class Proposals:
  """Boxes that may hold an object.

  Attributes:
    box: x1 y1 x2 y2 as fractions of the image's width and height.
    score: the proposer's confidence, 0 to 1.
    label: the number of the proposer's class; -1: none.
  """

  box: Float32[np.ndarray, "P 4"]
  score: Float32[np.ndarray, "P"]
  label: Int[np.ndarray, "P"]


def grid() -> Proposals:
  """Boxes of three sizes and three shapes, each kind half a box apart, with the score 1."""
  found = [(0.0, 0.0, 1.0, 1.0)]
  for side in _GRID_SIDES:
    for aspect in _GRID_ASPECTS:
      width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
      if width < 1 and height < 1:
        columns, rows = (math.ceil(2 * (1 - each) / each) + 1 for each in (width, height))
        for left in np.linspace(0, 1 - width, columns):
          found += [(left, top, left + width, top + height) for top in np.linspace(0, 1 - height, rows)]
  box = np.asarray(found, np.float32).clip(0, 1)
  return Proposals(box, np.ones(len(box), np.float32), np.full(len(box), -1))


def read_proposals(
  path: str,
  data: instances.Instances,
  most: int,
  classes: bool,
  skips: SkipReport,
  progress: bool = False,
) -> tuple[list[Proposals], int]:
  """Reads the proposals of each image, best first; returns them and the number of proposals in the file.

  Args:
    path: a JSON list in the layout of COCO's results, see `Detection`.
    data: the images and the classes.
    most: the number of proposals kept of an image.
    classes: also reads the class of each.
    skips: counts proposals that cannot be used: `proposal_broken` (not the expected fields), `proposal_without_size`,
      `proposal_of_unknown_class`, and `proposal_elsewhere` for those of images that are not in `data`.
    progress: shows a progress bar.

  Raises:
    OSError, ValueError: the file is missing or broken, or a score is not in 0..1; the message names the entry.
  """
  image_number = instances.IdNumbers(image.identity for image in data.images)

  def best(rows: array.array, image: instances.Image) -> tuple[np.ndarray, np.ndarray]:
    """The rows to keep, best first, of equal ones the first; and their boxes as fractions."""
    table = np.asarray(rows).reshape(-1, _FIELDS)
    box = instances.to_fractions(table[:, :4], np.tile([[image.width, image.height]], (len(table), 1)))
    sized = instances.have_size(box)
    for row in table[~sized]:
      skips.add(Skip("proposal_without_size", f"box {row[:4].tolist()} of image {image.identity}", place=path))
    kept = np.flatnonzero(sized)
    kept = kept[np.argsort(-table[kept, 4], kind="stable")][:most]
    return table[kept], box[kept]

  found = [array.array("d") for _ in data.images]
  names = ("image_id", "bbox", "score", *(["category_id"] if classes else ()))
  read = 0
  for _, entry in tqdm.tqdm(read_entries(path, ("",)), desc="proposals", unit="box", disable=not progress):
    read += 1
    label, place = -1, f"{path}, entry {read - 1}"
    try:
      left, top, width, height = map(float, entry["bbox"])
      score = float(entry["score"])
      image = entry["image_id"]
      if classes and entry["category_id"] in data.class_number:
        label = data.class_number[entry["category_id"]]
    except ERRORS as error:
      odd = error if isinstance(entry, dict) else ValueError(f"must be an object, got {entry!r:.40}")
      if isinstance(entry, dict) and (missing := [key for key in names if key not in entry]):
        odd = ValueError(lacks(missing[0], entry))
      skips.add(Skip("proposal_broken", describe(odd), place=place))
      continue
    if score < 0 or score > 1:  # logits or percent: then all scores are, and those that are in 0..1 would be wrong
      raise ValueError(f"{place}: `score` must be from 0 to 1, got {score:g}")
    if math.isnan(score):
      skips.add(Skip("proposal_broken", "`score` is not a number", place=place))
    elif image not in image_number:
      skips.add(Skip("proposal_elsewhere", f"image {image!r:.40} is not among those that are measured", place=place))
    elif classes and label < 0:
      skips.add(Skip("proposal_of_unknown_class", f"there is no class {entry['category_id']!r:.40}", place=place))
    else:
      number = image_number[image]
      found[number].extend((left, top, width, height, score, label))
      if len(found[number]) > 2 * most * _FIELDS:
        found[number] = array.array("d", best(found[number], data.images[number])[0].tobytes())
  result = []
  found.reverse()
  for image in data.images:
    table, box = best(found.pop(), image)  # frees an image's rows as its proposals are made
    result.append(Proposals(box, table[:, 4].astype(np.float32), table[:, 5].astype(np.int32)))
  return result, read
