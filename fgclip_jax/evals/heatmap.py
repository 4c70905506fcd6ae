"""Where in a picture a text fits: the dense features' similarity with it, drawn over the picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fgclip_jax.api import FGCLIP
from fgclip_jax.data import image as images

Box = tuple[float, float, float, float]

# From low to high: dark, then lighter and warmer, so that the order survives in grey and for colour-blind eyes.
_ANCHORS = np.asarray(
  [(22, 16, 72), (60, 40, 150), (40, 110, 190), (30, 165, 165), (110, 200, 110), (230, 215, 70), (250, 250, 190)],
  np.float32,
)
_BACKGROUND, _INK, _PALE_INK, _FRAME = (255, 255, 255), (30, 30, 30), (140, 140, 140), (255, 70, 50)
_MARGIN, _GAP, _FONT_SIZE, _BAR = 16, 20, 16, 12
_PANEL_SIDES = (220, 340)  # the smallest width, and the size that a picture is scaled to fit
_OPACITY = 0.7
_PANELS_PER_ROW = 4


@dataclasses.dataclass(frozen=True)
class Heat:
  """A text and where it fits.

  Attributes:
    text: the text.
    similarity: its cosine with each patch.
    boxes: boxes to draw, x1 y1 x2 y2 in 0..1, each with its own cosine.
  """

  text: str
  similarity: Float32[np.ndarray, "h w"]
  boxes: tuple[tuple[Box, float], ...] = ()


def measure(model: FGCLIP, picture: Image.Image, texts: Sequence[str], boxes: Sequence[Sequence[Box]]) -> list[Heat]:
  """The similarity of texts with the patches of an RGB picture, and with the boxes listed for each text."""
  pixels = images.to_square(picture, model.config.vision.image_size)[None]
  text = model.encode_text(list(texts), "region")
  maps = np.moveaxis(model.similarity(model.encode_dense(pixels)[0], text), -1, 0)
  every = [box for row in boxes for box in row]
  scores = iter(np.zeros(0))
  if every:
    owner = np.repeat(np.arange(len(boxes)), [len(row) for row in boxes])
    scores = iter(np.einsum("nd,nd->n", model.encode_regions(pixels, [every])[0], text[owner]))
  return [
    Heat(name, similarity, tuple((box, float(next(scores))) for box in row))
    for name, similarity, row in zip(texts, maps, boxes, strict=True)
  ]


def colours(values: Float[np.ndarray, "*B"]) -> UInt8[np.ndarray, "*B 3"]:
  """The colour map: dark blue at 0 over green to light yellow at 1."""
  place = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
  below = np.minimum(place.astype(int), len(_ANCHORS) - 2)
  share = (place - below)[..., None]
  return np.rint(_ANCHORS[below] * (1 - share) + _ANCHORS[below + 1] * share).astype(np.uint8)


def overlay(picture: Image.Image, similarity: Float32[np.ndarray, "h w"]) -> Image.Image:
  """The picture in grey under the map in colour, from the map's own minimum to its maximum."""
  low, high = float(similarity.min()), float(similarity.max())
  scaled = (similarity - low) / max(high - low, 1e-9)
  smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC))
  grey = ImageOps.grayscale(picture).convert("RGB")
  return Image.blend(grey, Image.fromarray(colours(smooth)), _OPACITY)


def draw(picture: Image.Image, heats: Sequence[Heat]) -> Image.Image:
  """The picture, and beside it a panel for each text: the map, the boxes with their scores, the text, the scale."""
  font = ImageFont.load_default(_FONT_SIZE)
  scale = min(_PANEL_SIDES[1] / side for side in picture.size)
  size = tuple(max(round(side * scale), 1) for side in picture.size)
  picture = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
  width = max(size[0], _PANEL_SIDES[0])
  panels = [_panel(picture, width, "", None, [box for heat in heats for box, _ in heat.boxes], font)]
  panels += [_panel(overlay(picture, h.similarity), width, h.text, h.similarity, h.boxes, font) for h in heats]
  columns = min(len(panels), _PANELS_PER_ROW)
  rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
  heights = [max(panel.height for panel in row) for row in rows]
  sheet = Image.new(
    "RGB",
    (columns * (width + _GAP) - _GAP + 2 * _MARGIN, sum(heights) + _GAP * (len(rows) - 1) + 2 * _MARGIN),
    _BACKGROUND,
  )
  top = _MARGIN
  for row, height in zip(rows, heights, strict=True):
    for column, panel in enumerate(row):
      sheet.paste(panel, (_MARGIN + column * (width + _GAP), top))
    top += height + _GAP
  return sheet


def _panel(picture, width, text, similarity, boxes, font) -> Image.Image:
  """A picture with boxes; below it the text and the colour scale of a map."""
  lines = _wrap(text, width, font)
  line = _FONT_SIZE + 4
  height = picture.height + (8 + line * len(lines) + _BAR + 8 + line if similarity is not None else 0)
  panel = Image.new("RGB", (width, height), _BACKGROUND)
  left = (width - picture.width) // 2
  panel.paste(picture, (left, 0))
  pen = ImageDraw.Draw(panel)
  for entry in boxes:
    box, label = (entry, "") if similarity is None else (entry[0], f"{entry[1]:.2f}")
    _draw_box(pen, box, label, picture.size, left, font)
  if similarity is None:
    return panel
  top = picture.height + 8
  for content in lines:
    pen.text((0, top), content, _INK, font)
    top += line
  ramp = colours(np.tile(np.linspace(0, 1, width, dtype=np.float32), (_BAR, 1)))
  panel.paste(Image.fromarray(ramp), (0, top + 4))
  low, high = f"{similarity.min():.2f}", f"{similarity.max():.2f}"
  pen.text((0, top + _BAR + 6), low, _INK, font)
  pen.text(((width - font.getlength("cosine")) / 2, top + _BAR + 6), "cosine", _PALE_INK, font)
  pen.text((width - font.getlength(high), top + _BAR + 6), high, _INK, font)
  return panel


def _draw_box(pen, box, label, size, left, font) -> None:
  x1, y1, x2, y2 = (round(value * (side - 1)) for value, side in zip(box, size * 2, strict=True))
  pen.rectangle((left + x1, y1, left + x2, y2), outline=_FRAME, width=3)
  if label:
    length, high = font.getlength(label) + 6, _FONT_SIZE + 3
    x = min(left + x1, left + size[0] - length)
    y = y1 - high if y1 >= high else min(y2, size[1] - high)  # above the box, or else below it
    pen.rectangle((x, y, x + length, y + high), fill=_FRAME)
    pen.text((x + 3, y + 1), label, _BACKGROUND, font)


def _wrap(text: str, width: int, font) -> list[str]:
  """Lines no wider than `width`; a word that is wider stands alone."""
  lines: list[str] = []
  for word in text.split():
    longer = f"{lines[-1]} {word}" if lines else word
    if lines and font.getlength(longer) <= width:
      lines[-1] = longer
    else:
      lines.append(word)
  return lines
