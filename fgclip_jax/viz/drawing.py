"""Drawing shared by all pictures of results: colours, boxes with labels, wrapped text, fonts."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # x1 y1 x2 y2 as fractions of width and height
Colour = tuple[int, int, int] | str
Font = ImageFont.FreeTypeFont

# From low to high: dark, then lighter and warmer, so that the order is visible in grey and to colour-blind readers.
_ANCHORS = np.asarray(
  [(22, 16, 72), (60, 40, 150), (40, 110, 190), (30, 165, 165), (110, 200, 110), (230, 215, 70), (250, 250, 190)],
  np.float32,
)
BACKGROUND, INK, PALE_INK, FRAME = (255, 255, 255), (30, 30, 30), (140, 140, 140), (255, 70, 50)
MARGIN, GAP, FONT_SIZE = 16, 20, 16
LINE = FONT_SIZE + 4

# Chinese, Japanese and Korean are written without spaces, and may be broken anywhere.
_PIECE = re.compile(r"\s*(?:[\u2e80-\U0003ffff]|[^\s\u2e80-\U0003ffff]+)")


# Looked for by name where systems keep their fonts: Linux, macOS, Windows. The wider ones come first.
FONTS = (
  "NotoSansCJK-Regular.ttc",
  "NotoSansCJKsc-Regular.otf",
  "NotoSansSC-Regular.otf",
  "SourceHanSansSC-Regular.otf",
  "wqy-zenhei.ttc",
  "wqy-microhei.ttc",
  "DroidSansFallbackFull.ttf",
  "uming.ttc",
  "Arial Unicode.ttf",
  "PingFang.ttc",
  "Hiragino Sans GB.ttc",
  "AppleSDGothicNeo.ttc",
  "msyh.ttc",
  "simsun.ttc",
  "msgothic.ttc",
  "malgun.ttf",
  "NotoSans-Regular.ttf",
  "DejaVuSans.ttf",
)
_NO_CHARACTER = "\U0010ffff"  # no font has it, so that it is drawn as the sign of a missing character


def colours(values: Float[np.ndarray, "*B"]) -> UInt8[np.ndarray, "*B 3"]:
  """The colour map: dark blue at 0 over green to light yellow at 1."""
  place = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
  below = np.minimum(place.astype(int), len(_ANCHORS) - 2)
  share = (place - below)[..., None]
  return np.rint(_ANCHORS[below] * (1 - share) + _ANCHORS[below + 1] * share).astype(np.uint8)


def fit(picture: Image.Image, side: int) -> Image.Image:
  """A picture as RGB, scaled so that its longer side is `side`."""
  scale = min(side / given for given in picture.size)
  width, height = (max(round(given * scale), 1) for given in picture.size)
  return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def stack(pictures: list[Image.Image]) -> Image.Image:
  """Pictures one below the other, with a margin."""
  width = max(picture.width for picture in pictures) + 2 * MARGIN
  height = sum(picture.height for picture in pictures) + GAP * (len(pictures) - 1) + 2 * MARGIN
  sheet, top = Image.new("RGB", (width, height), BACKGROUND), MARGIN
  for picture in pictures:
    sheet.paste(picture, (MARGIN, top))
    top += picture.height + GAP
  return sheet


def draw_boxes(
  pen: ImageDraw.ImageDraw,
  size: tuple[int, int],
  boxes: Sequence[Box],
  labels: Sequence[str],
  font: Font,
  *,
  left: int = 0,
  inside: bool = False,
  colours: Sequence[Colour] = (FRAME,),
  width: int = 3,
) -> None:
  """Draws boxes with labels over a picture. Labels come after all boxes, so that no box crosses a label.

  Args:
    pen: draws on the sheet with the picture.
    size: the picture's width and height in pixels; its upper edge is that of the sheet.
    boxes, labels: the boxes, and the label of each; an empty one is not drawn.
    font: for the labels.
    left: the picture's left edge on the sheet.
    inside: puts labels into the upper left corner of their boxes, not above or below them.
    colours: of the boxes, in turn.
    width: of the boxes' lines.
  """
  corners = [[round(value * (side - 1)) for value, side in zip(box, size * 2, strict=True)] for box in boxes]
  for index, (x1, y1, x2, y2) in enumerate(corners):
    pen.rectangle((left + x1, y1, left + x2, y2), outline=colours[index % len(colours)], width=width)
  for index, ((x1, y1, _, y2), label) in enumerate(zip(corners, labels, strict=True)):
    if label:
      length, high = font.getlength(label) + 6, round(font.size) + 3
      x = min(left + x1, left + size[0] - length)
      lowest = size[1] - high
      y = min(y1, lowest) if inside else y1 - high if y1 >= high else min(y2, lowest)
      pen.rectangle((x, y, x + length, y + high), fill=colours[index % len(colours)])
      pen.text((x + 3, y + 1), label, BACKGROUND, font)


def wrap(text: str, width: int, font: Font, most: int | None = None) -> list[str]:
  """Breaks a text into lines no wider than `width`.

  Args:
    text: the text.
    width: in pixels.
    font: the font.
    most: the number of lines to return; a longer text ends with `...`, and words wider than a line are cut. None: all
      lines; a wider word is a line of its own.
  """
  lines: list[str] = []
  for piece in _PIECE.findall(" ".join(text.split())):
    longer = f"{lines[-1]}{piece}" if lines else piece
    if lines and font.getlength(longer) <= width:
      lines[-1] = longer
    else:
      lines.append(piece.lstrip())
  if most is None:
    return lines
  kept = [_cut(line, width, font) for line in lines[:most]]
  if len(lines) > most:
    kept[-1] = _cut(kept[-1], width, font, " ...")
  return kept


def _cut(line: str, width: int, font: Font, end: str = "") -> str:
  while line and font.getlength(line + end) > width:
    line = line[: -max(len(line) // 50, 1)]
  return line + end


def default_font(size: int) -> Font:
  """Pillow's own font, which has Latin letters only."""
  font = ImageFont.load_default(size)
  assert isinstance(font, ImageFont.FreeTypeFont)
  return font


def find_font(texts: Iterable[str], size: int, names: Iterable[str] = FONTS) -> tuple[Font, str]:
  """The font that can draw the most characters of some texts: Pillow's own if it has all, else an installed one.

  Args:
    texts: the texts to draw.
    size: in pixels.
    names: font files to look for.

  Returns:
    The font, and the characters that it cannot draw.
  """
  characters = sorted({character for text in texts for character in text if not character.isspace()})
  best = default_font(size)
  missing = _missing(best, characters)
  for name in names:
    if not missing:
      break
    try:
      font = ImageFont.truetype(name, size)
    except OSError:
      continue  # not on this machine
    lacks = _missing(font, characters)
    if len(lacks) < len(missing):
      best, missing = font, lacks
  return best, missing


def _missing(font: Font, characters: list[str]) -> str:
  nothing = _draw(font, _NO_CHARACTER)
  return "".join(character for character in characters if _draw(font, character) == nothing)


def _draw(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
  mask: Any = font.getmask(character)
  return mask.size, bytes(mask)
