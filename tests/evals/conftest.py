"""A tiny model with random weights, and pictures to measure it with."""

import jax
import numpy as np
import pytest
from PIL import Image

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.inference.programs import all_devices
from fgclip_jax.models import config
from tests.helpers.toy_models import init

TINY = config.preset("tiny")
PLAIN = TINY.replace(text={"long_length": None})


@pytest.fixture(scope="session")
def model() -> FGCLIP:
  """An FG-CLIP on one device."""
  return FGCLIP(TINY, init(TINY, 0))


@pytest.fixture(scope="session")
def spread_model() -> FGCLIP:
  """The same model, spread over eight devices."""
  params = jax.device_put(init(TINY, 0), jax.sharding.NamedSharding(all_devices(), jax.P()))
  return FGCLIP(TINY, params)


@pytest.fixture(scope="session")
def plain_model() -> FGCLIP:
  """A plain CLIP."""
  return FGCLIP(PLAIN, init(PLAIN, 0))


@pytest.fixture
def draw():
  """Writes pictures of noise that differ: `draw(path, seed)`."""

  def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed % 5, 26, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)

  return write


@pytest.fixture
def files(tmp_path, draw):
  """Nine sources, three of which cannot be used."""
  made = [draw(tmp_path / f"{seed}.png", seed) for seed in range(6)]
  (tmp_path / "broken.png").write_bytes(b"no picture")
  array = np.asarray(Image.open(made[4]))
  lazy = lambda: Image.open(made[5])  # noqa: E731
  return [made[0], str(tmp_path / "none.png"), *made[1:3], str(tmp_path / "broken.png"), str(tmp_path), array, lazy]
