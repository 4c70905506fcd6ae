"""Values of attributes, and which of them exclude each other.

A *value* is what an attribute of a thing can be called: `red`, `light brown`, `wooden`, `polka dot`. Two values
exclude each other if they cannot both describe one thing: `red` and `blue` do; `red` and `crimson`, `wood` and `oak`,
`blue` and `light blue` do not, `light blue` and `dark blue` do. The tables are in `english.py` and `chinese.py`.
"""

import dataclasses
import functools
from types import ModuleType
from typing import NamedTuple

from fgclip_jax.annotate.rules import chinese, english

CLASSES = (
  "colour",
  "material",
  "pattern",
  "transparency",
  "brightness",
  "size",
  "shape",
  "state",
  "count",
  "position",
)
# What FG-OVD measures, and three that other text has. Numbers and places are only changed on request.
DEFAULT_CLASSES = CLASSES[:8]


@dataclasses.dataclass(frozen=True)
class Value:
  """What an attribute can be called.

  Attributes:
    attribute: its class, one of `CLASSES`.
    surface: how it is written, in lower case.
    names: the values it stands for; of a compound (`blue-green`) several.
    tone: of a colour, how light it is said to be (`light`, `dark`, ...), by itself or in `surface`; else "".
    places: (scale, group) pairs; two values of one scale exclude each other unless they share a group.
    form: where it can be put: "" anywhere, `adjective` only before a noun, `bare` only right before a Chinese noun.
    weight: how often it is drawn if nothing is known of a data set; 0: it is recognised only.
    people: it holds for people only (True), for all else (False), for anything (None).
    toned: a tone is part of `surface`.
  """

  attribute: str
  surface: str
  names: frozenset[str]
  tone: str = ""
  places: frozenset[tuple[str, str]] = frozenset()
  form: str = ""
  weight: int = 1
  people: bool | None = None
  toned: bool = False


class Attribute(NamedTuple):
  """An attribute that a text gives to a thing.

  Attributes:
    attribute: its class, one of `CLASSES`.
    value: how it is written, in lower case: what `Lexicon.value` understands.
    start: offset of its first character in the text.
    end: offset behind its last character.
    noun: the last word of what it describes; "" if none is found.
    position: what may replace it: `before` a noun, `of` after a preposition, `joined` by a hyphen to another word.
  """

  attribute: str
  value: str
  start: int
  end: int
  noun: str
  position: str = "before"


