"""Texts of models that read padding: by strings and by ids, and ids that were made another way."""

import numpy as np
import pytest

from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from tests.helpers.gemma import write_small
from tests.helpers.toy_models import init

FGCLIP2 = presets.preset("tiny_fgclip2")
TEXTS = ["a red cup", "A DOG runs"]


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(FGCLIP2, init(FGCLIP2, 0))


def test_strings_and_padded_ids_give_the_same_embeddings(model):
  for kind, length in (("short", 16), ("region", 16), ("long", 48)):
    ids = model.tokenizer(TEXTS, length)
    found = model.encode_text(TEXTS, kind)
    np.testing.assert_allclose(found, model.encode_text(ids, kind), atol=1e-6)
    np.testing.assert_allclose(found[1:], model.encode_text([ids[1].tolist()], kind), atol=1e-6)
    np.testing.assert_allclose(found[1:], model.encode_text("a dog runs", kind), atol=1e-6)
  assert np.abs(model.encode_text(TEXTS) - model.encode_text(TEXTS, "region")).max() > 1e-3


def test_ids_made_another_way_are_refused_unless_asked_for(model):
  ids = model.tokenizer(TEXTS, 16)
  end, pad = FGCLIP2.text.end_id, FGCLIP2.text.pad_id
  with pytest.raises(
    ValueError, match=r"padded to exactly 16, got a row of 12: .*model.tokenizer\(text, 16\).*as_is=True"
  ):
    model.encode_text(ids[:, :12])
  with pytest.raises(ValueError, match="padded to exactly 48, got a row of 16"):
    model.encode_text(ids, "long")
  with pytest.raises(ValueError, match="padded to exactly 16, got a row of 48"):  # a long text through the short path
    model.encode_text(model.tokenizer(TEXTS, 48))
  with pytest.raises(ValueError, match=r"token ids must lie in 0..49407, got 0..256000"):
    model.encode_text(np.where(ids == end, 256000, ids))
  with pytest.raises(ValueError, match=f"row 0 has no end id {end}"):
    model.encode_text(np.where(ids == end, pad, ids))
  with pytest.raises(ValueError, match=f"row 0 is not filled with the id {pad} behind its end id"):
    model.encode_text(np.where(ids == pad, 5, ids))
  shorter = model.encode_text(ids[:, :12], as_is=True)
  assert np.abs(shorter - model.encode_text(ids)).max() > 1e-3  # other numbers: it is read at another position
  with pytest.warns(
    UserWarning, match="2 of 2 texts are longer than the 16 tokens of kind='short': 64 tokens were cut"
  ):
    model.encode_text(model.tokenizer(TEXTS, 48), as_is=True)


def test_texts_that_are_too_long_keep_their_end(model):
  long = "word " * 60
  with pytest.warns(UserWarning, match="1 of 1 texts are longer than the 16 tokens .*; kind='long' reads 48"):
    found = model.encode_text(long)
  np.testing.assert_allclose(found, model.encode_text("word " * 14), atol=1e-6)
  with pytest.raises(ValueError, match="1 of 1 texts are longer than the 16 tokens of kind='short'"):
    model.encode_text(long, truncate=False)


def test_another_vocabulary_is_refused():
  config = FGCLIP2.replace(text={"vocab_size": 300, "end_id": 1, "pad_id": 0})
  model = api.FGCLIP(config, init(config, 0))
  with pytest.raises(ValueError, match="the tokenizer 'clip_padded' has 49,408 ids, .* the model has 300, 1 and 0"):
    model.encode_text("a")
  ids = np.zeros((1, 16), np.int32)
  ids[0, :3] = 7, 9, 1
  assert model.encode_text(ids).shape == (1, 32)


def test_upper_case_is_left_where_that_is_asked_for(tmp_path):
  name = f"gemma:{write_small(tmp_path / 'tokenizer.json')}"
  config = FGCLIP2.replace(text={"vocab_size": 400, "end_id": 1, "pad_id": 0, "tokenizer": name})
  model = api.FGCLIP(config, init(config, 0))
  lower, upper = model.encode_text(["a cat", "A CAt"]), model.encode_text(["a cat", "A CAt"], as_written=True)
  np.testing.assert_array_equal(lower[0], lower[1])
  np.testing.assert_allclose(upper[0], lower[0], atol=1e-6)
  ids = model.tokenizer.as_written()(["A CAt"], 16)
  np.testing.assert_allclose(upper[1:], model.encode_text(ids, as_is=True), atol=1e-6)
  assert np.abs(upper[1] - lower[1]).max() > 1e-3
  with pytest.raises(ValueError, match="row 0 has the id .* of 'A', and the model reads lower case"):
    model.encode_text(ids)
