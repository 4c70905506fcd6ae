"""SigLIP 1's tokenizer, with a small SentencePiece model made here; transformers' ids where it is installed."""

import io

import numpy as np
import pytest

from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.data.tokenizers.padded import check_ids
from fgclip_jax.data.tokenizers.siglip import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
TEXTS = ["A photo of a cat!", "  two   dogs, (one brown)\n", "", "it's 3 o'clock: ok?", "cat " * 99, "ÉCOLE № 5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """T5's kind of model, as SigLIP has: `</s>` is id 1, there is no `<s>`."""
  model = io.BytesIO()
  words = "a photo of the cat dog two dogs one brown red it is three clock ok and more words to learn from".split()
  rng = np.random.default_rng(0)
  sentences = (" ".join(rng.choice(words, 8)) for _ in range(300))
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=sentences, model_writer=model, vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    minloglevel=9,
  )  # fmt: skip
  path = tmp_path_factory.mktemp("siglip")
  (path / "spiece.model").write_bytes(model.getvalue())
  return path


def test_rows_are_cleaned_end_and_are_filled_with_the_end(folder):
  tokenizer = get_tokenizer(f"siglip:{folder / 'spiece.model'}")
  assert (tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size, tokenizer.start_id) == (1, 1, 40, None)
  assert tokenizer.clean(TEXTS[1]) == "two dogs one brown" and tokenizer.encode("") == [1]
  assert tokenizer.encode("A photo, of a CAT.") == tokenizer.encode("a photo of a cat")
  rows = tokenizer(TEXTS)
  assert rows.shape == (len(TEXTS), 64) and (rows[:, -1] == 1).all()
  assert tokenizer.decode(rows[0]) == "a photo of a cat"
  check_ids(rows, tokenizer, 64, 40)
  with pytest.raises(ValueError, match="row 0 is not filled with the id 1 behind its end id"):
    check_ids(np.r_["1", rows[:, :-1], np.zeros((len(TEXTS), 1), np.int32)], tokenizer, 64, 40)


def test_ids_are_those_of_transformers(folder):
  transformers = pytest.importorskip("transformers")
  reference = transformers.SiglipTokenizer(str(folder / "spiece.model"))
  expected = reference(TEXTS, padding="max_length", max_length=64, truncation=True)["input_ids"]
  np.testing.assert_array_equal(Tokenizer(str(folder / "spiece.model"))(TEXTS, 64), expected)


def test_a_file_that_is_missing_or_no_model_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="'siglip' is read from a model's own spiece.model, and there is none"):
    get_tokenizer("siglip")
  path = tmp_path / "spiece.model"
  path.write_bytes(b"no model")
  with pytest.raises(ValueError, match="spiece.model is no SentencePiece model"):
    Tokenizer(str(path))
