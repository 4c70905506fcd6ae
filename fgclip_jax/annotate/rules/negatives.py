"""Hard negatives of a phrase: the same words with one attribute exchanged, so that they are wrong of the same thing.

Values are drawn by how often the positives of a data set use them. A value that only negatives have would tell a model
that a text is wrong without a look at the picture.
"""

import collections
import dataclasses
import functools
import random
from collections.abc import Iterable, Mapping, Sequence

from fgclip_jax.annotate.rules import chinese
from fgclip_jax.annotate.rules.english import ISH
from fgclip_jax.annotate.rules.english_words import PEOPLE
from fgclip_jax.annotate.rules.lexicon import DEFAULT_CLASSES, Attribute, Lexicon, Value, get_lexicon
from fgclip_jax.annotate.rules.phrases import Phrase, find_attributes, whole
from fgclip_jax.annotate.rules.tokens import split_words

SEEN = 1000  # weight of a value for each time it is seen; values that were not seen only fill up
LENGTHS = (0.7, 1.5)  # words of a negative over those of its positive
SAME_KIND = 8  # how much likelier soft replaces soft, and hard replaces hard
AGES = frozenset(("young", "old", "年轻的", "年老的", "年轻", "年老"))


@dataclasses.dataclass(frozen=True)
class Negative:
  """A phrase that is wrong in one attribute.

  Attributes:
    text: the phrase.
    attribute: the class of the attribute that was exchanged.
    old: the positive's value as it is written there, in lower case.
    new: the value in its place.
  """

  text: str
  attribute: str
  old: str
  new: str


@dataclasses.dataclass(frozen=True)
class _Slot:
  """One attribute to exchange, and what it may be exchanged for, with weights."""

  attribute: str
  old: str
  start: int
  end: int
  choices: tuple[tuple[Value, int], ...]


