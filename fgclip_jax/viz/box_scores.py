"""A table of the cosines of captions with boxes of a picture, drawn and as text."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.viz import drawing
from fgclip_jax.viz.drawing import Box, Font

_PICTURE_SIDE, _CELL, _NUMBER_WIDTH = 420, (130, 26), 40
_TITLE_WIDTH = 28  # characters of a caption over a column of text


@dataclasses.dataclass(frozen=True)
class Scores:
  """Captions, boxes and their cosines.

  Attributes:
    texts: N captions.
    boxes: K boxes, x1 y1 x2 y2 in 0..1.
    cosines: the cosine of each box with each caption.
  """

  texts: tuple[str, ...]
  boxes: tuple[Box, ...]
  cosines: Float32[np.ndarray, "K N"]


def grid(columns: int, rows: int) -> list[Box]:
  """The boxes that divide a picture evenly, row by row."""
  return [
    (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
    for row in range(rows)
    for column in range(columns)
  ]


def measure(model: FGCLIP, picture: Image.Image, texts: Sequence[str], boxes: Sequence[Box]) -> Scores:
  """The cosines of boxes of an RGB picture with short descriptions."""
  (regions,) = model.encode_regions(picture, [list(boxes)])
  return Scores(tuple(texts), tuple(boxes), model.similarity(regions, model.encode_text(list(texts), "region")))


def table(scores: Scores) -> str:
  """The scores as text: a row for each box, its best caption marked with *."""
  titles = [text if len(text) <= _TITLE_WIDTH else f"{text[: _TITLE_WIDTH - 3]}..." for text in scores.texts]
  rows = [("box", "x1 y1 x2 y2", *titles)]
  for number, (box, cosines) in enumerate(zip(scores.boxes, scores.cosines, strict=True), 1):
    marks = ["*" if column == cosines.argmax() else " " for column in range(len(cosines))]
    cells = [f"{cosine:.3f}{mark}" for cosine, mark in zip(cosines, marks, strict=True)]
    rows.append((str(number), " ".join(f"{value:.2f}" for value in box), *cells))
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
  return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def draw(picture: Image.Image, scores: Scores, font: Font) -> Image.Image:
  """The picture with its boxes numbered, and beside it the table in the colours of heat maps; the best is framed."""
  picture = drawing.fit(picture, _PICTURE_SIDE)
  titles = [drawing.wrap(text, _CELL[0] - 8, font) for text in scores.texts]
  head = max(len(lines) for lines in titles) * drawing.LINE + 8
  left = picture.width + drawing.GAP
  size = (
    left + _NUMBER_WIDTH + _CELL[0] * len(scores.texts) + 1,
    max(picture.height, head + _CELL[1] * len(scores.boxes) + 1),
  )
  sheet = Image.new("RGB", size, drawing.BACKGROUND)
  sheet.paste(picture, (0, 0))
  pen = ImageDraw.Draw(sheet)
  numbers = [str(number) for number in range(1, len(scores.boxes) + 1)]
  drawing.draw_boxes(pen, picture.size, scores.boxes, numbers, font, inside=True)
  low, high = float(scores.cosines.min()), float(scores.cosines.max())
  colours = drawing.colours((scores.cosines - low) / max(high - low, 1e-9))
  for column, lines in enumerate(titles):
    x = left + _NUMBER_WIDTH + column * _CELL[0]
    for line, content in enumerate(lines):
      pen.text((x + 4, line * drawing.LINE), content, drawing.INK, font)
    for row, cosines in enumerate(scores.cosines):
      y, colour = head + row * _CELL[1], tuple(map(int, colours[row, column]))
      best = column == cosines.argmax()
      pen.rectangle(
        (x, y, x + _CELL[0] - 3, y + _CELL[1] - 3), colour, drawing.FRAME if best else colour, width=3 if best else 1
      )
      light = np.dot(colour, (0.299, 0.587, 0.114)) > 128  # the luma of BT.601
      ink = drawing.INK if light else drawing.BACKGROUND
      pen.text((x + 8, y + 2), f"{cosines[column]:.3f}", ink, font)
  for row in range(len(scores.boxes)):
    pen.text((left, head + row * _CELL[1] + 2), str(row + 1), drawing.INK, font)
  return sheet
