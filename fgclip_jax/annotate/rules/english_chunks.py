"""Noun phrases of English captions, by closed classes of words.

Articles, prepositions, conjunctions, pronouns and auxiliaries are few and known; what is between them is a noun phrase
or a verb. A verb is known by its ending and by a list of those that captions use.
"""

import functools
from collections.abc import Iterable, Sequence

from fgclip_jax.annotate.rules import english_words as english
from fgclip_jax.annotate.rules.chunks import Chunk
from fgclip_jax.annotate.rules.english_attributes import (
  CLOSED,
  VALUE_NOUNS,
  has_form_of_adjective,
  is_adverb,
  is_plural_noun,
  is_verb,
)
from fgclip_jax.annotate.rules.lexicon import get_lexicon
from fgclip_jax.annotate.rules.tokens import Word, split_words

MAX_LONG_WORDS = 20  # of a phrase with what comes after its noun

_PERSONAL = frozenset("i you he she it we they me him us them".split())
_STARTS = english.DETERMINERS | english.POSSESSIVES | english.NUMBERS
_SINGULAR = frozenset("a an each every another one".split())
# Nouns in -s that `a` may stand before.
_SINGULAR_IN_S = frozenset(
  "glasses pants scissors jeans trousers shorts sunglasses binoculars headphones series gas canvas lens sports tennis "
  "clothes christmas asparagus mattress headquarters species chess news always leaves cactus".split()
)
_LINKS = frozenset(("and", "or"))
_OPENERS = english.PREPOSITIONS - {"than", "as", "like", "since", "until", "before", "after", "during"}

# What is known of a word by itself, and of its place in a text, as bits of a number: each word is asked many times.
_CLOSED = 1
_START = 2  # a noun phrase may begin with it
_PERSON = 4  # a personal pronoun
_RUN_END = 8  # no run of adjectives and nouns goes on over it
_LINK = 16  # `and`, `or`
_ADVERB = 32
_ADJECTIVE = 64  # by its form
_VALUE = 128  # of an attribute
_VERB = 256
_MAYBE_VERB = 512  # `_is_verb_here` may be true of it, which it is of few
_NO_NOUN = 1024  # it is no noun at the end of a run
_NO_NOUN_JOINED = 2048  # nor with a hyphen before it
_PLAIN = 4096  # a size, shape, state or transparency
_ATTACHES = 8192  # what comes after a noun phrase and belongs to it begins with it
_APART, _JOINED, _COMMA = 16384, 32768, 65536  # see `Word`
_NO_CONTENT = _CLOSED | _VERB | _APART
_TEXT_END = _CLOSED | _RUN_END | _APART  # behind the last word


def find(text: str) -> list[Chunk]:
  """Returns the noun phrases and pronouns of a text, in order; `a pair of buds` is one phrase about buds."""
  words = split_words(text)
  kinds = _classify(words)
  merged: list[tuple[int, int, int, bool]] = []
  for start, end, head, pronoun in _spans(words, kinds):
    if merged and not pronoun:
      first, last, amount, _ = merged[-1]
      if words[amount].lower in english.AMOUNTS and start == last + 1 and words[last].lower == "of":
        merged[-1] = (first, end, head, False)
        continue
    merged.append((start, end, head, pronoun))
  starts = {start: end for start, end, _, _ in merged}
  chunks = []
  for start, end, head, pronoun in merged:
    first = head - 1 if kinds[head] & _JOINED and kinds[head] & _CLOSED else head  # `close-up`
    noun = text[words[first].start : words[head].end].lower()
    long_end = words[_long_end(kinds, starts, start, end) - 1].end
    chunks.append(Chunk(words[start].start, words[end - 1].end, noun, long_end, pronoun))
  return chunks


def _classify(words: Iterable[Word]) -> list[int]:
  """The bits of each word, and of the end of the text behind them."""
  kinds = [
    _kind(lower) | (apart and _APART) | (joined and _JOINED) | (comma and _COMMA)
    for lower, _, _, joined, apart, comma in words
  ]
  kinds.append(_TEXT_END)
  return kinds


