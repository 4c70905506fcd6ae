"""Checks whether a text is a hard negative: the positive with one attribute exchanged, and wrong of the same thing.

| rule | a negative that breaks it |
|---|---|
| `empty` | has no letter and no digit |
| `meta` | is numbered, quoted, JSON, or talks about itself |
| `punctuation` | has a line break, a tab, or a comma or semicolon that the positive does not have |
| `language` | is in another language than the positive |
| `equals_positive`, `twice` | is the positive or an earlier negative, but for case, spaces and a final dot |
| `negation` | says what is not there |
| `object_changed` | has another thing, or the thing in another form |
| `many_changed` | differs in more than one place, attribute, or in more than three words |
| `nothing_changed` | has no attribute exchanged: a word is added, dropped, or one that is no attribute is changed |
| `synonym` | says the same: `grey` and `gray`, `wooden` and `oak`, `blue` and `dark blue` |
| `other_kind` | has a value of another kind in place of the old one: `red` and `wooden` |
| `still_true` | has a value that the phrase or the caption gives to the same thing, or is a phrase of the same place |
| `length` | has under 0.7 or over 1.5 times the positive's words |
| `article`, `case` | has `a` for `an`, or begins in another case; `repair` mends both |

What only pictures can say is asked by `stages/check.py`.
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence

from fgclip_jax.annotate.rules import chinese, english_attributes, english_chunks, english_words
from fgclip_jax.annotate.rules.lexicon import Attribute, get_lexicon
from fgclip_jax.annotate.rules.negatives import LENGTHS, fix_article, starts_with_vowel
from fgclip_jax.annotate.rules.phrases import find_attributes
from fgclip_jax.annotate.rules.tokens import split_words
from fgclip_jax.prepare.checks import normalize

MAX_CHANGED_WORDS = 3
GIVEAWAY = 3.0  # a value's share among negatives over that among positives

RULES = (
  "empty",
  "equals_positive",
  "twice",
  "object_changed",
  "nothing_changed",
  "many_changed",
  "other_kind",
  "synonym",
  "still_true",
  "punctuation",
  "negation",
  "length",
  "meta",
  "language",
  "article",
  "case",
)

_META = re.compile(
  r"""\s*(?:\d{1,2}\s*[.):]\s|[a-h][.)]\s|[-*•#>]\s|[{\[`"“«']|(?:hard\s+)?negatives?\b\s*(?:caption|phrase|\d)*\s*[:.\d]|here\s(?:is|are)\b|option\s+\w+\s*[:.)]"""
  r"""|(?:answer|output|phrase|caption|example|text)\s*\d*\s*:|instead\s+of\b|sure\b|负例|反例|以下是|答案)|.*[}\]`"”»]\s*$""",
  re.IGNORECASE | re.DOTALL,
)
_SIGNS = re.compile(r"[()\[\]{}<>:=→|*#]")  # of what a model says about an answer: `(changed)`, `old: new`
_MARKS = re.compile(r"[;,；，、。]")
_HAN = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclasses.dataclass(frozen=True)
class _Unit:
  lower: str
  start: int
  end: int


def check(
  positive: str,
  negative: str,
  language: str = "en",
  caption: str = "",
  earlier: Collection[str] = (),
  others: Collection[str] = (),
) -> str | None:
  """Returns the name of the first rule that a negative breaks; None if it is good.

  Args:
    positive: the phrase that is right.
    negative: the phrase to check; `repair` it first.
    language: `en` or `zh`.
    caption: what else is known of the picture.
    earlier: the negatives that the phrase has already.
    others: positives of regions at the same place (IoU over 0.3): they are true there.
  """
  rule = _check_text(positive, negative, language)
  if rule:
    return rule
  plain = normalize(negative)
  if plain == normalize(positive):
    return "equals_positive"
  if any(plain == normalize(text) for text in earlier):
    return "twice"
  if _negates(negative, language) and not _negates(positive, language):
    return "negation"
  rule = _check_change(positive, negative, language, caption)
  if rule:
    return rule
  if any(plain == normalize(text) for text in others):
    return "still_true"
  ratio = len(_units(negative, language)) / max(1, len(_units(positive, language)))
  if not LENGTHS[0] <= ratio <= LENGTHS[1]:
    return "length"
  if language == "en":
    return _check_form(positive, negative)
  return None


