"""Gemma's tokenizer: the recorded ids where its file is there, and a small one of the same kind everywhere."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from fgclip_jax.data.tokenizers import Tokenizer as Protocol
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.data.tokenizers.gemma import Tokenizer
from fgclip_jax.data.tokenizers.padded import as_texts
from tests.helpers.gemma import find_gemma, write_small


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> str:
  return str(write_small(tmp_path_factory.mktemp("gemma") / "tokenizer.json"))


def test_ids_are_the_recorded_ones(shared):
  folder = shared / "oracle_fgclip2" / "common"
  texts, recorded = json.loads((folder / "tokens_texts.json").read_text()), np.load(folder / "tokens.npz")
  tokenizer = get_tokenizer(f"gemma:{find_gemma()}")
  assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.pad_id) == (256000, 1, 0)
  for length in (64, 196):
    np.testing.assert_array_equal(tokenizer(texts, length), recorded[f"ids_{length}"])
  np.testing.assert_array_equal(tokenizer.as_written()(texts, 64), recorded["ids_64_as_written"])


def test_rows_are_lower_case_end_and_are_filled_to_their_length(small):
  tokenizer = get_tokenizer(f"gemma:{small}")
  assert isinstance(tokenizer, Protocol) and tokenizer is get_tokenizer(f"gemma:{small}")
  cat, space_cat = (tokenizer.encode(text) for text in ("cat", " cat"))
  assert len(cat) == len(space_cat) == 2 and cat != space_cat and cat[-1] == tokenizer.end_id == 1
  assert tokenizer.encode("A CAT") == tokenizer.encode("a cat") == [*tokenizer.encode("a")[:1], *space_cat]
  rows = tokenizer(["a cat", "cats " * 99])
  assert rows.shape == (2, tokenizer.max_length) == (2, 64) and rows.dtype == np.int32
  assert rows[0].tolist() == [*tokenizer.encode("a cat"), *[0] * 61]
  assert rows[1, -1] == 1 and (rows[1, :-1] != 0).all()  # the end survives the cut
  assert tokenizer("a cat", 196).shape == (1, 196)
  assert tokenizer.encode("") == [1] and tokenizer.encode("a cat", 2)[1:] == [1]
  assert tokenizer.count("a cat") == 3
  assert tokenizer.decode(tokenizer.encode("a CAT, é")) == "a cat, é"  # é as two bytes
  assert tokenizer.encode("a  cat")[1] != tokenizer.encode("a cat")[1]  # spaces are kept
  written = tokenizer.as_written()
  assert written.encode("A") != written.encode("a") == tokenizer.encode("A")
  assert not written.lower_case and written.clean("A") == "A" and tokenizer.clean("A") == "a"


def test_equal_names_mean_equal_files(small, tmp_path):
  other = pathlib.Path(tmp_path, "copy.json")
  other.write_bytes(pathlib.Path(small).read_bytes())
  tokenizer = Tokenizer(small)
  assert tokenizer.name == Tokenizer(str(other)).name and tokenizer.name.startswith("gemma, sha256 ")
  assert len(tokenizer.name) == len("gemma, sha256 ") + 64
  assert tokenizer.as_written().name == f"{tokenizer.name}, as written"
  text = json.loads(pathlib.Path(small).read_text())
  text["model"]["merges"] = text["model"]["merges"][:-1]
  pathlib.Path(tmp_path, "other.json").write_text(json.dumps(text))
  assert Tokenizer(str(tmp_path / "other.json")).name != tokenizer.name
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again.name == tokenizer.name and again.encode("a cat") == tokenizer.encode("a cat")


def test_a_file_that_is_missing_or_no_tokenizer_is_named(small, tmp_path):
  with pytest.raises(FileNotFoundError, match="'gemma' is read from a model's own tokenizer.json, and there is none"):
    get_tokenizer("gemma")
  with pytest.raises(FileNotFoundError, match="none.json"):
    Tokenizer(str(tmp_path / "none.json"))
  broken = tmp_path / "broken.json"
  for data in (b"", b"{}", b"\xff\xfe", pathlib.Path(small).read_bytes()[:-9]):
    broken.with_name(f"{len(data)}.json").write_bytes(data)
    with pytest.raises(ValueError, match=rf"{len(data)}.json is no tokenizer.json that the library `tokenizers` reads"):
      Tokenizer(str(broken.with_name(f"{len(data)}.json")))
  text = json.loads(pathlib.Path(small).read_text())
  text["added_tokens"] = []
  del text["model"]["vocab"]["<eos>"]
  broken.write_text(json.dumps(text))
  with pytest.raises(ValueError, match="broken.json has no token <eos>: it is no tokenizer of Gemma's"):
    Tokenizer(str(broken))


def test_texts_that_are_none_are_refused(small):
  tokenizer = Tokenizer(small)
  with pytest.raises(TypeError, match="a text must be str, but entry 1 is int: 3"):
    as_texts(["a", 3])
  with pytest.raises(TypeError, match="takes a sequence of str"):
    tokenizer.encode_batch("a")
  with pytest.raises(ValueError, match="length must be at least 1, for the end id, got 0"):
    tokenizer.encode("a", 0)
