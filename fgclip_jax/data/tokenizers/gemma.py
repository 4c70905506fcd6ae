"""Gemma's tokenizer as SigLIP 2 and FG-CLIP 2 use it: lower-cased text to byte-pair ids and an end id, then padding.

Its merges come from the `tokenizer.json` of a model folder, read by the library `tokenizers`. Ids equal those of
transformers' `GemmaTokenizerFast` with `add_bos_token=False, add_eos_token=True`, given lower-cased texts.
"""

import functools
import os
from collections.abc import Iterable, Sequence

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes of their own

import numpy as np
import tokenizers

from fgclip_jax.data.tokenizers import files
from fgclip_jax.data.tokenizers.padded import PaddedTokenizer, as_texts
from fgclip_jax.storage.errors import first_line

END, PAD = "<eos>", "<pad>"


class Tokenizer(PaddedTokenizer):
  """Text to token ids; reads its file when the first text is encoded, once per process.

  Args:
    path: the `tokenizer.json`.
    lower_case: texts are lower-cased, as in all published training and evaluation; False leaves them as written.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no tokenizer's, or has no `<eos>` or `<pad>`.
  """

  start_id = None
  max_length = 64
  joins_words = False  # a space belongs to the word behind it

  def __init__(self, path: str = "", lower_case: bool = True):
    if not path:
      raise files.missing("gemma")
    self._path, self.lower_case = path, lower_case
    self.name = f"gemma, sha256 {files.hash_of(path)}{'' if lower_case else ', as written'}"
    self.end_id, self.pad_id = (self._special(token) for token in (END, PAD))
    self.vocab_size = self._backend.get_vocab_size()

  @property
  def _backend(self) -> tokenizers.Tokenizer:
    return _backend(self._path)  # no attribute: a new process reads the file itself

  def _special(self, token: str) -> int:
    number = self._backend.token_to_id(token)
    if number is None:
      raise ValueError(f"{self._path} has no token {token}: it is no tokenizer of Gemma's")
    return number

  def encode_batch(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
    """The ids of each text, as `encode` returns them."""
    kept = self._room(length)
    cleaned = [self.clean(text) for text in as_texts(texts)]
    encodings = self._backend.encode_batch_fast(cleaned, add_special_tokens=False)
    return [[*encoding.ids[:kept], self.end_id] for encoding in encodings]

  def as_written(self) -> "Tokenizer":
    """The same tokenizer, which leaves texts as they are written."""
    return Tokenizer(self._path, lower_case=False)

  def clean(self, text: str) -> str:
    """What is read of a text: its lower-case form."""
    return text.lower() if self.lower_case else text

  def pieces(self) -> list[str]:
    """The text of each id as it is in the vocabulary."""
    backend = self._backend
    return [backend.id_to_token(number) or "" for number in range(self.vocab_size)]

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    """The text of these ids, special tokens left out."""
    return self._backend.decode([int(number) for number in ids])


@functools.cache
def _backend(path: str) -> tokenizers.Tokenizer:
  try:
    backend = tokenizers.Tokenizer.from_buffer(files.read(path))
  except FileNotFoundError:
    raise
  except Exception as error:  # the library raises `Exception` itself
    raise ValueError(f"{path} is no tokenizer.json that the library `tokenizers` reads: {first_line(error)}") from error
  backend.no_truncation()
  backend.no_padding()
  return backend
