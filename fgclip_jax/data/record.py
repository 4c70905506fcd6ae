"""The record: one image with its captions and regions, as it lies in ArrayRecord files.

A record is a serialized `tf.train.Example` with the fields that `features` names, so that
TensorFlow Datasets reads the same files; here they are read and written without it, which is
several times as quick. A data set is a folder of shards named
`NAME-SPLIT.array_record-00000-of-00004`, written with `group_size:1` (random access needs it);
`dataset_folder.py` says what else is in it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float

from fgclip_jax.data.tokenizers import Tokenizer
from fgclip_jax.storage.errors import RecordError

DEFAULT_LANGUAGE = "en"  # of a record that names none
MAX_NEGATIVES = 10  # hard negatives of one region that a record can hold (FG-CLIP uses exactly ten)
Ids = tuple[int, ...]  # token ids of a whole text, start and end id included
_TOKEN_LISTS = ("region_short", "region_long", "negative")


@dataclasses.dataclass(frozen=True)
class Region:
  """A box with captions of its own.

  Attributes:
    box: x1, y1, x2, y2 as fractions of the image's width and height: 0 <= x1 <= x2 <= 1, same for y.
    short: the region's short caption.
    long: its long caption; empty if there is none.
    negatives: up to `MAX_NEGATIVES` captions that are wrong in one attribute of `short`.
  """

  box: tuple[float, float, float, float]
  short: str
  long: str = ""
  negatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A record's captions as token ids, none of them cut; `info.json` names the tokenizer. No caption has no ids.

  Attributes:
    short, long: of the record's captions.
    region_short, region_long: of each region's.
    negatives: of each region's negatives.
  """

  short: Ids
  long: Ids = ()
  region_short: tuple[Ids, ...] = ()
  region_long: tuple[Ids, ...] = ()
  negatives: tuple[tuple[Ids, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
  """One training example.

  Attributes:
    id: names the image within its data set, e.g. its relative path.
    image: the encoded image file (JPEG, PNG, WebP, ...).
    short: the short caption.
    long: the long caption; empty if there is none.
    regions: any number of regions.
    width, height: of the image in pixels; 0 where they are not known.
    tokens: the captions as token ids; None where they are not stored.
    language: the code of the captions' language, such as `zh`; empty where it is not stored: English.
  """

  id: str
  image: bytes
  short: str
  long: str = ""
  regions: tuple[Region, ...] = ()
  width: int = 0
  height: int = 0
  tokens: Tokens | None = None
  language: str = ""


class Inputs(NamedTuple):
  """What a loader takes of a record.

  Attributes:
    image: the encoded image file.
    short: the short caption.
    boxes: float32 [n, 4], xyxy in 0..1, of all regions.
    tokens: its captions as token ids.
    language: the code of their language; empty: English.
    truths: where asked for, each region's short caption as token ids of the text as it is written.
  """

  image: bytes
  short: str
  boxes: Float[np.ndarray, "n 4"]
  tokens: Tokens
  language: str = ""
  truths: tuple[Ids, ...] = ()


@functools.cache
def features():
  """The schema for TensorFlow Datasets (imported here: it takes a third of a second)."""
  import tensorflow_datasets as tfds

  def tensor(dtype: type, *shape: int | None):
    return tfds.features.Tensor(shape=shape, dtype=dtype)

  return tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "image": tfds.features.Text(),  # raw bytes: any encoding Pillow reads
      "width": tfds.features.Scalar(np.int32),
      "height": tfds.features.Scalar(np.int32),
      "short": tfds.features.Text(),
      "long": tfds.features.Text(),
      "language": tensor(np.str_, None),  # one text, or none, as in data sets of earlier versions
      "region/box": tensor(np.float32, None, 4),
      "region/short": tensor(np.str_, None),
      "region/long": tensor(np.str_, None),
      "region/negatives": tensor(np.str_, None, MAX_NEGATIVES),  # rows padded with empty texts
      "region/negative_count": tensor(np.int32, None),
      "tokens/short": tensor(np.int32, None),
      "tokens/long": tensor(np.int32, None),
      # of all regions, and of all negatives without the padding, one after the other
      **{f"tokens/{texts}": tensor(np.int32, None) for texts in _TOKEN_LISTS},
      **{f"tokens/{texts}_length": tensor(np.int32, None) for texts in _TOKEN_LISTS},
    }
  )


