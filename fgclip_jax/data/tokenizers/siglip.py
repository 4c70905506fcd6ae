"""SigLIP 1's tokenizer: a SentencePiece model over lower-case text without punctuation (big_vision's `c4_en`).

The model is the `spiece.model` of a model folder, read by the library `sentencepiece`, which is installed only for it.
Ids equal those of transformers' `SiglipTokenizer`.
"""

import functools
import importlib
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fgclip_jax.data.tokenizers import files
from fgclip_jax.data.tokenizers.padded import PaddedTokenizer, as_texts
from fgclip_jax.storage.errors import first_line

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer(PaddedTokenizer):
  """Text to token ids; the end id also fills rows.

  Args:
    path: the `spiece.model`.

  Raises:
    FileNotFoundError: there is no such file.
    ImportError: `sentencepiece` is not installed.
    ValueError: it is no SentencePiece model.
  """

  start_id = None
  max_length = 64
  lower_case = True
  joins_words = False

  def __init__(self, path: str = ""):
    if not path:
      raise files.missing("siglip")
    self._path = path
    self.name = f"siglip, sha256 {files.hash_of(path)}"
    self.end_id = self.pad_id = int(self._backend.eos_id())
    self.vocab_size = int(self._backend.get_piece_size())

  @property
  def _backend(self) -> Any:
    return _backend(self._path)  # no attribute: a new process reads the file itself

  def encode_batch(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
    """The ids of each text, as `encode` returns them."""
    kept = self._room(length)
    rows = self._backend.encode([self.clean(text) for text in as_texts(texts)])
    return [[*ids[:kept], self.end_id] for ids in rows]

  def clean(self, text: str) -> str:
    """What is read of a text: in lower case, without ASCII punctuation, with single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())

  def pieces(self) -> list[str]:
    """The text of each id as it is in the vocabulary."""
    return [self._backend.id_to_piece(number) for number in range(self.vocab_size)]

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    """The text of these ids, end ids left out."""
    return self._backend.decode([number for number in map(int, ids) if number != self.end_id])


@functools.cache
def _backend(path: str) -> Any:
  try:
    sentencepiece = importlib.import_module("sentencepiece")  # not among what is always installed
  except ImportError as error:
    message = "SigLIP 1's tokenizer needs the package sentencepiece: pip install sentencepiece"
    raise ImportError(message) from error
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=files.read(path))
  except FileNotFoundError:
    raise
  except Exception as error:  # the library raises RuntimeError and OSError
    raise ValueError(f"{path} is no SentencePiece model: {first_line(error)}") from error
