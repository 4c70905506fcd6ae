"""Tokenizers by name: the registry, what each must have, and a model's and a loader's own."""

import subprocess
import sys

import numpy as np
import pytest

import fgclip_jax
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.dataset_folder import write_info
from fgclip_jax.data.examples import LoadExample
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import Layout
from fgclip_jax.data.tokenizers import DEFAULT_TOKENIZER, TOKENIZERS, Tokenizer, files, get_tokenizer
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models.config import TextConfig, preset
from tests.helpers.toy import RECORDS, write_shards
from tests.helpers.toy_models import init


class Letters:
  """Ids 3 to 28 for a to z, 1 at the end and 0 behind it; no start."""

  name = "letters"
  start_id, end_id, pad_id, vocab_size = None, 1, 0, 29
  max_length, lower_case, joins_words = 12, True, False

  def encode(self, text, length=None):
    ids = [ord(letter) - ord("a") + 3 for letter in self.clean(text)]
    return [*ids[: length and length - 1], self.end_id]

  def encode_batch(self, texts, length=None):
    return [self.encode(text, length) for text in texts]

  def decode(self, ids):
    return "".join(chr(number + ord("a") - 3) for number in ids if number > 2)

  def __call__(self, texts, length=max_length):
    rows = self.encode_batch([texts] if isinstance(texts, str) else texts, length)
    return np.asarray([row + [self.pad_id] * (length - len(row)) for row in rows], np.int32)

  def clean(self, text):
    return "".join(letter for letter in text.lower() if "a" <= letter <= "z")


@pytest.fixture
def letters(monkeypatch) -> Tokenizer:
  monkeypatch.setitem(TOKENIZERS, "letters", f"{__name__}:Letters")
  yield get_tokenizer("letters")
  get_tokenizer.cache_clear()


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in files.FILES])
def test_each_has_what_the_protocol_asks_for(name):
  tokenizer = get_tokenizer(name)
  assert isinstance(tokenizer, Tokenizer) and get_tokenizer(name) is tokenizer
  ids = tokenizer.encode("a cat")
  assert tokenizer.encode_batch(["a cat", "a"])[0] == ids and ids[-1] == tokenizer.end_id
  rows = tokenizer(["a cat"])
  assert rows.dtype == np.int32 and rows.shape == (1, tokenizer.max_length)
  np.testing.assert_array_equal(rows[0], ids + [tokenizer.pad_id] * (tokenizer.max_length - len(ids)))
  assert (tokenizer.encode("A Cat") == ids) == tokenizer.lower_case
  assert tokenizer.encode(tokenizer.clean("  a  cat ")) == ids


def test_clip_is_the_default_of_models_and_of_what_has_none():
  assert DEFAULT_TOKENIZER == TextConfig.tokenizer == "clip"
  assert type(get_tokenizer()) is fgclip_jax.Tokenizer


def test_an_unknown_name_is_refused_with_the_names():
  with pytest.raises(ValueError, match="there is no tokenizer 'word2vec': choose of clip"):
    get_tokenizer("word2vec")


def test_slow_packages_are_imported_when_a_tokenizer_is_first_asked_for():
  code = (
    "import sys, fgclip_jax.data.loader, fgclip_jax.prepare.sources.scenes\n"
    "from fgclip_jax.data import tokenizers\n"
    "slow = {'ftfy', 'tokenizers'}\n"
    "assert not slow & set(sys.modules)\n"
    "tokenizers.get_tokenizer('clip')\n"
    "assert slow <= set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_model_reads_texts_by_the_tokenizer_that_it_names(letters):
  config = preset("tiny").replace(text={"vocab_size": 29, "end_id": 1, "tokenizer": "letters"})
  model = FGCLIP(config, init(config, 0))
  assert model.tokenizer is letters
  np.testing.assert_array_equal(model.encode_text(["a cat"]), model.encode_text([[3, 5, 3, 22, 1]]))
  other = FGCLIP(config.replace(text={"vocab_size": 40}), init(config.replace(text={"vocab_size": 40}), 0))
  with pytest.raises(ValueError, match="vocabulary of 40 tokens and its tokenizer 'letters' 29: give token ids"):
    other.encode_text(["a cat"])


@pytest.mark.parametrize("prefix", ["", "photo of "])
def test_a_loader_makes_the_ids_of_the_tokenizer_that_its_layout_names(letters, tmp_path, prefix):
  """Ids that are stored are another tokenizer's, and made again."""
  write_shards(tmp_path, [RECORDS[6]])
  write_info(str(tmp_path), {"tokenizer": get_tokenizer("clip").name})
  config, layout = DataConfig(path=str(tmp_path), short_prefix=prefix, region_text="short"), Layout(tokenizer="letters")
  load = LoadExample(Mixture([DataSet(str(tmp_path), "train")]), config, layout, None)
  example = load.random_map(0, np.random.default_rng(0)).example
  assert list(example.short.ids) == letters.encode(prefix + RECORDS[6].short, 77)
  expected = [letters.encode(region.short, 77) for region in RECORDS[6].regions[: layout.boxes]]
  assert [list(caption.ids) for caption in example.regions] == expected
