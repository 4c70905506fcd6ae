"""Normalisation of pixels on devices; `data.image.normalize` does the same on the host."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec


def normalize(levels: UInt8[Array, "*B h w 3"], pixels: PixelSpec = CLIP_PIXELS) -> Float[Array, "*B h w 3"]:
  """RGB levels 0..255 to the float32 values that an image tower reads."""
  mean, std = (jnp.asarray(values, jnp.float32) for values in (pixels.mean, pixels.std))
  return (levels.astype(jnp.float32) / 255 - mean) / std


def normalize_patches(
  levels: UInt8[Array, "*B N X"], segment: Int[Array, "*B N"], pixels: PixelSpec = CLIP_PIXELS
) -> Float[Array, "*B N X"]:
  """Packed patches of RGB levels, channel last, to the float32 values that an image tower reads; 0 in empty slots."""
  values = normalize(levels.reshape(*levels.shape[:-1], -1, 1, 3), pixels).reshape(levels.shape)
  return jnp.where(segment[..., None] > 0, values, 0.0)
