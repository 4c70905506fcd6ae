"""Zero-shot classification: a picture among all classes, each the mean of its prompts' embeddings."""

import argparse
import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.data.image import Mode
from fgclip_jax.evals import guards, options, ranking
from fgclip_jax.evals.datasets import image_folders
from fgclip_jax.evals.encoding import encode_images
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.evals.templates import TEMPLATES, class_embeddings
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage.skip_report import SkipReport, printable

SHORT = "zero-shot classification: ImageNet, ImageNet-v2, any folder of folders, TensorFlow Datasets"
TEXT = """Top-1, top-5 and mean accuracy per class of pictures among class names, each the mean of its prompts."""
EXAMPLE = "imagenet --model M --images imagenet/val --output in1k.json"

IMAGENET_PATCHES = 1024  # of a picture, with which FG-CLIP 2's numbers are published
SETS = ("imagenet", "imagenetv2", "folder", "tfds")


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  parser.add_argument("dataset", choices=SETS, help="the kind of data set")
  parser.add_argument(
    "--images", required=True, metavar="DIR", help="a folder with a sub-folder for each class; of tfds: its name"
  )
  parser.add_argument("--classes", metavar="FILE", help="class names, for `folder` (default: the sub-folders' names)")
  parser.add_argument(
    "--labels",
    metavar="FILE",
    help="lines `FILE CLASS`, or a class on each line, for pictures in one folder (default: in sub-folders)",
  )
  parser.add_argument("--split", default="test", help="of tfds (default: %(default)s)")
  options.add_data_dir(parser)
  options.add_templates(parser)
  options.add_mode(parser)
  options.add_limit(parser)


