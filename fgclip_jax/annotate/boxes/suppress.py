"""Which of the boxes that a detector has found become regions."""

import collections
from collections.abc import Sequence

import numpy as np

from fgclip_jax.annotate.boxes.backend import Found
from fgclip_jax.annotate.draft import Box

MAX_REGIONS = 10  # of a picture
MAX_OVERLAP = 0.5  # with a better box, of whatever phrase
MIN_SIDE, MIN_PIXELS = 1 / 40, 8.0  # of the picture's side; in pixels


def select(
  found: Sequence[Found], size: tuple[int, int], threshold: float, limit: int = MAX_REGIONS
) -> tuple[list[Found], collections.Counter[str]]:
  """One box for each phrase at most, none too small, and none that lies on a better one of any phrase.

  Two names of one thing, "a dog" and "a brown animal", have one box: a second region there would say that the first
  one's caption is wrong for it.

  Args:
    found: all boxes.
    size: width and height of the picture, in pixels.
    threshold: the least score.
    limit: the most regions.

  Returns:
    The boxes that are kept, best first; and the phrases without a region, by the first reason for their best box:
    `low_score`, `invalid` (too small), `suppressed`, `over_limit`.
  """
  best: dict[int, Found] = {}
  for each in found:
    if each.phrase not in best or each.score > best[each.phrase].score:
      best[each.phrase] = each
  kept: list[Found] = []
  lost: collections.Counter[str] = collections.Counter()
  for each in sorted(best.values(), key=lambda one: (-one.score, one.phrase)):
    if each.score < threshold:
      lost["low_score"] += 1
    elif _is_small(each, size):
      lost["invalid"] += 1
    elif any(overlap(each.box, other.box) > MAX_OVERLAP for other in kept):
      lost["suppressed"] += 1
    elif len(kept) == limit:
      lost["over_limit"] += 1
    else:
      kept.append(each)
  return kept, lost


def _is_small(found: Found, size: tuple[int, int]) -> bool:
  sides = found.box[2] - found.box[0], found.box[3] - found.box[1]
  return any(side < max(MIN_SIDE, MIN_PIXELS / length) for side, length in zip(sides, size, strict=True))


def overlap(one: Box, two: Box) -> float:
  """The intersection over union of two boxes x1, y1, x2, y2."""
  width = min(one[2], two[2]) - max(one[0], two[0])
  height = min(one[3], two[3]) - max(one[1], two[1])
  shared = max(width, 0.0) * max(height, 0.0)
  area, other = (float(np.prod((box[2] - box[0], box[3] - box[1]))) for box in (one, two))
  return shared / (area + other - shared) if shared else 0.0