@functools.lru_cache(100_000)
def _kind(lower: str) -> int:
  """What is known of a word by itself."""
  value = get_lexicon("en").value(lower)
  maybe_verb = lower.endswith("ed") or lower in english.VERBS or lower in english.CLEAR_VERBS
  if value is None:
    no_noun = lower in _LINKS or lower.isdigit()
  elif value.attribute in ("material", "position"):
    no_noun = lower.endswith("en")
  else:
    no_noun = lower not in VALUE_NOUNS
  facts = (
    (_CLOSED, lower in CLOSED),
    (_START, lower in _STARTS),
    (_PERSON, lower in _PERSONAL),
    (_RUN_END, lower in CLOSED or lower in ("other", "one")),
    (_LINK, lower in _LINKS),
    (_ADVERB, is_adverb(lower)),
    (_ADJECTIVE, has_form_of_adjective(lower) or value is not None),
    (_VALUE, value is not None),
    (_VERB, is_verb(lower)),
    (_MAYBE_VERB, is_verb(lower) or maybe_verb or _is_plural_like_verb(lower)),
    (_NO_NOUN, no_noun),
    (_NO_NOUN_JOINED, lower.endswith("ed") or value is not None),
    (_PLAIN, value is not None and value.attribute in ("size", "shape", "state", "transparency")),
    (_ATTACHES, lower in _OPENERS or is_adverb(lower) or (lower.endswith(("ing", "ed")) and lower not in CLOSED)),
  )
  return sum(bit for bit, holds in facts if holds)


def _is_plural_like_verb(lower: str) -> bool:
  return lower.endswith("s") and lower[:-1] in english.NOUNS_LIKE_VERBS


def _spans(words: Sequence[Word], kinds: Sequence[int]) -> list[tuple[int, int, int, bool]]:
  """Start, end and head of each noun phrase, and whether it is a pronoun."""
  spans, index, count = [], 0, len(words)
  while index < count:
    kind = kinds[index]
    start = index
    if kind & _CLOSED and not kind & _START:
      if kind & _PERSON:
        spans.append((start, start + 1, start, True))
      index += 1
      continue
    if kind & _START and not _is_relative(words, kinds, index):
      index += 1
      while kinds[index] & (_START | _APART) == _START:
        index += 1
    content = index
    index = _run_end(words, kinds, content, start < content)
    last = _without_verb(words, kinds, start, content, index)
    if last > content:
      spans.append((start, last, last - 1, False))
    index = max(index, start + 1)
  return spans


def _is_relative(words: Sequence[Word], kinds: Sequence[int], index: int) -> bool:
  """Whether `that` at `index` begins a clause: `banners that carry headings`."""
  return words[index].lower == "that" and index > 0 and not (kinds[index] & _APART or kinds[index - 1] & _CLOSED)


def _run_end(words: Sequence[Word], kinds: Sequence[int], start: int, determined: bool) -> int:
  """The word behind the run of adjectives and nouns that begins at `start`."""
  index, noun = start, False
  while True:  # the end of the text ends a run
    kind = kinds[index]
    if kind & _APART and (
      (determined and index == start) or (index > start and not _lists(words, kinds, start, index, noun, determined))
    ):
      return index
    joined = kind & _JOINED and index > start
    if kind & _LINK and index > start and not noun and kinds[index + 1] & _ADJECTIVE:
      index += 1
      continue
    if not joined:
      if kind & _RUN_END:
        return index
      if kind & _MAYBE_VERB and _is_verb_here(words, kinds, start, index, noun, determined):
        return index
      if kind & _ADVERB and kinds[index + 1] & _NO_CONTENT:
        return index
    noun = noun or not (joined or kind & (_ADVERB | _ADJECTIVE) or kinds[index + 1] & _JOINED)
    index += 1