class Drawer:
  """Draws negatives for many phrases of one data set."""

  def __init__(
    self,
    language: str = "en",
    frequencies: Mapping[str, int] | None = None,
    classes: Sequence[str] = DEFAULT_CLASSES,
  ):
    """Makes a drawer.

    Args:
      language: `en` or `zh`.
      frequencies: how often the positives have each value, as `count_values` counts; None: the lexicon's weights.
      classes: the classes of attributes to exchange.
    """
    self._language = language
    self._lexicon = get_lexicon(language)
    self._classes = frozenset(classes)
    self._weights: dict[str, dict[str, tuple[Value, int]]] = {
      name: {value.surface: (value, value.weight) for value in values} for name, values in self._lexicon.drawn.items()
    }
    for surface, count in sorted((frequencies or {}).items()):
      value = self._lexicon.value(surface)
      if value is not None and count > 0:
        self._weights[value.attribute][surface] = (dataclasses.replace(value, surface=surface), SEEN * count)
    self._choices = functools.lru_cache(50_000)(self._find_choices)

  def draw(self, phrase: Phrase | str, count: int = 10, seed: int = 0, context: str = "") -> tuple[Negative, ...]:
    """Returns at most `count` different negatives; fewer if the phrase does not have that many.

    Args:
      phrase: the positive.
      count: how many are wanted.
      seed: decides the draw; the same on every machine and Python.
      context: what is known of the picture, such as its caption: values that it gives to the same thing are not drawn.
    """
    phrase = whole(phrase, self._language) if isinstance(phrase, str) else phrase
    slots = self._slots(phrase, context)
    draws = random.Random(seed)
    negatives: dict[str, Negative] = {}
    left = [(slot, list(slot.choices)) for slot in slots]
    for seen in (True, False):  # values that the positives have, then others if these are too few
      for again in (False, True):  # `large` and `huge` say about the same: the second only if there is nothing else
        self._draw(phrase, left, seen, again, count, draws, negatives)
    return tuple(negatives.values())

  def _draw(
    self,
    phrase: Phrase,
    left: list[tuple[_Slot, list[tuple[Value, int]]]],
    seen: bool,
    again: bool,
    count: int,
    draws: random.Random,
    negatives: dict[str, Negative],
  ) -> None:
    """Draws of the choices that are left to the slots those that were seen, or not; takes out what is drawn."""
    chosen = [[each for each in choices if (each[1] >= SEEN) is seen] for _, choices in left]
    numbers = [number for number, choices in enumerate(chosen) if choices]
    while numbers and len(negatives) < count:
      number = numbers[int(draws.random() * len(numbers))]
      slot, choices = left[number]
      new = chosen[number][_pick(chosen[number], draws.random())][0]
      # `wood` and `wooden` are one value: the other would be the same negative again.
      choices[:] = [each for each in choices if (each[0].names, each[0].tone) != (new.names, new.tone)]
      alike = frozenset() if again or slot.attribute == "colour" else new.places
      chosen[number] = [
        each
        for each in chosen[number]
        if (each[0].names, each[0].tone) != (new.names, new.tone) and not each[0].places & alike
      ]
      if not chosen[number]:
        numbers.remove(number)
      surface = new.surface.replace(" shaped", "-shaped")
      text = replace(phrase.text, slot.start, slot.end, surface, self._language)
      negatives.setdefault(text.lower(), Negative(text, slot.attribute, slot.old, surface))

  def _slots(self, phrase: Phrase, context: str) -> list[_Slot]:
    known = find_attributes(context, self._language) if context else ()
    slots = []
    for each in phrase.attributes:
      value = self._lexicon.value(each.value)
      if value is None:
        continue
      others = [one for one in (*phrase.attributes, *known) if one is not each and one.noun == each.noun and each.noun]
      if value.attribute in self._classes and not (each.value in AGES and each.noun in self._lexicon.young):
        choices = self._choices(value, _form(each, value), each.noun in PEOPLE)
        if value.attribute != "colour":
          fits = self._lexicon.only_of
          choices = tuple(one for one in choices if each.noun in fits.get(one[0].surface, (each.noun,)))
        slots.append(self._slot(value.attribute, each.value, each.start, each.end, choices, others))
      tone = self._lexicon.tone(each.value) if value.toned else ""
      if tone and "brightness" in self._classes:
        rest = each.value[len(tone) :]
        said = [one for other in others if (one := self._lexicon.value(other.value)) and one.attribute == "colour"]
        choices = tuple(
          choice
          for choice in self._choices(self._lexicon.tones[tone], "tone", False)
          if not (said and any(self._agrees(choice[0].surface + rest, one) for one in said))
        )
        slots.append(_Slot("brightness", tone, each.start, each.start + len(tone), choices))
    least, most = LENGTHS[0] * self._length(phrase.text), LENGTHS[1] * self._length(phrase.text)
    return [self._within(slot, self._length(phrase.text), least, most) for slot in slots]

  def _agrees(self, surface: str, other: Value) -> bool:
    value = self._lexicon.value(surface)
    return value is not None and self._lexicon.agrees(value, other)

  def _length(self, text: str) -> int:
    return len(text) if self._language == "zh" else len(split_words(text))

  def _within(self, slot: _Slot, length: int, least: float, most: float) -> _Slot:
    """Leaves out what would make a negative much shorter or longer than the positive."""
    rest = length - self._length(slot.old)
    if rest + 1 >= least and rest + 3 <= most:  # no value of one to three words is out of bounds
      return slot
    kept = tuple(each for each in slot.choices if least <= rest + self._length(each[0].surface) <= most)
    return dataclasses.replace(slot, choices=kept)

  def _slot(
    self,
    attribute: str,
    old: str,
    start: int,
    end: int,
    choices: tuple[tuple[Value, int], ...],
    others: Sequence[Attribute],
  ) -> _Slot:
    found = (self._lexicon.value(one.value) for one in others)
    said = list(dict.fromkeys(value for value in found if value and value.attribute == attribute))
    if said:
      choices = tuple(each for each in choices if not any(self._lexicon.agrees(each[0], other) for other in said))
    return _Slot(attribute, old, start, end, choices)

  def _find_choices(self, value: Value, form: str, people: bool) -> tuple[tuple[Value, int], ...]:
    lexicon = self._lexicon
    found = []
    for new, weight in self._weights[value.attribute].values():
      if not lexicon.excludes(value, new) or (value.attribute == "colour" and lexicon.agrees(value, new)):
        continue
      if new.surface in lexicon.tones and value.attribute != "brightness":
        continue  # `dull` before `black` is a tone
      if new.people is (not people) or not _fits(new, form, self._language):
        continue
      if form != "tone" and new.surface not in lexicon.alone.get(value.surface, (new.surface,)):
        continue  # without a colour
      if value.attribute == "material" and _are_alike(value.names, new.names, lexicon):
        weight *= SAME_KIND
      found.append((dataclasses.replace(new, surface=_BARE[new.surface]) if form == "bare" else new, weight))
    return tuple(found)


