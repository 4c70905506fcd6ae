"""Contact sheets: a few records as one picture, with their boxes and captions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from fgclip_jax.data import image, record
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.shards import Records
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.viz import drawing

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # distinct to colour-blind readers too
MAX_REGIONS = 12  # drawn of a record
_SIDE, _GAP, _MARGIN, _FONT_SIZE = 300, 24, 24, 13
_LINES = {"short": 3, "long": 5, "region": 2}  # of each text; the rest is cut
_INK, _PALE, _PAPER = "#222222", "#777777", "#ffffff"


@dataclasses.dataclass(frozen=True)
class Sample:
  """A record to show.

  Attributes:
    place: its shard and number in it.
    record: None for one that cannot be read.
    picture: its image with boxes; None for one that cannot be decoded.
    fault: why there is no record or picture.
  """

  place: str
  record: Record | None
  picture: Image.Image | None
  fault: str = ""


def take(records: Records, count: int, seed: int = 0) -> list[Sample]:
  """Samples of a split, drawn without replacement, in the order of the split; the same ones for the same seed."""
  numbers = np.random.default_rng(seed).choice(len(records), min(count, len(records)), replace=False)
  return [_take(records, int(number)) for number in np.sort(numbers)]


def _take(records: Records, number: int) -> Sample:
  place, found = records.where(number).rpartition("/")[2], None  # the name of the shard without its folder
  try:
    found = record.decode(records[number])
    picture = image.open_image(found.image)
  except RecordError as error:
    return Sample(place, found, None, str(error))
  return Sample(place, found, draw_boxes(picture, found.regions))


def draw_boxes(picture: Image.Image, regions: Sequence[Region], side: int = _SIDE) -> Image.Image:
  """A picture scaled to a longer side of `side`, with the first regions' boxes and their numbers from 1 on."""
  scale = side / max(picture.size)
  width, height = (max(round(length * scale), 1) for length in picture.size)
  canvas = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
  boxes = [region.box for region in regions[:MAX_REGIONS]]
  numbers = [str(number) for number in range(1, len(boxes) + 1)]
  font = drawing.default_font(_FONT_SIZE)
  drawing.draw_boxes(ImageDraw.Draw(canvas), canvas.size, boxes, numbers, font, inside=True, colours=COLOURS, width=2)
  return canvas


def draw(samples: Sequence[Sample], columns: int = 4) -> Image.Image:
  """All samples as one picture. Letters that Pillow's own font lacks are drawn as boxes."""
  tiles = [_draw_tile(sample) for sample in samples]
  rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
  heights = [max(tile.height for tile in row) for row in rows]
  width = min(columns, len(tiles)) * (_SIDE + _GAP) - _GAP + 2 * _MARGIN
  sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) - 1) + 2 * _MARGIN), _PAPER)
  top = _MARGIN
  for row, height in zip(rows, heights, strict=True):
    for column, tile in enumerate(row):
      sheet.paste(tile, (_MARGIN + column * (_SIDE + _GAP), top))
    top += height + _GAP
  return sheet


def _draw_tile(sample: Sample) -> Image.Image:
  font = drawing.default_font(_FONT_SIZE)
  found = sample.record
  lines: list[tuple[str, str]] = []  # text and colour

  def add(text: str, colour: str, most: int) -> None:
    lines.extend((line, colour) for line in drawing.wrap(text, _SIDE, font, most))

  add(found.id if found else sample.place, _PALE, 1)
  if sample.fault:
    add(sample.fault, COLOURS[0], 4)
  if found:
    add(found.short, _INK, _LINES["short"])
    add(found.long, _PALE, _LINES["long"])
    for index, region in enumerate(found.regions[:MAX_REGIONS]):
      add(f"{index + 1}  {describe(region)}", COLOURS[index % len(COLOURS)], _LINES["region"])
    if len(found.regions) > MAX_REGIONS:
      add(f"and {len(found.regions) - MAX_REGIONS} more regions", _PALE, 1)
  picture = sample.picture or Image.new("RGB", (_SIDE, _SIDE // 2), "#eeeeee")
  line = _FONT_SIZE + 4
  tile = Image.new("RGB", (_SIDE, picture.height + 6 + line * len(lines)), _PAPER)
  tile.paste(picture, ((_SIDE - picture.width) // 2, 0))
  pen = ImageDraw.Draw(tile)
  for index, (text, colour) in enumerate(lines):
    pen.text((0, picture.height + 6 + index * line), text, colour, font)
  return tile


def describe(region: Region) -> str:
  """A region's caption, and its negatives by number and example."""
  if not region.negatives:
    return region.short
  return f"{region.short} (not: {region.negatives[0]}; {len(region.negatives)} negatives)"