def repair(positive: str, negative: str, language: str = "en") -> tuple[str, tuple[str, ...]]:
  """Mends what is no fault of meaning, and says what it was: `article`, `case`, `spaces`, `final_dot`.

  Args:
    positive: the phrase that is right.
    negative: an answer of a model.
    language: `en` or `zh`.
  """
  mended = []
  text = " ".join(negative.split(" ")).strip() if "\n" not in negative and "\t" not in negative else negative
  text = re.sub(r" {2,}", " ", text)
  if text != negative:
    mended.append("spaces")
  dot = positive[-1:] if positive[-1:] in (".", "。") else ""
  bare = text.rstrip(" .。")
  if bare and bare + dot != text and not positive.endswith(" ."):
    text = bare + dot
    mended.append("final_dot")
  if language == "en":
    fixed = text
    for match in reversed(list(re.finditer(r"\b[Aa]n?\b(?= +(\w))", text))):
      fixed = fix_article(fixed, match.start(1))
    if fixed != text:
      text = fixed
      mended.append("article")
    first, wanted = text[:1], positive[:1]
    if first.isalpha() and wanted.isalpha() and first.isupper() != wanted.isupper():
      text = (first.upper() if wanted.isupper() else first.lower()) + text[1:]
      mended.append("case")
  return text, tuple(mended)


def find_giveaways(positives: Mapping[str, int], negatives: Mapping[str, int], least: int = 20) -> dict[str, float]:
  """Finds values that tell a negative from a positive: over three times as frequent among negatives.

  Args:
    positives: how often the positives have each value, e.g. as `negatives.count_values` counts.
    negatives: the same of the negatives.
    least: a value with fewer occurrences among the negatives says nothing.

  Returns:
    The ratio of the shares by value, the largest first; infinite if no positive has the value.
  """
  total, total_negative = sum(positives.values()), sum(negatives.values())
  found = {}
  for value, count in negatives.items():
    share = positives.get(value, 0) / total if total else 0.0
    ratio = count / total_negative / share if share else float("inf")
    if count >= least and ratio > GIVEAWAY:
      found[value] = ratio
  return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


def _check_text(positive: str, negative: str, language: str) -> str | None:
  if not any(character.isalnum() for character in negative):
    return "empty"
  if _META.match(negative) and not _META.match(positive):
    return "meta"
  if len(_SIGNS.findall(negative)) > len(_SIGNS.findall(positive)):
    return "meta"
  if any(mark in negative for mark in "\n\r\t"):
    return "punctuation"
  if sorted(_MARKS.findall(negative.rstrip(" 。"))) != sorted(_MARKS.findall(positive.rstrip(" 。"))):
    return "punctuation"
  letters, han = len(_LETTER.findall(negative)), len(_HAN.findall(negative))
  if language == "zh":
    return "language" if han < 0.6 * letters else None
  if han or any(not _is_latin(character) and character not in positive for character in negative):
    return "language"
  words = {word.lower for word in split_words(negative)} - {word.lower for word in split_words(positive)}
  return "language" if words & english_words.FOREIGN else None


def _is_latin(character: str) -> bool:
  return not character.isalpha() or character < "ɐ"


def _negates(text: str, language: str) -> bool:
  if language == "zh":
    rest = text.replace("不透明", "").replace("不锈钢", "").replace("未成熟", "")
    return any(word in rest for word in chinese.NEGATIONS.split())
  words = split_words(text)
  return any(word.lower in english_words.NEGATIONS or word.lower.endswith("n't") for word in words)


