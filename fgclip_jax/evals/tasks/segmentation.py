"""Segmentation without training: the class of every pixel, from the dense features."""

import argparse
import dataclasses
import functools
import io
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt
from PIL import Image

from fgclip_jax.data import image as image_files
from fgclip_jax.evals import guards, options, templates
from fgclip_jax.evals.datasets import class_lists
from fgclip_jax.evals.datasets import images as pictures
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.evals.tasks import box_classification
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths

SHORT = "segmentation without training: VOC, ADE-150, PASCAL Context, COCO-Stuff"
TEXT = """The mean intersection over union and the share of right pixels, of each pixel's best class by the dense
features."""
EXAMPLE = "--model M --images ade/images/validation --labels ade/annotations/validation --classes ade150"

_LEVELS = 1 << 16  # of a label map of 16 bits
_NOT_COUNTED, _NO_CLASS = -1, -2  # what stands for the class of a pixel
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_STEP = 128  # label maps are computed in multiples of so many pixels a side: few sizes to compile


def add_options(parser: argparse.ArgumentParser) -> None:
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
  options.add_templates(parser)
  options.add_limit(parser)


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """The mean intersection over union of classes with their label maps, and the share of pixels that are right.

  A pixel's class is the one whose prompts' mean embedding has the highest cosine with the dense features, which are
  interpolated bilinearly to the label map's size. A class that neither the label maps nor the predictions have is no
  part of the mean. Files: a PNG or TIFF of class numbers, 8 or 16 bits, for each picture.

  Where the first class is the background, what is left without it is measured too: the other classes alone, over
  pixels of theirs (VOC-20 of VOC-21, PASCAL Context 59 of 60).

  Attributes:
    images: the folder of pictures.
    labels: the folder of label maps; each has the name of its picture, but for `label_suffix`.
    classes: the name of a list in `class_lists`, or a text file with a class on each line, in the order of the numbers.
    split: a text file with the name (without suffix) of a picture on each line; None takes all label maps.
    reduce_zero_label: pixels of level 0 are not counted, and level 1 is the first class. None: as the list of classes
      says for its benchmark's label maps; not for a file.
    ignore_label: the level of pixels that are not counted; 65535 in the usual files of more than 255 classes.
    label_suffix: what a label map's name ends with, e.g. `_labelTrainIds.png`.
    templates: which prompts, a name in `templates.TEMPLATES`.
    limit: reads only so many label maps, the first ones by name; None for all.
    allow: guards that are switched off.
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

  @property
  def name(self) -> str:
    return "segmentation"

  def settings(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def files(self) -> list[str | tuple[str, str]]:
    classes = None if self.classes in class_lists.lists() else self.classes
    return [path for path in (self.labels, classes, self.images, self.split) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `segmentation_miou`, `segmentation_accuracy`, and with a background also `..._without_background`.

    Examples are a row for each label map, with the numbers of its own pixels. The notes have the IoU of each class.
    """
    notes = guards.check_resolution(model, self.allow)
    classes = class_lists.read(self.classes)
    names, numbers = classes.names, self._numbers(classes)
    faults = pictures.Faults()
    found = self._find(faults)
    text = templates.class_embeddings(
      model, [name for each in names for name in each], templates.TEMPLATES[self.templates], progress
    )
    text = jax.device_put(text)
    owner = np.repeat(np.arange(len(names)), [len(each) for each in names])
    background = classes.zero == "background"
    kinds = ("", "_without_background")[: 1 + background]
    counts = {kind: np.zeros((3, len(names)), np.int64) for kind in kinds}
    examples: dict[str, list] = {"image": [], "pixels": [], "accuracy": [], "miou": []}
    for number, dense in self._encode(model, [picture for picture, _ in found], faults, progress):
      picture, path = found[number]
      labels = _read_labels(path, faults)
      if labels is None:
        continue
      true = np.take(numbers, labels)  # faster than by an index
      if (true == _NO_CLASS).any():
        self._refuse(path, int(labels[true == _NO_CLASS][0]), classes)
      maps = label_maps(dense, text, owner, labels.shape, background)
      for kind, predicted in zip(kinds, maps, strict=True):
        mine = count(true, predicted, len(names), first=1 if kind else 0)
        counts[kind] += mine
        if not kind:
          _add_example(examples, os.path.basename(picture), mine)
    if not counts[""].any():
      raise ValueError(f"no pixel of {len(found)} label maps could be measured: {'; '.join(faults.notes(len(found)))}")
    values = {}
    for kind, each in counts.items():
      if each.any():
        values |= _metrics(kind, each)
    notes += [*self._doubts(classes), *faults.notes(len(found)), _tell_classes(names, counts[""])]
    return Result(values, examples, len(found), dict(faults.skipped), tuple(notes))

  def _reduces(self, classes: class_lists.ClassList) -> bool:
    return classes.zero == "ignored" if self.reduce_zero_label is None else self.reduce_zero_label

  def _doubts(self, classes: class_lists.ClassList) -> list[str]:
    """A note where a benchmark's label maps are read in another way than it has them."""
    known = self.classes in class_lists.lists()
    if not known or self._reduces(classes) == (classes.zero == "ignored"):
      return []
    kinds = ("a class", "no class") if self._reduces(classes) else ("no class", "a class")
    return [f"level 0 is {kinds[0]} in the label maps of {self.classes}, and here it was read as {kinds[1]}"]

  def _numbers(self, classes: class_lists.ClassList) -> Int[np.ndarray, "L"]:
    """Of each level of a label map, the number of its class; `_NOT_COUNTED`; or `_NO_CLASS`, where it has none."""
    if not 0 <= self.ignore_label < _LEVELS:
      raise ValueError(
        f"a label map has levels from 0 to {_LEVELS - 1}, and none of {self.ignore_label}: give --ignore_label 255, or "
        "65535 for most files of 16 bits"
      )
    count = len(classes.names)
    reduce = self._reduces(classes)
    if reduce <= self.ignore_label < reduce + count:
      raise ValueError(
        f"{self.classes} has {count} classes, and level {self.ignore_label} of a label map cannot be one of them and "
        "stand for pixels that are not counted: give --ignore_label (65535 in most files of 16 bits)"
      )
    numbers = np.full(_LEVELS, _NO_CLASS)
    numbers[[0, self.ignore_label]] = _NOT_COUNTED
    numbers[reduce : reduce + count] = np.arange(count)
    return numbers

  def _refuse(self, path: str, level: int, classes: class_lists.ClassList) -> NoReturn:
    reduce = self._reduces(classes)
    advice = "" if reduce else "; if 0 stands for no class, use --reduce_zero_label"
    raise ValueError(
      f"{path} has a pixel of level {level}, and the {len(classes.names)} classes of {self.classes} are levels "
      f"{int(reduce)} to {len(classes.names) - 1 + reduce}, beside {self.ignore_label} where nothing is counted{advice}"
    )

  def _find(self, faults: pictures.Faults) -> list[tuple[str, str]]:
    """The files of pictures and their label maps."""
    by_stem = {}
    for name in paths.list_folder(self.images):
      stem, suffix = os.path.splitext(name)
      if suffix.lower() in _SUFFIXES:
        by_stem[stem] = name
    if self.split:
      lines = paths.read(self.split).decode("utf-8").splitlines()
      stems = [line.strip() for line in lines if line.strip()]
    else:
      there = paths.list_folder(self.labels)
      stems = [name.removesuffix(self.label_suffix) for name in there if name.endswith(self.label_suffix)]
    if not stems:
      source = self.split or f"{self.labels}: no file ends with {self.label_suffix!r}"
      raise ValueError(f"there are no label maps ({source})")
    found = []
    for stem in stems[: self.limit]:
      picture = paths.join(self.images, by_stem.get(stem, f"{stem}.jpg"))  # one that is missing is counted when read
      found.append((picture, paths.join(self.labels, f"{stem}{self.label_suffix}")))
    return found

  def _encode(
    self, model: FGCLIP, files: list[str], faults: pictures.Faults, progress: bool
  ) -> Iterator[tuple[int, Float32[np.ndarray, "h w D"]]]:
    def batches():
      for batch in pictures.read_batches(model, files, faults, "squash", progress):
        yield list(zip(batch.numbers.tolist(), model.encode_dense(batch.pixels), strict=False))

    for batch in box_classification.ahead(batches()):
      for number, dense in batch:
        guards.check_finite(dense.reshape(-1, dense.shape[-1]), "patches")
        yield number, dense


