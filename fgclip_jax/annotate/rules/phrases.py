"""Phrases of a caption that name things to look for in the picture: `a brown leather collar`.

A parser gives the noun phrases of a text; the embedded one needs no model, see `english_chunks.py` and
`chinese_chunks.py`, and `spacy_chunks.py` has the same interface. What follows is the same for all: phrases whose head
is nothing that a box can be drawn around, pronouns, and what is said twice are left out and counted.
"""

import bisect
import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fgclip_jax.annotate.rules import chinese, chinese_attributes, chinese_chunks, english_attributes, english_chunks
from fgclip_jax.annotate.rules.chunks import Chunk
from fgclip_jax.annotate.rules.english_attributes import VALUE_NOUNS
from fgclip_jax.annotate.rules.english_words import DETERMINERS, POSSESSIVES, STOP_HEADS
from fgclip_jax.annotate.rules.lexicon import Attribute, get_lexicon

MAX_WORDS = 12  # longer ones are clauses that a parser took for a noun phrase
MAX_CHARACTERS = 24  # of a Chinese phrase
LIMIT = 24  # phrases of a picture

PLACES = frozenset("top bottom left right middle centre center".split())
_PLACES = tuple(PLACES)
INDEFINITE = frozenset("a an one two three four five six several some".split())

Parser = Callable[[str], list[Chunk]]


class Phrase(NamedTuple):
  """A phrase of a caption.

  Attributes:
    text: the phrase as it is written, e.g. `a brown leather collar`.
    head: the word that names the thing, in lower case: `collar`.
    start: offset of its first character in the caption.
    end: offset behind its last character.
    attributes: what it says of the thing and its parts; offsets are those in `text`.
    long: the phrase with what the caption goes on to say of it: `a brown leather collar with white stitching`.
  """

  text: str
  head: str
  start: int
  end: int
  attributes: tuple[Attribute, ...]
  long: str = ""


@dataclasses.dataclass(frozen=True)
class Phrases:
  """The phrases of a caption.

  Attributes:
    kept: those to look for, in order.
    left_out: how many were left out, by reason: `pronoun`, `stop_head`, `too_long`, `contained`, `twice`, `over_limit`.
  """

  kept: tuple[Phrase, ...]
  left_out: Mapping[str, int]


def split(caption: str, language: str = "en", parser: Parser | None = None) -> tuple[Phrase, ...]:
  """Returns the phrases of a caption; `split_counted` also says what was left out."""
  return split_counted(caption, language, parser).kept


def split_counted(caption: str, language: str = "en", parser: Parser | None = None, limit: int = LIMIT) -> Phrases:
  """Finds the phrases of a caption, at most `limit`.

  Args:
    caption: a text of any length.
    language: `en` or `zh`.
    parser: finds the noun phrases; None: the embedded one of this language.
    limit: the most phrases to keep.

  Raises:
    ValueError: there are no rules for the language.
  """
  chunks = (parser or _parser(language))(caption)
  left_out: collections.Counter[str] = collections.Counter()
  candidates: list[tuple[Chunk, str]] = []
  for chunk in chunks:
    if language == "en":
      chunk = _without_place(chunk, caption)
    text = caption[chunk.start : chunk.end]
    if chunk.pronoun:
      left_out["pronoun"] += 1
    elif is_stop_head(chunk.head, language):
      left_out["stop_head"] += 1
    elif len(text) > MAX_CHARACTERS if language == "zh" else len(text.split()) > MAX_WORDS:
      left_out["too_long"] += 1
    else:
      candidates.append((chunk, _key(text, language)))
  seen: set[str] = set()
  unique = "\n".join(dict.fromkeys(key for _, key in candidates))
  kept = []
  for chunk, key in candidates:
    if key in seen:
      left_out["twice"] += 1
    elif unique.count(key) > 1:
      left_out["contained"] += 1
    elif len(kept) == limit:
      left_out["over_limit"] += 1
    else:
      seen.add(key)
      kept.append(chunk)
  attributes = find_attributes(caption, language)
  starts = [each.start for each in attributes]
  found = tuple([_phrase(caption, chunk, attributes[bisect.bisect_left(starts, chunk.start) :]) for chunk in kept])
  return Phrases(found, dict(sorted(left_out.items())))


def _without_place(chunk: Chunk, caption: str) -> Chunk:
  """A phrase without the place that a list gives after it: `a red car` of `a red car top left`.

  A place alone, `the bottom left`, has a definite article, and stays what it is.
  """
  text = caption[chunk.start : chunk.end]
  if not text.lower().endswith(_PLACES):
    return chunk
  words = text.split()
  kept = len(words)
  while kept and words[kept - 1].lower() in PLACES:
    kept -= 1
  if kept in (0, 1, len(words)) or words[0].lower() not in INDEFINITE:
    return chunk
  head = words[kept - 1]
  end = chunk.start + text.rindex(f"{head} {words[kept]}") + len(head)
  return chunk._replace(end=end, head=head.lower())


def whole(text: str, language: str = "en") -> Phrase:
  """Takes a text for one phrase, as the caption of a region is; its head is that of its first noun phrase."""
  chunks = _parser(language)(text)
  head = next((chunk.head for chunk in chunks if not chunk.pronoun), "")
  return Phrase(text, head, 0, len(text), find_attributes(text, language), text)


def find_attributes(text: str, language: str = "en") -> tuple[Attribute, ...]:
  """Returns the attributes that a text gives to things, in order.

  Raises:
    ValueError: there are no rules for the language.
  """
  _parser(language)
  return chinese_attributes.find(text) if language == "zh" else english_attributes.find(text)


def _parser(language: str) -> Parser:
  parsers: dict[str, Parser] = {"en": english_chunks.find, "zh": chinese_chunks.find}
  if language not in parsers:
    raise ValueError(f"rules know the languages {' and '.join(parsers)}, not {language!r}")
  return parsers[language]


@functools.lru_cache(100_000)
def is_stop_head(head: str, language: str = "en") -> bool:
  """Whether no box can be drawn around what a noun names."""
  if language == "zh":
    return head in _CHINESE_STOP_HEADS
  value = get_lexicon("en").value(head)
  return head in STOP_HEADS or (value is not None and value.attribute == "colour" and head not in VALUE_NOUNS)


_CHINESE_STOP_HEADS = frozenset(chinese.STOP_HEADS.split())


def _phrase(caption: str, chunk: Chunk, attributes: Sequence[Attribute]) -> Phrase:
  """The phrase of a chunk; `attributes` are those of the caption from its start on."""
  start, end = chunk.start, chunk.end
  text = caption[start:end]
  lower = text.lower()
  inside = []
  for name, value, first, last, noun, position in attributes:
    if last >= end:  # a value at the end is the thing itself: `raw wood`
      break
    inside.append(Attribute(name, value, first - start, last - start, noun if noun in lower else chunk.head, position))
  return Phrase(text, chunk.head, start, end, tuple(inside), caption[start : chunk.long_end])


def _key(text: str, language: str) -> str:
  """A phrase without article, with a space around each word so that `in` compares whole words."""
  if language == "zh":
    return text.removeprefix("一").lstrip(chinese.MEASURES.replace(" ", ""))
  words = text.lower().replace("-", " ").replace(",", " ").split()
  first = 0
  while first < len(words) - 1 and (words[first] in DETERMINERS or words[first] in POSSESSIVES):
    first += 1
  return f" {' '.join(words[first:])} "