def _check_change(positive: str, negative: str, language: str, caption: str) -> str | None:
  old_units, new_units = _units(positive, language), _units(negative, language)
  old_attributes, new_attributes = find_attributes(positive, language), find_attributes(negative, language)
  blocks = _blocks([unit.lower for unit in old_units], [unit.lower for unit in new_units])
  if not blocks:
    return "nothing_changed"  # only marks differ
  changed = {place for first, last, _, _ in blocks for place in range(first, last)}
  things = _things(positive, language, old_units)
  olds, news = set(), set()
  for first, last, new_first, new_last in blocks:
    olds |= {number for number, each in enumerate(old_attributes) if _meets(each, old_units[first:last])}
    news |= {number for number, each in enumerate(new_attributes) if _meets(each, new_units[new_first:new_last])}
  # A value may share words with the one it replaces: `blue` became `dark blue`.
  same = _same_places(blocks, len(old_units))
  for number in tuple(news):
    shared = [old for old, new in same if _meets(new_attributes[number], new_units[new : new + 1])]
    olds |= {
      each for each, value in enumerate(old_attributes) for old in shared if _meets(value, old_units[old : old + 1])
    }
  for number in tuple(olds):
    shared = [new for old, new in same if _meets(old_attributes[number], old_units[old : old + 1])]
    news |= {
      each for each, value in enumerate(new_attributes) for new in shared if _meets(value, new_units[new : new + 1])
    }
  of_attributes = {
    place for number in olds for place, unit in enumerate(old_units) if _meets(old_attributes[number], [unit])
  }
  if (changed & things) - of_attributes:
    return "object_changed"
  if len(olds) > 1 or len(news) > 1 or (len(blocks) > 1 and not (len(olds) == len(news) == 1)):
    return "many_changed"
  if max(max(last - first, new_last - new_first) for first, last, new_first, new_last in blocks) > (
    MAX_CHANGED_WORDS if language == "en" else 3 * MAX_CHANGED_WORDS
  ):
    return "many_changed"
  first, last, new_first, new_last = blocks[0]
  if not olds:
    return "nothing_changed"
  old = old_attributes[min(olds)]
  if not news:
    added = [unit.lower for unit in new_units[new_first:new_last]]
    if language == "en" and (
      not added or all(word in english_words.PREPOSITIONS | english_words.DETERMINERS for word in added)
    ):
      return "nothing_changed"
    return "nothing_changed" if not added else None
  new = new_attributes[min(news)]
  rest = [unit for unit in new_units[new_first:new_last] if not _meets(new, [unit])]
  rest_old = [unit for unit in old_units[first:last] if not _meets(old, [unit])]
  if len(rest) + len(rest_old) > 1:
    return "many_changed"
  return _check_values(old, new, old_attributes, caption, language)


def _check_values(
  old: Attribute, new: Attribute, attributes: Sequence[Attribute], caption: str, language: str
) -> str | None:
  lexicon = get_lexicon(language)
  old_value, new_value = lexicon.value(old.value), lexicon.value(new.value)
  if old_value is None or new_value is None:
    return None
  if old.attribute != new.attribute:
    return "other_kind"
  if not lexicon.excludes(old_value, new_value):
    return "synonym" if lexicon.agrees(old_value, new_value) else "other_kind"
  known = [*attributes, *(find_attributes(caption, language) if caption else ())]
  for each in known:
    value = lexicon.value(each.value)
    if each is old or value is None or each.noun != old.noun or not each.noun or each.attribute != new.attribute:
      continue
    if lexicon.agrees(value, new_value) and not (value.names == old_value.names and value.tone == old_value.tone):
      return "still_true"
  return None


def _check_form(positive: str, negative: str) -> str | None:
  if _wrong_articles(negative) > _wrong_articles(positive):
    return "article"
  first, wanted = negative[:1], positive[:1]
  if first.isalpha() and wanted.isalpha() and first.isupper() != wanted.isupper():
    return "case"
  return None


def _wrong_articles(text: str) -> int:
  articles = re.finditer(r"\b([Aa]n?) +(?=\w)", text)
  return sum((article[1].lower() == "an") != starts_with_vowel(text[article.end() :]) for article in articles)


@functools.lru_cache(4096)
def _units(text: str, language: str) -> tuple[_Unit, ...]:
  """Words of English, where `an` is `a`; characters of Chinese."""
  if language == "zh":
    return tuple(_Unit(text[place].lower(), place, place + 1) for place in range(len(text)) if text[place].isalnum())
  return tuple(_Unit("a" if word.lower == "an" else word.lower, word.start, word.end) for word in split_words(text))


