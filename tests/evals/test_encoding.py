"""Embeddings of images as a stream."""

import numpy as np
import pytest

from fgclip_jax.evals.encoding import compute_ahead, encode_images
from fgclip_jax.storage.skip_report import SkipReport


def test_embeddings_do_not_depend_on_batches_or_devices(model, spread_model, files, monkeypatch):
  whole, numbers = encode_images(model, files, SkipReport())
  assert numbers.tolist() == [0, 2, 3, 6, 7]
  np.testing.assert_allclose(whole[0], model.encode_image(files[0])[0], atol=1e-6)
  for other, chunks in ((model, (1, 2)), (spread_model, (1, 4))):
    monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", chunks)
    found, again = encode_images(other, files, SkipReport())
    np.testing.assert_allclose(found, whole, atol=1e-6)
    np.testing.assert_array_equal(again, numbers)
  none, numbers = encode_images(model, files[1:2], SkipReport())
  assert none.shape == (0, 16) and numbers.shape == (0,)


def test_an_iterator_that_is_worked_ahead():
  assert list(compute_ahead(iter(range(5)))) == list(range(5))

  def broken():
    yield 1
    raise KeyError("two")

  found = compute_ahead(broken())
  assert next(found) == 1
  with pytest.raises(KeyError, match="two"):
    next(found)
