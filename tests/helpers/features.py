"""Features of a stored model as this library computes them, for comparison with another's."""

import jax
import jax.numpy as jnp
import numpy as np

from fgclip_jax.data.packing import Example, Layout, assemble, cut
from fgclip_jax.models.params import build, unflatten
from fgclip_jax.weights import formats as folders

START, END = 49406, 49407


def texts(end_id=END, length=77):
  """Padded rows of ids of several lengths; under the rule of the largest id the padding need not be the end token."""
  rng = np.random.default_rng(1)
  ids = np.full((5, length), END if end_id == END else 0, np.int64)
  for row, words in zip(ids, (0, 1, 5, 30, length - 2), strict=True):
    row[: words + 2] = [START, *rng.integers(0, START, words), END]
  return ids


def images(side, count=3):
  """Normalised pixels, [count, 3, side, side] as PyTorch has them."""
  return np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32)


def features(path, pixels, ids, **options):
  """The features of images [B, 3, S, S] and of padded short texts [N, L], not normalised; and the logits' scale.

  `options` are those of `fgclip_jax.weights.formats.read`.
  """
  config, flat, _ = folders.read(str(path), **options)
  model = build(config, unflatten({name: jnp.asarray(value) for name, value in flat.items()}))
  image, _ = jax.jit(type(model).image_features)(model, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
  blank = np.zeros((1, 1, 3), np.uint8)
  layout = Layout(boxes=0, row_length=ids.shape[1] + 19, short_length=ids.shape[1], long_length=None)
  batch = assemble([Example(blank, cut(row, config.text.end_id)) for row in ids], 1, layout)
  row, end = np.divmod(batch["short_eot"][0], layout.row_length)
  packed = (jnp.asarray(batch[key][0]) for key in ("tokens", "segment", "position"))
  text = jax.jit(type(model).text_features)(model, *packed, jnp.asarray(row), jnp.asarray(end))
  return np.asarray(image), np.asarray(text), np.exp(flat["temperature/global"])


def assert_close(ours, theirs, tolerance=1e-5):
  """Within the tolerance of the largest value."""
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