@functools.lru_cache(4096)
def _things(text: str, language: str, units: tuple[_Unit, ...]) -> set[int]:
  """The places of the units that name things."""
  if language == "zh":
    nouns = [
      (each.end + text[each.end :].find(each.noun), each.noun) for each in find_attributes(text, language) if each.noun
    ]
    spans = [(start, start + len(noun)) for start, noun in nouns]
  else:
    chunks = english_chunks.find(text)
    spans = [(chunk.end - len(chunk.head), chunk.end) for chunk in chunks]
    spans += _named(text, {end for _, end in spans})
  return {place for place, unit in enumerate(units) if any(start <= unit.start < end for start, end in spans)}


def _named(text: str, ends: Collection[int]) -> list[tuple[int, int]]:
  """What else says which things these are: `girl's`, and the first words of `school bag` and `orange juice`."""
  words = split_words(text)
  found = []
  for place, word in enumerate(words):
    after = words[place + 1] if place + 1 < len(words) and not words[place + 1].apart else None
    owns = word.lower.endswith("'s") and word.lower not in english_attributes.CLOSED
    named = after and (
      english_attributes.is_name(words, place) or (after.end in ends and _may_name(word.lower) and not after.joined)
    )
    if owns or named:
      found.append((word.start, word.end))
  return found


def _may_name(lower: str) -> bool:
  """Whether a word before a noun is likelier another noun than an adjective."""
  if lower in english_attributes.CLOSED or lower.isdigit() or lower.endswith("y"):
    return False
  if english_attributes.is_verb(lower) or english_attributes.has_form_of_adjective(lower):
    return False
  return get_lexicon("en").value(lower) is None


def _meets(attribute: Attribute, units: Sequence[_Unit]) -> bool:
  return bool(units) and units[0].start < attribute.end and attribute.start < units[-1].end


def _same_places(blocks: list[tuple[int, int, int, int]], count: int) -> list[tuple[int, int]]:
  """The places of the units that two texts share, in the old one and in the new one."""
  places, old, shift = [], 0, 0
  for first, last, _, new_last in blocks:
    places += [(place, place + shift) for place in range(old, first)]
    old, shift = last, new_last - last
  return places + [(place, place + shift) for place in range(old, count)]


def _blocks(old: list[str], new: list[str]) -> list[tuple[int, int, int, int]]:
  """Where two lists differ: `old[a:b]` became `new[c:d]`."""
  start = 0
  while start < min(len(old), len(new)) and old[start] == new[start]:
    start += 1
  end = 0
  while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
    end += 1
  inside, inside_new = old[start : len(old) - end], new[start : len(new) - end]
  if not inside and not inside_new:
    return []
  if min(len(inside), len(inside_new)) <= 1:
    return [(start, start + len(inside), start, start + len(inside_new))]
  return [(start + a, start + b, start + c, start + d) for a, b, c, d in _differences(inside, inside_new)]


def _differences(old: list[str], new: list[str]) -> list[tuple[int, int, int, int]]:
  """The blocks of the fewest exchanges, insertions and deletions (R. Wagner and M. Fischer, 1974)."""
  costs = [[max(len(old) - a, len(new) - c) for c in range(len(new) + 1)] for a in range(len(old) + 1)]
  for a in reversed(range(len(old))):
    for c in reversed(range(len(new))):
      exchanged = costs[a + 1][c + 1] + (old[a] != new[c])
      costs[a][c] = min(exchanged, costs[a + 1][c] + 1, costs[a][c + 1] + 1)
  blocks, a, c = [], 0, 0
  first, new_first = 0, 0
  while a < len(old) or c < len(new):
    both = a < len(old) and c < len(new)
    if both and old[a] == new[c]:
      if (first, new_first) != (a, c):
        blocks.append((first, a, new_first, c))
      first, new_first = a, c = a + 1, c + 1
    elif both and costs[a][c] == costs[a + 1][c + 1] + 1:
      a, c = a + 1, c + 1
    elif a < len(old) and costs[a][c] == costs[a + 1][c] + 1:
      a += 1
    else:
      c += 1
  return [*blocks, (first, a, new_first, c)] if (first, new_first) != (a, c) else blocks
