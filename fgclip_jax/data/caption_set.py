"""The captions of a picture or of a region as a set, and their fields in a record.

A record whose captions are one short and at most one long text, of which nothing else is known, has no such fields.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fgclip_jax.data.annotation_fields import check_unicode
from fgclip_jax.storage.errors import RecordError

Kind = Literal["short", "long"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALT_TEXT = "alt_text"  # the source of a caption that the page had on which a picture was found


@dataclasses.dataclass(frozen=True)
class Caption:
  """A caption and what is known of it.

  Attributes:
    text: the caption.
    kind: the position table that it is read with: `short`, 77 tokens, or `long`, 248.
    language: the code of its language, such as `zh`; empty: that of its record.
    source: what wrote it, such as the name of a model; `ALT_TEXT` has a meaning to sampling.
    weight: how often it is drawn, in proportion to the others; records keep it as float32.
  """

  text: str
  kind: Kind = "short"
  language: str = ""
  source: str = ""
  weight: float = 1.0


DTYPES = {  # of a caption's fields in a record
  "text": np.str_,
  "kind": np.str_,
  "language": np.str_,
  "source": np.str_,
  "weight": np.float32,
}
_MORE = "region/more_negatives"


def plain(short: str, long: str = "") -> tuple[Caption, ...]:
  """The set made of one short caption and, if there is one, a long one."""
  return (Caption(short), Caption(long, "long")) if long else (Caption(short),)


def reduce(captions: Iterable[Caption], short: str, long: str = "") -> tuple[Caption, ...]:
  """The set as a record keeps it: none where it says no more than the short and the long caption do."""
  captions = tuple(captions)
  return () if captions == plain(short, long) else captions


def texts(captions: Iterable[Caption], kind: Kind) -> tuple[str, ...]:
  """The texts of one kind."""
  return tuple(caption.text for caption in captions if caption.kind == kind)


def merge(captions: Iterable[Caption]) -> tuple[Caption, ...]:
  """The captions without those that say nothing new: the same text of the same kind, of which no more is known."""
  kept: dict[object, Caption] = {}
  for caption in captions:
    key, bare = (caption.text, caption.kind), Caption(caption.text, caption.kind)
    if kept.get(key, bare) == bare:
      kept[key] = caption  # in the place of the earlier one
    elif caption not in (bare, kept[key]):
      kept[caption] = caption
  return tuple(kept.values())


def make(values: Mapping[str, object], field: str) -> Caption:
  """Makes a caption of values of any type, named as `Caption` names them; only `text` is needed, others are ignored.

  Raises:
    RecordError: kinds `caption_wrong_type`, `caption_not_unicode`, `caption_empty`, `caption_kind_unknown` and
      `caption_weight_wrong`; its field names the value, as `FIELD.weight`.
  """
  found: dict[str, str] = {}
  for name in ("text", "language", "source"):
    value = values.get(name, None if name == "text" else "")
    if not isinstance(value, str):
      raise RecordError("caption_wrong_type", f"{field}.{name}", f"must be text, got {value!r:.80}")
    check_unicode(value, "caption", f"{field}.{name}")
    found[name] = value
  if not found["text"].strip():
    raise RecordError("caption_empty", f"{field}.text", "is empty")
  wanted = values.get("kind", "short")
  kind: Kind | None = next((each for each in KINDS if each == wanted), None)
  if kind is None:
    raise RecordError("caption_kind_unknown", f"{field}.kind", f"must be short or long, got {wanted!r:.80}")
  return Caption(**found, kind=kind, weight=_to_float32(values.get("weight", 1.0), f"{field}.weight"))


def _to_float32(weight: object, field: str) -> float:
  number = math.nan
  if isinstance(weight, int | float | np.floating) and not isinstance(weight, bool):
    try:
      with np.errstate(over="ignore", under="ignore"):
        number = float(np.float32(weight))
    except OverflowError:  # an int that no float holds
      number = math.inf
  if not 0 < number < math.inf:
    raise RecordError("caption_weight_wrong", field, f"must be a finite number above 0, got {weight!r:.80}")
  return number


def parse(value: object, field: str, label: str, kind: Kind) -> list[Caption]:
  """Reads a text, an object with `text` and what else `Caption` has, or a list of them; texts alone may be empty.

  Args:
    value: what a field holds.
    field: its name in messages.
    label: what it is called in the kinds of errors.
    kind: the kind of captions that name none.

  Raises:
    RecordError: `<label>_wrong_type`, or what `make` raises.
  """
  values = value if isinstance(value, list) else [value]
  found = []
  for number, each in enumerate(values):
    if isinstance(each, str):
      found.append(Caption(each, kind))
    elif isinstance(each, dict) and "text" in each:
      given = {key: each[key] for key in DTYPES if each.get(key) is not None}
      place = f"{field}[{number}]" if isinstance(value, list) else field
      found.append(make({"kind": kind, "text": None} | given, place))
    else:
      message = f"must be text, a list of texts, or objects with `text`, got {value!r:.80}"
      raise RecordError(f"{label}_wrong_type", field, message)
  return found


def check(captions: Sequence[Caption], field: str) -> None:
  """Raises `RecordError`, as `make` does, for a caption that a record cannot hold: of the third, `FIELD[2]`."""
  for number, caption in enumerate(captions):
    make(vars(caption), f"{field}[{number}]")


class Further(NamedTuple):
  """What a record holds beyond one short and one long caption and ten negatives; most have nothing of it.

  Attributes:
    captions: the record's set.
    region_captions: each region's set; empty where no region has one.
    negatives: of each region those beyond the tenth; empty where no region has more.
  """

  captions: tuple[Caption, ...] = ()
  region_captions: tuple[tuple[Caption, ...], ...] = ()
  negatives: tuple[tuple[str, ...], ...] = ()


def write(feature: Any, further: Further) -> None:
  """Writes it into the features of a `tf.train.Example`, in fields that are there only where they hold something."""
  if further.captions:
    _write(feature, "caption", further.captions)
  if any(further.region_captions):
    feature["region/caption_count"].int64_list.value.extend(map(len, further.region_captions))
    _write(feature, "region/caption", [caption for captions in further.region_captions for caption in captions])
  if any(further.negatives):
    feature["region/more_negative_count"].int64_list.value.extend(map(len, further.negatives))
    feature[_MORE].bytes_list.value.extend(text.encode() for texts in further.negatives for text in texts)


def read(feature: Any, regions: int) -> Further:
  """Reads what `write` has written into a record of that many regions.

  Raises:
    RecordError: `record_unreadable`, the fields disagree; or what `make` raises.
  """
  if "caption/text" not in feature and "region/caption/text" not in feature and _MORE not in feature:
    return Further()
  captions, in_regions = (_read(feature, f"{prefix}caption") for prefix in ("", "region/"))
  more = [text.decode() for text in feature[_MORE].bytes_list.value]

  def parts(values: Sequence, name: str) -> tuple[tuple, ...]:
    counts = feature[name].int64_list.value[:]
    # TensorFlow Datasets writes fields that are empty, too
    return split(values, counts, regions, name) if values or counts else ()

  return Further(captions, parts(in_regions, "region/caption_count"), parts(more, "region/more_negative_count"))


def _write(feature: Any, prefix: str, captions: Sequence[Caption]) -> None:
  for name, dtype in DTYPES.items():
    values = [getattr(caption, name) for caption in captions]
    field = feature[f"{prefix}/{name}"]
    if dtype is np.float32:
      field.float_list.value.extend(values)
    else:
      field.bytes_list.value.extend(value.encode() for value in values)


def _read(feature: Any, prefix: str) -> tuple[Caption, ...]:
  columns: list[list[Any]] = [
    feature[f"{prefix}/{name}"].float_list.value[:]
    if dtype is np.float32
    else [text.decode() for text in feature[f"{prefix}/{name}"].bytes_list.value]
    for name, dtype in DTYPES.items()
  ]
  if len({*map(len, columns)}) != 1:
    counts = ", ".join(f"{len(values)} of {name}" for name, values in zip(DTYPES, columns, strict=True))
    raise RecordError("record_unreadable", prefix, f"fields disagree in length: {counts}")
  rows = zip(*columns, strict=True)
  return tuple(make(dict(zip(DTYPES, row, strict=True)), f"{prefix}[{number}]") for number, row in enumerate(rows))


def split(values: Sequence[Any], counts: Sequence[int], expected: int, field: str) -> tuple[tuple[Any, ...], ...]:
  """Cuts a list into `expected` parts of these lengths.

  Raises:
    RecordError: of kind `record_unreadable`, the lengths are not those of the list.
  """
  if len(counts) != expected or sum(counts) != len(values) or min(counts, default=0) < 0:
    message = f"counts disagree: {len(values)} in {len(counts)} parts of {sum(counts)}, not in {expected}"
    raise RecordError("record_unreadable", field, message)
  values, ends = tuple(values), itertools.accumulate(counts, initial=0)
  return tuple(values[begin:end] for begin, end in itertools.pairwise(ends))
