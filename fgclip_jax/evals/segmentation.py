"""Segmentation without training: the class of every pixel, from the dense features."""

import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8
from PIL import Image

from fgclip_jax.api import FGCLIP
from fgclip_jax.data import image as image_files
from fgclip_jax.data import paths
from fgclip_jax.evals import boxes, guards, metrics, pictures, templates
from fgclip_jax.evals.evaluator import Result

IGNORE = 255  # the level of pixels that are not counted
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_STEP = 128  # label maps are computed in multiples of so many pixels a side: few sizes to compile


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """The mean intersection over union of classes with their label maps, and the share of pixels that are right.

  A pixel's class is the one whose prompts' mean embedding has the highest cosine with the dense features, which are
  interpolated bilinearly to the label map's size. A class that neither the label maps nor the predictions have is no
  part of the mean. Files: a PNG of class numbers for each picture, 255 where pixels are not counted.

  | benchmark | classes | reduce_zero_label |
  |---|---|---|
  | VOC-20, ADE-150, PASCAL Context 59 | without the background | yes |
  | VOC-21, PASCAL Context 60 | the background first | no |
  | COCO-Stuff | all | no |

  Attributes:
    images: the folder of pictures.
    labels: the folder of label maps; each has the name of its picture, but for `label_suffix`.
    classes: a text file with a class on each line, in the order of the numbers. More names of a class are parted by
      semicolons: the best of them counts. Where the first class is called `background`, what is left without it is
      measured too: the other classes alone, over pixels of theirs.
    split: a text file with the name (without suffix) of a picture on each line; None takes all label maps.
    reduce_zero_label: pixels of level 0 are not counted, and level 1 is the first class.
    label_suffix: what a label map's name ends with, e.g. `_labelTrainIds.png`.
    templates: which prompts, a name in `templates.TEMPLATES`.
    limit: reads only so many label maps, the first ones by name; None for all.
    allow: guards that are switched off.
  """

  images: str
  labels: str
  classes: str
  split: str | None = None
  reduce_zero_label: bool = False
  label_suffix: str = ".png"
  templates: str = "openai80"
  limit: int | None = None
  allow: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return "segmentation"

  def settings(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `segmentation_miou`, `segmentation_accuracy`, and with a background also `..._without_background`."""
    notes = guards.check_resolution(model, self.allow)
    names = read_classes(self.classes)
    faults = pictures.Faults()
    found = self._find(faults)
    text = templates.class_embeddings(
      model, [name for each in names for name in each], templates.TEMPLATES[self.templates], progress
    )
    owner = np.repeat(np.arange(len(names)), [len(each) for each in names])
    background = names[0][0].lower() == "background"
    tables = {"": np.zeros((len(names), len(names)), np.int64)}
    if background:
      tables["_without_background"] = np.zeros_like(tables[""])
    for file, dense in self._encode(model, [picture for picture, _ in found], faults, progress):
      labels = self._read_labels(found[file][1], len(names), faults)
      if labels is None:
        continue
      cosines = (dense.reshape(-1, dense.shape[-1]) @ text.T).reshape(*dense.shape[:2], -1)  # one product is faster
      tables[""] += confusion(labels, label_map(cosines, owner, labels.shape), len(names))
      if background:
        others = label_map(cosines[..., owner > 0], owner[owner > 0], labels.shape)
        tables["_without_background"] += confusion(np.where(labels == 0, IGNORE, labels), others, len(names))
    if not tables[""].any():
      raise ValueError(f"no pixel of {len(found)} label maps could be measured: {'; '.join(faults.notes(len(found)))}")
    result = {}
    for name, table in tables.items():
      if table.any():
        iou, pixels = intersection_over_union(table), int(table.sum())
        result[f"segmentation_miou{name}"] = metrics.Metric(float(np.nanmean(iou)), None, int(np.isfinite(iou).sum()))
        share = float(np.trace(table)) / pixels
        result[f"segmentation_accuracy{name}"] = metrics.Metric(share, None, pixels)
    notes += faults.notes(len(found))
    return Result(result, _examples(names, tables[""]), len(found), dict(faults.skipped), tuple(notes))

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

    for batch in boxes.ahead(batches()):
      yield from batch

  def _read_labels(self, path: str, classes: int, faults: pictures.Faults) -> Int[np.ndarray, "H W"] | None:
    """The classes of a label map; None, and a count, for one that cannot be used."""
    try:
      labels = decode_labels(paths.read(path))
    except FileNotFoundError:
      faults.add("labels_missing", f"{path}: there is no such file")
      return None
    except image_files.ImageError as error:
      faults.add("labels_unreadable", f"{path}: {error}")
      return None
    if self.reduce_zero_label:
      labels = np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1)
    wrong = labels[(labels != IGNORE) & (labels >= classes)]
    if wrong.size:
      advice = "" if self.reduce_zero_label else "; if 0 stands for no class, use --reduce_zero_label"
      raise ValueError(f"{path} has a pixel of class {wrong[0]}, and {self.classes} has {classes} classes{advice}")
    return labels


def read_classes(path: str) -> list[list[str]]:
  """The names of each class, see `Segmentation`.

  Raises:
    FileNotFoundError, ValueError: the file is missing, or a line of it is empty.
  """
  lines = paths.read(path).decode("utf-8").strip().splitlines()
  names = [[name.strip() for name in line.split(";") if name.strip()] for line in lines]
  for number, each in enumerate(names, 1):
    if not each:
      raise ValueError(f"{path}, line {number}: needs the name of a class")
  if not 2 <= len(names) <= IGNORE:
    raise ValueError(f"{path} has {len(names)} classes: needs one on each line, 2 to {IGNORE}")
  return names


def decode_labels(data: bytes) -> Int[np.ndarray, "H W"]:
  """The levels of a PNG file with one number for each pixel; raises `ImageError` for anything else."""
  try:
    picture = Image.open(io.BytesIO(data), formats=("PNG",))
    picture.load()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise image_files.ImageError("image_unreadable", "label map", f"is no readable PNG file: {error}") from error
  if picture.mode not in ("P", "L", "I", "I;16"):
    message = f"has colours ({picture.mode}), and needs one number of a class for each pixel"
    raise image_files.ImageError("image_unreadable", "label map", message)
  return np.asarray(picture).astype(np.int64)


def label_map(
  cosines: Float32[np.ndarray, "h w T"], owner: Int[np.ndarray, "T"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "H W"]:
  """The class of each pixel of a label map of some shape: that of the text with the highest interpolated cosine.

  Args:
    cosines: of each patch with each text.
    owner: the class of each text, ascending.
    shape: height and width.
  """
  rows, columns = (interpolation(size, side) for size, side in zip(shape, cosines.shape[:2], strict=True))
  return owner.astype(np.uint8)[np.asarray(_best(cosines, rows, columns))[: shape[0], : shape[1]]]


def interpolation(size: int, cells: int) -> Float32[np.ndarray, "padded {cells}"]:
  """The weight of each of some cells in each of `size` pixels along a side, bilinear, cells and pixels as areas.

  Rows of zero follow, up to a multiple of `_STEP`.
  """
  position = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
  weights = np.zeros((-(-size // _STEP) * _STEP, cells), np.float32)
  weights[:size] = np.maximum(1 - np.abs(position[:, None] - np.arange(cells)), 0)
  return weights


@jax.jit
def _best(cosines: Float[Array, "h w T"], rows: Float[Array, "H h"], columns: Float[Array, "W w"]) -> Int[Array, "H W"]:
  """The text with the highest interpolated cosine, for each pixel; texts one after the other, the best so far kept."""
  precision = jax.lax.Precision.HIGHEST
  wide = jnp.einsum("hwt,Ww->thW", cosines, columns, precision=precision)

  def look(state, numbered):
    best, text = state
    number, part = numbered
    here = jnp.matmul(rows, part, precision=precision)
    better = here > best
    return (jnp.where(better, here, best), jnp.where(better, number, text)), None

  shape = (len(rows), len(columns))
  state = (jnp.full(shape, -jnp.inf, wide.dtype), jnp.zeros(shape, jnp.int32))
  return jax.lax.scan(look, state, (jnp.arange(len(wide), dtype=jnp.int32), wide))[0][1]


def confusion(
  labels: Int[np.ndarray, "H W"], predicted: UInt8[np.ndarray, "H W"], classes: int
) -> Int[np.ndarray, "C C"]:
  """How many pixels of each class (row) were taken for each class (column); without those that are not counted."""
  counted = labels != IGNORE
  pairs = labels[counted] * classes + predicted[counted]
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersection_over_union(table: Int[np.ndarray, "C C"]) -> Float[np.ndarray, "C"]:
  """Of each class; NaN for one that neither labels nor predictions have."""
  union = table.sum(0) + table.sum(1) - np.diag(table)
  return np.where(union > 0, np.diag(table) / np.maximum(union, 1), np.nan)


def _examples(names: list[list[str]], table: Int[np.ndarray, "C C"]) -> dict[str, list | np.ndarray]:
  """A row for each class that was met."""
  iou, pixels = intersection_over_union(table), table.sum(1)
  met = np.isfinite(iou)
  return {
    "class": [name[0] for name, kept in zip(names, met, strict=True) if kept],
    "iou": iou[met],
    "accuracy": (np.diag(table) / np.maximum(pixels, 1))[met],
    "pixels": pixels[met],
  }
