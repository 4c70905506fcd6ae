"""Set up for the tests of losses."""

import jax
import pytest


@pytest.fixture
def float64():
  """Double precision, in which two correct forms agree to 1e-12."""
  with jax.enable_x64(True):
    yield
