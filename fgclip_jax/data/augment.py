"""Random crops, which move an image's boxes with it.

Nothing is mirrored: captions name left and right.
"""

import math
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from fgclip_jax.data.decode import Choose, Part

Crop = Literal["none", "random", "random_square"]
CROPS = get_args(Crop)
_STRETCH = 4 / 3  # a random crop is up to so much wider, or higher, for its size than the image


def choose_part(crop: Crop, area: tuple[float, float], rng: np.random.Generator) -> Choose | None:
  """What draws the part of an image to take; None takes the whole.

  Args:
    crop: `random`: a share of the image's area drawn from `area`, its sides up to a third longer beside each other
      than the image's, anywhere in it. `random_square`: the largest square, anywhere along the longer side, which is
      plain CLIP's augmentation (arXiv 2103.00020, section 2.4).
    area: the least and the largest share of the area for `random`.
    rng: what is drawn from, when an image's size is known.
  """
  if crop == "none":
    return None

  def place(side: int, whole: int) -> tuple[int, int]:
    begin = int(rng.integers(whole - side + 1))
    return begin, begin + side

  def choose(width: int, height: int) -> Part:
    if crop == "random_square":
      across = down = min(width, height)
    else:
      share = rng.uniform(*area)
      least, most = max(1 / _STRETCH, share), min(_STRETCH, 1 / share)  # neither side is longer than the image's
      stretch = math.exp(rng.uniform(math.log(least), math.log(most)))
      across = min(max(round(width * math.sqrt(share * stretch)), 1), width)
      down = min(max(round(height * math.sqrt(share / stretch)), 1), height)
    (left, right), (top, bottom) = place(across, width), place(down, height)
    return left, top, right, bottom

  return choose


def move_boxes(
  boxes: Float[np.ndarray, "n 4"], part: tuple[float, float, float, float], keep: float
) -> tuple[Float[np.ndarray, "m 4"], Int[np.ndarray, " m"]]:
  """Boxes of an image as boxes of a part of it, cut off at its borders.

  Args:
    boxes: xyxy in 0..1 of the image.
    part: xyxy in 0..1 of the image.
    keep: the least share of a box's area that must lie within the part.

  Returns:
    The boxes that are left, xyxy in 0..1 of the part, and which of `boxes` they were.
  """
  low, high = np.asarray(part[:2]), np.asarray(part[2:])
  corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
  clipped = np.clip(corners, low, high)
  sides, left = corners[:, 1] - corners[:, 0], clipped[:, 1] - clipped[:, 0]
  inside = ((corners[:, 1] >= low) & (corners[:, 0] <= high)).all(1)
  # a side without length is there as a whole or not at all
  share = np.divide(left, sides, out=np.ones_like(left), where=sides > 0).prod(1)
  (kept,) = np.nonzero(inside & (share >= keep))
  moved = np.clip((clipped[kept] - low) / (high - low), 0, 1)
  return moved.reshape(-1, 4).astype(boxes.dtype), kept
