"""Heat maps: the similarity of a text with a picture's dense features, drawn over the picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageOps

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.viz import drawing
from fgclip_jax.viz.drawing import Box, Font

_PANEL_SIDES = (220, 340)  # the smallest width, and the longer side of a picture
_BAR = 12
_OPACITY = 0.7
_PANELS_PER_ROW = 4


@dataclasses.dataclass(frozen=True)
class Heat:
  """A text and its similarity with a picture.

  Attributes:
    text: the text.
    similarity: its cosine with each patch; or the share of attention that it gives each.
    boxes: boxes to draw, x1 y1 x2 y2 in 0..1, each with its cosine with the text.
    unit: what the map shows, in a word.
  """

  text: str
  similarity: Float32[np.ndarray, "h w"]
  boxes: tuple[tuple[Box, float], ...] = ()
  unit: str = "cosine"


def measure(
  model: FGCLIP, picture: Image.Image, texts: Sequence[str], boxes: Sequence[Sequence[Box]], attention: bool = False
) -> list[Heat]:
  """The similarity of texts with the patches of an RGB picture, and with the boxes listed for each text.

  With `attention` the maps are where each text looks, by the model's text-conditioned pooling.
  """
  text = model.encode_text(list(texts), "region")
  dense = model.encode_dense(picture)[0]
  maps = model.text_attention([dense], text)[0] if attention else np.moveaxis(model.similarity(dense, text), -1, 0)
  every = [box for row in boxes for box in row]
  scores = iter(np.zeros(0))
  if every:
    owner = np.repeat(np.arange(len(boxes)), [len(row) for row in boxes])
    scores = iter(np.einsum("nd,nd->n", model.encode_regions(picture, [every])[0], text[owner]))
  return [
    Heat(name, similarity, tuple((box, float(next(scores))) for box in row), "attention" if attention else "cosine")
    for name, similarity, row in zip(texts, maps, boxes, strict=True)
  ]


def overlay(picture: Image.Image, similarity: Float32[np.ndarray, "h w"]) -> Image.Image:
  """The picture in grey under the map in colour. Colours run from the map's minimum to its maximum."""
  low, high = float(similarity.min()), float(similarity.max())
  scaled = (similarity - low) / max(high - low, 1e-9)
  smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC))
  grey = ImageOps.grayscale(picture).convert("RGB")
  return Image.blend(grey, Image.fromarray(drawing.colours(smooth)), _OPACITY)


def draw(picture: Image.Image, heats: Sequence[Heat], font: Font, below: Sequence[Image.Image] = ()) -> Image.Image:
  """The picture, and beside it a panel for each text: the map, the boxes with their scores, the text, the scale.

  Args:
    picture: RGB, of any size.
    heats: the maps.
    font: a font of `drawing.FONT_SIZE`.
    below: further pictures for the sheet.
  """
  picture = drawing.fit(picture, _PANEL_SIDES[1])
  width = max(picture.width, _PANEL_SIDES[0])
  panels = [_panel(picture, width, None, [entry for heat in heats for entry in heat.boxes], font)]
  panels += [_panel(overlay(picture, heat.similarity), width, heat, heat.boxes, font) for heat in heats]
  rows = [panels[i : i + _PANELS_PER_ROW] for i in range(0, len(panels), _PANELS_PER_ROW)]
  return drawing.stack([*(_beside(row) for row in rows), *below])


def _beside(panels: list[Image.Image]) -> Image.Image:
  """Panels of one width in a row."""
  step = panels[0].width + drawing.GAP
  row = Image.new("RGB", (step * len(panels) - drawing.GAP, max(p.height for p in panels)), drawing.BACKGROUND)
  for column, panel in enumerate(panels):
    row.paste(panel, (column * step, 0))
  return row


def _panel(
  picture: Image.Image,
  width: int,
  heat: Heat | None,
  boxes: Sequence[tuple[Box, float]],
  font: Font,
) -> Image.Image:
  """A picture with boxes; with a map also the boxes' cosines, and below the picture the text and the colour scale."""
  lines = drawing.wrap(heat.text if heat else "", width, font)
  height = picture.height + (8 + drawing.LINE * (len(lines) + 1) + _BAR + 8 if heat else 0)
  panel = Image.new("RGB", (width, height), drawing.BACKGROUND)
  left = (width - picture.width) // 2
  panel.paste(picture, (left, 0))
  pen = ImageDraw.Draw(panel)
  labels = ["" if heat is None else f"{score:.2f}" for _, score in boxes]
  drawing.draw_boxes(pen, picture.size, [box for box, _ in boxes], labels, font, left=left)
  if heat is None:
    return panel
  top = picture.height + 8
  for content in lines:
    pen.text((0, top), content, drawing.INK, font)
    top += drawing.LINE
  ramp = drawing.colours(np.tile(np.linspace(0, 1, width, dtype=np.float32), (_BAR, 1)))
  panel.paste(Image.fromarray(ramp), (0, top + 4))
  digits = 2 if heat.unit == "cosine" else 4  # the shares of all patches add up to at most 1
  low, high = (f"{value:.{digits}f}" for value in (heat.similarity.min(), heat.similarity.max()))
  pen.text((0, top + _BAR + 6), low, drawing.INK, font)
  pen.text(((width - font.getlength(heat.unit)) / 2, top + _BAR + 6), heat.unit, drawing.PALE_INK, font)
  pen.text((width - font.getlength(high), top + _BAR + 6), high, drawing.INK, font)
  return panel
