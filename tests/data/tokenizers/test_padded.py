"""The guard of ids that a model that reads padding is given."""

import dataclasses

import numpy as np
import pytest

from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.data.tokenizers.padded import check_ids, check_tokenizer
from fgclip_jax.models.config import preset
from tests.helpers.gemma import write_small


@pytest.fixture(scope="module")
def small_name(tmp_path_factory):
  return f"gemma:{write_small(tmp_path_factory.mktemp('gemma') / 'tokenizer.json')}"


@pytest.fixture(scope="module")
def small(small_name):
  return get_tokenizer(small_name)


TEXTS = ["a cat", "", "cats " * 99, "é, 1 <eos> more", "ünï"]


def test_the_tokenizers_own_rows_are_taken(small):
  check_ids(small(TEXTS, 16), small, 16, 400)
  clip = get_tokenizer("clip_padded")
  check_ids(clip([*TEXTS, "A Café ÀÉ"], 16), clip, 16, 49408)


def test_rows_made_another_way_are_refused(small):
  def refuse(ids: np.ndarray, message: str, length: int = 16, vocab_size: int = 400) -> None:
    with pytest.raises(ValueError, match=message) as found:
      check_ids(ids, small, length, vocab_size)
    assert "encode texts by the model's own tokenizer, padded to" in str(found.value)

  good = small(TEXTS, 16)
  refuse(small(TEXTS, 12), r"ids must be \[texts, 16\], got \[5, 12\]")
  refuse(good[0], r"ids must be \[texts, 16\], got \[16\]")
  refuse(np.where(good == 1, 399, good), "row 0 has no end id 1")
  refuse(np.where(good == 0, 3, good), "row 0 is not filled with the id 0 behind its end id")
  refuse(good + 380, "outside the model's vocabulary of 400")
  refuse(good - 1, "row 0 has the id -1, outside")
  refuse(small.as_written()(["a cat", "A cat"], 16), "row 1 has the id .* of 'A', and the model reads lower case")
  check_ids(small.as_written()(["A cat"], 16), small.as_written(), 16, 400)  # a model that reads them so
  refuse(get_tokenizer("clip")(TEXTS, 16), "outside the model's vocabulary")


def test_a_tokenizer_of_another_model_is_refused(small_name):
  text = preset("tiny_fgclip2").text
  check_tokenizer(text)
  check_tokenizer(preset("tiny").text)  # reads no padding
  for name, changes in (("clip", {}), ("clip_padded", {"vocab_size": 100}), ("clip_padded", {"end_id": 1})):
    with pytest.raises(ValueError, match=r"has 49,408 ids, 49407 at the end of a text and .* behind it; the model has"):
      check_tokenizer(dataclasses.replace(text, tokenizer=name, **changes))
  with pytest.raises(
    ValueError, match="ids, 1 at the end of a text and 0 behind it; the model has 49,408, 49407 and 0"
  ):
    check_tokenizer(dataclasses.replace(text, tokenizer=small_name))
  with pytest.raises(FileNotFoundError, match="'gemma' is read from a model's own tokenizer.json"):
    check_tokenizer(preset("fgclip2_b16").text)
