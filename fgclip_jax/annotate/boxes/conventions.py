"""What the four numbers of a box mean: every detector has a convention, and all are converted here.

Detectors differ in the order of the numbers, in their unit, and in the frame that they are relative to. Nothing in a
box tells which, so that a wrong convention is found late, or never: each backend declares its own.
"""

import dataclasses
from typing import Any

from fgclip_jax.annotate.draft import Box
from fgclip_jax.data.record import check_box
from fgclip_jax.storage.errors import RecordError

ORDERS = ("xyxy", "xywh", "cxcywh", "yxyx")
UNITS = ("fraction", "pixels", "percent", "thousandths")
FRAMES = ("original", "input", "padded")
_OUTSIDE = 0.02  # of a side: detectors regress corners, which end a little outside


@dataclasses.dataclass(frozen=True)
class Convention:
  """The meaning of four numbers.

  Attributes:
    order: `xyxy` (two corners), `xywh` (a corner and the size), `cxcywh` (the centre and the size), `yxyx`.
    unit: `fraction` of the frame's sides, `pixels`, `percent`, or `thousandths`.
    frame: `original` (the picture), `input` (the picture as it was scaled for the detector: only pixels differ), or
      `padded` (a square with the picture at its top left: sides of OWLv2).

  Raises:
    ValueError: an unknown name.
  """

  order: str = "xyxy"
  unit: str = "fraction"
  frame: str = "original"

  def __post_init__(self):
    for name, choices in (("order", ORDERS), ("unit", UNITS), ("frame", FRAMES)):
      if getattr(self, name) not in choices:
        raise ValueError(f"the {name} of a box is one of {', '.join(choices)}, got {getattr(self, name)!r}")

  @classmethod
  def parse(cls, text: str) -> "Convention":
    """From `ORDER[,UNIT[,FRAME]]`, as options give it."""
    return cls(*(part.strip() for part in text.split(",") if part.strip()))

  def __str__(self) -> str:
    return f"{self.order},{self.unit},{self.frame}"

  def to_box(self, values: Any, size: tuple[int, int], seen: tuple[int, int] | None = None) -> Box:
    """x1, y1, x2, y2 as fractions of the picture's sides, cut at its edges.

    Args:
      values: the detector's four numbers, unchecked.
      size: width and height of the picture, in pixels.
      seen: width and height that the detector was given, for pixels of the frame `input`; None: as the picture.

    Raises:
      RecordError: kinds `box_not_four_numbers`, `box_not_finite`, `box_swapped`, `box_outside`: a corner is more than
        a fiftieth of a side outside of the picture.
    """
    try:
      numbers = [] if isinstance(values, str) else [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
      numbers = []
    if len(numbers) != 4:
      raise RecordError("box_not_four_numbers", "box", f"needs four numbers, got {values!r:.80}")
    width, height = seen if self.frame == "input" and seen else size
    if self.frame == "padded":
      width = height = max(width, height)
    scale = {"fraction": (1.0, 1.0), "percent": (0.01, 0.01), "thousandths": (0.001, 0.001)}
    across, down = scale.get(self.unit, (1 / width, 1 / height))
    if self.order == "yxyx":
      numbers = [numbers[1], numbers[0], numbers[3], numbers[2]]
    x, y, u, v = numbers[0] * across, numbers[1] * down, numbers[2] * across, numbers[3] * down
    if self.order == "xywh":
      u, v = x + u, y + v
    elif self.order == "cxcywh":
      x, y, u, v = x - u / 2, y - v / 2, x + u / 2, y + v / 2
    if self.frame == "padded":
      side = max(size)
      x, u, y, v = x * side / size[0], u * side / size[0], y * side / size[1], v * side / size[1]
    corners = (x, y, u, v)
    if any(not -_OUTSIDE <= corner <= 1 + _OUTSIDE for corner in corners):  # what is not finite, too
      check_box(corners)  # says which
    return check_box(tuple(min(max(corner, 0.0), 1.0) for corner in corners))

  def from_box(self, box: Box, size: tuple[int, int], seen: tuple[int, int] | None = None) -> tuple[float, ...]:
    """The four numbers of a box by this convention: what `to_box` converts back."""
    x, y, u, v = box
    if self.frame == "padded":
      side = max(size)
      x, u, y, v = x * size[0] / side, u * size[0] / side, y * size[1] / side, v * size[1] / side
    width, height = seen if self.frame == "input" and seen else size
    if self.frame == "padded":
      width = height = max(width, height)
    scale = {"fraction": (1.0, 1.0), "percent": (100.0, 100.0), "thousandths": (1000.0, 1000.0)}
    across, down = scale.get(self.unit, (width, height))
    numbers = {
      "xyxy": (x, y, u, v),
      "xywh": (x, y, u - x, v - y),
      "cxcywh": ((x + u) / 2, (y + v) / 2, u - x, v - y),
      "yxyx": (x, y, u, v),
    }[self.order]
    a, b, c, d = numbers[0] * across, numbers[1] * down, numbers[2] * across, numbers[3] * down
    return (b, a, d, c) if self.order == "yxyx" else (a, b, c, d)
