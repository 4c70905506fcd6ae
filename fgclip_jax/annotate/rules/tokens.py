"""The words of a text and where they are."""

import functools
import re
from typing import NamedTuple

_GAP_AND_WORD = re.compile(r"([\W_]*)([^\W_]+(?:'[^\W\d_]+)*)")


class Word(NamedTuple):
  """A word of a text.

  Attributes:
    lower: the word in lower case, with a plain apostrophe.
    start: offset of its first character.
    end: offset behind its last character.
    joined: a hyphen alone is between it and the word before.
    apart: something else than spaces or a hyphen is between it and the word before.
    comma: that is a comma.
  """

  lower: str
  start: int
  end: int
  joined: bool
  apart: bool
  comma: bool


_make = functools.partial(tuple.__new__, Word)  # several times as fast as `Word(...)`, of which captions have many


@functools.lru_cache(256)  # a caption's phrases, attributes and checks all read its words
def split_words(text: str) -> tuple[Word, ...]:
  """Returns the words of a text; a hyphen separates words, an apostrophe does not."""
  words: list[Word] = []
  end = 0
  lower = text.lower().replace("’", "'")
  if len(lower) != len(text):  # a letter whose lower case is two
    lower = "".join(character.lower() if len(character.lower()) == 1 else character for character in text)
  for gap, word in _GAP_AND_WORD.findall(lower):
    start = end + len(gap)
    end = start + len(word)
    if gap == " " or not words:
      words.append(_make((word, start, end, False, False, False)))
    else:
      joined = gap in ("-", "‑", "–")
      apart = not joined and not gap.isspace()
      words.append(_make((word, start, end, joined, apart, apart and gap.strip() == ",")))
  return tuple(words)
