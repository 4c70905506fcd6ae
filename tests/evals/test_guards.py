"""What guards refuse, unless it is allowed."""

import numpy as np
import pytest

from fgclip_jax.evals import guards


def test_another_resolution_is_refused_unless_asked_for(model):
  assert guards.check_resolution(model) == []
  other = model.with_image_size(64).with_image_size(48)
  with pytest.raises(ValueError, match="48 x 48, and the model was trained on 32 x 32: .* --allow resolution"):
    guards.check_resolution(other, ("cut_texts",))
  assert guards.check_resolution(other, ("resolution",)) == ["images are 48 x 48, and the model was trained on 32 x 32"]
  assert guards.check_resolution(other.with_image_size(32)) == []
  with pytest.raises(ValueError, match="allow takes resolution, cut_texts, got 'all'"):
    guards.check_names(["all"])


def test_long_texts_are_refused_unless_asked_for(model, plain_model):
  long, short = "many words " * 60, "few words"
  found, notes = guards.encode_texts(model, [short, long, short], "long")
  assert notes == []
  np.testing.assert_array_equal(found[0], found[2])
  np.testing.assert_allclose(found, model.encode_text([short, long, short], "long"), atol=1e-6)
  for other, kind in ((model, "short"), (plain_model, "long"), (plain_model, "short")):
    with pytest.raises(ValueError, match="1 of 2 texts are longer than the 77 tokens.*--allow cut_texts"):
      guards.encode_texts(other, [short, long, short], kind)
    found, (note,) = guards.encode_texts(other, [short, long], kind, ("cut_texts",))
    assert "tokens were cut" in note and found.shape == (2, 16)
  found, notes = guards.encode_texts(plain_model, [short], "long")
  assert notes == []
