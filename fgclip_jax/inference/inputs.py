"""What users give to the public model, checked and brought into one form: pixels and boxes."""

import functools
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fgclip_jax.data import image as images
from fgclip_jax.inference.pictures import PatchedImage, Reader
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.pixel_spec import PixelSpec
from fgclip_jax.storage.threads import Item, in_threads

Pictures = ArrayLike | images.Picture | PatchedImage | Iterable[images.Picture | PatchedImage | ArrayLike]
Boxes = ArrayLike | Iterable[ArrayLike]


# Normalised values of one picture that lie in 0..1 and differ by less may be those of a nearly uniform picture.
_UNIFORM = 0.25


def to_pixels(given: Pictures, config: ModelConfig, reader: Reader) -> np.ndarray | Iterator[Any]:
  """Images as the model reads them, decoded ahead by threads.

  Those of a model that reads squares are [B, S, S, 3], or one by one [S, S, 3], uint8 or normalised float32; others
  come one by one as `PatchedImage`.

  Raises:
    TypeError, ValueError: at once or when the image's turn comes; the message says which image and what to do.
    ImageError, FileNotFoundError: an image file cannot be used.
  """
  side = config.vision.image_size
  check_ordered(given, "images")
  given = _unpack(given)
  if hasattr(given, "ndim") and not isinstance(given, np.ndarray):
    given = to_numpy(given)
  if isinstance(given, np.ndarray) and given.dtype.kind in "OUS":  # of paths or pictures
    given = given.tolist()
  if isinstance(given, np.ndarray) and config.vision.takes_patches:
    given = list(given) if given.ndim == 4 else [given]
  if isinstance(given, np.ndarray):
    if given.ndim == 3 and given.dtype == np.uint8 and given.shape[2] == 3:
      given = [given]
    elif given.ndim == 4 and given.dtype == np.uint8 and given.shape[3] == 3 and given.shape[1:3] != (side, side):
      height, width = given.shape[1:3]
      advice = f"; model.with_image_size({width}) reads them as they are" if _fits(config, width, height) else ""
      warn(f"the model reads images of {side} x {side}, and these are {width} x {height}: they are scaled{advice}")
      given = list(given)
    else:
      return _check_pixels(given, config)
  single = isinstance(given, images.Picture | PatchedImage)
  if not single and not isinstance(given, Iterable):
    raise TypeError(f"images must be arrays, PIL images, paths or bytes, or several of those, got {show(given)}")
  pictures = [given] if single else given
  if isinstance(pictures, Sequence) and not len(pictures):
    raise ValueError("there are no images: give at least one")
  read = functools.partial(_read_picture, config=config, reader=reader)
  several = not isinstance(pictures, Sequence) or len(pictures) > 1
  return in_threads(read, enumerate(pictures)) if several else map(read, enumerate(pictures))


def _read_picture(numbered: tuple[int, Any], config: ModelConfig, reader: Reader) -> np.ndarray | PatchedImage:
  number, picture = numbered
  picture, side = _unpack(picture), config.vision.image_size
  if isinstance(picture, PatchedImage) and config.vision.takes_patches:
    return _check_patches(picture, config, number)
  if hasattr(picture, "ndim"):
    picture = to_numpy(picture)
    if picture.dtype != np.uint8 and not config.vision.takes_patches:
      if picture.ndim != 3:
        raise ValueError(f"images[{number}] must be [{side}, {side}, 3], got {list(picture.shape)}")
      return _check_pixels(picture[None], config, number)[0]
  name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else f"images[{number}]"
  return reader.read(cast(images.Picture, picture), str(name))


def _check_patches(image: PatchedImage, config: ModelConfig, number: int) -> PatchedImage:
  values = 3 * config.vision.patch_size**2
  if image.patches.shape[1] != values:
    side = config.vision.patch_size
    raise ValueError(
      f"images[{number}] has patches of {image.patches.shape[1]} values, and the model reads {values} ({side} x {side} "
      "x 3): use model.preprocess"
    )
  return image


def _unpack(given: Any) -> Any:
  """A view of memory as the bytes of a file, or the array, that it is of; anything else as it is."""
  return given if not isinstance(given, memoryview) else bytes(given) if given.ndim == 1 else np.asarray(given)