@functools.cache
def _example_class() -> Any:
  """The message `tf.train.Example` (imported here: it takes a third of a second)."""
  from tensorflow_datasets.proto import tf_example_pb2

  return getattr(tf_example_pb2, "Example")  # noqa: B009 - protobuf makes it at run time, unseen by type checkers


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
    raise RecordError("box_not_four_numbers", field, f"needs x1, y1, x2, y2, got {box!r}")
  if not all(math.isfinite(value) for value in values):
    raise RecordError("box_not_finite", field, f"has a value that is not finite: {box!r}")
  if any(value < -1e-3 or value > 1 + 1e-3 for value in values):
    raise RecordError("box_outside", field, f"must lie in 0..1 (fractions of width and height), got {box!r}")
  x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in values)
  if x1 > x2 or y1 > y2:
    raise RecordError("box_swapped", field, f"needs x1 <= x2 and y1 <= y2, got {box!r}")
  return x1, y1, x2, y2


def tokenize(record: Record, tokenizer: Tokenizer) -> Tokens:
  """The ids of every caption of a record, whole, with start and end id; an empty long caption has none.

  Made once, when a record is written, they need not be made each time that it is read.
  """
  regions = record.regions
  texts = [record.short, record.long]
  texts += [text for region in regions for text in (region.short, region.long, *region.negatives)]
  encoded = iter(tokenizer.encode_batch(texts))

  def take(text: str | None = None) -> Ids:
    ids = tuple(next(encoded))
    return () if text == "" else ids

  short, long = take(), take(record.long)
  region_short, region_long, negatives = [], [], []
  for region in regions:
    region_short.append(take())
    region_long.append(take(region.long))
    negatives.append(tuple(take() for _ in region.negatives))
  return Tokens(short, long, tuple(region_short), tuple(region_long), tuple(negatives))


def encode(record: Record) -> bytes:
  """Serializes a record, equal ones to equal bytes.

  Raises:
    RecordError: a box or a number of negatives that the schema forbids, or tokens of other regions.
  """
  for index, region in enumerate(record.regions):
    check_box(region.box, f"regions[{index}].box")
    if len(region.negatives) > MAX_NEGATIVES:
      raise RecordError(
        "too_many_negatives", f"regions[{index}].negatives", f"holds {len(region.negatives)}, at most {MAX_NEGATIVES}"
      )
  example = _example_class()()
  feature = example.features.feature

  def put(key: str, kind: str, values: Iterable) -> None:
    field = getattr(feature[key], kind)
    field.SetInParent()  # there, even if it is empty
    field.value.extend(values)

  def put_texts(key: str, texts: Iterable[str]) -> None:
    put(key, "bytes_list", (text.encode() for text in texts))

  def put_numbers(key: str, numbers: Iterable[int]) -> None:
    put(key, "int64_list", numbers)

  put("image", "bytes_list", [record.image])
  for key in ("id", "short", "long"):
    put_texts(key, [getattr(record, key)])
  if record.language:  # without one, records are those of earlier versions, byte for byte
    put_texts("language", [record.language])
  put_numbers("width", [record.width])
  put_numbers("height", [record.height])
  regions = record.regions
  put("region/box", "float_list", (value for region in regions for value in region.box))
  put_texts("region/short", [region.short for region in regions])
  put_texts("region/long", [region.long for region in regions])
  padded = [(*region.negatives, *[""] * (MAX_NEGATIVES - len(region.negatives))) for region in regions]
  put_texts("region/negatives", itertools.chain.from_iterable(padded))
  put_numbers("region/negative_count", [len(region.negatives) for region in regions])
  _put_tokens(record, put_numbers)
  # the order of a message's fields differs from process to process unless it is asked for
  return example.SerializeToString(deterministic=True)


def _put_tokens(record: Record, put: Callable[[str, Iterable[int]], None]) -> None:
  tokens = record.tokens or Tokens(short=())
  negatives = [ids for region in tokens.negatives for ids in region]
  if record.tokens:
    counts = [len(region.negatives) for region in record.regions]
    regions = len(record.regions)
    agree = len(tokens.region_short) == len(tokens.region_long) == regions and tokens.short
    if not agree or [len(region) for region in tokens.negatives] != counts:
      raise RecordError("tokens_disagree", "tokens", "are not those of the record's captions: make them again")
  put("tokens/short", tokens.short)
  put("tokens/long", tokens.long)
  for key, texts in zip(_TOKEN_LISTS, (tokens.region_short, tokens.region_long, negatives), strict=True):
    put(f"tokens/{key}", itertools.chain.from_iterable(texts))
    put(f"tokens/{key}_length", map(len, texts))


def decode(data: bytes) -> Record:
  """Reads a serialized record; raises `RecordError` of kind `record_unreadable` where `data` is not one."""
  try:
    return _decode(_example_class().FromString(data).features.feature)
  except RecordError:
    raise
  except Exception as error:  # protobuf raises several types; the cause is chained
    raise RecordError("record_unreadable", "record", f"is not a serialized record ({error})") from error


