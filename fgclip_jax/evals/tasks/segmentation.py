"""Segmentation without training: the class of each pixel, from the dense features."""

import argparse
import dataclasses
import functools
import os
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt

from fgclip_jax.evals import guards, options, templates
from fgclip_jax.evals.datasets import class_lists, label_maps
from fgclip_jax.evals.encoding import encode_patches
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError, Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import folders
from fgclip_jax.storage.skip_report import SkipReport

SHORT = "segmentation without training: VOC, ADE-150, PASCAL Context, COCO-Stuff"
TEXT = """The mean intersection over union and the share of right pixels, of each pixel's best class by the dense
features."""
EXAMPLE = "--model M --images ade/images/validation --labels ade/annotations/validation --classes ade150"

_NOT_COUNTED, _NO_CLASS = -1, -2  # in place of the class of a pixel
_STEP = 128  # sides of computed label maps are multiples of it: few sizes to compile


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the images")
  parser.add_argument(
    "--labels", required=True, metavar="DIR", help="the folder of label maps: PNG or TIFF files of class numbers"
  )
  parser.add_argument(
    "--classes",
    required=True,
    metavar="LIST",
    help=f"one of {', '.join(class_lists.lists())}; or a text file with a class on each line, more names of it parted "
    "by semicolons",
  )
  parser.add_argument("--split", metavar="FILE", help="the names of the images, one on each line (default: all)")
  parser.add_argument(
    "--reduce_zero_label",
    action=argparse.BooleanOptionalAction,
    help="do not count pixels of level 0; level 1 is the first class (default: as the list's benchmark has it)",
  )
  parser.add_argument(
    "--ignore_label",
    type=int,
    default=255,
    metavar="N",
    help="the level of pixels that are not counted; 65535 in most files of 16 bits (default: %(default)s)",
  )
  parser.add_argument(
    "--label_suffix", default=".png", metavar="END", help="what the names of label maps end with (default: %(default)s)"
  )
  parser.add_argument(
    "--pooling",
    action="store_true",
    help="take what the text-conditioned pooling makes of each patch (of models that have it)",
  )
  options.add_templates(parser)
  options.add_limit(parser)


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """The mean intersection over union of classes with their label maps, and the share of pixels that are right.

  A pixel's class is the one whose prompts' mean embedding has the highest cosine with the dense features, which are
  interpolated bilinearly to the label map's size. A class that occurs neither in the label maps nor in the predictions
  does not count in the mean. Files: a PNG or TIFF of class numbers, 8 or 16 bits, for each picture.

  Where the first class is the background, a second measurement leaves it out: only the other classes, over their own
  pixels (VOC-20 of VOC-21, PASCAL Context 59 of 60).

  Attributes:
    images: the folder of pictures.
    labels: the folder of label maps; a label map is named like its picture, with `label_suffix` at the end.
    classes: the name of a list in `class_lists`, or a text file with a class on each line, in the order of the numbers.
    split: a text file with the name (without suffix) of a picture on each line; None takes all label maps.
    reduce_zero_label: pixels of level 0 are not counted, and level 1 is the first class. None: as the list of classes
      says for its benchmark's label maps; False for a file.
    ignore_label: the level of pixels that are not counted; 65535 in the usual files of more than 255 classes.
    label_suffix: the end of a label map's name, e.g. `_labelTrainIds.png`.
    templates: the prompts, a name in `templates.TEMPLATES`.
    limit: the number of label maps to read, the first by name; None for all.
    allow: guards that are switched off.
    pooling: compares texts with what text-conditioned pooling makes of each patch, instead of with the dense features.
  """

  images: str
  labels: str
  classes: str
  split: str | None = None
  reduce_zero_label: bool | None = None
  ignore_label: int = 255
  label_suffix: str = ".png"
  templates: str = "openai80"
  limit: int | None = None
  allow: tuple[str, ...] = ()
  pooling: bool = False

  @property
  def name(self) -> str:
    return "segmentation"

  def settings(self) -> dict[str, Any]:
    values = dataclasses.asdict(self)
    return values if self.pooling else {key: value for key, value in values.items() if key != "pooling"}

  def files(self) -> list[str | tuple[str, str]]:
    classes = None if self.classes in class_lists.lists() else self.classes
    return [path for path in (self.labels, classes, self.images, self.split) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `segmentation_miou`, `segmentation_accuracy`, and with a background also `..._without_background`.

    Examples have a row for each label map, with the numbers of its own pixels. The notes have the IoU of each class.
    """
    notes = guards.check_resolution(model, self.allow)
    if self.pooling and model.config.text_pooling is None:
      raise NothingToMeasureError("this model has no text-conditioned pooling, which pooling needs: leave it out")
    classes = class_lists.read(self.classes)
    names, numbers = classes.names, self._numbers(classes)
    skips = SkipReport()
    listing = SkipReport()
    found = label_maps.find(self.images, self.labels, self.label_suffix, self.split, self.limit, listing)
    prompts = templates.TEMPLATES[self.templates]
    text = templates.class_embeddings(model, [name for each in names for name in each], prompts, progress, "region")
    text = jax.device_put(text)
    owner = np.repeat(np.arange(len(names)), [len(each) for each in names])
    background = classes.zero == "background"
    kinds = ("", "_without_background")[: 1 + background]
    counts = {kind: np.zeros((3, len(names)), np.int64) for kind in kinds}
    examples: dict[str, list] = {"image": [], "pixels": [], "accuracy": [], "miou": []}
    for number, dense in encode_patches(model, [picture for picture, _ in found], skips, progress):
      picture, path = found[number]
      labels = label_maps.read(path, skips)
      if labels is None:
        continue
      true = np.take(numbers, labels)  # faster than by an index
      if (true == _NO_CLASS).any():
        self._refuse(path, int(labels[true == _NO_CLASS][0]), classes)
      maps = predict(model.patch_values(dense) if self.pooling else dense, text, owner, labels.shape, background)
      for kind, predicted in zip(kinds, maps, strict=True):
        mine = count(true, predicted, len(names), first=1 if kind else 0)
        counts[kind] += mine
        if not kind:
          _add_example(examples, os.path.basename(picture), mine)
    if not counts[""].any():
      raise ValueError(f"no pixel of {len(found)} label maps could be measured: {skips.summary(len(found))}")
    values = {}
    for kind, each in counts.items():
      if each.any():
        values |= _metrics(kind, each)
    notes += [*self._doubts(classes), *folders.describe(self.images, listing), skips.summary(len(found))]
    notes.append(_list_classes(names, counts[""]))
    return Result(values, examples, len(found), skips.counts, notes)

  def _reduces(self, classes: class_lists.ClassList) -> bool:
    return classes.zero == "ignored" if self.reduce_zero_label is None else self.reduce_zero_label

  def _doubts(self, classes: class_lists.ClassList) -> list[str]:
    """A note where level 0 is read in another way than in the benchmark's label maps."""
    known = self.classes in class_lists.lists()
    if not known or self._reduces(classes) == (classes.zero == "ignored"):
      return []
    kinds = ("a class", "no class") if self._reduces(classes) else ("no class", "a class")
    return [f"level 0 is {kinds[0]} in the label maps of {self.classes}, and here it was read as {kinds[1]}"]

  def _numbers(self, classes: class_lists.ClassList) -> Int[np.ndarray, "L"]:
    """The class of each level of a label map; `_NOT_COUNTED`, or `_NO_CLASS` where a level is an error."""
    if not 0 <= self.ignore_label < label_maps.LEVELS:
      raise ValueError(
        f"a label map has levels from 0 to {label_maps.LEVELS - 1}, and none of {self.ignore_label}: give "
        "--ignore_label 255, or 65535 for most files of 16 bits"
      )
    count = len(classes.names)
    reduce = self._reduces(classes)
    if reduce <= self.ignore_label < reduce + count:
      raise ValueError(
        f"{self.classes} has {count} classes, and level {self.ignore_label} of a label map cannot be one of them and "
        "mark pixels that are not counted: give --ignore_label (65535 in most files of 16 bits)"
      )
    numbers = np.full(label_maps.LEVELS, _NO_CLASS)
    numbers[[0, self.ignore_label]] = _NOT_COUNTED
    numbers[reduce : reduce + count] = np.arange(count)
    return numbers

  def _refuse(self, path: str, level: int, classes: class_lists.ClassList) -> NoReturn:
    reduce = self._reduces(classes)
    advice = "" if reduce else "; if 0 is no class, use --reduce_zero_label"
    raise ValueError(
      f"{path} has a pixel of level {level}, and the {len(classes.names)} classes of {self.classes} are levels "
      f"{int(reduce)} to {len(classes.names) - 1 + reduce}, beside {self.ignore_label} where nothing is counted{advice}"
    )


def predict(
  dense: Float32[np.ndarray, "h w D"],
  texts: Float32[Array | np.ndarray, "T D"],
  owner: Int[np.ndarray, "T"],
  shape: tuple[int, int],
  background: bool = False,
) -> list[UInt[np.ndarray, "H W"]]:
  """The class of each pixel: that of the text with the highest interpolated cosine.

  Args:
    dense: unit-length embeddings of the patches.
    texts: unit-length embeddings of the texts.
    owner: the class of each text, ascending.
    shape: height and width of the label map.
    background: adds a second label map, of the classes from 1 on.
  """
  rows, columns = (interpolation(size, side) for size, side in zip(shape, dense.shape[:2], strict=True))
  small = owner.astype(np.uint8 if owner[-1] < 256 else np.uint16)
  tile = _STEP if jax.default_backend() == "cpu" else len(rows)  # tiles that fit a processor's cache take half the time
  found = _best(dense, texts, rows, columns, small, int(np.sum(owner == 0)) if background else 0, tile)
  return [np.asarray(each)[: shape[0], : shape[1]] for each in found]


def interpolation(size: int, cells: int) -> Float32[np.ndarray, "padded {cells}"]:
  """Weights of bilinear interpolation along a side: of each cell in each of `size` pixels.

  Cells and pixels are areas, as of `align_corners=False`. Rows of zeros follow, up to a multiple of `_STEP`.
  """
  position = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
  weights = np.zeros((-(-size // _STEP) * _STEP, cells), np.float32)
  weights[:size] = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)
  return weights


@functools.partial(jax.jit, static_argnames=("background", "tile"))
def _best(
  dense: Float[Array, "h w D"],
  texts: Float[Array, "T D"],
  rows: Float[Array, "H h"],
  columns: Float[Array, "W w"],
  owner: UInt[Array, "T"],
  background: int,
  tile: int,
) -> list[UInt[Array, "H W"]]:
  """The class of the text with the highest interpolated cosine, for each pixel.

  If the first `background` texts, more than 0, are those of the background, the result also has a label map of the
  other texts. Texts are compared one after the other, which needs no memory for the cosines of all; `tile`, a divisor
  of H, is the number of rows computed at once.
  """
  precision = jax.lax.Precision.HIGHEST
  cosines = jnp.einsum("hwd,td->thw", dense, texts, precision=precision)
  wide = jnp.einsum("thw,Ww->thW", cosines, columns, precision=precision)

  def look(some, state, text):
    best, name = state
    number, part = text
    here = jnp.matmul(some, part, precision=precision)
    better = here > best
    return (jnp.where(better, here, best), jnp.where(better, number, name)), None

  def find(some):
    shape = (tile, len(columns))
    start = (jnp.full(shape, -jnp.inf, wide.dtype), jnp.zeros(shape, owner.dtype))
    scan = functools.partial(jax.lax.scan, functools.partial(look, some), start, unroll=4)
    best, found = scan((owner[background:], wide[background:]))[0]
    if not background:
      return [found]
    other = scan((owner[:background], wide[:background]))[0][0]
    return [jnp.where(other >= best, owner[0], found), found]

  tiles = jax.lax.map(find, rows.reshape(-1, tile, rows.shape[1]))
  return [each.reshape(len(rows), -1) for each in tiles]


def count(
  true: Int[np.ndarray, "H W"], predicted: UInt[np.ndarray, "H W"], classes: int, first: int = 0
) -> Int[np.ndarray, "3 {classes}"]:
  """Counts each class' pixels: those labelled with it, those predicted as it, and those where both agree.

  Args:
    true: the class of each pixel; less than `first` where it is not counted.
    predicted: the predicted class of each pixel.
    classes: the number of classes.
    first: the first class whose pixels are counted.
  """
  counted = true >= first
  true, predicted = true[counted], predicted[counted]
  return np.stack([np.bincount(each, minlength=classes) for each in (true, predicted, true[true == predicted])])


def intersection_over_union(counts: Int[np.ndarray, "3 C"]) -> Float[np.ndarray, "C"]:
  """The IoU of each class; NaN for a class without pixels in labels and predictions."""
  union = counts[0] + counts[1] - counts[2]
  return np.where(union > 0, counts[2] / np.maximum(union, 1), np.nan)


def _metrics(kind: str, counts: Int[np.ndarray, "3 C"]) -> dict[str, Metric]:
  met, pixels = int(np.isfinite(intersection_over_union(counts)).sum()), int(counts[0].sum())
  miou, accuracy = _shares(counts)
  return {
    f"segmentation_miou{kind}": Metric(miou, None, met),
    f"segmentation_accuracy{kind}": Metric(accuracy, None, pixels),
  }


def _shares(counts: Int[np.ndarray, "3 C"]) -> tuple[float, float]:
  """The mean intersection over union and the share of right pixels; there is at least one pixel."""
  return float(np.nanmean(intersection_over_union(counts))), int(counts[2].sum()) / int(counts[0].sum())


def _add_example(examples: dict[str, list], image: str, counts: Int[np.ndarray, "3 C"]) -> None:
  """Adds a label map's row, without an accuracy if no pixel is counted."""
  miou, accuracy = _shares(counts) if counts.any() else (None, None)
  row = {"image": image, "pixels": int(counts[0].sum()), "accuracy": accuracy, "miou": miou}
  for name, column in examples.items():
    column.append(row[name])


def _list_classes(names: tuple[tuple[str, ...], ...], counts: Int[np.ndarray, "3 C"]) -> str:
  iou = intersection_over_union(counts)
  each = [f"{name[0]} {100 * value:.1f}" for name, value in zip(names, iou, strict=True) if np.isfinite(value)]
  return f"IoU of the classes that were met, in percent: {'; '.join(each)}"
