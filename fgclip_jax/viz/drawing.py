"""What the pictures of results are drawn with: colours, boxes with labels, wrapped text."""

import re

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from fgclip_jax.viz.fonts import Font

Box = tuple[float, float, float, float]

# From low to high: dark, then lighter and warmer, so that the order survives in grey and for colour-blind eyes.
_ANCHORS = np.asarray(
  [(22, 16, 72), (60, 40, 150), (40, 110, 190), (30, 165, 165), (110, 200, 110), (230, 215, 70), (250, 250, 190)],
  np.float32,
)
BACKGROUND, INK, PALE_INK, FRAME = (255, 255, 255), (30, 30, 30), (140, 140, 140), (255, 70, 50)
MARGIN, GAP, FONT_SIZE = 16, 20, 16
LINE = FONT_SIZE + 4

# Chinese, Japanese and Korean are written without spaces, and may be parted anywhere.
_PIECE = re.compile(r"\s*(?:[\u2e80-\U0003ffff]|[^\s\u2e80-\U0003ffff]+)")


def colours(values: Float[np.ndarray, "*B"]) -> UInt8[np.ndarray, "*B 3"]:
  """The colour map: dark blue at 0 over green to light yellow at 1."""
  place = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
  below = np.minimum(place.astype(int), len(_ANCHORS) - 2)
  share = (place - below)[..., None]
  return np.rint(_ANCHORS[below] * (1 - share) + _ANCHORS[below + 1] * share).astype(np.uint8)


def fit(picture: Image.Image, side: int) -> Image.Image:
  """A picture as RGB, scaled so that its longer side is `side`."""
  scale = min(side / given for given in picture.size)
  size = tuple(max(round(given * scale), 1) for given in picture.size)
  return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def stack(pictures: list[Image.Image]) -> Image.Image:
  """Pictures one below the other, with a margin."""
  width = max(picture.width for picture in pictures) + 2 * MARGIN
  height = sum(picture.height for picture in pictures) + GAP * (len(pictures) - 1) + 2 * MARGIN
  sheet, top = Image.new("RGB", (width, height), BACKGROUND), MARGIN
  for picture in pictures:
    sheet.paste(picture, (MARGIN, top))
    top += picture.height + GAP
  return sheet


def draw_box(
  pen: ImageDraw.ImageDraw, box: Box, label: str, size: tuple[int, int], left: int, font: Font, inside: bool = False
) -> None:
  """Draws a box in a picture of a size that begins at `left`, its label above, below or inside of it."""
  x1, y1, x2, y2 = (round(value * (side - 1)) for value, side in zip(box, size * 2, strict=True))
  pen.rectangle((left + x1, y1, left + x2, y2), outline=FRAME, width=3)
  if label:
    length, high = font.getlength(label) + 6, FONT_SIZE + 3
    x = min(left + x1, left + size[0] - length)
    above = y1 - high if y1 >= high else min(y2, size[1] - high)
    y = y1 if inside else above
    pen.rectangle((x, y, x + length, y + high), fill=FRAME)
    pen.text((x + 3, y + 1), label, BACKGROUND, font)


def wrap(text: str, width: int, font: Font) -> list[str]:
  """Lines no wider than `width`; a word that is wider stands alone."""
  lines: list[str] = []
  for piece in _PIECE.findall(" ".join(text.split())):
    longer = f"{lines[-1]}{piece}" if lines else piece
    if lines and font.getlength(longer) <= width:
      lines[-1] = longer
    else:
      lines.append(piece.lstrip())
  return lines
