"""Compiles training steps for tests: quickly, and with the promotion of dtypes that Optax needs."""

import jax
import pytest

# A fifth of the time of an optimised compilation; for a handful of tiny steps that is what counts.
FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


class QuickStep:
  """A jitted step, compiled once for each shape of batch."""

  def __init__(self, step):
    self._step, self._compiled = step, {}

  def __call__(self, state, batch):
    shapes = tuple((name, array.shape) for name, array in batch.items())
    if shapes not in self._compiled:
      with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
        self._compiled[shapes] = self._step.lower(state, batch).compile(compiler_options=FAST)
    return self._compiled[shapes](state, batch)


@pytest.fixture(scope="session")
def quick():
  """Makes a `QuickStep` of a jitted step."""
  return QuickStep
