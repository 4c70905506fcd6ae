"""Finds the attributes that an English text gives to things, and the things."""

import functools
from collections.abc import Sequence

from fgclip_jax.annotate.rules import english, english_words
from fgclip_jax.annotate.rules.lexicon import Attribute, Value, get_lexicon
from fgclip_jax.annotate.rules.tokens import Word, split_words

_MADE = frozenset(
  "made built crafted constructed woven carved composed consisting consists formed fashioned mix combination "
  "out".split()
)
_COLOURED = frozenset("coloured colored toned hued".split())
_BE = frozenset("is are was were be being it's that's".split())
# Values that are nouns as well, where no noun follows.
VALUE_NOUNS = frozenset(
  "orange rose peach plum cherry lemon lime olive chocolate cream gold silver square circle light rainbow salmon coral "
  "top front rear back bottom crystal mint snow straw dark right left".split()
)
_LINKS = frozenset(("and", "or"))
_AGES = frozenset(("year", "years", "month", "months"))
_CLOSED = (
  english_words.DETERMINERS
  | english_words.POSSESSIVES
  | english_words.PRONOUNS
  | english_words.PREPOSITIONS
  | english_words.CONJUNCTIONS
  | english_words.AUXILIARIES
  | english_words.ADVERBS
)
CLOSED = _CLOSED - {"other", "one"}
_STARTS = english_words.DETERMINERS | english_words.POSSESSIVES | english_words.NUMBERS
# What a plural noun may follow, and what it may follow with adjectives between.
_BEFORE_PLURAL = frozenset("of with by from for".split()) | _STARTS.difference(
  "a an each every one this that another either neither much more most other".split()
)
_BEFORE_ADJECTIVES = _STARTS | _LINKS | english_words.PREPOSITIONS.difference(("in",))


def find(text: str) -> tuple[Attribute, ...]:
  """Returns the attributes of all classes in a text, in order; none overlap.

  A word counts where it describes a thing: before a noun (`a glass jar`), after `made of`, `is` or `in`. It does not
  where it is the thing (`a glass of water`, `an orange`) or a part of its name (`orange juice`, `a light bulb`).
  """
  words = split_words(text)
  matches = _match_all(words)
  ends = {start: end for start, end, _ in matches}
  starts = {end: start for start, end, _ in matches}
  found = []
  for start, end, value in matches:
    context = _context(words, ends, starts, start, end, value)
    if context:
      noun, position = context
      first, last = words[start].start, words[end - 1].end
      found.append(Attribute(value.attribute, text[first:last].lower(), first, last, noun, position))
  return tuple(found)


def _match_all(words: Sequence[Word]) -> list[tuple[int, int, Value]]:
  found, index, count = [], 0, len(words)
  first_words = _tables()[0]
  while index < count:
    lower = words[index].lower
    if lower not in first_words:
      index += 1
      continue
    end, value = _match(words, index)
    if value is None:
      index += 1
      continue
    if is_name(words, index) or (end > index + 1 and is_name(words, end - 1)):
      # `dark orange juice`, `red wine glass`: the name of a thing, not its look
      index = max(end, index + 2)
      continue
    found.append((index, end, value))
    index = end
  return found


def is_name(words: Sequence[Word], index: int) -> bool:
  """Whether a word and the one after it are the name of a thing."""
  after, names = index + 1, _tables()[1]
  return after < len(words) and not words[after].apart and (words[index].lower, words[after].lower) in names


def _match(words: Sequence[Word], start: int) -> tuple[int, Value | None]:
  """The longest value at a word, and the word behind it."""
  lexicon = get_lexicon("en")
  limit = start + 1
  while limit < len(words) and limit < start + 4 and not words[limit].apart and words[limit].lower in lexicon.words:
    limit += 1
  for end in range(limit, start, -1):
    surface = words[start].lower if end == start + 1 else " ".join([word.lower for word in words[start:end]])
    value = lexicon.value(surface)
    if value is not None:
      if end < limit and words[end].lower in _COLOURED and surface in lexicon.colours:
        value = lexicon.colours[surface]
      return end, value
  return start + 1, None


