"""What tests of the public model share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
  """A picture that is not square, and the path of it as PNG; not to be written to."""
  picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (50, 40, 3), dtype=np.uint8))
  path = tmp_path_factory.mktemp("photos") / "a.png"
  picture.save(path)
  return picture, path
