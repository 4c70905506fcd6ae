"""Finds the attributes that a Chinese text gives to things, and the things: by the longest entry of the lexicon."""

import functools

from fgclip_jax.annotate.rules import chinese
from fgclip_jax.annotate.rules.lexicon import Attribute, Value, get_lexicon

_LONGEST = 6  # characters of the longest value, a tone included


def find(text: str) -> tuple[Attribute, ...]:
  """Returns the attributes of all classes in a text, in order; none overlap.

  Sizes, shapes of one character and states count with their 的 (`大的`) and where it is left out before a noun.
  """
  found, index = [], 0
  firsts, names, nouns = _tables()
  while index < len(text):
    name = next((name for name in names.get(text[index], ()) if text.startswith(name, index)), "")
    if name:
      index += len(name)
      continue
    if text[index] in firsts:
      match = _match(text, index, nouns)
      if match:
        value, end = match
        noun = noun_after(text, end + 1 if value.attribute == "count" else end)  # behind the measure word
        found.append(Attribute(value.attribute, text[index:end], index, end, noun, value.form or "before"))
        index = end
        continue
    index += 1
  return tuple(found)


def _match(text: str, start: int, nouns: tuple[str, ...]) -> tuple[Value, int] | None:
  lexicon = get_lexicon("zh")
  if start and text[start - 1] == text[start]:
    return None  # the second half of a doubled adjective, such as `白白的`
  for end in range(min(len(text), start + _LONGEST), start, -1):
    value = lexicon.value(text[start:end])
    if value is None or value.form == "bare" or (value.attribute == "brightness" and end == len(text)):
      continue
    if value.attribute in ("count", "brightness"):
      if value.attribute == "count" and text[end : end + 1] not in _measures():
        continue
      if value.attribute == "brightness" and not _colour_at(text, end):
        continue
    return value, end
  bare = lexicon.value(text[start]) if text[start] in chinese.BARE else None
  if bare and text.startswith(nouns, start + 1) and (start == 0 or text[start - 1] not in "深浅暗淡亮鲜"):
    return bare, start + 1
  return None


def _colour_at(text: str, start: int) -> bool:
  return any(get_lexicon("zh").value(text[start:end]) for end in range(start + 2, start + 5))


@functools.cache
def _measures() -> frozenset[str]:
  return frozenset(chinese.MEASURES.split())


@functools.cache
def _tables() -> tuple[frozenset[str], dict[str, list[str]], tuple[str, ...]]:
  lexicon = get_lexicon("zh")
  firsts = {surface[0] for surface in (*lexicon.colours, *lexicon.tones, *lexicon.others)} | set(chinese.BARE)
  names: dict[str, list[str]] = {}
  for name in sorted(chinese.NAMES.split(), key=len, reverse=True):
    names.setdefault(name[0], []).append(name)
  return frozenset(firsts), names, tuple(sorted(chinese.BARE_NOUNS.split(), key=len, reverse=True))


@functools.cache
def breaks() -> tuple[str, ...]:
  """The words that end a phrase, longest first."""
  return tuple(sorted(chinese.BREAKS.split(), key=len, reverse=True))


def noun_after(text: str, index: int) -> str:
  """The noun that the words before `index` describe: behind 的 and other values, up to the next 的 or verb."""
  lexicon, start, end = get_lexicon("zh"), index, index
  while end < len(text) and text[end].isalnum() and not text.startswith(breaks(), end):
    if text[end] == "的" and start == end:
      start = end = end + 1
      continue
    if text[end] == "的":
      break
    for last in range(min(len(text), end + _LONGEST), end + 1, -1):
      if lexicon.value(text[end:last]) is not None:
        start = end = last
        break
    else:
      end += 1
  return text[start:end]