@functools.cache
def _tables() -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
  lexicon = get_lexicon("en")
  surfaces = (*lexicon.colours, *lexicon.tones, *lexicon.others)
  names = frozenset(tuple(name.split("_")) for name in english.NAMES.split())
  return frozenset(surface.split()[0] for surface in surfaces), names


def _context(
  words: Sequence[Word], ends: dict[int, int], starts: dict[int, int], start: int, end: int, value: Value
) -> tuple[str, str] | None:
  """The noun that a value describes and its position; None if it describes nothing."""
  old = (start and words[start - 1].lower in _AGES) or (end < len(words) and words[end].lower in _AGES)
  if old or words[start].joined:
    return None  # `half-closed`, `two years old`
  if end < len(words) and words[end].joined:
    after = words[end].lower
    if after not in _COLOURED and not (after.endswith("ed") and len(after) > 3) and after != "and":
      return None
    behind = end if after in _COLOURED or after == "and" else end + 1
    return noun_after(words, ends, behind), "joined"
  noun = noun_after(words, ends, end)
  if noun:
    return noun, "before"
  before = start - 1
  # Back over what is listed with it: `made of glass, wood and metal`.
  while before >= 0 and (words[before].lower in _LINKS or words[before].lower in ("both", "entirely", "a", "light")):
    before -= 1
  while before + 1 in starts or (before >= 0 and words[before].lower in _LINKS):
    before = starts.get(before + 1, before) - 1
  if before >= 0 and value.attribute in ("material", "colour") and words[before].lower in ("of", "from"):
    if any(word.lower in _MADE for word in words[max(0, before - 3) : before]):
      return _noun_before(words, ends, before), "of"
  if before >= 0 and words[before].lower in _BE:
    return _noun_before(words, ends, before), "before"
  before = start - 1
  if value.attribute == "position" and before > 0 and words[before].lower == "the":
    return (_noun_before(words, ends, before), "before") if words[before - 1].lower in ("on", "at", "to") else None
  if (
    value.attribute == "colour"
    and value.surface not in _noun_colours()
    and (value.toned or not _is_article(words, start))
  ):
    return _noun_before(words, ends, start), "before"
  return None


@functools.cache
def _noun_colours() -> frozenset[str]:
  return frozenset(english.NOUN_COLOURS.replace("_", " ").split(" "))


def _is_article(words: Sequence[Word], start: int) -> bool:
  return start > 0 and words[start - 1].lower in english_words.DETERMINERS


def noun_after(words: Sequence[Word], ends: dict[int, int], index: int) -> str:
  """The last word of the noun phrase that goes on at `index`; "" if none does.

  Args:
    words: the words of a text.
    ends: where values begin and end in it.
    index: the word behind a value.
  """
  noun, listed = "", False
  while index < len(words):
    word = words[index]
    lower = word.lower
    if index in ends and not (word.apart and noun):
      listed = listed or word.apart
      after = ends[index]
      # A noun that is also a value is the noun if nothing else follows: `a red glass`, `a black back and seat`.
      linked = after + 1 < len(words) and words[after].lower in _LINKS and after + 1 in ends
      if after >= len(words) or words[after].apart or (words[after].lower in CLOSED and not linked):
        if not listed and _may_be_noun(words[index]):
          return words[after - 1].lower
        if after >= len(words) or not words[after].apart:
          return noun
        if after not in ends and not (words[after].comma and _is_listed(words, ends, after)):
          return noun
      index = after
      continue
    if lower in _LINKS and index + 1 in ends and not noun:
      listed = True
      index += 1
      continue
    if not noun and word.comma and _is_listed(words, ends, index):
      listed = True
      index += 1
      continue
    if word.apart or lower in CLOSED:
      return noun
    if not word.joined and (is_verb(lower) or is_adverb(lower)) and (noun or not is_plural_noun(words, index)):
      before_noun = lower.endswith(("ing", "ly")) and _goes_on(words, index + 1)  # `a wooden overhanging balcony`
      if noun or not before_noun:
        return noun
    if noun.endswith("s") and lower in english_words.CLEAR_VERBS:
      return noun  # `white clouds drift`
    if lower not in _COLOURED:
      noun = lower
    index += 1
  return noun