class Lexicon:
  """The values of one language.

  Attributes:
    language: its code.
    colours: values of the class colour by surface.
    tones: what makes a colour lighter or darker, by surface.
    others: all other values by surface.
    drawn: for each class the values that are drawn where nothing else is known.
    words: every word of a value.
    soft: names of materials that bend.
    masonry: names of materials of walls.
    alone: what a tone without a colour may become, by surface.
    only_of: the nouns that a value is drawn for, by surface; all others are drawn for anything.
    young: nouns that say an age.
  """

  def __init__(self, language: str, tables: ModuleType):
    self.language = language
    self.colours: dict[str, Value] = {}
    self.tones: dict[str, Value] = {}
    self.others: dict[str, Value] = {}
    self._overlaps: set[tuple[str, str]] = set()
    self._join = "" if language == "zh" else " "
    self._implied = {name.replace("_", " "): tone for name, tone in tables.IMPLIED_TONES.items()}
    for value in self._lines("colour", tables.COLOURS):
      tone = self._implied.get(min(value.names), "")
      self.colours[value.surface] = dataclasses.replace(value, tone=tone)
    for stem, name in tables.ISH.items():
      self.colours[stem] = Value("colour", stem, frozenset({name}), weight=0)
    for character, name in tables.BARE.items():
      self.colours[character] = dataclasses.replace(self.colours[name], surface=character, form="bare", weight=0)
    self.tones = {value.surface: value for value in self._lines("brightness", tables.TONES)}
    for attribute, text in tables.LISTS.items():
      for value in self._lines(attribute, text):
        self.others[value.surface] = value
    for attribute, text in tables.SCALES.items():
      for number, line in enumerate(filter(None, text.splitlines())):
        self._add_scale(attribute, f"{attribute} {number}", line)
    self.drawn = self._draw(tables.TONED.split(), tables.DRAWN_TONES.split(), tables.TONED_WEIGHT)
    surfaces = (*self.colours, *self.tones, *self.others)
    self.words = frozenset(word for surface in surfaces for word in surface.split())
    self.soft, self.masonry = frozenset(tables.SOFT.split()), frozenset(tables.MASONRY.split())
    self.alone = {surface: frozenset(others.split()) for surface, others in tables.ALONE.items()}
    self.only_of: dict[str, frozenset[str]] = tables.ONLY_OF
    self.young: frozenset[str] = tables.YOUNG
    self._values: dict[str, Value | None] = {}

  def _lines(self, attribute: str, text: str) -> list[Value]:
    found = []
    for line in filter(None, text.splitlines()):
      left, _, right = line.partition("|")
      weight, *surfaces = left.split()
      name = _plain(surfaces[0])
      for other in map(_plain, right.split()):
        self._overlaps |= {(name, other), (other, name)}
      for surface in surfaces:
        form = "adjective" if "*" in surface else ""
        drawn = 0 if "~" in surface else int(weight)
        places = frozenset({(attribute, name)})
        found.append(Value(attribute, _plain(surface), frozenset({name}), "", places, form, drawn))
    return found

  def _add_scale(self, attribute: str, scale: str, line: str) -> None:
    people = True if line.startswith("people:") else False if line.startswith("things:") else None
    groups = line.removeprefix("people:").removeprefix("things:").split("|")
    for group, surfaces in enumerate(groups):
      for surface in surfaces.split():
        plain, places = _plain(surface), frozenset({(scale, str(group))})
        if earlier := self.others.get(plain):
          if earlier.attribute != attribute:
            raise ValueError(f"{plain!r} is of the classes {earlier.attribute} and {attribute}")
          people_of = earlier.people if earlier.people == people else None
          self.others[plain] = dataclasses.replace(earlier, places=earlier.places | places, people=people_of)
        else:
          weight = 0 if "~" in surface else 1
          self.others[plain] = Value(attribute, plain, frozenset({plain}), "", places, "", weight, people)

  def _draw(self, toned: list[str], tones: list[str], weight: int) -> dict[str, tuple[Value, ...]]:
    drawn = {name: [value for value in self.others.values() if value.attribute == name] for name in CLASSES}
    drawn["brightness"] = list(self.tones.values())
    drawn["colour"] = list(self.colours.values())
    for colour in toned:
      drawn["colour"] += [
        dataclasses.replace(self._toned(tone, self.colours[colour]), weight=weight)
        for tone in map(self.tones.__getitem__, tones)
      ]
    return {name: tuple(value for value in values if value.weight) for name, values in drawn.items()}

  def _toned(self, tone: Value, colour: Value) -> Value:
    surface = f"{tone.surface}{self._join}{colour.surface}"
    return dataclasses.replace(colour, surface=surface, tone=min(tone.names), weight=0, toned=True)

  def value(self, surface: str) -> Value | None:
    """Returns the value of a text that is nothing else; None if the lexicon has none.

    A colour may have tones and a second colour: `light brown`, `dark blue-green`, `navy blue`.
    """
    if surface not in self._values:
      if len(self._values) > 100_000:  # answers of models bring any number of new words
        self._values.clear()
      self._values[surface] = self._read(_plain(surface.lower()))
    return self._values[surface]

  def _read(self, surface: str) -> Value | None:
    if surface in self.others or surface in self.colours:
      return self.others.get(surface) or self.colours[surface]
    if surface in self.tones:
      return self.tones[surface]
    rest, tone = surface, None
    for name, each in self.tones.items():
      if surface.startswith(name + self._join) and len(name) < len(surface):
        rest, tone = surface[len(name) :].strip(), each
        break
    colour = self._read_colours(rest)
    if colour is None:
      return None
    return dataclasses.replace(self._toned(tone, colour), surface=surface) if tone else colour

  def _read_colours(self, surface: str) -> Value | None:
    if surface in self.colours:
      return self.colours[surface] if self.colours[surface].form != "bare" else None
    for cut in range(1, len(surface)):
      if self._join and surface[cut] != self._join:
        continue
      first, second = self.colours.get(surface[:cut].strip()), self.colours.get(surface[cut:].strip())
      if first and second and "bare" not in (first.form, second.form) and surface[cut:].strip() not in self.others:
        # Not `brown copper`, which is a colour and a material.
        names, tone = first.names | second.names, first.tone or second.tone
        return dataclasses.replace(second, surface=surface, names=names, tone=tone, weight=0)
    return None

  def tone(self, surface: str) -> str:
    """Returns the tone that a toned colour begins with: `light` of `light brown`; "" if it has none."""
    return next((tone for tone in self.tones if surface.startswith(tone) and surface != tone), "")

  def excludes(self, one: Value, other: Value) -> bool:
    """Whether two values of one class cannot both describe one thing."""
    if one.attribute != other.attribute:
      return False
    if one.attribute == "colour":
      if not self._overlap(one, other):
        return True
      # `dark blue` and `light blue` exclude each other, `blue` and `light blue` do not.
      return bool(one.tone and other.tone) and (one.tone, other.tone) not in self._overlaps and one.tone != other.tone
    if self._overlap(one, other) or one.places & other.places:
      return False
    return bool({scale for scale, _ in one.places} & {scale for scale, _ in other.places})

  def agrees(self, one: Value, other: Value) -> bool:
    """Whether two values of one class may be two ways to say the same of a thing; `blue` and `dark blue` may."""
    if one.attribute != other.attribute:
      return False
    return self._overlap(one, other) or (one.attribute != "colour" and bool(one.places & other.places))

  def _overlap(self, one: Value, other: Value) -> bool:
    return any(
      a == b or (a, b) in self._overlaps or (a, "any") in self._overlaps or (b, "any") in self._overlaps
      for a in one.names
      for b in other.names
    )


_SPACES = str.maketrans("_-‑–", "    ")  # what `tokens` takes for a hyphen, too


def _plain(surface: str) -> str:
  return surface.strip("~*").translate(_SPACES)


@functools.cache
def get_lexicon(language: str = "en") -> Lexicon:
  """Returns the lexicon of a language.

  Raises:
    ValueError: there is none for this language.
  """
  tables = {"en": english, "zh": chinese}
  if language not in tables:
    raise ValueError(f"rules know the languages {' and '.join(tables)}, not {language!r}")
  return Lexicon(language, tables[language])
