"""Boxes of pictures, embedded; and which class the model sees in them."""

import argparse
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.evals import guards, options, ranking, templates
from fgclip_jax.evals.datasets import images as pictures
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths

SHORT = "classification of boxes: COCO's 80 classes, LVIS' 1,203, Open Images"
TEXT = """Which of all classes is in each box of the annotations: top-1 and top-5, for LVIS also by the classes'
frequency. Boxes around crowds and boxes without a size are left out and counted."""
EXAMPLE = "--model M --annotations lvis_v1_val.json --images coco --output lvis.json"

_NO_BOX = np.zeros((0, 4), np.float32)
_END = object()
_AT_ONCE = 1 << 16  # pictures of a call times the most boxes of one: with padding at most 256 MiB, of 512 numbers each


def encode_boxes(
  model: FGCLIP,
  images: Sequence[pictures.Source],
  boxes: Sequence[Float32[np.ndarray, "_ 4"]],
  faults: pictures.Faults,
  progress: bool = False,
) -> Iterator[tuple[int, Float32[np.ndarray, "K D"]]]:
  """Yields the number and the boxes' unit-length embeddings of each picture that can be used, in order.

  A picture is squashed and encoded once, however many boxes it has. The next batch is computed while the caller works
  with this one.

  Args:
    model: the model.
    images: the pictures.
    boxes: of each picture [K, 4], x1 y1 x2 y2 as fractions of its width and height.
    faults: where pictures that cannot be used are counted.
    progress: shows a progress bar.

  Raises:
    ValueError: an embedding is not finite.
  """

  def batches():
    for batch in pictures.read_batches(model, images, faults, "squash", progress):
      rows = [boxes[number] for number in batch.numbers]
      rows += [_NO_BOX] * (len(batch.pixels) - len(rows))
      size, longest = model.batch_size, max(map(len, rows))
      while size > 1 and size * longest > _AT_ONCE:
        size = max(size // 4, 1)  # near the sizes that programs are compiled for
      for first in range(0, len(batch.numbers), size):
        some = slice(first, first + size)
        found = model.encode_regions(batch.pixels[some], rows[some])
        yield list(zip(batch.numbers[some].tolist(), found, strict=False))

  for batch in ahead(batches()):
    for number, found in batch:
      guards.check_finite(found, "boxes")
      yield number, found


def by_image(image: Int[np.ndarray, "M"], rows: Int[np.ndarray, "m"]) -> tuple[Int[np.ndarray, "N"], list[np.ndarray]]:
  """The numbers of the images that have some of the rows, ascending, and the rows of each.

  Args:
    image: the number of the image that each of M rows belongs to.
    rows: some of the M.
  """
  rows = rows[np.argsort(image[rows], kind="stable")]
  numbers, first = np.unique(image[rows], return_index=True)
  return numbers, np.split(rows, first[1:])


def ahead(items: Iterator) -> Iterator:
  """The same items; a thread computes the next one meanwhile."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pending = pool.submit(next, items, _END)
    while (item := pending.result()) is not _END:
      pending = pool.submit(next, items, _END)
      yield item


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
  options.add_templates(parser)
  options.add_limit(parser)


@dataclasses.dataclass(frozen=True)
class BoxClassification:
  """Which of all classes is in a box: COCO's 80, LVIS' 1,203, those of Open Images.

  The boxes are those of the annotations; their RoIAlign features are compared with the mean embedding of each class'
  prompts. Boxes around crowds (groups, in Open Images) and boxes without a size are left out and counted. The features
  are held in memory: 100,000 boxes of a ViT-B/16 take 200 MB.

  Attributes:
    annotations: the file of boxes, see `instances.read`.
    images: the folder of images. LVIS' files lie in its folders train2017 and val2017.
    classes: for Open Images, the file of the classes' names.
    templates: which prompts, a name in `templates.TEMPLATES`.
    limit: reads only so many images, the first ones by id; None for all.
    allow: guards that are switched off.
  """

  annotations: str
  images: str
  classes: str | None = None
  templates: str = "openai80"
  limit: int | None = None
  allow: tuple[str, ...] = ()
  ks: tuple[int, ...] = (1, 5)

  @property
  def name(self) -> str:
    return "box classification"

  def settings(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def files(self) -> list[str | tuple[str, str]]:
    return [path for path in (self.annotations, self.classes, self.images) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `box_topK`, and for LVIS `box_rare_topK`, `box_common_topK`, `box_frequent_topK`."""
    notes = guards.check_resolution(model, self.allow)
    data = instances.read(self.annotations, self.classes).limit(self.limit)
    fractions = data.fractions()
    sized = instances.have_size(fractions)
    usable = np.flatnonzero(sized & ~data.crowd)
    if not len(usable):
      raise ValueError(f"{self.annotations}: none of the {len(data.label)} boxes can be used: all are crowds or empty")
    classes = templates.class_embeddings(model, data.names, templates.TEMPLATES[self.templates], progress)
    numbers, rows = by_image(data.image, usable)
    files = [paths.join(self.images, data.images[number].path) for number in numbers]
    faults = pictures.Faults()
    features = np.zeros((len(data.label), classes.shape[1]), np.float32)
    encoded = np.zeros(len(data.label), bool)
    for number, found in encode_boxes(model, files, [fractions[each] for each in rows], faults, progress):
      features[rows[number]], encoded[rows[number]] = found, True
    asked = np.flatnonzero(encoded)
    if not len(asked):
      raise ValueError(f"none of {len(files)} images could be used: {'; '.join(faults.notes(len(files)))}")
    features, label = features[asked], data.label[asked]
    rank, predicted, _ = ranking.search(features, classes, np.stack([np.arange(len(asked)), label], axis=1))
    skipped = {
      "box_of_crowd": int(data.crowd.sum()),
      "box_without_size": int((~sized & ~data.crowd).sum()),
      "box_without_image": len(usable) - len(asked),
    }
    examples = {
      "box": [data.identity[row] for row in asked],
      "image": [data.images[number].path for number in data.image[asked]],
      "class": [data.names[number] for number in label],
      "predicted": [data.names[number] for number in predicted],
      "rank": rank,
      "score": np.einsum("nd,nd->n", features, classes[label]),
    }
    return Result(
      self._metrics(data, rank, label),
      examples,
      len(data.label),
      {kind: count for kind, count in skipped.items() if count},
      (*notes, *faults.notes(len(files))),
    )

  def _metrics(self, data: instances.Instances, rank: np.ndarray, label: np.ndarray) -> dict[str, Metric]:
    groups = {"box": np.full(len(label), True)}
    if data.frequencies:
      frequency = np.asarray(data.frequencies)[label]
      groups |= {f"box_{name}": frequency == key for key, name in instances.FREQUENCIES.items()}
    result = {}
    for k in self.ks:
      for name, these in groups.items():
        if these.any():
          pairs = np.stack([np.arange(these.sum()), label[these]], axis=1)
          result[f"{name}_top{k}"] = ranking.top_k(rank[these], pairs, len(data.names), k)
    return result
