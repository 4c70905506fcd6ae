"""How a picture becomes what a model reads: a square of pixels, or patches where it takes pictures of any shape."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from fgclip_jax.data import image as images
from fgclip_jax.data import patches as patch_grids
from fgclip_jax.data.patches import BUDGETS, MAX_BUDGET, PatchLayout
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec

Budget = int | str


@dataclasses.dataclass(frozen=True, eq=False)
class PatchedImage:
  """A picture as a model for pictures of any shape reads it.

  Attributes:
    patches: uint8 levels of its patches, row by row over its grid; in a patch by row, column and channel.
    grid: rows and columns of its patches.

  Raises:
    ValueError: the patches are not those of the grid.
  """

  patches: UInt8[np.ndarray, "n X"]
  grid: tuple[int, int]

  def __post_init__(self):
    rows, columns = self.grid
    if self.patches.dtype != np.uint8 or self.patches.ndim != 2 or len(self.patches) != rows * columns or rows < 1:
      raise ValueError(
        f"the patches of a grid of {rows} x {columns} must be uint8 [{rows * columns}, X], got {self.patches.dtype} "
        f"{list(self.patches.shape)}"
      )


Image = UInt8[np.ndarray, "S S 3"] | PatchedImage


@runtime_checkable
class Reader(Protocol):
  """Makes pictures into what a model reads. Threads may share one."""

  def read(self, picture: images.Picture, name: str) -> Image:
    """The picture in the model's form; errors call it `name`.

    Raises:
      ImageError, FileNotFoundError, TypeError, ValueError: see `fgclip_jax.data.image.preprocess`.
    """
    ...

  def settings(self) -> dict[str, int | str]:
    """What decides the form, as JSON."""
    ...


@dataclasses.dataclass(frozen=True)
class SquareReader:
  """Squares of RGB levels.

  Attributes:
    size: their side, in pixels.
    mode: how pictures become squares, see `PixelSpec.resize`.
    pixels: the model's.
  """

  size: int
  mode: str = "squash"
  pixels: PixelSpec = CLIP_PIXELS

  def read(self, picture: images.Picture, name: str) -> UInt8[np.ndarray, "S S 3"]:
    return images.to_levels(picture, self.size, self.mode, name, self.pixels)

  def settings(self) -> dict[str, int | str]:
    return {"size": self.size, "mode": self.mode}


@dataclasses.dataclass(frozen=True)
class PatchReader:
  """Patches of RGB levels.

  Attributes:
    budget: the most patches of a picture, or `dynamic`: of `BUDGETS` the one that its own size asks for.
    patch_size: side of a patch, in pixels.
    pixels: the model's.
  """

  budget: Budget
  patch_size: int
  pixels: PixelSpec

  def read(self, picture: images.Picture, name: str) -> PatchedImage:
    try:
      image = images.to_image(picture, name)
      (budget,) = PatchLayout(self.budget, self.patch_size).choose_budgets([image.size])
      rows, columns = patch_grids.fit_grid(*image.size, budget, self.patch_size)
      scaled = images.resize(image, columns * self.patch_size, rows * self.patch_size, self.pixels.interpolation)
    except images.ImageError as error:
      raise images.ImageError(error.kind, name, error.message) from error
    return PatchedImage(patch_grids.cut_patches(np.asarray(scaled), self.patch_size), (rows, columns))

  def settings(self) -> dict[str, int | str]:
    return {"max_patches": self.budget}


def make_reader(config: ModelConfig, mode: str | None = None, max_patches: Budget | None = None) -> Reader:
  """The reader of a model's pictures.

  Args:
    config: the model's.
    mode: of a model that reads squares: how pictures become them; None: its own way.
    max_patches: of a model that takes pictures of any shape: see `choose_budget`.

  Raises:
    ValueError: a budget for a model that reads squares, or one that is none.
  """
  vision = config.vision
  if vision.takes_patches:
    return PatchReader(choose_budget(config, max_patches), vision.patch_size, vision.pixels)
  if max_patches is not None:
    raise ValueError(
      f"max_patches is for models that take pictures of any shape, and this one reads squares of {vision.image_size} "
      "px: leave it out (with_image_size changes the side)"
    )
  return SquareReader(vision.image_size, mode or config.resize, vision.pixels)


def choose_budget(config: ModelConfig, max_patches: Budget | None = None) -> Budget:
  """The patch budget of a picture: the one that is asked for, or else the model's.

  An FG-CLIP 2 has `dynamic`, as it is published: 128, 256, 576, 784 or 1,024 by the picture's own size. Other models
  have their config's `max_patches`, and so has one that was made for less than the smallest of these.

  Raises:
    ValueError: neither a number of patches nor `dynamic`.
  """
  if max_patches is not None:
    try:
      return patch_grids.parse_budget(max_patches, "max_patches")
    except ValueError as error:
      message = f"max_patches must be a number of patches in 1..{MAX_BUDGET:,} or 'dynamic', got {max_patches!r:.60}"
      raise ValueError(message) from error
  own = getattr(config.vision, "max_patches")  # noqa: B009 - no field of every image tower
  return "dynamic" if config.fine_grained and own >= BUDGETS[0] else own
