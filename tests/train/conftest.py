"""Compiles training steps for tests, with the promotion of dtypes that Optax needs."""

import jax
import pytest


class QuickStep:
  """A jitted step, compiled once for each shape of batch."""

  def __init__(self, step):
    self._step, self._compiled = step, {}

  def __call__(self, state, batch):
    shapes = tuple((name, array.shape) for name, array in batch.items())
    if shapes not in self._compiled:
      with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
        self._compiled[shapes] = self._step.lower(state, batch).compile()
    return self._compiled[shapes](state, batch)


@pytest.fixture(scope="session")
def quick():
  """Makes a `QuickStep` of a jitted step."""
  return QuickStep