def _are_alike(old: frozenset[str], new: frozenset[str], lexicon: Lexicon) -> bool:
  """Whether what is made of one material is likely made of another: a spoon of wood or plastic, hardly of brick."""
  return (old <= lexicon.soft) == (new <= lexicon.soft) and (old <= lexicon.masonry or not new <= lexicon.masonry)


# The character that stands for a Chinese colour right before a noun.
_BARE = {name: character for character, name in chinese.BARE.items()}


def _form(attribute: Attribute, value: Value) -> str:
  return "bare" if value.form == "bare" else attribute.position


def _fits(value: Value, form: str, language: str) -> bool:
  if language == "zh":
    return form != "bare" or value.surface in _BARE
  if form == "of":
    return value.form != "adjective"
  return form != "joined" or (value.surface.isalpha() and value.form != "adjective" and value.surface not in ISH)


def _pick(choices: list[tuple[Value, int]], drawn: float) -> int:
  """The place of a choice drawn by weight; `drawn` is in 0..1. Weights are integers, so no sum is rounded."""
  target = int(drawn * sum(weight for _, weight in choices))
  for place, (_, weight) in enumerate(choices):
    target -= weight
    if target < 0:
      return place
  return len(choices) - 1


def draw(
  phrase: Phrase | str,
  count: int = 10,
  seed: int = 0,
  frequencies: Mapping[str, int] | None = None,
  classes: Sequence[str] = DEFAULT_CLASSES,
  context: str = "",
  language: str = "en",
) -> tuple[Negative, ...]:
  """Draws negatives for one phrase; for many, make one `Drawer`. The arguments are those of `Drawer`."""
  if frequencies is None:
    return _plain_drawer(language, tuple(classes)).draw(phrase, count, seed, context)
  return Drawer(language, frequencies, classes).draw(phrase, count, seed, context)


@functools.cache
def _plain_drawer(language: str, classes: tuple[str, ...]) -> Drawer:
  return Drawer(language, None, classes)


def count_values(phrases: Iterable[Phrase | str], language: str = "en") -> collections.Counter[str]:
  """Counts the values of attributes in positives, as they are written: the `frequencies` of a `Drawer`.

  The tone of a colour also counts by itself: `light brown` is a `light brown` and a `light`.
  """
  counts: collections.Counter[str] = collections.Counter()
  lexicon = get_lexicon(language)
  for phrase in phrases:
    attributes = find_attributes(phrase, language) if isinstance(phrase, str) else phrase.attributes
    counts.update(each.value for each in attributes)
    counts.update(tone for each in attributes if each.attribute == "colour" and (tone := lexicon.tone(each.value)))
  return counts


def replace(text: str, start: int, end: int, new: str, language: str = "en") -> str:
  """Puts a value in the place of text[start:end]; case and an article before it follow."""
  old = text[start:end]
  if old[:1].isupper():
    new = new.upper() if len(old) > 1 and old.isupper() else new[:1].upper() + new[1:]
  changed = text[:start] + new + text[end:]
  return fix_article(changed, start) if language == "en" else changed


def fix_article(text: str, start: int) -> str:
  """Makes `a` right before the word at `start` an `an`, or the other way round, if the word asks for it."""
  before = text[:start].rstrip()
  article = before.rpartition(" ")[2]
  if article.lower() not in ("a", "an") or before == text[:start]:
    return text
  right = "an" if starts_with_vowel(text[start:]) else "a"
  if article.lower() == right:
    return text
  right = right[0].upper() + right[1:] if article[0].isupper() else right
  return before[: len(before) - len(article)] + right + text[len(before) :]


_SILENT = ("hour", "honest", "honor", "honour", "heir")
_CONSONANT = ("uni", "use", "usu", "uti", "eu", "one", "once", "ubi", "ura", "ewe")
_UN_I = ("unid", "unim", "unin", "unil", "unir")  # `unidentified`, `uninteresting`: un- and no uni-


def starts_with_vowel(text: str) -> bool:
  """Whether `an` belongs before a text."""
  lower = text.lower()
  if lower.startswith(_SILENT):
    return True
  if lower.startswith(_CONSONANT) and not lower.startswith(_UN_I):
    return False
  return lower[:1] in ("a", "e", "i", "o", "u") or (lower[:1] == "8" or lower[:2] in ("11", "18"))
