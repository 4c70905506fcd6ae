"""Pictures as a model server gets them: the same pixels for all stages, so that their frames agree.

EXIF orientation is dropped and not applied, as `prepare` and training read pictures: a server that turned a picture by
it would give boxes in another frame.
"""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from fgclip_jax.data.image import MIN_SIDE, open_image

MAX_SIDE = 1024
QUALITY = 90
GRID = 28  # pixels: vision-language models cut pictures into patches of 14 and merge 2 x 2


def encode(picture: bytes | Image.Image, max_side: int = MAX_SIDE, grid: int = 1) -> bytes:
  """A picture as a JPEG file without metadata, RGB, its longest side at most `max_side`.

  Args:
    picture: an image file, or a decoded picture in RGB.
    max_side: in pixels; a smaller picture is not enlarged.
    grid: as `fit_size`.

  Raises:
    ImageError: the file cannot be decoded.
  """
  whole = open_image(picture) if isinstance(picture, bytes) else picture
  size = fit_size(whole.size, max_side, grid)
  if size != whole.size:
    whole = whole.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
  # Pillow would copy the comment of a JPEG file; the profile and EXIF it writes only if they are given
  whole.save(file := io.BytesIO(), "JPEG", quality=QUALITY, comment=b"")
  return file.getvalue()


def fit_size(size: tuple[int, int], max_side: int = MAX_SIDE, grid: int = 1) -> tuple[int, int]:
  """Width and height of a picture as it is sent, from those of its file.

  Args:
    size: of the file, in pixels.
    max_side: the longest side; a smaller picture is not enlarged, but to two steps of the grid.
    grid: what both sides are multiples of. Servers of Qwen2.5-VL scale a picture to multiples of `GRID` and give boxes
      in pixels of what came of it: one that has such sides, two steps at least, they leave as it is.
  """
  longest = max(size)
  largest = min(longest, max_side)
  if grid > 1:
    width, height = (grid * max(side * largest // longest // grid, 2) for side in size)
  elif largest == longest:
    return size
  else:
    width, height = (max(round(side * largest / longest), MIN_SIDE) for side in size)
  return width, height


def data_url(jpeg: bytes) -> str:
  """A JPEG file as a data URL, for a message."""
  return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def draw_frame(picture: Image.Image, box: Sequence[int | float], max_side: int = MAX_SIDE) -> Image.Image:
  """A picture as it is sent, with a thin frame drawn around a box.

  Args:
    picture: in RGB; it stays as it is.
    box: left, top, right, bottom as fractions of the picture.
    max_side: as `encode`.
  """
  framed = picture.resize(fit_size(picture.size, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
  width, height = framed.size
  thin = max(round(max(width, height) / 250), 1)
  left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
  around = (
    max(left - thin, 0),
    max(top - thin, 0),
    min(right + thin, width - 1),
    min(bottom + thin, height - 1),
  )
  ImageDraw.Draw(framed).rectangle(around, outline=(255, 0, 0), width=thin)
  return framed


def crop(picture: Image.Image, box: Sequence[int | float], margin: float = 0.1) -> Image.Image:
  """The part of a picture inside a box and a margin around it.

  Args:
    picture: in RGB.
    box: left, top, right, bottom as fractions of the picture.
    margin: on each side, as a share of the box's width and height.
  """
  width, height = picture.size
  spans = []
  for low, high, side in ((box[0], box[2], width), (box[1], box[3], height)):
    extra = margin * (high - low)
    first, last = max((low - extra) * side, 0), min((high + extra) * side, side)
    if last - first < GRID:  # too small for a model to see
      middle = (first + last) / 2
      first, last = max(middle - GRID / 2, 0), min(middle + GRID / 2, side)
    spans.append((int(first), max(round(last), int(first) + 1)))
  (left, right), (top, bottom) = spans
  return picture.crop((left, top, right, bottom))