@dataclasses.dataclass(frozen=True)
class Classification:
  """The evaluator.

  Attributes:
    dataset: `imagenet` or `imagenetv2`: sub-folders named by WordNet number (`n01440764`) or class number (0 to 999);
      `folder`: sub-folders named by class; `tfds`: a data set of TensorFlow Datasets.
    images: the folder; for `tfds` the data set's name or folder.
    classes: for `folder`, a file of class names, see `image_folders.read_classes`; None: the names of the
      sub-folders or labels.
    labels: a file with the class of each picture, see `image_folders.read_flat`, for pictures in one folder, as
      ImageNet's are when downloaded; None: they are in sub-folders.
    split, data_dir: for `tfds`, the split, and the folder of named data sets.
    templates: a key of `templates.TEMPLATES`.
    mode: how pictures are made square; None: the model's own way, `squash` for an FG-CLIP, `center_crop` for a CLIP.
    limit: the number of pictures to read, from the first; None for all.
    allow: see `guards`.
  """

  dataset: str
  images: str
  classes: str | None = None
  labels: str | None = None
  split: str = "test"
  data_dir: str | None = None
  templates: str = "openai80"
  mode: Mode | None = None
  limit: int | None = None
  allow: tuple[str, ...] = ()

  def __post_init__(self):
    if self.dataset not in SETS or self.templates not in TEMPLATES:
      raise ValueError(
        f"dataset must be one of {', '.join(SETS)} and templates one of {', '.join(TEMPLATES)}, got "
        f"{self.dataset!r} and {self.templates!r}"
      )
    if self.classes and self.dataset != "folder":
      raise ValueError(f"classes are given for the dataset 'folder', not for {self.dataset!r}")
    if self.labels and self.dataset == "tfds":
      raise ValueError("labels are given for pictures in one folder, and those of tfds have theirs")

  @property
  def name(self) -> str:
    return f"classify {self.dataset}"

  def settings(self) -> dict[str, Any]:
    values = dataclasses.asdict(self)
    return values if self.dataset == "tfds" else {k: v for k, v in values.items() if k not in ("split", "data_dir")}

  def read(self) -> image_folders.Labelled:
    """The pictures and their classes; errors as in `image_folders`."""
    if self.dataset == "tfds":
      found = image_folders.read_tfds(self.images, self.split, self.data_dir)
    else:
      classes = image_folders.imagenet_classes() if self.dataset != "folder" else None
      if self.classes:
        classes = image_folders.read_classes(self.classes)
      if self.labels:
        found = image_folders.read_flat(self.images, self.labels, classes)
      else:
        found = image_folders.read_folder(self.images, classes)
    return found.first(self.limit)

  def files(self) -> list[str | tuple[str, str]]:
    return [] if self.dataset == "tfds" else [path for path in (self.labels, self.classes, self.images) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `top1`, `top5` and `mean_per_class` (of top-1, over the classes that have pictures).

    Classes of the same name count as one answer; case and spacing, which the tokenizer drops, make no difference.
    Published scripts take the first of equal cosines: where classes share a name, as in ImageNet, `top1_argmax` counts
    like them.
    """
    notes, chosen = guards.check_resolution(model, self.allow), {}
    if self.dataset in ("imagenet", "imagenetv2") and model.published_budget:
      model, chosen = model.with_max_patches(IMAGENET_PATCHES), {"max_patches": IMAGENET_PATCHES}
    data, skips = self.read(), SkipReport()
    classes = class_embeddings(model, data.names, TEMPLATES[self.templates], progress)
    image, kept = encode_images(model, data.pictures, skips, self.mode, progress)
    notes.append(skips.summary(len(data.pictures)))
    if not len(kept):
      raise ValueError(f"no picture of {self.images!r} can be used: {'; '.join(filter(None, notes))}")
    answers = [model.tokenizer.clean(name) for name in data.names]
    notes += [*data.notes, *_notes(data, answers)]
    made = "made square by " + (self.mode or model.config.resize)
    if model.max_patches is not None:
      made = f"patches, budget {model.max_patches}"
    notes.append(f"pictures are {made}, classes by the templates {self.templates}")
    ids = [data.ids[int(number)] for number in kept]
    result = _score(image, data.labels[kept], ids, classes, data, answers, skips, notes)
    return dataclasses.replace(result, settings=chosen)


def _score(
  image: Float32[np.ndarray, "n D"],
  label: Int[np.ndarray, "n"],
  ids: list[str],
  classes: Float32[np.ndarray, "C D"],
  data: image_folders.Labelled,
  answers: Sequence[str],
  skips: SkipReport,
  notes: list[str],
) -> Result:
  # classes whose names the model reads alike are one answer: each of them is right for a picture of any
  same = collections.defaultdict(list)
  for number, name in enumerate(answers):
    same[name].append(number)
  pairs = np.asarray([(row, number) for row, of in enumerate(label) for number in same[answers[of]]], np.int64)
  rank, first, score = ranking.search(image, classes, pairs)
  found = {f"top{k}": ranking.top_k(rank, pairs, len(classes), k) for k in (1, 5)}
  if len(same) < len(answers):
    hit = (rank < 1) & (first == label)
    found["top1_argmax"] = Metric(float(np.mean(hit)), 1 / len(classes), len(label))
  counts = np.bincount(label, minlength=len(classes))
  hits = np.bincount(label, weights=rank < 1, minlength=len(classes))
  right = np.asarray([len(same[name]) for name in answers])
  some = counts > 0
  found["mean_per_class"] = Metric(
    value=float(np.mean(hits[some] / counts[some])),
    chance=float(np.mean(right[some] / len(classes))),
    count=int(some.sum()),
  )
  examples = {
    "id": ids,
    "class": [data.names[number] for number in label],
    "predicted": [data.names[number] for number in first],
    "rank": rank,
    "score": score,
  }
  return Result(found, examples, len(data.pictures), skips.counts, notes)


def _notes(data: image_folders.Labelled, answers: Sequence[str]) -> list[str]:
  notes = []
  empty = len(data.names) - len(np.unique(data.labels))
  if empty:
    some = [data.names[place] for place in np.setdiff1d(np.arange(len(data.names)), data.labels)[:5]]
    which = f"{', '.join(map(printable, some))}{', ...' if empty > len(some) else ''}"
    notes.append(f"{empty} of {len(data.names)} classes have no picture; they are answers all the same: {which}")
  count = collections.Counter(answers)
  twice = list(dict.fromkeys(name for name, answer in zip(data.names, answers, strict=True) if count[answer] > 1))
  if twice:
    some = f"{', '.join(map(printable, twice[:5]))}{', ...' if len(twice) > 5 else ''}"
    notes.append(f"classes of the same name are one answer: {some}")
  return notes
