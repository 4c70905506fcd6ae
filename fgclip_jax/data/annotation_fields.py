"""Checks of the fields of annotations, shared by the sources of `prepare` and by `embed`.

Functions raise `RecordError` for what makes the whole record, region or negative unusable, and call `report` for what
is left out of a record that is kept.
"""

import math
import posixpath

from fgclip_jax.data.example_message import MAX_TEXTS
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report, Scope

LONG_CAPTION_WORDS = 1000  # a longer caption is worth a note: the text tower reads 248 tokens


def get_mapping(value: object, field: str, kind: str = "record") -> dict:
  """Returns a JSON object, or raises `RecordError` of kind `<kind>_not_object`."""
  if not isinstance(value, dict):
    raise RecordError(f"{kind}_not_object", field, f"must be an object with named fields, got {_show(value)}")
  return value


def get_text(
  mapping: dict, key: str, field: str, report: Report, *, name: str | None = None, optional: bool = False
) -> str:
  """Returns the text `mapping[key]`.

  Raises:
    RecordError: kinds `<name>_missing`, `<name>_wrong_type`, `<name>_empty`, `<name>_too_large` (more than
      `MAX_TEXTS`), `<name>_not_unicode`. An `optional` text may be missing, null or empty. `name` defaults to `key`.
  """
  name = name or key
  value = mapping.get(key)
  if value is None:
    if optional:
      return ""
    raise RecordError(f"{name}_missing", field, "is null" if key in mapping else "is missing")
  if not isinstance(value, str):
    raise RecordError(f"{name}_wrong_type", field, f"must be text, got {_show(value)}")
  if not value.strip():
    if optional:
      return ""
    raise RecordError(f"{name}_empty", field, "is empty")
  if len(value) > MAX_TEXTS:
    raise RecordError(f"{name}_too_large", field, f"has {len(value):,} characters, at most {MAX_TEXTS:,} are read")
  check_unicode(value, name, field)
  words = len(value.split())
  if words > LONG_CAPTION_WORDS:
    report("note", RecordError(f"{name}_long", field, f"has {words} words; the end will not be read"))
  return value


def check_unicode(value: str, name: str, field: str) -> None:
  """Raises `RecordError` of kind `<name>_not_unicode` for text that UTF-8 cannot hold."""
  try:
    value.encode()
  except UnicodeEncodeError as error:
    message, code = f"holds a code that is no character ({error.reason})", ord(value[error.start])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as readers keep it with `surrogateescape`
      message = f"has the byte 0x{code - 0xDC00:02x}, which is not UTF-8; is it Latin-1? Save the file as UTF-8"
    raise RecordError(f"{name}_not_unicode", field, message) from error


def check_one_line(name: str, field: str) -> None:
  """Raises `RecordError` (`id_of_several_lines`) for an id in which `str.splitlines` finds the end of a line."""
  if name.splitlines() != [name]:  # U+2028 is one, too
    raise RecordError("id_of_several_lines", field, f"{name!r:.200} would not be one line of a list of ids")


def check_path(path: str, field: str) -> str:
  """Returns a relative path in its simplest form, or raises `RecordError` of kind `path_outside`."""
  simple = posixpath.normpath(path)
  if posixpath.isabs(simple) or simple.split("/")[0] in ("..", ".") or "\0" in simple:
    raise RecordError("path_outside", field, f"must be a path under the images folder, got {_show(path)}")
  return simple


def check_box(box, field: str = "box") -> tuple[float, float, float, float]:
  """Returns `box` as four floats, or raises `RecordError`.

  Kinds: `box_not_four_numbers`, `box_not_finite`, `box_swapped` (x1 > x2 or y1 > y2),
  `box_outside` (a corner outside 0..1; a thousandth outside is rounding and is clipped).
  """
  try:
    values = tuple(float(value) for value in box)
  except (TypeError, ValueError):
    values = ()
  except OverflowError as error:
    raise RecordError("box_outside", field, "holds a number too large for a float") from error
  if len(values) != 4 or any(isinstance(value, (str, bool)) for value in box):
    raise RecordError("box_not_four_numbers", field, f"needs x1, y1, x2, y2, got {_show(box)}")
  if not all(math.isfinite(value) for value in values):
    raise RecordError("box_not_finite", field, f"has a value that is not finite: {box!r}")
  if any(value < -1e-3 or value > 1 + 1e-3 for value in values):
    raise RecordError("box_outside", field, f"must lie in 0..1 (fractions of width and height), got {box!r}")
  x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in values)
  if x1 > x2 or y1 > y2:
    raise RecordError("box_swapped", field, f"needs x1 <= x2 and y1 <= y2, got {box!r}")
  return x1, y1, x2, y2


def get_box(value: object, field: str, report: Report) -> tuple[float, float, float, float]:
  """Returns a box as `check_box` does; a fifth number, the detector's score, is ignored."""
  if not isinstance(value, list):
    raise RecordError("box_not_four_numbers", field, f"needs x1, y1, x2, y2, got {_show(value)}")
  x1, y1, x2, y2 = check_box(value[:4] if len(value) == 5 else value, field)
  if x1 == x2 or y1 == y2:
    report("note", RecordError("box_without_area", field, f"has no area: {_show(value)}"))
  return x1, y1, x2, y2


def get_list(value: object, field: str, name: str, report: Report, scope: Scope) -> list:
  """Returns a list; anything else but null is reported as `<name>_wrong_type` and gives an empty list."""
  if value is not None and not isinstance(value, list):
    report(scope, RecordError(f"{name}_wrong_type", field, f"must be a list, got {_show(value)}"))
  return value if isinstance(value, list) else []


def keep_negatives(values: list, positive: str, field: str, usual: int, report: Report) -> tuple[str, ...]:
  """Keeps the usable negatives; reports those that are no text, empty or equal to the positive.

  More or fewer than the `usual` number, which training has room for, are worth a note.
  """
  kept = []
  for index, value in enumerate(values):
    try:
      if not isinstance(value, str):
        raise RecordError("negative_wrong_type", f"{field}[{index}]", f"must be text, got {_show(value)}")
      if not value.strip():
        raise RecordError("negative_empty", f"{field}[{index}]", "is empty")
      if value.strip() == positive.strip():
        raise RecordError("negative_equals_positive", f"{field}[{index}]", f"is the positive itself: {_show(value)}")
      check_unicode(value, "negative", f"{field}[{index}]")
      kept.append(value)
    except RecordError as error:
      report("negative", error)
  if len(kept) > usual:
    message = f"{len(kept)} negatives, all kept; the usual setting trains on the first {usual}"
    report("note", RecordError("negatives_over_10", field, message))
  elif 0 < len(kept) < usual:
    report("note", RecordError("negatives_under_10", field, f"{len(kept)} negatives"))
  return tuple(kept)


def note_region_count(count: int, field: str, report: Report) -> None:
  """Notes a record without regions, or with more than the four that FG-CLIP trains on by default."""
  if count == 0:
    report("note", RecordError("regions_none", field, "no region; the record counts for its captions"))
  elif count > 4:
    message = f"{count} regions, all kept; the usual setting trains on the first four"
    report("note", RecordError("regions_over_4", field, message))


def _show(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:77]}..."
