"""Draws the objects of the rendered scenes (`scenes.py`): exact boxes, anti-aliased edges and patterns.

An object fills a square of whole pixels, so its tight box is that square. Shape and pattern are
sampled on a grid `OVERSAMPLING` times finer than the pixels and averaged.
"""

import dataclasses
import functools

import numpy as np

OVERSAMPLING = 4  # samples per pixel along each axis
SECOND_TONE = 0.25  # brightness of a pattern's dark parts

COLOURS = {
  "red": (215, 40, 40),
  "green": (40, 175, 60),
  "blue": (45, 75, 225),
  "yellow": (240, 225, 45),
  "purple": (140, 50, 185),
  "orange": (245, 135, 25),
  "pink": (250, 130, 190),
  "cyan": (45, 210, 220),
  "white": (240, 240, 240),
}
PATTERNS = ("solid", "striped", "dotted", "checked")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZES = {"small": (14, 17), "big": (26, 31)}  # smallest and largest side in pixels, both included


@dataclasses.dataclass(frozen=True)
class Sprite:
  """What is drawn, in pixels.

  Attributes:
    shape, pattern: one of `SHAPES`, one of `PATTERNS`.
    rgb: the colour, three floats in 0..255.
    left, top, side: the object's tight box is the square from (left, top) to (left + side, top + side).
    period: the pattern's period in pixels, even in samples.
    phase: shift of the pattern along x and y, in samples.
  """

  shape: str
  pattern: str
  rgb: tuple[float, float, float]
  left: int
  top: int
  side: int
  period: int
  phase: tuple[int, int]


@functools.cache
def shape_mask(shape: str, side: int) -> np.ndarray:
  """Which samples of a `side` pixels wide square belong to the shape: bool [side * OVERSAMPLING] * 2, read-only."""
  count = side * OVERSAMPLING
  axis = (np.arange(count) + 0.5) / count * 2 - 1  # sample centres in -1..1; y points down
  x, y = axis[None, :], axis[:, None]
  radius = np.hypot(x, y)
  match shape:
    case "circle":
      mask = radius <= 1
    case "square":
      mask = np.ones((count, count), bool)
    case "triangle":
      mask = np.abs(x) <= (1 + y) / 2
    case "cross":
      mask = (np.abs(x) <= 1 / 3) | (np.abs(y) <= 1 / 3)
    case "ring":
      mask = (radius <= 1) & (radius >= 0.55)
    case "star":
      mask = _star(x, y)
    case _:
      raise ValueError(f"no shape {shape!r}; shapes are {SHAPES}")
  mask.flags.writeable = False  # it is shared by every later caller
  return mask


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """A five-pointed star stretched to fill the square -1..1.

  With its tips on the unit circle, a point lies in the star exactly if it is on the inner side of
  at least four of the five lines through its edges, all at distance cos 72 deg from the centre.
  """
  bottom, half_width = np.cos(np.pi / 5), np.sin(2 * np.pi / 5)
  x, y = x * half_width, (y * (1 + bottom) + bottom - 1) / 2
  normals = [-np.pi / 2 + k * 2 * np.pi / 5 for k in range(5)]  # towards the tips, the first one straight up
  inside = [x * np.cos(angle) + y * np.sin(angle) <= np.cos(2 * np.pi / 5) for angle in normals]
  return np.sum(inside, axis=0) >= 4


@functools.cache
def shape_coverage(shape: str, side: int) -> np.ndarray:
  """Which share of each pixel the shape covers: float32 [side, side], read-only."""
  coverage = _pixels(shape_mask(shape, side).astype(np.float32))
  coverage.flags.writeable = False
  return coverage


def pattern_mask(pattern: str, side: int, period: int, phase: tuple[int, int]) -> np.ndarray:
  """Which samples have the full colour rather than the dark second tone: bool, like `shape_mask` or broadcast to it."""
  axis = np.arange(side * OVERSAMPLING)
  period *= OVERSAMPLING
  x, y = ((axis + phase[0]) % period)[None, :], ((axis + phase[1]) % period)[:, None]
  match pattern:
    case "solid":
      return np.ones((1, 1), bool)
    case "striped":
      return y < period // 2
    case "dotted":
      centre = (period - 1) / 2
      return (x - centre) ** 2 + (y - centre) ** 2 > (0.3 * period) ** 2
    case "checked":
      return (x < period // 2) == (y < period // 2)
    case _:
      raise ValueError(f"no pattern {pattern!r}; patterns are {PATTERNS}")


def paint(canvas: np.ndarray, sprite: Sprite) -> None:
  """Paints an object over `canvas` (float32 [height, width, 3], 0..255) in place."""
  light = pattern_mask(sprite.pattern, sprite.side, sprite.period, sprite.phase)
  tone = np.where(light, np.float32(1), np.float32(SECOND_TONE))
  coverage = shape_coverage(sprite.shape, sprite.side)
  brightness = _pixels(shape_mask(sprite.shape, sprite.side) * tone)
  rows, columns = slice(sprite.top, sprite.top + sprite.side), slice(sprite.left, sprite.left + sprite.side)
  window = canvas[rows, columns]
  window *= 1 - coverage[..., None]
  window += brightness[..., None] * np.asarray(sprite.rgb, np.float32)


def _pixels(samples: np.ndarray) -> np.ndarray:
  """Averages samples [n * OVERSAMPLING, n * OVERSAMPLING] to pixels [n, n]."""
  side = len(samples) // OVERSAMPLING
  return samples.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3))
