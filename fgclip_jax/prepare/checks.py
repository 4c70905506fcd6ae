"""Checks of whole records, whatever their source: pictures of no use, captions that say nothing, regions given twice.

| class | leaves out | what is found |
|---|---|---|
| `image_duplicate`, `image_near_duplicate` | record | with `duplicates = "drop"`: an earlier record has the image |
| `image_tiny` | record | a side below `min_side` pixels: spacers and tracking pixels |
| `image_extreme` | record | one side more than `max_aspect` times the other: rulers and strips, a smear when squashed |
| `caption_without_words` | record | no letter and no digit |
| `caption_is_url`, `caption_is_file_name` | record | nothing but an address, or the name of a file |
| `caption_repeats` | record | one character, or one phrase five times in a row: a language model that ran in a circle |
| `caption_other_language` | record | another language is at least 50 times as likely as `language` |
| `region_caption_...` | region | the same of a region's captions, but for the language: phrases are too short to tell |
| `region_twice` | region | box and captions of another region; of the two, the one with negatives stays |
| `negative_equals_positive` | negative | but for case, spaces and a final dot |
| `negative_twice` | negative | equal to an earlier negative in the same way |
"""

import dataclasses
import functools
import operator
import re
import unicodedata
from typing import Literal

from fgclip_jax.data.annotation_fields import Tell
from fgclip_jax.data.record import Record, Region
from fgclip_jax.prepare.duplicates import MAX_BITS
from fgclip_jax.storage.errors import RecordError

