"""What a model with text-conditioned pooling does beside, against the module itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config
from fgclip_jax.models.fgclip import unit_length
from fgclip_jax.models.params import build
from tests.helpers.toy_models import init

SQUARES = config.preset("tiny").replace(text_pooling={"heads": 2})
ANY_SHAPE = config.preset("tiny_fgclip2").replace(text_pooling={"heads": 2})


def pictures():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 30), (20, 60), (33, 33))]


@pytest.mark.parametrize("size", [SQUARES, ANY_SHAPE], ids=["squares", "any shape"])
def test_pooling_is_that_of_the_module_for_grids_of_any_shape(size, monkeypatch):
  monkeypatch.setattr("fgclip_jax.inference.text_pooling._TEXTS", 2)  # several parts, the last one filled up
  params = init(size, 0)
  model, module = FGCLIP(size, params), build(size, params)
  dense, text = model.encode_dense(pictures()), model.encode_text(["a cat", "two dogs", "no bird"], "region")
  assert len({each.shape for each in dense}) == (1 if size is SQUARES else 3)
  cosines, attention = model.conditioned_similarity(dense, text), model.text_attention(dense, text)
  assert cosines.shape == (3, 3) and len(attention) == 3
  for number, features in enumerate(dense):
    patches = jnp.asarray(features).reshape(1, -1, features.shape[-1])
    pooled = unit_length(module.text_pooling(patches, jnp.asarray(text)[None])[0])
    np.testing.assert_allclose(cosines[number], jnp.sum(pooled * text, axis=-1), atol=1e-5)
    shares = module.text_pooling.weights(patches, jnp.asarray(text)[None])[0].mean(axis=0)
    np.testing.assert_allclose(attention[number], shares.reshape(3, *features.shape[:2]), atol=1e-6)
    assert (attention[number].sum(axis=(1, 2)) < 1).all()
    values = model.patch_values(features)
    np.testing.assert_allclose(values, unit_length(module.text_pooling.values(jnp.asarray(features))), atol=1e-5)


def test_what_cannot_be_is_said():
  plain = FGCLIP(config.preset("tiny"), init(config.preset("tiny"), 0))
  text, dense = np.ones((1, 16), np.float32), np.ones((1, 4, 4, 16), np.float32)
  for call in (lambda: plain.conditioned_similarity(dense, text), lambda: plain.patch_values(dense)):
    with pytest.raises(ValueError, match="this model has no text-conditioned pooling: train one"):
      call()
  model = FGCLIP(SQUARES, init(SQUARES, 0))
  with pytest.raises(ValueError, match=r"needs features \[h, w, D\] with D = 16, got \[4, 4, 8\]"):
    model.conditioned_similarity(dense[..., :8], text)
  with pytest.raises(ValueError, match=r"needs embeddings of texts \[N, D\], got \[16\]"):
    model.text_attention(dense, text[0])
