"""CLIP's tokenizer: cleaned, lower-case text to byte-pair ids, between a start and an end id.

Ids equal those of transformers' `CLIPTokenizer` with ftfy. The merges come from the file that the
`openai-clip` package ships; its Python module, which needs PyTorch, is not imported.
"""

import functools
import gzip
import importlib.metadata
import os
import re
from collections.abc import Iterable, Sequence

# Data workers are processes of their own: threads inside each would only compete (and warn after a fork).
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32

START, END = "<|startoftext|>", "<|endoftext|>"
VOCAB_SIZE = 49408
_MERGES_FILE = "clip/bpe_simple_vocab_16e6.txt.gz"
_MERGES = VOCAB_SIZE - 2 * 256 - 2  # bytes, bytes at a word's end, merges, START and END; the file holds more merges

_SPECIAL = re.compile(f"({re.escape(START)}|{re.escape(END)})")
_WHITESPACE = re.compile(r"\s+")
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_NOTHING_TO_FIX = re.compile(r"[\t\n -%'-~]*")  # ASCII without control characters and &: ftfy leaves it as it is


class Tokenizer:
  """Text to token ids.

  The merges are read when the first text is encoded, once per process.

  Attributes:
    name: says which ids it makes, where they are stored; ftfy's minor version decides some.
    start_id, end_id: 49406 and 49407.
    pad_id: the end id.
    vocab_size: 49408.
    max_length: 77.
    lower_case, joins_words: True.
  """

  name = f"openai-clip, ftfy {'.'.join(ftfy.__version__.split('.')[:2])}"
  start_id = VOCAB_SIZE - 2
  end_id = VOCAB_SIZE - 1
  pad_id = end_id
  vocab_size = VOCAB_SIZE
  max_length = 77
  lower_case = True
  joins_words = True

  @property
  def _backend(self) -> tokenizers.Tokenizer:
    return _backend()  # no attribute: a new process reads the merges itself, quicker than unpickling the vocabulary

  def encode(self, text: str, length: int | None = None) -> list[int]:
    """The ids of one text, start and end included, not padded.

    Args:
      text: any text; `<|startoftext|>` and `<|endoftext|>` within it become those ids, as in the reference.
      length: the most ids to return, at least 2. What is over is cut before the end id.
    """
    return self.encode_batch([text], length)[0]

  def encode_batch(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
    """The ids of each text, as `encode` returns them. A TypeError names the first entry that is not a str."""
    if length is not None and length < 2:
      raise ValueError(f"length must be at least 2, for the start and the end id, got {length}")
    if isinstance(texts, str):
      raise TypeError("encode_batch takes a sequence of str; use encode for a single text")
    encodings = self._backend.encode_batch_fast([_clean(text, index) for index, text in enumerate(texts)])
    kept = None if length is None else length - 2
    return [[self.start_id, *encoding.ids[:kept], self.end_id] for encoding in encodings]

  def __call__(self, texts: str | Sequence[str], length: int = max_length) -> Int32[np.ndarray, "B {length}"]:
    """The ids of each text, cut and padded to `length`. A single text makes a batch of one."""
    rows = self.encode_batch([texts] if isinstance(texts, str) else texts, length)
    padded = np.full((len(rows), length), self.pad_id, np.int32)
    for row, ids in zip(padded, rows, strict=True):
      row[: len(ids)] = ids
    return padded

  def count(self, text: str) -> int:
    """How many ids the whole text takes, start and end included: more than a model's length means that it is cut."""
    return len(self.encode(text))

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    """The text of these ids, lower-case and with a space after each word; start and end ids are left out."""
    tokens = []
    for index in map(int, ids):
      if not 0 <= index < self.vocab_size:
        raise ValueError(f"token id {index} is outside 0..{self.vocab_size - 1}")
      if index not in (self.start_id, self.end_id):
        tokens.append(self._backend.id_to_token(index))
    return _to_text(tokens).replace("</w>", " ").strip()

  def clean(self, text: str) -> str:
    """What is read of a text: repaired, in lower case, with single spaces. Equal texts then are one caption."""
    return _clean(text, 0)

  def pieces(self) -> list[str]:
    """The text of each id by itself; bytes that are none are replaced."""
    return [_to_text([self._backend.id_to_token(number) or ""]) for number in range(self.vocab_size)]

  def save_vocabulary(self, folder: str) -> list[str]:
    """Writes the vocabulary and the merges as transformers reads them; returns the paths: vocab.json, merges.txt."""
    return self._backend.model.save(folder)


class PaddedTokenizer(Tokenizer):
  """The same ids for models that read padding (`models.siglip_config.SiglipTextConfig`): rows are filled with 0.

  Attributes:
    pad_id: 0, the id of `!`, which such a model learns to read as padding.
    max_length: 64.
  """

  pad_id = 0
  max_length = 64

  def __call__(self, texts: str | Sequence[str], length: int = max_length) -> Int32[np.ndarray, "B {length}"]:
    """The ids of each text, cut and padded to `length`. A single text makes a batch of one."""
    return super().__call__(texts, length)


def _clean(text: str, index: int) -> str:
  """Repairs, lowers and respaces a text, piece by piece between the special tokens that it may hold."""
  if not isinstance(text, str):
    raise TypeError(f"a text must be str, but entry {index} is {type(text).__name__}: {text!r:.80}")
  return "".join(
    piece if position % 2 else _WHITESPACE.sub(" ", _fix(piece)).strip().lower()
    for position, piece in enumerate(_SPECIAL.split(text))
  )


def _fix(text: str) -> str:
  return text if _NOTHING_TO_FIX.fullmatch(text) else ftfy.fix_text(text)


def _to_text(tokens: Iterable[str]) -> str:
  """The text of pieces, in which characters stand for bytes."""
  return bytes(_alphabet()[character] for character in "".join(tokens)).decode("utf-8", errors="replace")


@functools.cache
def _alphabet() -> dict[str, int]:
  """The 256 characters that stand for bytes, in vocabulary order, with their bytes: printable ones are themselves."""
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  others = sorted(set(range(256)) - set(printable))
  return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _read_merges() -> list[tuple[str, str]]:
  """CLIP's merges, most frequent first."""
  try:
    path = importlib.metadata.distribution("openai-clip").locate_file(_MERGES_FILE)
  except importlib.metadata.PackageNotFoundError as error:
    raise FileNotFoundError(
      "the package openai-clip, which holds CLIP's merges, is missing: pip install openai-clip"
    ) from error
  with gzip.open(str(path), "rt", encoding="utf-8") as file:
    lines = file.read().split("\n")[1 : 1 + _MERGES]  # the first line names the file's version
  return [(left, right) for left, right in map(str.split, lines)]


@functools.cache
def _backend() -> tokenizers.Tokenizer:
  """Splits cleaned text into words and numbers their byte pairs; made once per process (a quarter of a second)."""
  merges = _read_merges()
  symbols = [*_alphabet(), *(character + "</w>" for character in _alphabet()), *map("".join, merges), START, END]
  vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
  if len(vocabulary) != VOCAB_SIZE:
    raise ValueError(f"{_MERGES_FILE} gives {len(vocabulary)} tokens, not {VOCAB_SIZE}: reinstall openai-clip")
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORD), behavior="removed", invert=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in (START, END)])
  return backend