def decode_labels(data: bytes) -> UInt[np.ndarray, "H W"]:
  """The levels of a PNG or TIFF file with one number for each pixel, as uint8 or uint16.

  Raises:
    ImageError: it is anything else.
  """
  try:
    picture = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
    picture.load()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise image_files.ImageError("image_unreadable", "label map", f"is no readable PNG or TIFF: {error}") from error
  if picture.mode in ("P", "L"):
    return np.asarray(picture)
  if picture.mode in ("I;16", "I;16B", "I"):
    levels = np.asarray(picture)
    if 0 <= levels.min() and levels.max() < _LEVELS:
      return levels.astype(np.uint16)
    message = f"has numbers from {levels.min()} to {levels.max()}, and needs 0 to {_LEVELS - 1}"
  else:
    message = f"has colours ({picture.mode}), and needs one number of a class for each pixel"
  raise image_files.ImageError("image_unreadable", "label map", message)


def label_maps(
  dense: Float32[np.ndarray, "h w D"],
  texts: Float32[Array | np.ndarray, "T D"],
  owner: Int[np.ndarray, "T"],
  shape: tuple[int, int],
  background: bool = False,
) -> list[UInt[np.ndarray, "H W"]]:
  """The class of each pixel of a label map of some shape: that of the text with the highest interpolated cosine.

  Args:
    dense: unit-length embeddings of the patches.
    texts: unit-length embeddings of the texts.
    owner: the class of each text, ascending.
    shape: height and width.
    background: gives a second label map, of the classes from 1 on alone.
  """
  rows, columns = (interpolation(size, side) for size, side in zip(shape, dense.shape[:2], strict=True))
  small = owner.astype(np.uint8 if owner[-1] < 256 else np.uint16)
  tile = _STEP if jax.default_backend() == "cpu" else len(rows)  # what fits a processor's cache takes half the time
  found = _best(dense, texts, rows, columns, small, int(np.sum(owner == 0)) if background else 0, tile)
  return [np.asarray(each)[: shape[0], : shape[1]] for each in found]


