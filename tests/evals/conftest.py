"""A tiny model with random weights, and pictures to measure it with."""

import jax
import numpy as np
import pytest
from PIL import Image

from fgclip_jax import api
from fgclip_jax.inference import all_devices
from fgclip_jax.models import parameters, presets

TINY = presets.preset("tiny")
PLAIN = TINY.replace(text={"long_length": None})


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), parameters.abstract_params(config)
  )


@pytest.fixture(scope="session")
def model() -> api.FGCLIP:
  """An FG-CLIP on one device."""
  return api.FGCLIP(TINY, random_params(TINY))


@pytest.fixture(scope="session")
def spread_model() -> api.FGCLIP:
  """The same model, spread over eight devices."""
  params = jax.device_put(random_params(TINY), jax.sharding.NamedSharding(all_devices(), jax.P()))
  return api.FGCLIP(TINY, params)


@pytest.fixture(scope="session")
def plain_model() -> api.FGCLIP:
  """A plain CLIP."""
  return api.FGCLIP(PLAIN, random_params(PLAIN))


@pytest.fixture
def draw():
  """Writes pictures of noise that differ: `draw(path, seed)`."""

  def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed % 5, 26, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)

  return write
