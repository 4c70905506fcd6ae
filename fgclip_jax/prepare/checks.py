"""Checks of whole records from any source: useless images, captions without content, regions given twice.

| class | leaves out | reason |
|---|---|---|
| `image_duplicate`, `image_near_duplicate` | record | with `duplicates = "drop"`: an earlier record has the image |
| `image_tiny` | record | a side has fewer than `min_side` pixels: spacers and tracking pixels |
| `image_extreme` | record | one side is over `max_aspect` times the other: rulers and strips, a smear when squashed |
| `caption_without_words` | record | the caption has no letter and no digit |
| `caption_is_url`, `caption_is_file_name` | record | the caption is nothing but an address or a file name |
| `caption_repeats` | record | one character, or one phrase five times in a row: a language model caught in a loop |
| `caption_other_language` | record | another language is at least 50 times as likely as `language` |
| `region_caption_...` | region | as for captions, except the language, which short phrases do not show |
| `region_twice` | region | it has the box and captions of another region; of the two, the one with negatives stays |
| `negative_equals_positive` | negative | it equals the positive, except for case, spaces and a final dot |
| `negative_twice` | negative | it equals an earlier negative in the same way |

Of a set of captions only the useless ones are left out, counted as an annotation.
"""

import dataclasses
import functools
import operator
import re
import unicodedata
from typing import Literal

from fgclip_jax.data import caption_set
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.record import Record, Region
from fgclip_jax.prepare.duplicates import MAX_BITS
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report

REPEATS = 5  # a phrase this often in a row is not language
PHRASE_WORDS = 24  # the longest phrase whose repetition is looked for
LIKELIER = 50  # factor for another language: clear foreign sentences reach it, short names do not

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_FILE_NAME = re.compile(
  r"\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)"
  r"|(?:img|dsc[fn]?|pict?|pxl|dji|gopr|image|photo|picture|screenshot)[-_ ]?\d[-\d_ ().]*"
  r"|[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Checks:
  """What to look for. The defaults leave out what helps no training.

  Attributes:
    min_side: the smallest width and height of an image in pixels.
    max_aspect: the largest ratio of an image's longer side to its shorter side.
    language: the code of the captions' language, e.g. `en`; empty for any.
    duplicates: `keep` counts images that come twice, `drop` leaves out the later records; see `duplicates.py`.
    near_duplicates: two images count as the same if their 64-bit perceptual hashes differ in at most this many bits;
      None: only if their files are equal.

  Raises:
    ValueError: a limit is out of range, the language is unknown, or py3langid, which finds languages, is missing.
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


def check(record: Record, size: tuple[int, int] | None, checks: Checks, report: Report) -> Record:
  """Returns the record without its useless regions and negatives, and reports each of these.

  Args:
    record: the record that a source made.
    size: width and height of its image as it came, in pixels; None if unknown.
    checks: the limits.
    report: called with everything left out of the record.

  Raises:
    RecordError: the whole record is useless.
  """
  if size is not None:
    _check_size(*size, checks)
  check_caption(record.short, "short")
  if record.long:
    check_caption(record.long, "long")
  if checks.language:
    _check_language(record, checks.language)
  if record.captions:
    captions = _check_set(record.captions, "captions", report)
    record = dataclasses.replace(record, captions=caption_set.reduce(captions, record.short, record.long))
  if not record.regions:
    return record
  return dataclasses.replace(record, regions=_check_regions(record.regions, report))


def _check_set(captions: tuple[Caption, ...], field: str, report: Report) -> list[Caption]:
  """The captions of a set that have content and that a record can hold."""
  kept = []
  for number, caption in enumerate(captions):
    try:
      checked = caption_set.make(vars(caption), f"{field}[{number}]")
      check_caption(checked.text, f"{field}[{number}].text")
      kept.append(checked)
    except RecordError as error:
      report("annotation", error)
  return kept


def check_caption(text: str, field: str, kind: str = "caption") -> None:
  """Raises `RecordError` of kind `<kind>_...` for a caption without content; the table above lists the kinds."""
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
  """Finds a phrase of at most 24 words, or the only character of a text, five times in a row; returns '' if none is."""
  words = text.lower().split()
  if len(words) == 1:
    same = len(words[0]) >= REPEATS and len(set(words[0])) == 1
    return words[0][0] if same else ""
  if len(words) < REPEATS or len(words) - len(set(words)) < REPEATS - 1:  # too few words come again
    return ""
  # A phrase of `length` words repeats where each word equals the word `length` places before it, `REPEATS - 1` phrases
  # long without a gap.
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
  """Removes differences that do not matter to a reader: case, spaces, a final dot, forms of the same character."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .")


def _check_size(width: int, height: int, checks: Checks) -> None:
  if min(width, height) < checks.min_side:
    message = f"has {width} x {height} pixels; each side needs {checks.min_side} (--min_side)"
    raise RecordError("image_tiny", "image", message)
  if max(width, height) > checks.max_aspect * min(width, height):
    message = f"has {width} x {height} pixels: more than {checks.max_aspect:g} times as long as wide (--max_aspect)"
    raise RecordError("image_extreme", "image", message)


def _check_language(record: Record, language: str) -> None:
  # Both captions together: a few words alone are often taken for another language.
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


def _check_regions(regions: tuple[Region, ...], report: Report) -> tuple[Region, ...]:
  kept: dict[tuple, tuple[int, Region]] = {}
  for index, region in enumerate(regions):
    field = f"regions[{index}]"
    try:
      check_caption(region.short, f"{field}.short", "region_caption")
      if region.long:
        check_caption(region.long, f"{field}.long", "region_caption")
    except RecordError as error:
      report("region", error)
      continue
    if region.negatives:
      region = dataclasses.replace(region, negatives=_check_negatives(region, f"{field}.negatives", report))
    if region.captions:
      captions = _check_set(region.captions, f"{field}.captions", report)
      region = dataclasses.replace(region, captions=caption_set.reduce(captions, region.short, region.long))
    key = (region.box, normalize(region.short), normalize(region.long), region.captions)
    earlier = kept.get(key)
    if earlier:
      report("region", RecordError("region_twice", field, f"has box and captions of regions[{earlier[0]}]"))
    if not earlier or (region.negatives and not earlier[1].negatives):
      kept[key] = (earlier[0] if earlier else index, region)
  return tuple(region for _, region in kept.values())


def _check_negatives(region: Region, field: str, report: Report) -> tuple[str, ...]:
  positive, kept = normalize(region.short), {}
  for index, negative in enumerate(region.negatives):
    plain = normalize(negative)
    if plain == positive:
      message = f"is the positive itself: {_show(negative)}"
      report("negative", RecordError("negative_equals_positive", f"{field}[{index}]", message))
    elif plain in kept:
      report("negative", RecordError("negative_twice", f"{field}[{index}]", f"is there already: {_show(negative)}"))
    else:
      kept[plain] = negative
  return tuple(kept.values())


def _show(text: str) -> str:
  shown = repr(text)
  return shown if len(shown) <= 80 else f"{shown[:77]}..."