def _is_listed(words: Sequence[Word], ends: dict[int, int], index: int) -> bool:
  """Whether an unknown word behind a comma is an adjective of a list: `a small, rusty, yellow tractor`."""
  after = index + 1
  while after < len(words) and words[after].joined:
    after += 1  # `old-fashioned`
  last = words[after - 1].lower
  if after >= len(words) or words[index].lower in CLOSED or is_verb(last):
    return False
  if after in ends:
    return words[after].comma or not words[after].apart
  return has_form_of_adjective(last) and _goes_on(words, after) and not is_verb(words[after].lower)


def is_plural_noun(words: Sequence[Word], index: int) -> bool:
  """Whether a form of a verb in -s is a plural here: `white clouds`, `two towers`; not `a woman in red holds`."""
  if not index or words[index].apart or not words[index].lower.endswith("s"):
    return False
  first = index
  while first and not words[first].apart and _is_plain(words[first - 1].lower):
    first -= 1
  if first == index:
    return words[index - 1].lower in _BEFORE_PLURAL
  return not first or words[first].apart or words[first - 1].lower in _BEFORE_ADJECTIVES


@functools.lru_cache(10_000)
def _is_plain(lower: str) -> bool:
  """Whether a word is an adjective and no noun."""
  if has_form_of_adjective(lower):
    return True
  value = get_lexicon("en").value(lower)
  if value is None or lower in VALUE_NOUNS:
    return False
  return value.attribute not in ("material", "position") or lower.endswith("en")


@functools.lru_cache(100_000)
def has_form_of_adjective(lower: str) -> bool:
  """Whether a word ends as adjectives do."""
  endings = ("ish", "ous", "ful", "less", "ive", "able", "ible")
  return (lower.endswith("ed") and lower not in english_words.NOUNS_IN_ED) or (
    len(lower) > 5 and lower.endswith(endings)
  )


def _goes_on(words: Sequence[Word], index: int) -> bool:
  return index < len(words) and not words[index].apart and words[index].lower not in CLOSED


def _may_be_noun(word: Word) -> bool:
  value = get_lexicon("en").value(word.lower)
  return value is not None and value.attribute in ("material", "position") and not word.lower.endswith("en")


def _noun_before(words: Sequence[Word], ends: dict[int, int], index: int) -> str:
  values = {place for first, last in ends.items() for place in range(first, last)}
  for place in range(index - 1, -1, -1):
    lower = words[place].lower
    if (
      place not in values and lower not in CLOSED and lower not in _MADE and not is_verb(lower) and not is_adverb(lower)
    ):
      return lower
  return ""


@functools.lru_cache(100_000)
def is_verb(lower: str) -> bool:
  """Whether a word is a form of a verb (`holds`, `holding`, `held`) and no usual noun; base forms are not known."""
  if lower in english_words.NOUNS_IN_ING or lower in english_words.NOUNS_IN_ED:
    return False
  return lower in english_words.IRREGULAR or lower in _verb_forms() or (lower.endswith("ing") and len(lower) > 4)


@functools.lru_cache(100_000)
def is_adverb(lower: str) -> bool:
  """Whether a word has the form of an adverb in -ly."""
  return len(lower) > 4 and lower.endswith("ly") and lower not in english_words.NOT_ADVERBS


@functools.cache
def _verb_forms() -> frozenset[str]:
  forms = set()
  for verb in english_words.VERBS:
    if verb in english_words.NOUNS_LIKE_VERBS:
      continue
    ending = "es" if verb.endswith(("s", "sh", "ch", "x", "z", "o")) else "s"
    forms |= {verb + ending} if not verb.endswith("y") or verb[-2] in "aeo" else {verb[:-1] + "ies"}
  return frozenset(forms)