def decode_inputs(data: bytes) -> Inputs | None:
  """Reads what a loader takes of a serialized record, in half the time of `decode`: texts are counted, not read.

  None where there are no token ids, and where anything is unusual: `decode` repairs it or says what is wrong.
  """
  try:
    feature = _example_class().FromString(data).features.feature
    (image,), (short,) = feature["image"].bytes_list.value, feature["short"].bytes_list.value
    boxes = np.asarray(feature["region/box"].float_list.value[:], np.float32).reshape(-1, 4)
    counts = feature["region/negative_count"].int64_list.value[:]
    texts = [len(feature[f"region/{key}"].bytes_list.value) for key in ("short", "long", "negatives")]
    fits = texts == [len(counts), len(counts), MAX_NEGATIVES * len(counts)] and len(boxes) == len(counts)
    fits = fits and 0 <= min(counts, default=0) and max(counts, default=0) <= MAX_NEGATIVES
    fits = fits and all(len(feature[key].bytes_list.value) == 1 for key in ("id", "long"))
    fits = fits and all(len(feature[key].int64_list.value) == 1 for key in ("width", "height"))
    # comparisons with what is no number are false
    if not (fits and (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
      return None
    tokens = _decode_tokens(lambda key: feature[key].int64_list.value[:], counts)
    return tokens and Inputs(image, short.decode(), boxes, tokens, _language(feature))
  except (ValueError, DecodeError):  # RecordError among them
    return None


def _decode(feature: Mapping[str, Any]) -> Record:
  def texts(key: str) -> list[str]:
    return [text.decode() for text in feature[key].bytes_list.value]

  def numbers(key: str) -> list[int]:
    return list(feature[key].int64_list.value)

  if "width" not in feature:
    message = "has no width: another version of this program wrote it; run `prepare` again"
    raise RecordError("record_unreadable", "record", message)
  (image,) = feature["image"].bytes_list.value
  (identity,), (caption,), (long_caption,) = texts("id"), texts("short"), texts("long")
  (width,), (height,) = numbers("width"), numbers("height")
  short, long, negatives = texts("region/short"), texts("region/long"), texts("region/negatives")
  boxes = list(feature["region/box"].float_list.value)
  counts = numbers("region/negative_count")
  agree = len(short) == len(long) == len(counts) and len(boxes) == 4 * len(short)
  agree = agree and len(negatives) == MAX_NEGATIVES * len(short)
  if not agree or not all(0 <= count <= MAX_NEGATIVES for count in counts):
    raise RecordError(
      "record_unreadable",
      "region",
      f"counts disagree or are impossible: {len(boxes)} numbers of boxes, {len(short)} short and {len(long)} long "
      f"captions, {len(negatives)} negatives, of which {counts} are announced",
    )
  regions = tuple(
    Region(
      box=check_box(boxes[4 * index : 4 * index + 4], f"regions[{index}].box"),
      short=short[index],
      long=long[index],
      negatives=tuple(negatives[MAX_NEGATIVES * index : MAX_NEGATIVES * index + count]),
    )
    for index, count in enumerate(counts)
  )
  tokens = _decode_tokens(numbers, counts)
  return Record(identity, image, caption, long_caption, regions, width, height, tokens, _language(feature))


def _language(feature: Mapping[str, Any]) -> str:
  texts = feature["language"].bytes_list.value if "language" in feature else []
  return texts[0].decode() if texts else ""


def _decode_tokens(numbers: Callable[[str], list[int]], counts: list[int]) -> Tokens | None:
  short = tuple(numbers("tokens/short"))
  if not short:
    return None
  lists = {}
  for key, count in zip(_TOKEN_LISTS, (len(counts), len(counts), sum(counts)), strict=True):
    ids, lengths = tuple(numbers(f"tokens/{key}")), numbers(f"tokens/{key}_length")
    if len(lengths) != count or sum(lengths) != len(ids) or min(lengths, default=0) < 0:
      message = f"disagrees: {len(ids)} ids in {len(lengths)} texts of {sum(lengths)}, not in {count}"
      raise RecordError("record_unreadable", f"tokens/{key}", message)
    ends = itertools.accumulate(lengths, initial=0)
    lists[key] = tuple(ids[begin:end] for begin, end in itertools.pairwise(ends))
  ends = itertools.accumulate(counts, initial=0)
  negatives = tuple(lists["negative"][begin:end] for begin, end in itertools.pairwise(ends))
  return Tokens(short, tuple(numbers("tokens/long")), lists["region_short"], lists["region_long"], negatives)
