"""Noun phrases of English captions, by closed classes of words.

Articles, prepositions, conjunctions, pronouns and auxiliaries are few and known; what is between them is a noun phrase
or a verb. A verb is known by its ending and by a list of those that captions use.
"""

import functools
from collections.abc import Sequence

from fgclip_jax.annotate.rules import english_words as english
from fgclip_jax.annotate.rules.chunks import Chunk
from fgclip_jax.annotate.rules.english_attributes import CLOSED, VALUE_NOUNS, is_adverb, is_verb
from fgclip_jax.annotate.rules.lexicon import Value, get_lexicon
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
_OPENERS = english.PREPOSITIONS - {"than", "as", "like", "since", "until", "before", "after", "during"}


def find(text: str) -> list[Chunk]:
  """Returns the noun phrases and pronouns of a text, in order; `a pair of buds` is one phrase about buds."""
  words = split_words(text)
  spans = _spans(words)
  merged: list[tuple[int, int, int, bool]] = []
  for start, end, head, pronoun in spans:
    if merged and not pronoun:
      first, last, amount, _ = merged[-1]
      if words[amount].lower in english.AMOUNTS and start == last + 1 and words[last].lower == "of":
        merged[-1] = (first, end, head, False)
        continue
    merged.append((start, end, head, pronoun))
  starts = {start: end for start, end, _, _ in merged}
  chunks = []
  for start, end, head, pronoun in merged:
    first = head - 1 if words[head].joined and words[head].lower in CLOSED else head  # `close-up`
    noun = text[words[first].start : words[head].end].lower()
    long_end = words[_long_end(words, starts, start, end) - 1].end
    chunks.append(Chunk(words[start].start, words[end - 1].end, noun, long_end, pronoun))
  return chunks


def _spans(words: Sequence[Word]) -> list[tuple[int, int, int, bool]]:
  spans, index = [], 0
  while index < len(words):
    lower = words[index].lower
    start = index
    if lower in CLOSED and lower not in _STARTS:
      if lower in _PERSONAL:
        spans.append((start, start + 1, start, True))
      index += 1
      continue
    if lower in _STARTS and not _is_relative(words, index):
      index += 1
      while index < len(words) and words[index].lower in _STARTS and not words[index].apart:
        index += 1
    content = index
    index = _run_end(words, content, start < content)
    last = _without_verb(words, start, content, index)
    if last > content:
      spans.append((start, last, last - 1, False))
    index = max(index, start + 1)
  return spans


def _is_relative(words: Sequence[Word], index: int) -> bool:
  """Whether `that` at `index` begins a clause: `banners that carry headings`."""
  return words[index].lower == "that" and index > 0 and not words[index].apart and words[index - 1].lower not in CLOSED


def _run_end(words: Sequence[Word], start: int, determined: bool) -> int:
  """The word behind the run of adjectives and nouns that begins at `start`."""
  index, noun = start, False
  while index < len(words):
    word = words[index]
    lower = word.lower
    if word.apart and (
      (determined and index == start) or (index > start and not _lists(words, start, index, noun, determined))
    ):
      return index
    joined = word.joined and index > start
    if index > start and lower in ("and", "or") and not noun and _is_adjective(words, index + 1):
      index += 1
      continue
    if not joined:
      if lower in CLOSED or lower in ("other", "one"):
        return index
      if _may_be_verb(lower) and _is_verb_here(words, start, index, noun, determined):
        return index
      if is_adverb(lower) and not _is_content(words, index + 1):
        return index
    joined_next = index + 1 < len(words) and words[index + 1].joined
    noun = noun or not (joined_next or joined or is_adverb(lower) or _is_adjective(words, index))
    index += 1
  return index


@functools.lru_cache(100_000)
def _may_be_verb(lower: str) -> bool:
  """Whether `_is_verb_here` may be true of a word, which it is of few."""
  return (
    is_verb(lower)
    or lower.endswith("ed")
    or lower in english.VERBS
    or lower in english.CLEAR_VERBS
    or (lower.endswith("s") and lower[:-1] in english.NOUNS_LIKE_VERBS)
  )


