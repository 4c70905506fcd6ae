"""Zero-shot classification of boxes: COCO, LVIS, Open Images, BoxClass-CN."""

import argparse
import dataclasses
from typing import Any

import numpy as np

from fgclip_jax.evals import guards, options, ranking, templates
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.encoding import encode_boxes
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import SkipReport

SHORT = "classification of boxes: COCO's 80 classes, LVIS' 1,203, Open Images, BoxClass-CN"
TEXT = """Which of all classes is in each box of the annotations: top-1 and top-5, for LVIS also by the classes'
frequency. Boxes around crowds and boxes without a size are left out and counted."""
EXAMPLE = "--model M --annotations lvis_v1_val.json --images coco --output lvis.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
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
  options.add_as_written(parser)
  options.add_limit(parser)


@dataclasses.dataclass(frozen=True)
class BoxClassification:
  """The class of each annotated box among all classes: COCO's 80, LVIS' 1,203, those of Open Images.

  The boxes' RoIAlign features are compared with the mean embedding of each class' prompts. Boxes around crowds (groups,
  in Open Images) and boxes without a size are left out and counted. The features are held in memory: 100,000 boxes of
  a ViT-B/16 take 200 MB.

  Attributes:
    annotations: the file of boxes, see `instances.read`.
    images: the folder of images; for LVIS the one that holds train2017 and val2017.
    classes: for Open Images, the file of the classes' names.
    templates: the prompts, a name in `templates.TEMPLATES`.
    as_written: prompts are not lower-cased. BoxClass-CN, in the layout of COCO, is measured with this and the
      templates `name` (bare class names).
    limit: the number of images to read, the first by id; None for all.
    allow: guards that are switched off.
    ks: the K of each top-K.
  """

  annotations: str
  images: str
  classes: str | None = None
  templates: str = "openai80"
  as_written: bool = False
  limit: int | None = None
  allow: tuple[str, ...] = ()
  ks: tuple[int, ...] = (1, 5)

  @property
  def name(self) -> str:
    return "box classification"

  def settings(self) -> dict[str, Any]:
    values = dataclasses.asdict(self)
    return values if self.as_written else {name: value for name, value in values.items() if name != "as_written"}

  def files(self) -> list[str | tuple[str, str]]:
    return [path for path in (self.annotations, self.classes, self.images) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `box_topK`, and for LVIS `box_rare_topK`, `box_common_topK`, `box_frequent_topK`."""
    notes = guards.check_resolution(model, self.allow)
    broken = SkipReport()  # entries of the annotations
    data = instances.read(self.annotations, self.classes, broken).limit(self.limit)
    fractions = data.fractions()
    sized = instances.have_size(fractions)
    usable = np.flatnonzero(sized & ~data.crowd)
    if not len(usable):
      raise ValueError(f"{self.annotations}: none of the {len(data.label)} boxes can be used: all are crowds or empty")
    records = len(data.label) + len(broken)
    prompts = templates.TEMPLATES[self.templates]
    classes = templates.class_embeddings(model, data.names, prompts, progress, "region", self.as_written)
    numbers, rows = instances.group_by_image(data.image, usable)
    files = [paths.join(self.images, data.images[number].path) for number in numbers]
    skips = SkipReport()
    features = np.zeros((len(data.label), classes.shape[1]), np.float32)
    encoded = np.zeros(len(data.label), bool)
    for number, found in encode_boxes(model, files, [fractions[each] for each in rows], skips, progress):
      features[rows[number]], encoded[rows[number]] = found, True
    asked = np.flatnonzero(encoded)
    if not len(asked):
      raise ValueError(f"none of {len(files)} images could be used: {skips.summary(len(files))}")
    features, label = features[asked], data.label[asked]
    rank, predicted, _ = ranking.search(features, classes, np.stack([np.arange(len(asked)), label], axis=1))
    skipped = dict(broken.counts) | {
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
      records,
      {kind: count for kind, count in skipped.items() if count},
      [*notes, broken.summary(records, "boxes and images of the annotations"), skips.summary(len(files))],
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