def _check_pixels(pixels: np.ndarray, config: ModelConfig, first: int = 0) -> np.ndarray:
  """Pixels as uint8 or float32 [B, S, S, 3], or an error that says what to do; `first` is the number of the first."""
  side = config.vision.image_size
  expected = f"[B, {side}, {side}, 3]"
  if pixels.shape == (side, side, 3):
    raise ValueError(f"pixels must be a batch {expected}, got one image {list(pixels.shape)}: use pixels[None]")
  if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
    advice = "use model.preprocess"
    if pixels.ndim == 4 and pixels.shape[1] == 3:
      advice = "the channels come last, pixels.transpose(0, 2, 3, 1)"
    elif pixels.ndim == 3 and pixels.shape[0] == 3:
      advice = "the channels come last, pixels.transpose(1, 2, 0)[None]"
    elif pixels.ndim == 4 and pixels.shape[3] == 3 and _fits(config, *pixels.shape[1:3]):
      advice += f", or model.with_image_size({pixels.shape[1]})"
    raise ValueError(f"pixels must be {expected}, got {list(pixels.shape)}: {advice}")
  if not len(pixels):
    raise ValueError(f"pixels {list(pixels.shape)} hold no image: give at least one")
  if pixels.dtype == np.uint8:
    return pixels
  if not jnp.issubdtype(pixels.dtype, jnp.floating):
    raise ValueError(f"pixels must be normalised floats or uint8, got {pixels.dtype}: give levels 0..255 as uint8")
  pixels = pixels.astype(np.float32, copy=False)
  for number, image in enumerate(pixels, first):
    if not np.isfinite(image).all():
      raise ValueError(f"the pixels of images[{number}] hold NaN or infinity")
  low, high = _range(config)
  largest = float(np.abs(pixels).max())
  if largest > max(10, 4 * max(-low, high)):
    raise ValueError(
      f"float pixels must be normalised (about {low:.1f} to {high:.1f}), got values up to {largest:g}: use "
      "model.preprocess, or give levels 0..255 as uint8"
    )
  if _is_scaled_only(pixels, config):
    raise ValueError(
      f"float pixels must be normalised (about {low:.1f} to {high:.1f}), and these all lie in 0..1: use "
      "model.preprocess, or subtract model.config.vision.pixels.mean and divide by .std"
    )
  return pixels


def _is_scaled_only(pixels: np.ndarray, config: ModelConfig) -> bool:
  """Whether float pixels are levels divided by 255, not yet normalised.

  Values in 0..1 alone are a narrow part of what normalised pictures have, such as 123 to 191 of 255 levels in CLIP.
  A picture that is so pale is told by its levels, which are whole numbers, or by being nearly uniform. Where the model
  itself reads 0..1, there is nothing to tell.
  """
  spec = config.vision.pixels
  low, high = _range(config)
  smallest, largest = float(pixels.min()), float(pixels.max())
  if smallest < 0 or largest > 1 or largest - smallest <= _UNIFORM or (low >= -0.05 and high <= 1.05):
    return False
  levels = (pixels * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)) * 255
  return bool(np.abs(levels - levels.round()).max() > 0.05)


def _range(config: ModelConfig) -> tuple[float, float]:
  """The values that black and white become, over all three colours."""
  pixels = config.vision.pixels
  ends = [(level - mean) / std for level in (0, 1) for mean, std in zip(pixels.mean, pixels.std, strict=True)]
  return min(ends), max(ends)


def _fits(config: ModelConfig, width: int, height: int) -> bool:
  """Whether the model can be made to read images of this size."""
  return width == height and width % config.vision.patch_size == 0


def stack_pixels(rows: Sequence[np.ndarray], pixels: PixelSpec) -> np.ndarray:
  """A batch of images; where some are normalised already, all are, as the model's `PixelSpec` says."""
  if len({row.dtype for row in rows}) > 1:
    rows = [images.normalize(row, pixels) if row.dtype == np.uint8 else row for row in rows]
  return np.stack(rows)


