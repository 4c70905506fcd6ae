"""What tokenizers of models that read padding have in common, and the guard of their ids.

A SigLIP text tower reads a caption at the last position of its padded row: a row of another length, or padded with
another id, gives other numbers without any error. So ids that come from elsewhere are looked at first.
"""

import abc
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from fgclip_jax.data.tokenizers import Tokenizer, get_tokenizer

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte that is no text by itself


class PaddedTokenizer(Tokenizer):
  """A tokenizer without a start id, whose rows end with an end id and are filled with `pad_id`."""

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
    """The ids of each text, as `encode` returns them."""

  @abc.abstractmethod
  def pieces(self) -> list[str]:
    """The text of each id as it is in the vocabulary."""

  def encode(self, text: str, length: int | None = None) -> list[int]:
    """The ids of one text, the end id included, not padded; what is over `length` is cut before the end id."""
    return self.encode_batch([text], length)[0]

  def __call__(self, texts: str | Sequence[str], length: int | None = None) -> Int32[np.ndarray, "B L"]:
    """The ids of each text, cut and padded to `length`, `max_length` by default. A single text is a batch of one."""
    length = self.max_length if length is None else length
    return pad(self.encode_batch([texts] if isinstance(texts, str) else texts, length), length, self.pad_id)

  def count(self, text: str) -> int:
    """How many ids the whole text takes, the end id included: more than a model's length means that it is cut."""
    return len(self.encode(text))

  def _room(self, length: int | None) -> int | None:
    if length is not None and length < 1:
      raise ValueError(f"length must be at least 1, for the end id, got {length}")
    return None if length is None else length - 1


def as_texts(texts: Any) -> Sequence[str]:
  """The texts; a TypeError names the first that is not a str."""
  if isinstance(texts, str):
    raise TypeError("encode_batch takes a sequence of str; use encode for a single text")
  for index, text in enumerate(texts):
    if not isinstance(text, str):
      raise TypeError(f"a text must be str, but entry {index} is {type(text).__name__}: {text!r:.80}")
  return texts


def pad(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> Int32[np.ndarray, "B L"]:
  """Rows of ids in one array, filled with `pad_id`."""
  padded = np.full((len(rows), length), pad_id, np.int32)
  for row, ids in zip(padded, rows, strict=True):
    row[: len(ids)] = ids
  return padded


def check_tokenizer(text: Any) -> None:
  """Checks that the tokenizer that a text tower names is one that it can read, if the tower reads padding.

  Args:
    text: the text tower's config, see `models.siglip_config.SiglipTextConfig`.

  Raises:
    FileNotFoundError: the tokenizer's file is not there.
    ValueError: it makes ids that the tower has not, or ends or fills rows with others.
  """
  if not text.reads_padding:
    return
  tokenizer = get_tokenizer(text.tokenizer)
  ends = (text.end_id, text.pad_id)
  if tokenizer.vocab_size > text.vocab_size or (tokenizer.end_id, tokenizer.pad_id) != ends:
    raise ValueError(
      f"the tokenizer {text.tokenizer!r} has {tokenizer.vocab_size:,} ids, {tokenizer.end_id} at the end of a text and "
      f"{tokenizer.pad_id} behind it; the model has {text.vocab_size:,}, {ends[0]} and {ends[1]}"
    )


def check_ids(ids: Any, tokenizer: Any, length: int, vocab_size: int) -> None:
  """Refuses rows of ids that were made another way than a model that reads padding was trained with.

  Args:
    ids: of texts, padded, [B, L].
    tokenizer: the model's own.
    length: the length of the kind of text, in tokens: every row must have exactly that.
    vocab_size: of the model.

  Raises:
    ValueError: rows of another length; ids outside the vocabulary; a row without an end id, or with anything but
      padding behind it; ids of upper-case letters where texts are lower-cased. The message names the first row.
  """
  ids = np.asarray(ids)
  advice = f"encode texts by the model's own tokenizer, padded to {length}, or ask for it to be read as it is"
  if ids.ndim != 2 or ids.shape[1] != length:
    raise ValueError(f"ids must be [texts, {length}], got {list(ids.shape)}: {advice}")
  for row, values in enumerate(ids):
    if values.min() < 0 or values.max() >= vocab_size:
      wrong = int(values[(values < 0) | (values >= vocab_size)][0])
      raise ValueError(f"row {row} has the id {wrong}, outside the model's vocabulary of {vocab_size}: {advice}")
    (ends,) = np.nonzero(values == tokenizer.end_id)
    # where padding is the end id itself, any row that has one ends with it
    begin = ends[0] if tokenizer.pad_id == tokenizer.end_id and len(ends) else ends[-1] if len(ends) else None
    if begin is None:
      raise ValueError(f"row {row} has no end id {tokenizer.end_id}: {advice}")
    if (values[begin + 1 :] != tokenizer.pad_id).any():
      raise ValueError(f"row {row} is not filled with the id {tokenizer.pad_id} behind its end id: {advice}")
    if tokenizer.lower_case:
      upper = _upper_case(tokenizer)
      inside = values[values < len(upper)]
      if upper[inside].any():
        number = int(inside[upper[inside]][0])
        piece = tokenizer.pieces()[number]
        raise ValueError(f"row {row} has the id {number} of {piece!r}, and the model reads lower case: {advice}")


@functools.lru_cache(maxsize=4)
def _upper_case(tokenizer: Any) -> np.ndarray:
  """Which ids are pieces of text that lower-casing changes."""
  return np.asarray([piece != piece.lower() and not _BYTE_PIECE.fullmatch(piece) for piece in tokenizer.pieces()])
