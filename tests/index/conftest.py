"""A toy model, pictures of noise, and an index of them."""

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config
from tests.helpers.toy_models import init

TINY = config.preset("tiny")


@pytest.fixture(scope="package")
def model():
  return FGCLIP(TINY, init(TINY, 0))


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
  """Ten pictures in two folders, a file that is no picture, and one that is not asked for."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(1)
  for number in range(10):
    path = folder / ("b" if number % 2 else "a") / f"{number}.png"
    path.parent.mkdir(exist_ok=True)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((30, 20 + number), Image.Resampling.NEAREST).save(path)
  (folder / "b" / "broken.jpg").write_bytes(b"no picture")
  (folder / "notes.md").write_text("not asked for")
  return folder


@pytest.fixture(scope="package")
def index_folder(model, photos, tmp_path_factory):
  pytest.importorskip("usearch", reason="needs usearch, see requirements-serve.txt")
  from fgclip_jax.index import build

  folder = str(tmp_path_factory.mktemp("index"))
  build.build(model, "toy", [str(photos)], folder, scales=(2,))
  return folder
