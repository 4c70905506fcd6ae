"""A model for images of another size: its table of image positions interpolated."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params


def resize_positions(
  positions: Float[Array, "N W"],
  grid: int | tuple[int, int],
  old_grid: tuple[int, int] | None = None,
  class_token: bool = True,
) -> Float[Array, "M W"]:
  """The position table for another grid: the class token's row, and the patches' interpolated bicubically.

  As PyTorch interpolates (`mode="bicubic", align_corners=False`, without antialiasing), computed in float32.

  Args:
    positions: [1 + h*w, W], row by row after the class token's.
    grid: the new one: (height, width) in patches, or the side of a square.
    old_grid: the table's own (height, width); by default it is square.
    class_token: False: there is no row for one.

  Raises:
    ValueError: the table has not the rows of its grid.
  """
  rows, width = positions.shape
  first = int(class_token)
  side = math.isqrt(max(rows - first, 0))
  height, breadth = old_grid or (side, side)
  if height * breadth != rows - first:
    described = f"a grid of {height} x {breadth}" if old_grid else "a square grid"
    raise ValueError(f"a table of {rows} positions is not that of {'a class token and ' * first}{described}")
  new = (grid, grid) if isinstance(grid, int) else tuple(grid)
  if new == (height, breadth):
    return positions
  patches = positions[first:].reshape(height, breadth, width).astype(jnp.float32)
  patches = jax.image.resize(patches, (*new, width), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False)
  return jnp.concatenate([positions[:first], patches.reshape(-1, width).astype(positions.dtype)])


def resize(params: Params, config: ModelConfig, image_size: int) -> tuple[Params, ModelConfig]:
  """The same model for images of another side, in pixels; works on any of our image towers, and under jit.

  Raises:
    ValueError: the side is not a multiple of the model's patches, or the model takes pictures of any shape.
  """
  if config.vision.takes_patches:
    if image_size == config.vision.image_size:
      return params, config
    raise ValueError("this model takes pictures of any shape: choose its patch budget instead of an image size")
  resized = config.replace(vision={"image_size": image_size})
  if resized == config:
    return params, config
  positions = resize_positions(
    jnp.asarray(params["vision"]["positions"]), resized.vision.grid, class_token=config.vision.has_class_token
  )
  return {**params, "vision": {**params["vision"], "positions": positions}}, resized
