"""Noun phrases of Chinese captions, by numerals with measure words and by the words that end a phrase."""

import functools
import re

from fgclip_jax.annotate.rules import chinese
from fgclip_jax.annotate.rules.chinese_attributes import breaks
from fgclip_jax.annotate.rules.chunks import Chunk
from fgclip_jax.annotate.rules.lexicon import get_lexicon

_LONGEST = 6
_CLAUSE = re.compile(r"[^\s，。；：、！？,.;:!?()（）「」『』“”\"]+")


def find(text: str) -> list[Chunk]:
  """Returns the noun phrases and pronouns of a text, in order."""
  chunks = []
  for clause in _CLAUSE.finditer(text):
    parts = list(_parts(text, clause.start(), clause.end()))
    for start, end in parts:
      words = text[start:end]
      if words in _pronouns():
        chunks.append(Chunk(start, end, words, end, pronoun=True))
        continue
      head = _head(words)
      if head:
        # What follows in the clause describes it if it is the clause's first phrase: `一只狗坐在草地上`.
        long_end = clause.end() if (start, end) == parts[0] else end
        chunks.append(Chunk(start, end, head, long_end))
  return chunks


def _parts(text: str, start: int, end: int):
  """Cuts a clause at verbs, prepositions and pronouns, which are left out, and before numerals with a measure word."""
  first = index = start
  while index < end:
    if index > first and _measured().match(text, index, end):
      yield first, index
      first = index
    lexical = _longest_value(text, index, end)
    if lexical:
      index += lexical
      continue
    pronoun = next((word for word in sorted(_pronouns(), key=len, reverse=True) if text.startswith(word, index)), "")
    word = pronoun or next((word for word in breaks() if text.startswith(word, index, end)), "")
    if word and not _measured().match(text, index, end):
      if index > first:
        yield first, index
      if pronoun:
        yield index, index + len(pronoun)
      index += len(word)
      first = index
      continue
    index += 1
  if first < end:
    yield first, end


def _longest_value(text: str, start: int, end: int) -> int:
  lexicon = get_lexicon("zh")
  return next(
    (last - start for last in range(min(end, start + _LONGEST), start + 1, -1) if lexicon.value(text[start:last])), 0
  )


def _head(words: str) -> str:
  """What is left of a phrase behind its last 的, values, numeral and measure word; "" if that is nothing."""
  rest = words.rpartition("的")[2]
  match = _measured().match(rest)
  rest = rest[match.end() :] if match else rest
  while rest and (length := _longest_value(rest, 0, len(rest))):
    rest = rest[length:]
  return rest if rest and rest[0].isalpha() else ""


@functools.cache
def _measured() -> re.Pattern[str]:
  numerals = "|".join(sorted(chinese.NUMERALS.split(), key=len, reverse=True))
  return re.compile(rf"(?:{numerals})+[{chinese.MEASURES.replace(' ', '')}]")


@functools.cache
def _pronouns() -> frozenset[str]:
  return frozenset(chinese.PRONOUNS.split())
