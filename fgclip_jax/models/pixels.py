"""Normalisation of pixels on devices; `data.image.normalize` does the same on the host."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec


def normalize(levels: UInt8[Array, "*B S S 3"], pixels: PixelSpec = CLIP_PIXELS) -> Float[Array, "*B S S 3"]:
  """RGB levels 0..255 to the float32 values that an image tower reads."""
  mean, std = (jnp.asarray(values, jnp.float32) for values in (pixels.mean, pixels.std))
  return (levels.astype(jnp.float32) / 255 - mean) / std
