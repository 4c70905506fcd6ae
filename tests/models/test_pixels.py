"""Normalisation on devices is that on the host, for any mean and deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.data.image import normalize as normalize_on_host
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.models.pixels import normalize

LEVELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
  "pixels", [CLIP_PIXELS, PixelSpec(mean=(0.5,) * 3, std=(0.5,) * 3), PixelSpec((0, 0, 0), (1, 2, 3))]
)
def test_devices_and_host_agree(pixels):
  expected = (LEVELS / 255 - np.asarray(pixels.mean)) / np.asarray(pixels.std)
  found = jax.jit(normalize, static_argnums=1)(jnp.asarray(LEVELS), pixels)
  assert found.dtype == np.float32 and normalize_on_host(LEVELS, pixels).dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=2e-6)
  np.testing.assert_allclose(normalize_on_host(LEVELS, pixels), expected, atol=2e-6)
