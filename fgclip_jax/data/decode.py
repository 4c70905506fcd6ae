"""Image files to the squares of a batch, by one of two modes, whole or a part of each.

  exact  decoded and resized by Pillow, as `image.to_square` does: the pixels of the published implementations
  fast   the same bicubic filter over the same decoded pixels by SIMD code (simplejpeg, cykooz_resizer); 1.6 to 2.5
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
from typing import Literal, get_args

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from fgclip_jax.data.image import MAX_PIXELS, MIN_SIDE, open_image, to_square

try:
  import cykooz_resizer
except ImportError:  # no wheel for this platform
  cykooz_resizer = None

Mode = Literal["exact", "fast"]
MODES = get_args(Mode)
Part = tuple[int, int, int, int]  # left, top, right, bottom of a part of an image, in its pixels
Choose = Callable[[int, int], Part]  # of an image's width and height

_COLORS = ("YCbCr", "RGB", "Gray")  # of JPEGs; CMYK and its like are left to Pillow
_thread = threading.local()


def decode_square(
  data: bytes, size: int, mode: Mode, choose: Choose | None = None
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], tuple[float, float, float, float]]:
  """An image file, squashed to size x size RGB, and the part of it that is seen, xyxy in 0..1.

  Args:
    data: an image file.
    size: the side of the result, in pixels.
    mode: `exact` or `fast`.
    choose: gives the part to take, at least one pixel, from width and height; None: the whole image.

  Raises:
    ImageError: the image cannot be used; the same ones in both modes.
  """
  if mode == "exact":
    image = open_image(data)
    width, height = image.size
    part = choose(width, height) if choose else (0, 0, width, height)
    pixels = to_square(image.crop(part) if choose else image, size)
  else:
    whole = _decode_fast(data)
    height, width = whole.shape[:2]
    part = left, top, right, bottom = choose(width, height) if choose else (0, 0, width, height)
    pixels = resize_fast(whole[top:bottom, left:right], size)
  return pixels, (part[0] / width, part[1] / height, part[2] / width, part[3] / height)


def _decode_fast(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
  if data[:2] == b"\xff\xd8":
    try:
      height, width, color, _ = simplejpeg.decode_jpeg_header(data)
      if color in _COLORS and min(height, width) >= MIN_SIDE and height * width <= MAX_PIXELS:
        return simplejpeg.decode_jpeg(data)
    except ValueError:
      return np.asarray(open_image(data))  # Pillow says what is wrong with it, or takes it all the same
  return np.asarray(open_image(data))


def resize_fast(pixels: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Squashes or stretches to size x size, bicubic: `image.to_square` but for 2 levels. Threads may call it at once."""
  height, width = pixels.shape[:2]
  if cykooz_resizer is None:
    return to_square(Image.fromarray(pixels), size)
  if not hasattr(_thread, "resizer"):  # it holds buffers of its own
    bicubic = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
    _thread.resizer, _thread.options = cykooz_resizer.Resizer(), cykooz_resizer.ResizeOptions(resize_alg=bicubic)
  rgb = cykooz_resizer.PixelType.U8x3
  image = cykooz_resizer.ImageData(width, height, rgb, pixels.tobytes())
  steps = [(size, height), (size, size)] if size * height <= MAX_PIXELS else [(size, size)]
  for step in steps:  # rows, then columns, as `image.to_square`
    image, before = cykooz_resizer.ImageData(*step, rgb), image
    _thread.resizer.resize(before, image, _thread.options)
  return np.frombuffer(image.get_buffer(), np.uint8).reshape(size, size, 3)
