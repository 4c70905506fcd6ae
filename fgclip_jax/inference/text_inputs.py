"""Texts as users give them to the public model, checked and brought into one form: token ids."""

import types
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fgclip_jax.data import packing
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.data.tokenizers.padded import check_ids, check_tokenizer
from fgclip_jax.inference.inputs import check_ordered, show, to_numpy, warn
from fgclip_jax.models.config import SiglipTextConfig, TextConfig

Texts = str | Iterable[str] | Sequence[Sequence[int]] | ArrayLike
Ids = tuple[int, ...]


class TextTooLongError(ValueError):
  """A text is longer than the model reads, and may not be cut."""


def to_ids(
  texts: Texts, config: TextConfig | SiglipTextConfig, length: int, as_is: bool = False, as_written: bool = False
) -> list[Ids]:
  """Token ids of each text up to the one that it is read at; not yet cut to a length.

  Args:
    texts: see `FGCLIP.encode_text`.
    config: the text tower's. Where it reads padding, texts are filled up to `length` by it.
    length: of the kind of text, in tokens.
    as_is: takes ids of other lengths than that, too.
    as_written: strings are not lower-cased, where the tokenizer can leave them so.

  Raises:
    TypeError, ValueError: what is given is neither texts nor their ids; the message says which one.
  """
  check_ordered(texts, "texts")
  if isinstance(texts, bytes | bytearray | memoryview) or not isinstance(texts, str | Iterable):
    raise TypeError(f"texts must be str, a list of str, or token ids, got {show(texts)}")
  if hasattr(texts, "ndim"):  # an array, or a Series of pandas
    rows = to_numpy(texts)
    if rows.dtype.kind in "iu":
      if rows.ndim != 2 or not rows.size:
        raise ValueError(f"token ids must have the shape [B, L], got {list(rows.shape)}")
      return _read_ids(list(rows), config, length, as_is)
    if rows.dtype.kind in "OUT" and rows.ndim > 1:
      raise ValueError(f"an array of texts must have one axis, got {list(rows.shape)}")
    texts = rows.tolist() if rows.dtype.kind in "OUT" or not rows.ndim else list(rows)
  listed: list[Any] = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
  if not listed:
    raise ValueError("there are no texts: give at least one")
  if not isinstance(listed[0], str) and (hasattr(listed[0], "ndim") or isinstance(listed[0], Sequence)):
    return _read_ids([_to_row(*each) for each in enumerate(listed)], config, length, as_is)
  tokenizer = get_tokenizer(config.tokenizer)
  if isinstance(config, SiglipTextConfig):
    check_tokenizer(config)
  elif config.vocab_size != tokenizer.vocab_size:
    raise ValueError(
      f"the model has a vocabulary of {config.vocab_size:,} tokens and its tokenizer {config.tokenizer!r} "
      f"{tokenizer.vocab_size:,}: give token ids instead of strings"
    )
  if as_written:  # what cannot lower-cases all the same
    tokenizer = getattr(tokenizer, "as_written", lambda: tokenizer)()
  rows = tokenizer.encode_batch(listed)
  if isinstance(config, SiglipTextConfig):
    return [(*row, *(config.pad_id,) * (length - len(row))) for row in rows]
  return [_read_part(row, config.end_id) for row in rows]


def _read_part(row: list[int], end_id: int) -> Ids:
  """A text's ids up to where it is read; most end there, and need no search in an array."""
  if end_id != 2 and row.index(end_id) == len(row) - 1:
    return tuple(row)
  return packing.cut(np.asarray(row), end_id).ids


def _to_row(number: int, ids: Any) -> np.ndarray:
  row = (
    to_numpy(ids) if hasattr(ids, "ndim") else np.asarray(ids) if not isinstance(ids, str | bytes) else np.asarray("")
  )
  if row.ndim != 1 or row.dtype.kind not in "iu" or not row.size:
    raise TypeError(f"texts must be all strings or all lists of token ids, but entry {number} is {show(ids)}")
  return row


def _read_ids(rows: list[np.ndarray], config: TextConfig | SiglipTextConfig, length: int, as_is: bool) -> list[Ids]:
  """Ids that were given, up to where each text is read; those that a model was not trained with are refused."""
  low, high = (function(function(row) for row in rows) for function in (min, max))
  if low < 0 or high >= config.vocab_size:
    raise ValueError(f"token ids must lie in 0..{config.vocab_size - 1}, got {low}..{high}")
  if isinstance(config, SiglipTextConfig):
    if as_is:
      return [tuple(row.tolist()) for row in rows]
    lengths = {len(row) for row in rows}
    if lengths != {length}:
      other = min(lengths - {length})
      raise ValueError(
        f"token ids must be padded to exactly {length}, got a row of {other}: the model reads a text at its last "
        f"position, padding included: encode it as model.tokenizer(text, {length}), or take it as it is by as_is=True"
      )
    check_ids(np.stack(rows), _rules(config), length, config.vocab_size)
    return [tuple(row.tolist()) for row in rows]
  for number, row in enumerate(rows):
    if config.end_id != 2 and not (row == config.end_id).any():
      raise ValueError(f"row {number} of the token ids has no end-of-text id ({config.end_id})")
  return [packing.cut(row, config.end_id).ids for row in rows]


def _rules(config: SiglipTextConfig) -> Any:
  """The tokenizer that given ids are checked by, or what the config says of it where its file is not the model's."""
  try:
    tokenizer = get_tokenizer(config.tokenizer)
    if tokenizer.vocab_size <= config.vocab_size:
      return tokenizer
  except (FileNotFoundError, ImportError):
    pass  # ids need no tokenizer: where they end is checked, and not what they mean
  return types.SimpleNamespace(end_id=config.end_id, pad_id=config.pad_id, lower_case=False)


def cut_ids(whole: Sequence[Ids], length: int, kind: str, advice: str, truncate: bool) -> list[Ids]:
  """Texts cut to `length` tokens, the last of which stays; a warning says how many tokens were cut.

  Raises:
    TextTooLongError: a text is longer, and not `truncate`.
  """
  over = [number for number, row in enumerate(whole) if len(row) > length]
  if not over:
    return list(whole)
  tokens = sum(len(whole[number]) - length for number in over)
  if not truncate:
    raise TextTooLongError(
      f"{len(over)} of {len(whole)} texts are longer than the {length} tokens of kind={kind!r}; the first is text "
      f"{over[0]} with {len(whole[over[0]])}: shorten them, or let them be cut with truncate=True{advice}"
    )
  warn(
    f"{len(over)} of {len(whole)} texts are longer than the {length} tokens of kind={kind!r}: {tokens} tokens were "
    f"cut{advice}"
  )
  return [row if len(row) <= length else (*row[: length - 1], row[-1]) for row in whole]
