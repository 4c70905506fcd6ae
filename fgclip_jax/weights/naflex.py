"""SigLIP for square pictures and for pictures of any shape (NaFlex), each made of the other.

A patch's embedding is a convolution in one and a linear layer in the other: the same array here. What differs is the
table of positions, which NaFlex resizes for each picture.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from fgclip_jax.models.config import ModelConfig, NaflexVisionConfig, SiglipVisionConfig
from fgclip_jax.models.siglip import grid_weights

Flat = dict[str, np.ndarray]
_SAME = (
  "width", "depth", "heads", "mlp_width", "activation", "layer_norm_eps", "patch_size", "pixels", "dense_head",
)  # fmt: skip


def to_naflex(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  """Makes a SigLIP for square pictures one for pictures of any shape; one that is stays as it is.

  Pictures of the old size give the same features. Nothing has learned other shapes yet. The patch budget where none is
  asked for is the number of patches of the squares.

  Raises:
    ValueError: it is no SigLIP.
  """
  _check(config)
  if config.vision.takes_patches:
    return config, dict(flat)
  grid = config.vision.grid
  vision = NaflexVisionConfig(**_shared(config), position_grid=grid, max_patches=grid * grid)
  return dataclasses.replace(config, vision=vision), dict(flat)


def to_squares(
  config: ModelConfig, flat: Mapping[str, np.ndarray], image_size: int | None = None
) -> tuple[ModelConfig, Flat]:
  """Makes a SigLIP for pictures of any shape one for squares; one that is stays as it is.

  Args:
    config, flat: the model.
    image_size: the squares' side in pixels, to which the positions are resized as NaFlex does, so that such squares
      have the same features as before. By default the size that the table of positions fits as it is.

  Raises:
    ValueError: it is no SigLIP, or the side is less than a patch.
  """
  _check(config)
  if not config.vision.takes_patches:
    return config, dict(flat)
  vision = SiglipVisionConfig(**_shared(config), image_size=image_size or config.vision.image_size)
  old, new = config.vision.grid, vision.grid
  table = flat["vision/positions"]
  if old != new:
    weights = grid_weights(jnp.arange(new), jnp.full(new, new), old)
    grid = jnp.asarray(table, jnp.float32).reshape(old, old, -1)
    resized = jnp.einsum("ha,wb,abd->hwd", weights, weights, grid, precision="highest")
    table = np.asarray(resized.reshape(new * new, -1)).astype(table.dtype)
  return dataclasses.replace(config, vision=vision), {**flat, "vision/positions": table}


def _check(config: ModelConfig) -> None:
  if config.vision.type not in ("siglip", "naflex"):
    raise ValueError(f"pictures of any shape are for SigLIP's towers, and the model has a {config.vision.label}")


def _shared(config: ModelConfig) -> dict:
  return {name: getattr(config.vision, name) for name in _SAME}