def _is_verb_here(words: Sequence[Word], start: int, index: int, noun: bool, determined: bool) -> bool:
  lower = words[index].lower
  content_next = _is_content(words, index + 1)
  before = words[index - 1].lower if index and not words[index].apart else ""
  if lower.endswith("ing") and is_verb(lower):
    if index == start:
      return not content_next or (not determined and lower in english.TAKES_OBJECT)
    return noun or not content_next
  if is_verb(lower):
    return noun or (index == start and not determined) or not content_next
  if lower.endswith("ed") and len(lower) > 4 and lower not in english.NOUNS_IN_ED and _value(lower) is None:
    if not noun:
      return not content_next
    return not content_next or _is_adjective(words, index + 1)
  plural = before.endswith("s") and not before.endswith(("ss", "us", "'s")) and before not in CLOSED
  if content_next:
    return (
      plural and lower in english.CLEAR_VERBS and (noun or (index == start and not determined))
    )  # `pages carry headings`
  if lower in english.CLEAR_VERBS and _value(lower) is None:
    return noun or (index == start and not determined)
  if lower in english.VERBS and plural and (noun or (index == start and not determined)):
    return True  # `feathers cover the wing`, also where the run begins at the verb
  if noun and lower.endswith("s") and lower[:-1] in english.NOUNS_LIKE_VERBS:
    return (
      index + 1 < len(words) and not words[index + 1].apart and words[index + 1].lower in _STARTS
    )  # `a stripe lines the door`
  return False


def _value(lower: str) -> Value | None:
  return get_lexicon("en").value(lower)


def _is_content(words: Sequence[Word], index: int) -> bool:
  return (
    index < len(words)
    and not words[index].apart
    and words[index].lower not in CLOSED
    and not is_verb(words[index].lower)
  )


def _is_adjective(words: Sequence[Word], index: int) -> bool:
  return index < len(words) and _has_form_of_adjective(words[index].lower)


@functools.lru_cache(100_000)
def _has_form_of_adjective(lower: str) -> bool:
  if lower.endswith("ed") and lower not in english.NOUNS_IN_ED:
    return True
  if lower.endswith(("ish", "ous", "ful", "less", "ive", "able", "ible")) and len(lower) > 5:
    return True
  return _value(lower) is not None


def _lists(words: Sequence[Word], start: int, index: int, noun: bool, determined: bool) -> bool:
  """Whether a comma before `index` is between adjectives: `a smooth, rounded handle`."""
  if not words[index].comma or not _is_adjective(words, index):
    return False
  # One unknown word after an article is an adjective as well: `a cool, muted tone`, but not `by the house, red ...`.
  return not noun or (determined and index - start == 1 and words[start - 1].lower != "the")


def _without_verb(words: Sequence[Word], start: int, content: int, end: int) -> int:
  """Takes from the end of a run what is no noun: a verb after `a`, adjectives and adverbs without a noun."""
  last = end
  singular = content == start + 1 and words[start].lower in _SINGULAR
  lower = words[last - 1].lower if last > content else ""
  if singular and last - content > 1 and lower.endswith("s") and not lower.endswith(("ss", "us", "is", "'s")):
    before = words[last - 2].lower
    if lower not in _SINGULAR_IN_S and (_value(before) is None or before == "glass"):
      last -= 1
  while (
    last > content
    and not words[last - 1].joined
    and (is_adverb(words[last - 1].lower) or is_verb(words[last - 1].lower))
  ):
    last -= 1
  if last > content and all(_no_noun(words, place) for place in range(content, last)):
    return content
  while last - content > 1 and _is_plain_adjective(words, last - 1):
    last -= 1  # `its beak wide open`
  if last - content == 1 and start == content and not words[content].lower.endswith("s"):
    before = start
    while (
      before
      and not words[before].apart
      and (words[before - 1].lower in english.ADVERBS or is_adverb(words[before - 1].lower))
    ):
      before -= 1
    if before and not words[before].apart and words[before - 1].lower in english.AUXILIARIES:
      return content  # `the ticks are very crisp`
  return last


def _is_plain_adjective(words: Sequence[Word], place: int) -> bool:
  value = _value(words[place].lower)
  return value is not None and value.attribute in ("size", "shape", "state", "transparency") and _no_noun(words, place)


def _no_noun(words: Sequence[Word], place: int) -> bool:
  lower = words[place].lower
  if words[place].joined:
    return lower.endswith("ed") or _value(lower) is not None
  value = _value(lower)
  if value is None:
    return lower in ("and", "or") or lower.isdigit()
  if value.attribute in ("material", "position"):
    return lower.endswith("en")
  return lower not in VALUE_NOUNS


def _long_end(words: Sequence[Word], starts: dict[int, int], start: int, end: int) -> int:
  """The word behind a noun phrase and the prepositions and participles, with their nouns, that come right after it."""
  best = index = end
  while index < len(words) and index - start < MAX_LONG_WORDS:
    word = words[index]
    if word.apart:
      break
    if index in starts:
      index = best = starts[index]
      if best - start > MAX_LONG_WORDS:
        return end
      continue
    lower = word.lower
    participle = lower.endswith(("ing", "ed")) and lower not in CLOSED
    if not (lower in _OPENERS or participle or is_adverb(lower)):
      break
    index += 1
  return best
