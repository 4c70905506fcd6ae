"""The prompts and answer schemas of captions, boxes, region captions and hard negatives, in English and Chinese.

A prompt is a template with fields such as `{phrase}`. Its hash covers the text and the schema: journals and provenance
name an answer's prompt by it, and a changed prompt is another prompt.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fgclip_jax.annotate.servers import prompts_en, prompts_zh, schemas
from fgclip_jax.storage import text as texts

LANGUAGES = {"en": prompts_en, "zh": prompts_zh}
# The attributes whose exchange a model is asked for; the first five are those that FG-OVD measures.
ATTRIBUTES = ("colour", "material", "pattern", "transparency", "brightness", "size", "shape", "state")
CAPTION_SCHEMA = {
  "type": "object",
  "additionalProperties": False,
  "required": ["long", "short", "unusable"],
  "properties": {"long": {"type": "string"}, "short": {"type": "string"}, "unusable": {"type": "boolean"}},
}
REGION_SCHEMA = {
  "type": "object",
  "additionalProperties": False,
  "required": ["object", "short", "long", "fits"],
  "properties": {
    "object": {"type": "string", "minLength": 1},
    "short": {"type": "string", "minLength": 1},
    "long": {"type": "string", "minLength": 1},
    "fits": {"type": "string", "enum": ["yes", "partly", "no"]},
  },
}
# Of boxes no more than the form: one that is impossible is counted where it is converted, and costs no other.
BOXES_SCHEMA = {
  "type": "object",
  "additionalProperties": False,
  "required": ["boxes"],
  "properties": {
    "boxes": {
      "type": "array",
      "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["phrase", "box", "score"],
        "properties": {
          "phrase": {"type": "integer"},
          "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
          "score": {"type": "number"},
        },
      },
    }
  },
}
_FIELD = re.compile(r"\{([a-z]+)\}")


def negatives_schema(count: int) -> dict[str, Any]:
  """The schema of `count` hard negatives: the attribute exchanged, its old and new value, and the whole phrase."""
  negative = {
    "type": "object",
    "additionalProperties": False,
    "required": ["attribute", "old", "new", "text"],
    "properties": {
      "attribute": {"type": "string", "enum": list(ATTRIBUTES)},
      "old": {"type": "string"},
      "new": {"type": "string"},
      "text": {"type": "string"},
    },
  }
  items = {"type": "array", "items": negative, "minItems": count, "maxItems": count}
  return {
    "type": "object",
    "additionalProperties": False,
    "required": ["negatives"],
    "properties": {"negatives": items},
  }


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A template and the schema of its answers.

  Attributes:
    name: `caption`, `boxes`, `region` or `negatives`, or the file that it was read from.
    language: `en` or `zh`.
    text: the template.
    schema: what an answer must fit.
    max_tokens: the longest answer.
  """

  name: str
  language: str
  text: str
  schema: dict[str, Any]
  max_tokens: int

  @property
  def hash(self) -> str:
    """SHA-256 of the template and the schema, in hexadecimal digits."""
    whole = json.dumps([self.text, self.schema], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(whole.encode()).hexdigest()

  def fill(self, **values: str) -> str:
    """The template with its fields replaced.

    Raises:
      ValueError: the template has a field that no value is given for.
    """

    def replace(field: re.Match) -> str:
      if field[1] not in values:
        raise ValueError(f"prompt {self.name!r}: field {{{field[1]}}} is unknown; known: {', '.join(sorted(values))}")
      # The marks around a value end it for the model: a value must not bring its own.
      return re.sub(r"[«»\s]+", " ", values[field[1]]).strip()

    return _FIELD.sub(replace, self.text)


def make_caption_prompt(language: str = "en") -> Prompt:
  """The prompt for a long and a short caption of a picture."""
  return Prompt("caption", language, LANGUAGES[language].CAPTION, CAPTION_SCHEMA, 640)


def make_boxes_prompt(language: str = "en") -> Prompt:
  """The prompt for the boxes of phrases; `name_coordinates` fills in what their numbers mean."""
  return Prompt("boxes", language, LANGUAGES[language].BOXES, BOXES_SCHEMA, 1536)


def make_region_prompt(language: str = "en") -> Prompt:
  """The prompt for the captions of a region, of which two pictures show the whole and the part."""
  return Prompt("region", language, LANGUAGES[language].REGION, REGION_SCHEMA, 256)


def make_negatives_prompt(language: str = "en", count: int = 14) -> Prompt:
  """The prompt for `count` hard negatives of a phrase."""
  return Prompt("negatives", language, LANGUAGES[language].NEGATIVES, negatives_schema(count), 64 + 72 * count)


def read_prompt(path: str, like: Prompt) -> Prompt:
  """A prompt whose template is a file's text, for the answers of another prompt.

  Raises:
    ValueError: the file is empty.
    RecordError, OSError: as `storage.text.read`.
  """
  text = texts.read(path).strip()
  if not text:
    raise ValueError(f"prompt {path!r} is empty")
  return dataclasses.replace(like, name=path, text=text)


def make_all(make: Callable[[str], Prompt], path: str = "") -> dict[str, Prompt]:
  """The prompts of a stage by language.

  Args:
    make: makes the prompt in a language.
    path: a file with the text of all of them; empty: their own.

  Raises:
    ValueError, RecordError, OSError: as `read_prompt`.
  """
  own = {language: make(language) for language in LANGUAGES}
  return {language: read_prompt(path, each) for language, each in own.items()} if path else own


def name_coordinates(prompt: Prompt, order: str, unit: str, padded: bool = False) -> Prompt:
  """A prompt whose field `{coordinates}` says what the four numbers of a box mean.

  Args:
    prompt: as `make_boxes_prompt` makes it.
    order: `xyxy`, `xywh`, `cxcywh` or `yxyx`.
    unit: `fraction`, `percent`, `thousandths` or `pixels`; those are of the picture as it is sent.
    padded: whether they are of the square that the picture becomes when it is padded at right and bottom.
  """
  words = LANGUAGES[prompt.language]
  frame = words.FRAMES[padded]
  said = words.COORDINATES.format(order=words.ORDERS[order], unit=words.UNITS[unit].format(frame=frame))
  return dataclasses.replace(prompt, text=prompt.text.replace("{coordinates}", said))


def choose(prompts: Sequence[Prompt], key: str) -> Prompt:
  """One of several prompts for an item, by a hash of its key: the same in every run."""
  return prompts[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(prompts)]


def caption_messages(prompt: Prompt, picture: str, existing: str = "") -> list[dict[str, Any]]:
  """The messages that ask for captions.

  Args:
    prompt: as `make_caption_prompt` makes it.
    picture: a data URL.
    existing: text that was found with the picture, as a hint.
  """
  text = prompt.fill()
  if existing.strip():
    hint = dataclasses.replace(prompt, text=LANGUAGES[prompt.language].EXISTING)
    text = f"{text}\n\n{hint.fill(existing=existing)}"
  return _message(text, picture)


def boxes_messages(prompt: Prompt, picture: str, phrases: Sequence[str], size: tuple[int, int]) -> list[dict[str, Any]]:
  """The messages that ask for the boxes of phrases.

  Args:
    prompt: as `name_coordinates` makes it.
    picture: a data URL.
    phrases: what is looked for; answers name them by their number from 0.
    size: width and height of the picture as it is sent, in pixels.
  """
  colon, semicolon = LANGUAGES[prompt.language].LIST_MARKS
  listed = semicolon.join(f"{number}{colon}{phrase}" for number, phrase in enumerate(phrases))
  width, height = map(str, size)
  return _message(prompt.fill(phrases=listed, width=width, height=height), picture)


def region_messages(prompt: Prompt, framed: str, cropped: str, phrase: str) -> list[dict[str, Any]]:
  """The messages that ask for the captions of a region; `framed` and `cropped` are data URLs."""
  return _message(prompt.fill(phrase=phrase), framed, cropped)


def negatives_messages(
  prompt: Prompt, phrase: str, head: str, attributes: Mapping[str, str] | Sequence[tuple[str, str]], count: int = 14
) -> list[dict[str, Any]]:
  """The messages that ask for hard negatives.

  Args:
    prompt: as `make_negatives_prompt` makes it for the same `count`.
    phrase: the positive.
    head: the thing, a part of the phrase.
    attributes: classes of attributes and their values in the phrase.
    count: how many are wanted.
  """
  pairs = attributes.items() if isinstance(attributes, Mapping) else attributes
  colon, semicolon = LANGUAGES[prompt.language].LIST_MARKS
  listed = semicolon.join(f"{name}{colon}{value}" for name, value in pairs)
  return _message(prompt.fill(phrase=phrase, object=head, attributes=listed, count=str(count)))


def describe_rule(kind: str, detail: str = "", language: str = "en") -> str:
  """What a further attempt is told: which rule the last answer has broken.

  Args:
    kind: the class of failure.
    detail: what was wrong, for classes that no sentence is known for.
    language: of the request.
  """
  module = LANGUAGES[language]
  reason = module.RULES.get(kind) or detail or kind.replace("_", " ")
  return module.AGAIN.format(reason=reason.rstrip(".。"))


def _message(text: str, *pictures: str) -> list[dict[str, Any]]:
  if not pictures:
    return [{"role": "user", "content": text}]
  shown = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
  return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


for _schema in (CAPTION_SCHEMA, BOXES_SCHEMA, REGION_SCHEMA, negatives_schema(1)):
  schemas.check_schema(_schema)
