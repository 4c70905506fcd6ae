"""The tokenizer against recorded ids, against OpenAI's own tokenizer, and its limits."""

import concurrent.futures
import importlib.metadata
import importlib.util
import json
import pickle
import subprocess
import sys

import ftfy
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fgclip_jax.data.tokenizers import clip as module
from fgclip_jax.data.tokenizers.clip import Tokenizer

TOKENIZER = Tokenizer()
START, END = TOKENIZER.start_id, TOKENIZER.end_id


@pytest.mark.parametrize("length", [77, 248])
def test_ids_equal_the_recorded_ones(oracle, length):
  texts = json.loads((oracle / "common" / "tokens_texts.json").read_text(encoding="utf-8"))
  with np.load(oracle / "common" / "tokens.npz") as recorded:
    expected = recorded[f"ids_{length}"]
  ids = TOKENIZER(texts, length)
  different = [text for text, row, wanted in zip(texts, ids, expected, strict=True) if not np.array_equal(row, wanted)]
  assert different == []


@pytest.fixture(scope="module")
def openai():
  """OpenAI's tokenizer, loaded by its path: importing its package would import PyTorch."""
  path = importlib.metadata.distribution("openai-clip").locate_file("clip/simple_tokenizer.py")
  spec = importlib.util.spec_from_file_location("openai_simple_tokenizer", path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded.SimpleTokenizer()


# Without "&": OpenAI's tokenizer unescapes HTML twice, the reference leaves that to ftfy.
TEXTS = st.one_of(
  st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cn", "Cs"], exclude_characters="&\u017f\u0345")),
  st.text(st.sampled_from(" \t\n'sdtmlre abcXYZ019,.!?-_é一🐶"), max_size=60),
)


@given(text=TEXTS)
@example(text="It's the dogs' 3.5m-long BOWL, isn't it? I'll say they've won; we're 100% sure.")
@example(text="schÃ¶n “quoted” ﬁne ＦＵＬＬ\u3000WIDTH İ")
def test_ids_equal_openais(openai, text):
  assert TOKENIZER.encode(text) == [START, *openai.encode(text), END]


@given(text=st.text(st.characters(codec="ascii", exclude_characters="&"), max_size=40))
def test_leaving_ftfy_out_changes_nothing(text):
  assert (
    module._WHITESPACE.sub(" ", module._fix(text)).strip() == module._WHITESPACE.sub(" ", ftfy.fix_text(text)).strip()
  )


@given(text=TEXTS, length=st.integers(2, 12))
def test_cut_keeps_start_and_end(text, length):
  whole = TOKENIZER.encode(text)
  cut = TOKENIZER.encode(text, length)
  assert cut == (whole if len(whole) <= length else [*whole[: length - 1], END])
  row = TOKENIZER(text, length)
  assert row.shape == (1, length) and row.dtype == np.int32
  assert row[0].tolist() == cut + [END] * (length - len(cut))
  assert TOKENIZER.count(text) == len(whole)


def test_batches():
  texts = ["a photo of a cat", "", "一只猫 🐶", "word " * 5000]
  assert TOKENIZER.encode_batch(texts, 20) == [TOKENIZER.encode(text, 20) for text in texts]
  ids = TOKENIZER(texts)
  assert ids.shape == (4, 77)
  assert ids[0].tolist() == [START, 320, 1125, 539, 320, 2368] + [END] * 71
  assert ids[1].tolist() == [START] + [END] * 76
  assert ids[3, -1] == END and (ids[3, 1:-1] == ids[3, 1]).all()
  assert TOKENIZER.count(texts[3]) == 5002
  assert TOKENIZER([]).shape == (0, 77)


def test_special_tokens_within_a_text_become_their_ids():
  assert TOKENIZER.encode("<|startoftext|>a <|endoftext|> cat") == [START, START, 320, END, 2368, END]


def test_decode():
  assert TOKENIZER.decode(TOKENIZER("A  photo of\na CAT, naïve 🐶!")[0]) == "a photo of a cat , naïve 🐶!"
  assert TOKENIZER.decode([START, END]) == ""
  with pytest.raises(ValueError, match=r"token id 49408 is outside 0..49407"):
    TOKENIZER.decode([320, 49408])


def test_every_id_has_a_symbol_of_its_own():
  symbols = [TOKENIZER._backend.id_to_token(index) for index in range(TOKENIZER.vocab_size)]
  assert len(set(symbols)) == TOKENIZER.vocab_size == 49408
  assert symbols[START:] == ["<|startoftext|>", "<|endoftext|>"]


def test_pickle_and_threads():
  copy = pickle.loads(pickle.dumps(TOKENIZER))
  texts = [f"a photo of {i} cats" for i in range(200)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(copy.encode, texts)) == TOKENIZER.encode_batch(texts)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
  "wrong, kind", [(float("nan"), "float"), (None, "NoneType"), (b"cat", "bytes"), (["cat"], "list")]
)
def test_an_entry_that_is_no_text_is_named(wrong, kind):
  with pytest.raises(TypeError, match=f"entry 2 is {kind}"):
    TOKENIZER(["a", "b", wrong])
  with pytest.raises(TypeError, match=f"entry 0 is {kind}"):
    TOKENIZER.encode(wrong)


def test_wrong_arguments():
  with pytest.raises(ValueError, match="at least 2"):
    TOKENIZER(["a"], length=1)
  with pytest.raises(TypeError, match="sequence of str"):
    TOKENIZER.encode_batch("a cat")


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.metadata, "distribution", _no_distribution)
  with pytest.raises(FileNotFoundError, match="pip install openai-clip"):
    module._read_merges()


def _no_distribution(name):
  raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.slow
def test_imports_neither_jax_nor_pytorch(root):
  code = "import sys; from fgclip_jax.data.tokenizers.clip import Tokenizer; Tokenizer(); "
  code += "sys.exit(bool({'jax', 'torch'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