def interpolation(size: int, cells: int) -> Float32[np.ndarray, "padded {cells}"]:
  """The weight of each of some cells in each of `size` pixels along a side, bilinear, cells and pixels as areas.

  Rows of zero follow, up to a multiple of `_STEP`.
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
  """The class of the text with the highest interpolated cosine, for each pixel; for `background` first texts more than
  0 also that of the other texts. So many rows as `tile` at once, a divisor of H; texts one after the other, the best so
  far kept."""
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
  """Of each class, how many pixels have it, how many were taken for it, and how many rightly.

  Args:
    true: the class of each pixel; less than `first` where it is not counted.
    predicted: the class that each pixel was taken for.
    classes: how many classes.
    first: the first class whose pixels are counted.
  """
  counted = true >= first
  true, predicted = true[counted], predicted[counted]
  return np.stack([np.bincount(each, minlength=classes) for each in (true, predicted, true[true == predicted])])


def intersection_over_union(counts: Int[np.ndarray, "3 C"]) -> Float[np.ndarray, "C"]:
  """Of each class; NaN for one that neither labels nor predictions have."""
  union = counts[0] + counts[1] - counts[2]
  return np.where(union > 0, counts[2] / np.maximum(union, 1), np.nan)


def _read_labels(path: str, faults: pictures.Faults) -> UInt[np.ndarray, "H W"] | None:
  """A label map; None, and a count, for one that cannot be used."""
  try:
    return decode_labels(paths.read(path))
  except FileNotFoundError:
    faults.add("labels_missing", f"{path}: there is no such file")
  except image_files.ImageError as error:
    faults.add("labels_unreadable", f"{path}: {error}")
  return None


def _metrics(kind: str, counts: Int[np.ndarray, "3 C"]) -> dict[str, Metric]:
  met, pixels = int(np.isfinite(intersection_over_union(counts)).sum()), int(counts[0].sum())
  miou, accuracy = _shares(counts)
  return {
    f"segmentation_miou{kind}": Metric(miou, None, met),
    f"segmentation_accuracy{kind}": Metric(accuracy, None, pixels),
  }


def _shares(counts: Int[np.ndarray, "3 C"]) -> tuple[float, float]:
  """The mean intersection over union, and the share of pixels that are right; of some pixels at least."""
  return float(np.nanmean(intersection_over_union(counts))), int(counts[2].sum()) / int(counts[0].sum())


def _add_example(examples: dict[str, list], image: str, counts: Int[np.ndarray, "3 C"]) -> None:
  """Adds a label map's row; without any pixel that is counted it has no accuracy."""
  miou, accuracy = _shares(counts) if counts.any() else (None, None)
  row = {"image": image, "pixels": int(counts[0].sum()), "accuracy": accuracy, "miou": miou}
  for name, column in examples.items():
    column.append(row[name])


def _tell_classes(names: tuple[tuple[str, ...], ...], counts: Int[np.ndarray, "3 C"]) -> str:
  iou = intersection_over_union(counts)
  each = [f"{name[0]} {100 * value:.1f}" for name, value in zip(names, iou, strict=True) if np.isfinite(value)]
  return f"IoU of the classes that were met, in percent: {'; '.join(each)}"
