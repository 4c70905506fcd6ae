"""Tokenizers by name. The text tower's config names a model's own; what has no model takes `DEFAULT_TOKENIZER`.

A new one is a class that fits `Tokenizer`, and a line in `TOKENIZERS`. One that is read from a model's own file is
named with it, `NAME:PATH`; `files.locate` finds the file.
"""

import functools
import importlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from fgclip_jax.data.tokenizers import files

DEFAULT_TOKENIZER = "clip"
# name: module and class; imported when first asked for, since ftfy and tokenizers take long to import
TOKENIZERS = {
  "clip": "fgclip_jax.data.tokenizers.clip:Tokenizer",
  "clip_padded": "fgclip_jax.data.tokenizers.clip:PaddedTokenizer",
  "gemma": "fgclip_jax.data.tokenizers.gemma:Tokenizer",
  "siglip": "fgclip_jax.data.tokenizers.siglip:Tokenizer",
}


@runtime_checkable
class Tokenizer(Protocol):
  """Text to token ids, a text's end id included. Can be pickled, and used from several threads at once.

  Attributes:
    name: says which ids it makes, where they are stored: equal names, equal ids.
    start_id: begins each text; None: nothing does.
    end_id: ends each text.
    pad_id: fills a row behind its text.
    vocab_size: ids are 0 to `vocab_size - 1`.
    max_length: the length that `__call__` pads to, start and end included.
    lower_case: whether texts are lower-cased.
    joins_words: whether the ids of plain text are those of its words, each by itself, so that ids can be joined at a
      space instead of being made again.
  """

  name: str
  start_id: int | None
  end_id: int
  pad_id: int
  vocab_size: int
  max_length: int
  lower_case: bool
  joins_words: bool

  def encode(self, text: str, length: int | None = None) -> list[int]:
    """The ids of one text, not padded; what is over `length` is cut before the end id."""
    ...

  def encode_batch(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
    """The ids of each text, as `encode` returns them."""
    ...

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    """A text that these ids stand for, to be shown; start and end ids are left out."""
    ...

  def __call__(self, texts: str | Sequence[str], length: int = ...) -> Int32[np.ndarray, "B L"]:
    """The ids of each text, cut and padded to `length`."""
    ...

  def clean(self, text: str) -> str:
    """What is read of a text. Texts that are equal then have equal ids, and are one caption."""
    ...


@functools.cache
def get_tokenizer(name: str = DEFAULT_TOKENIZER) -> Tokenizer:
  """The tokenizer of this name, or of `NAME:PATH`, read from that file.

  Raises:
    ValueError: there is no such name (the message lists the names), or the file is no tokenizer.
    FileNotFoundError: it is read from a file, and there is none, or none is named.
  """
  name, _, path = name.partition(":")
  if name not in TOKENIZERS:
    raise ValueError(f"there is no tokenizer {name!r}: choose of {', '.join(TOKENIZERS)}")
  module, kind = TOKENIZERS[name].split(":")
  make = getattr(importlib.import_module(module), kind)
  return make(path) if name in files.FILES else make()
