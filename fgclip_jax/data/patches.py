"""Pictures of any shape as grids of square patches: how many patches each gets, and the patches themselves.

A picture keeps its aspect ratio, to within a patch a side, and is scaled up or down to as many patches as its budget
allows. Sizes and patches are those of SigLIP 2's NaFlex preprocessing (arXiv 2502.14786, section 2.4.2) and, with
`dynamic` budgets, of FG-CLIP 2's.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

BUDGETS = (128, 256, 576, 784, 1024)  # of which `dynamic` chooses
MAX_BUDGET = 1 << 16
SMALL_SIDE = 128  # in pixels; pictures with a shorter side are `small`
_POLICIES = ("dynamic", "dynamic_each")
_PRECISION = 1e-5  # of the search for the scale


@dataclasses.dataclass(frozen=True)
class PatchLayout:
  """How pictures become rows of patches in a batch.

  Attributes:
    budget: the most patches of a picture: a number; `dynamic_each`: of `BUDGETS` the one that the picture's own size
      asks for (`dynamic_budget`); or `dynamic`, as FG-CLIP 2 is published: the largest of those of its group.
    patch_size: side of a patch, in pixels.
    row_length: N, patches per row; 0: the largest budget, unless `patch_rows.fit_rows` finds a better one.
    row_buckets: the numbers of rows per data shard that a batch may have, ascending; empty: as many as needed.
    group: pictures that share a `dynamic` budget, consecutive ones of a data shard, which it must divide; 0: all of a
      data shard, as each GPU's own pictures share one in the published code.
    small_size: pictures with a side below `SMALL_SIDE` are first squashed to a square of this side, in pixels, as in
      the published training; 0: they are not.
  """

  budget: int | str = 256
  patch_size: int = 16
  row_length: int = 0
  row_buckets: tuple[int, ...] = ()
  group: int = 0
  small_size: int = 0

  def __post_init__(self):
    parse_budget(self.budget)
    if 0 < self.row_length < self.budgets[-1]:
      raise ValueError(
        f"rows of {self.row_length} patches cannot hold a picture of {self.budgets[-1]}: set data.patch_row_length to "
        "at least that, or 0 to have it chosen"
      )

  @property
  def budgets(self) -> tuple[int, ...]:
    """The budgets that a picture may have, ascending."""
    return BUDGETS if isinstance(self.budget, str) else (self.budget,)

  @property
  def length(self) -> int:
    """N, patches per row."""
    return self.row_length or self.budgets[-1]

  @property
  def patch_values(self) -> int:
    """Numbers of a patch."""
    return 3 * self.patch_size**2

  def sees(self, width: int, height: int) -> tuple[int, int]:
    """The width and the height that a picture counts as."""
    return (self.small_size, self.small_size) if self.is_small(width, height) else (width, height)

  def is_small(self, width: int, height: int) -> bool:
    """Whether a picture of this size is squashed first."""
    return bool(self.small_size) and min(width, height) < SMALL_SIDE

  def choose_budgets(self, sizes: Sequence[tuple[int, int] | None]) -> list[int]:
    """The budget of each picture of a group, from their widths and heights; None: of unknown size, which counts least.

    A picture that comes in place of another one, whose record is bad, takes the other's.
    """
    if not isinstance(self.budget, str):
      return [self.budget] * len(sizes)
    wanted = [dynamic_budget(*self.sees(*size), self.patch_size) if size else BUDGETS[0] for size in sizes]
    return [max(wanted)] * len(wanted) if self.budget == "dynamic" else wanted


def parse_budget(value: Any, name: str = "patch_budget") -> int | str:
  """A budget of patches: a whole number from 1 on, as a number or as text, `dynamic` or `dynamic_each`.

  Raises:
    ValueError: it is none of those.
  """
  if isinstance(value, str) and value.isascii() and value.isdigit():
    value = int(value)
  if value in _POLICIES or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_BUDGET):
    return value
  raise ValueError(f"{name} must be a number of patches in 1..{MAX_BUDGET:,} or one of {_POLICIES}, got {value!r}")


def dynamic_budget(width: int, height: int, patch_size: int = 16) -> int:
  """The budget that a picture's own size asks for: the smallest one above which it has no whole patches, or the last.

  Args:
    width, height: of the picture, in pixels.
    patch_size: side of a patch, in pixels.
  """
  patches = (width // patch_size) * (height // patch_size)
  return next((budget for budget in BUDGETS if patches <= budget), BUDGETS[-1])


@functools.lru_cache(maxsize=1 << 16)
def fit_grid(width: int, height: int, budget: int, patch_size: int = 16) -> tuple[int, int]:
  """The grid that a picture becomes, (rows, columns) of patches: as many of them as the budget allows.

  This is the published search over the scale, step by step in float64: near its limits (a scale of 100, a side of one
  patch) a closed form gives other sizes. So a picture of 1 x 1 pixels has 7 x 7 patches of 16 pixels at any budget from
  49 on, and one of 1 x 5,000 has one row of them.

  Args:
    width, height: of the picture, in pixels.
    budget: the most patches, at least 1.
    patch_size: side of a patch, in pixels.
  """

  def grid(scale: float) -> tuple[int, int]:
    rows, columns = (max(math.ceil(side * scale / patch_size), 1) for side in (height, width))
    return rows, columns

  low, high = _PRECISION / 10, 100.0
  while high - low >= _PRECISION:
    middle = (low + high) / 2
    rows, columns = grid(middle)
    low, high = (middle, high) if rows * columns <= budget else (low, middle)
  return grid(low)


def cut_patches(image: UInt8[np.ndarray, "H W 3"], patch_size: int) -> UInt8[np.ndarray, "n v"]:
  """The patches of an image whose sides are multiples of `patch_size`, row-major; in each (row, column, channel)."""
  rows, columns = image.shape[0] // patch_size, image.shape[1] // patch_size
  cells = image.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
  return cells.reshape(rows * columns, 3 * patch_size**2)