REPEATS = 5  # so often in a row, a phrase is no longer language
PHRASE_WORDS = 24  # the longest phrase whose repetition is looked for
LIKELIER = 50  # another language, than the one that is wanted; clear foreign sentences reach it, short names do not

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_FILE_NAME = re.compile(
  r"\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)"
  r"|(?:img|dsc[fn]?|pict?|pxl|dji|gopr|image|photo|picture|screenshot)[-_ ]?\d[-\d_ ().]*"
  r"|[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Checks:
  """What to look for. The defaults leave out what no training gains from.

  Attributes:
    min_side: the least width and height of an image in pixels.
    max_aspect: the most that an image's longer side may be of its shorter one.
    language: the code of the language of captions, e.g. `en`; empty for any.
    duplicates: `keep` counts images that come twice, `drop` leaves the later records out, see `duplicates.py`.
    near_duplicates: how many of 64 bits of their perceptual hashes may differ in images that count as the same;
      None takes only equal files for the same.

  Raises:
    ValueError: a limit out of range, or a language that is not known or cannot be told, because py3langid is missing.
  """

  min_side: int = 8
  max_aspect: float = 20.0
  language: str = ""
  duplicates: Literal["keep", "drop"] = "keep"
  near_duplicates: int | None = None

  def __post_init__(self):
    if self.min_side < 1 or not self.max_aspect >= 1:
      raise ValueError(f"--min_side and --max_aspect must be at least 1, got {self.min_side} and {self.max_aspect}")
    if self.near_duplicates is not None and not 0 <= self.near_duplicates <= MAX_BITS:
      raise ValueError(f"--near_duplicates must lie in 0..{MAX_BITS}, got {self.near_duplicates}")
    if self.language:
      known = _identifier().labels
      if self.language not in known:
        raise ValueError(f"--language must be one of {', '.join(sorted(known))}; got {self.language!r}")


def check(record: Record, size: tuple[int, int] | None, checks: Checks, tell: Tell) -> Record:
  """Returns the record without the regions and negatives that are of no use; each is told.

  Args:
    record: what a source made.
    size: width and height of its image as it came, in pixels; None where they are not known.
    checks: the limits.
    tell: called with everything left out of the record.

  Raises:
    RecordError: the record is of no use as a whole.
  """
  if size is not None:
    _check_size(*size, checks)
  check_caption(record.short, "short")
  if record.long:
    check_caption(record.long, "long")
  if checks.language:
    _check_language(record, checks.language)
  if not record.regions:
    return record
  return dataclasses.replace(record, regions=_check_regions(record.regions, tell))


def check_caption(text: str, field: str, kind: str = "caption") -> None:
  """Raises `RecordError` of class `<kind>_...` for a caption that says nothing, see above."""
  text = text.strip()
  if not any(character.isalnum() for character in text):
    raise RecordError(f"{kind}_without_words", field, f"has no letter and no digit: {_show(text)}")
  if _URL.fullmatch(text):
    raise RecordError(f"{kind}_is_url", field, f"is nothing but an address: {_show(text)}")
  if _FILE_NAME.fullmatch(text):
    raise RecordError(f"{kind}_is_file_name", field, f"is nothing but the name of a file: {_show(text)}")
  if repeated := find_repetition(text):
    raise RecordError(f"{kind}_repeats", field, f"has {_show(repeated)} {REPEATS} times in a row")


def find_repetition(text: str) -> str:
  """The phrase of at most 24 words, or the one character of the whole text, that comes five times in a row; else ''."""
  words = text.lower().split()
  if len(words) == 1:
    same = len(words[0]) >= REPEATS and len(set(words[0])) == 1
    return words[0][0] if same else ""
  if len(words) < REPEATS or len(words) - len(set(words)) < REPEATS - 1:  # what repeats has words that come again
    return ""
  for length in range(1, min(PHRASE_WORDS, len(words) // REPEATS) + 1):
    same = list(map(operator.eq, words[length:], words))
    if sum(same) < length * (REPEATS - 1):
      continue
    run = 0
    for index, again in enumerate(same):
      run = run + 1 if again else 0
      if run == length * (REPEATS - 1):
        return " ".join(words[index + 1 : index + 1 + length])
  return ""


def normalize(text: str) -> str:
  """A text without what makes no difference to its reader: case, spaces, a final dot, forms of the same character."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .")


def _check_size(width: int, height: int, checks: Checks) -> None:
  if min(width, height) < checks.min_side:
    message = f"has {width} x {height} pixels; each side needs {checks.min_side} (--min_side)"
    raise RecordError("image_tiny", "image", message)
  if max(width, height) > checks.max_aspect * min(width, height):
    message = f"has {width} x {height} pixels: more than {checks.max_aspect:g} times as long as wide (--max_aspect)"
    raise RecordError("image_extreme", "image", message)


def _check_language(record: Record, language: str) -> None:
  # together, since a few words alone are often taken for another language
  text = f"{record.short}\n{record.long}".strip()
  ranked = [(code, float(likelihood)) for code, likelihood in _identifier().rank(text)]
  found, best = ranked[0]
  if best > LIKELIER * dict(ranked)[language]:
    message = f"is likely {found!r}, not {language!r} (--language): {_show(text)}"
    raise RecordError("caption_other_language", "short", message)


@functools.cache
def _identifier():
  try:
    from py3langid import langid
  except ImportError as error:
    raise ValueError("--language needs the package py3langid: pip install py3langid") from error
  return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _check_regions(regions: tuple[Region, ...], tell: Tell) -> tuple[Region, ...]:
  kept: dict[tuple, tuple[int, Region]] = {}
  for index, region in enumerate(regions):
    field = f"regions[{index}]"
    try:
      check_caption(region.short, f"{field}.short", "region_caption")
      if region.long:
        check_caption(region.long, f"{field}.long", "region_caption")
    except RecordError as error:
      tell("region", error)
      continue
    if region.negatives:
      region = dataclasses.replace(region, negatives=_check_negatives(region, f"{field}.negatives", tell))
    key = (region.box, normalize(region.short), normalize(region.long))
    earlier = kept.get(key)
    if earlier:
      tell("region", RecordError("region_twice", field, f"has box and captions of regions[{earlier[0]}]"))
    if not earlier or (region.negatives and not earlier[1].negatives):
      kept[key] = (earlier[0] if earlier else index, region)
  return tuple(region for _, region in kept.values())


def _check_negatives(region: Region, field: str, tell: Tell) -> tuple[str, ...]:
  positive, kept = normalize(region.short), {}
  for index, negative in enumerate(region.negatives):
    plain = normalize(negative)
    if plain == positive:
      message = f"is the positive itself: {_show(negative)}"
      tell("negative", RecordError("negative_equals_positive", f"{field}[{index}]", message))
    elif plain in kept:
      tell("negative", RecordError("negative_twice", f"{field}[{index}]", f"is there already: {_show(negative)}"))
    else:
      kept[plain] = negative
  return tuple(kept.values())


def _show(text: str) -> str:
  shown = repr(text)
  return shown if len(shown) <= 80 else f"{shown[:77]}..."
