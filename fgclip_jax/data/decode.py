"""Image files to the squares or the patches of a batch, by one of two modes, whole or a part of each.

  exact  decoded and resized by Pillow, as `image.make_square` does: the pixels of the published implementations
  fast   the same filter over the same decoded pixels by SIMD code (simplejpeg, cykooz_resizer); 1.6 to 2.5
         times as many images per second of a core (512 and 256 px)

A level (0..255) of `fast` differs from that of `exact` by at most 2, and by 0.004 on average over photographs: both
filter rows first and columns then, rounding to 8 bits after each, with weights of different precision. Where a JPEG is
damaged or of a kind that simplejpeg does not read, and for other formats, `fast` leaves decoding to Pillow, so that
both modes accept and refuse the same files and for the same reasons.

Faster still would be a JPEG decoded to half its size, or OpenCV's resizing, which does not filter; either moves
edges by 100 levels and more, and what `prepare --max_side` stores is small already.
"""

import threading
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from fgclip_jax.data.image import MAX_PIXELS, MIN_SIDE, fit, make_square, open_image, resize
from fgclip_jax.data.patches import PatchLayout, cut_patches, fit_grid
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec

try:
  import cykooz_resizer
except ImportError:  # no wheel for this platform
  cykooz_resizer = None

Mode = Literal["exact", "fast"]
MODES = get_args(Mode)
Part = tuple[int, int, int, int]  # left, top, right, bottom of a part of an image, in its pixels
Choose = Callable[[int, int], Part]  # of an image's width and height

_COLORS = ("YCbCr", "RGB", "Gray")  # of JPEGs; CMYK and its like are left to Pillow
_FILTERS = {"box": "box", "bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}  # of cykooz_resizer
_thread = threading.local()


def decode_square(
  data: bytes, size: int, mode: Mode, choose: Choose | None = None, pixels: PixelSpec = CLIP_PIXELS
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], tuple[float, float, float, float]]:
  """An image file as size x size RGB, and the part of it that is seen, xyxy in 0..1.

  Args:
    data: an image file.
    size: the side of the result, in pixels.
    mode: `exact` or `fast`.
    choose: gives the part to take, at least one pixel, from width and height; None: the whole image.
    pixels: how what is taken becomes a square; squashed if its `resize` is None. Of what is padded, the part
      reaches beyond 0..1.

  Raises:
    ImageError: the image cannot be used; the same ones in both modes.
  """
  whole = open_image(data) if mode == "exact" else _decode_fast(data)
  width, height = whole.size if isinstance(whole, Image.Image) else whole.shape[1::-1]
  part = left, top, right, bottom = choose(width, height) if choose else (0, 0, width, height)
  kind = pixels.resize or "squash"
  if isinstance(whole, Image.Image):
    square = make_square(whole.crop(part) if choose else whole, size, kind, pixels)
  else:
    square = resize_fast(whole[top:bottom, left:right], size, pixels)
  if kind != "squash":
    wide, high, x, y = fit((right - left, bottom - top), size, kind)
    part = (
      left + x / wide * (right - left),
      top + y / high * (bottom - top),
      left + (x + size) / wide * (right - left),
      top + (y + size) / high * (bottom - top),
    )
  return square, (part[0] / width, part[1] / height, part[2] / width, part[3] / height)


def decode_patches(
  data: bytes,
  layout: PatchLayout,
  mode: Mode,
  budget: int | None = None,
  choose: Choose | None = None,
  pixels: PixelSpec = CLIP_PIXELS,
) -> tuple[UInt8[np.ndarray, "n v"], tuple[int, int], tuple[float, float, float, float]]:
  """An image file as patches, row-major; the (rows, columns) of their grid; and the part that is seen, xyxy in 0..1.

  Args:
    data: an image file.
    layout: patch size, and what happens to small pictures.
    mode: `exact` or `fast`.
    budget: the most patches; None: as the layout gives this picture by itself.
    choose: gives the part to take, from width and height; None: the whole image.
    pixels: its interpolation is used.

  Raises:
    ImageError: the image cannot be used; the same ones in both modes.
  """
  whole = open_image(data) if mode == "exact" else _decode_fast(data)
  width, height = whole.size if isinstance(whole, Image.Image) else whole.shape[1::-1]
  if budget is None:
    (budget,) = layout.choose_budgets([(width, height)])
  if layout.is_small(width, height):  # as published: a square, by Pillow's default filter
    whole = Image.fromarray(whole) if isinstance(whole, np.ndarray) else whole
    width = height = layout.small_size
    whole = resize(whole, width, height, "bicubic")
  left, top, right, bottom = choose(width, height) if choose else (0, 0, width, height)
  rows, columns = fit_grid(right - left, bottom - top, budget, layout.patch_size)
  wide, high = columns * layout.patch_size, rows * layout.patch_size
  if isinstance(whole, Image.Image):
    part = whole.crop((left, top, right, bottom)) if choose else whole
    scaled = np.asarray(resize(part, wide, high, pixels.interpolation))
  else:
    scaled = _resize_fast(whole[top:bottom, left:right], wide, high, pixels.interpolation)
  seen = (left / width, top / height, right / width, bottom / height)
  return cut_patches(scaled, layout.patch_size), (rows, columns), seen


def _decode_fast(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
  if data[:2] == b"\xff\xd8":
    try:
      header: tuple[Any, ...] = simplejpeg.decode_jpeg_header(data)
      height, width, color, _ = header
      if color in _COLORS and min(height, width) >= MIN_SIDE and height * width <= MAX_PIXELS:
        return simplejpeg.decode_jpeg(data)
    except ValueError:
      return np.asarray(open_image(data))  # Pillow says what is wrong with it, or takes it all the same
  return np.asarray(open_image(data))


def resize_fast(
  pixels: UInt8[np.ndarray, "H W 3"], size: int, spec: PixelSpec = CLIP_PIXELS
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """`image.make_square` but for 2 levels, squashing if `spec.resize` is None. Threads may call it at once."""
  height, width = pixels.shape[:2]
  mode = spec.resize or "squash"
  wide, high, left, top = fit((width, height), size, mode)
  scaled = _resize_fast(pixels, wide, high, spec.interpolation)
  if left < 0 or top < 0 or min(wide, high) < size:
    square = np.full((size, size, 3), spec.fill, np.uint8)
    square[-top : high - top, -left : wide - left] = scaled
    return square
  return scaled[top : top + size, left : left + size]


def _resize_fast(
  pixels: UInt8[np.ndarray, "H W 3"], wide: int, high: int, interpolation: str
) -> UInt8[np.ndarray, "{high} {wide} 3"]:
  if cykooz_resizer is None or interpolation not in _FILTERS:
    return np.asarray(resize(Image.fromarray(pixels), wide, high, interpolation))
  library: Any = cykooz_resizer  # type checkers cannot know that it is installed here
  if not hasattr(_thread, "resizer"):  # it holds buffers of its own
    _thread.resizer = library.Resizer()
  algorithm = library.ResizeAlg.convolution(library.FilterType[_FILTERS[interpolation]])
  options, rgb = library.ResizeOptions(resize_alg=algorithm), library.PixelType.U8x3
  height, width = pixels.shape[:2]
  image = library.ImageData(width, height, rgb, pixels.tobytes())
  steps = [(wide, height), (wide, high)] if wide * height <= MAX_PIXELS else [(wide, high)]
  for step in steps:  # rows, then columns, as `image.make_square`
    image, before = library.ImageData(*step, rgb), image
    _thread.resizer.resize(before, image, options)
  return np.frombuffer(image.get_buffer(), np.uint8).reshape(high, wide, 3)
