"""Models with random parameters, for tests of what is built on models."""

import jax
import numpy as np

from fgclip_jax.models import params


def init(config, seed):
  """Random parameters, drawn by NumPy: nothing to compile."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), params.abstract_params(config))
