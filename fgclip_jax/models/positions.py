"""A model for images of another size: its table of image positions interpolated."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params


def resize_positions(
  positions: Float[Array, "N W"], grid: int | tuple[int, int], old_grid: tuple[int, int] | None = None
) -> Float[Array, "M W"]:
  """The position table for another grid: the class token's row, and the patches' interpolated bicubically.

  As PyTorch interpolates (`mode="bicubic", align_corners=False`, without antialiasing), computed in float32.

  Args:
    positions: [1 + h*w, W], row by row after the class token's.
    grid: the new one: (height, width) in patches, or the side of a square.
    old_grid: the table's own (height, width); by default it is square.

  Raises:
    ValueError: the table has not the rows of its grid.
  """
  rows, width = positions.shape
  side = math.isqrt(rows - 1)
  height, breadth = old_grid or (side, side)
  if height * breadth != rows - 1:
    described = f"a grid of {height} x {breadth}" if old_grid else "a square grid"
    raise ValueError(f"a table of {rows} positions is not that of a class token and {described}")
  new = (grid, grid) if isinstance(grid, int) else tuple(grid)
  if new == (height, breadth):
    return positions
  patches = positions[1:].reshape(height, breadth, width).astype(jnp.float32)
  patches = jax.image.resize(patches, (*new, width), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False)
  return jnp.concatenate([positions[:1], patches.reshape(-1, width).astype(positions.dtype)])


def resize(params: Params, config: ModelConfig, image_size: int) -> tuple[Params, ModelConfig]:
  """The same model for images of another side, in pixels; works on any of our image towers, and under jit.

  Raises:
    ValueError: the side is not a multiple of the model's patches.
  """
  resized = config.replace(vision={"image_size": image_size})
  if resized == config:
    return params, config
  positions = resize_positions(jnp.asarray(params["vision"]["positions"]), resized.vision.grid)
  return {**params, "vision": {**params["vision"], "positions": positions}}, resized