def to_boxes(given: Boxes, count: int | None) -> Iterator[np.ndarray]:
  """The boxes of each image, float32 [K, 4] within 0..1.

  Args:
    given: [B, K, 4], or something that gives [K, 4] for each image, each with its own K.
    count: how many images there are; None: that is not known.

  Raises:
    ValueError: at once or when the boxes' turn comes; names the first wrong one.
  """
  check_ordered(given, "boxes")
  array: Any = given
  if hasattr(array, "ndim") and array.dtype != object:
    given = to_numpy(given).astype(np.float32)
    if given.ndim != 3 or given.shape[2] != 4 or count not in (None, len(given)):
      raise ValueError(f"boxes must be [B, K, 4]{_with(count)}, one list for each image, got {list(given.shape)}")
  elif isinstance(given, str | bytes) or not isinstance(given, Iterable):
    raise TypeError(f"boxes must be an array [B, K, 4] or a list of [K, 4] for each image, got {show(given)}")
  elif isinstance(given, Sequence) and count not in (None, len(given)):
    raise ValueError(f"boxes must be [B, K, 4]{_with(count)}, one list for each image, got {len(given)} lists")
  return (_check_boxes(boxes, image) for image, boxes in enumerate(given))


def _with(count: int | None) -> str:
  return "" if count is None else f" with B = {count}"


def _check_boxes(given: Any, image: int) -> np.ndarray:
  try:
    boxes = to_numpy(given).astype(np.float32) if hasattr(given, "ndim") else np.asarray(given, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"boxes of image {image} must be [K, 4], four numbers each: {error}") from error
  boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
  if boxes.ndim != 2 or boxes.shape[1] != 4:
    raise ValueError(
      f"boxes of image {image} must be [K, 4], got {list(boxes.shape)}: boxes must be one list for each image"
    )
  inside = ((boxes >= -1e-3) & (boxes <= 1 + 1e-3)).all(-1)  # False for NaN; a thousandth outside is rounding
  wrong = np.flatnonzero(~(inside & (boxes[:, :2] <= boxes[:, 2:]).all(-1)))
  if len(wrong):
    raise ValueError(
      f"box {wrong[0]} of image {image} is {boxes[wrong[0]].tolist()}; needs x1 <= x2 and y1 <= y2 in 0..1, as "
      "fractions of the image's width and height"
    )
  return boxes.clip(0, 1)


def pad_boxes(rows: Sequence[np.ndarray]) -> np.ndarray:
  """Boxes of several images as one array [B, K, 4], K a power of two: few shapes to compile."""
  longest = max(len(row) for row in rows)
  padded = np.zeros((len(rows), 1 << max(longest - 1, 0).bit_length(), 4), np.float32)
  for place, row in zip(padded, rows, strict=True):
    place[: len(row)] = row
  return padded


def to_numpy(array: Any) -> np.ndarray:
  """An array of NumPy, JAX, PyTorch or pandas as one of NumPy."""
  if hasattr(array, "detach"):  # of PyTorch; NumPy has none of its type bfloat16
    array = array.detach().cpu()
    array = array.float() if array.is_floating_point() else array
  return np.asarray(array)


def check_ordered(given: object, what: str) -> None:
  """Raises a TypeError for several things without an order, or with names that would be read in their place."""
  if isinstance(given, Mapping) or hasattr(given, "columns"):
    fields = list(given) if isinstance(given, Mapping) else list(given.columns)  # pyright: ignore[reportAttributeAccessIssue]
    shown = f"{', '.join(map(repr, fields[:8])):.120}"
    raise TypeError(f"{what} must be a list, got a {type(given).__name__} with the fields {shown}: give one of them")
  if isinstance(given, Set) and not hasattr(given, "mapping"):  # the keys of a dict have an order
    raise TypeError(f"{what} must be a list, got a {type(given).__name__}, which has no order: use sorted or list")


def not_empty(rows: Iterable[Item]) -> Iterator[Item]:
  """The same rows; a ValueError if an iterator of images gives none."""
  iterator = iter(rows)
  try:
    first = next(iterator)
  except StopIteration:
    raise ValueError("there are no images: give at least one") from None
  return itertools.chain([first], iterator)


def batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
  """Lists of up to `size` rows."""
  iterator = iter(rows)
  while batch := list(itertools.islice(iterator, size)):
    yield batch


def warn(message: str) -> None:
  """Warns at the line outside this package that led here."""
  level, frame = 2, sys._getframe(1)
  while frame and frame.f_globals.get("__name__", "").startswith("fgclip_jax."):
    level, frame = level + 1, frame.f_back
  warnings.warn(message, stacklevel=level)


def show(value: object) -> str:
  """A value as messages show it: its type and how it begins."""
  return f"{type(value).__name__} {value!r:.60}"