def _is_verb_here(
  words: Sequence[Word], kinds: Sequence[int], start: int, index: int, noun: bool, determined: bool
) -> bool:
  lower, kind = words[index].lower, kinds[index]
  content_next = not kinds[index + 1] & _NO_CONTENT
  begins = index == start and not determined
  if kind & _VERB and lower.endswith("ing"):
    if index == start:
      return not content_next or (not determined and lower in english.TAKES_OBJECT)
    return noun or not content_next
  if kind & _VERB:
    if not noun and is_plural_noun(words, index):
      return False  # `white clouds`
    return noun or begins or not content_next
  if lower.endswith("ed") and len(lower) > 4 and lower not in english.NOUNS_IN_ED and not kind & _VALUE:
    if not noun:
      return not content_next
    return not content_next or bool(kinds[index + 1] & _ADJECTIVE)
  if content_next:
    # `pages carry headings`
    return (noun or begins) and lower in english.CLEAR_VERBS and _follows_plural(words, kinds, index)
  if lower in english.CLEAR_VERBS and not kind & _VALUE:
    return noun or begins
  if (noun or begins) and lower in english.VERBS and _follows_plural(words, kinds, index):
    return True  # `feathers cover the wing`, also where the run begins at the verb
  if noun and _is_plural_like_verb(lower):
    return kinds[index + 1] & (_START | _APART) == _START  # `a stripe lines the door`
  return False


def _follows_plural(words: Sequence[Word], kinds: Sequence[int], index: int) -> bool:
  if not index or kinds[index] & _APART or kinds[index - 1] & _CLOSED:
    return False
  before = words[index - 1].lower
  return before.endswith("s") and not before.endswith(("ss", "us", "'s"))


def _lists(words: Sequence[Word], kinds: Sequence[int], start: int, index: int, noun: bool, determined: bool) -> bool:
  """Whether a comma before `index` is between adjectives: `a smooth, rounded handle`."""
  if not (kinds[index] & _COMMA and kinds[index] & _ADJECTIVE):
    return False
  # One unknown word after an article is an adjective as well: `a cool, muted tone`, but not `by the house, red ...`.
  return not noun or (determined and index - start == 1 and words[start - 1].lower != "the")


def _without_verb(words: Sequence[Word], kinds: Sequence[int], start: int, content: int, end: int) -> int:
  """Takes from the end of a run what is no noun: a verb after `a`, adjectives and adverbs without a noun."""
  last = end
  if last - content > 1 and content == start + 1 and words[start].lower in _SINGULAR:
    lower = words[last - 1].lower
    if lower.endswith("s") and not lower.endswith(("ss", "us", "is", "'s")) and lower not in _SINGULAR_IN_S:
      if not kinds[last - 2] & _VALUE or words[last - 2].lower == "glass":
        last -= 1
  while last > content and kinds[last - 1] & (_ADVERB | _VERB) and not kinds[last - 1] & _JOINED:
    if is_plural_noun(words, last - 1):
      break
    last -= 1
  place = content
  while place < last and _is_no_noun(kinds[place]):
    place += 1
  if place == last:
    return content
  while last - content > 1 and kinds[last - 1] & _PLAIN and _is_no_noun(kinds[last - 1]):
    last -= 1  # `its beak wide open`
  if last - content == 1 and start == content and not words[content].lower.endswith("s"):
    before = start
    while before and not kinds[before] & _APART and _is_adverb_here(words, kinds, before - 1):
      before -= 1
    if before and not kinds[before] & _APART and words[before - 1].lower in english.AUXILIARIES:
      return content  # `the ticks are very crisp`
  return last


def _is_no_noun(kind: int) -> bool:
  return bool(kind & (_NO_NOUN_JOINED if kind & _JOINED else _NO_NOUN))


def _is_adverb_here(words: Sequence[Word], kinds: Sequence[int], index: int) -> bool:
  return bool(kinds[index] & _ADVERB) or words[index].lower in english.ADVERBS


def _long_end(kinds: Sequence[int], starts: dict[int, int], start: int, end: int) -> int:
  """The word behind a noun phrase and the prepositions and participles, with their nouns, that come right after it."""
  best = index = end
  while index - start < MAX_LONG_WORDS and not kinds[index] & _APART:
    if index in starts:
      index = best = starts[index]
      if best - start > MAX_LONG_WORDS:
        return end
    elif kinds[index] & _ATTACHES:
      index += 1
    else:
      break
  return best
