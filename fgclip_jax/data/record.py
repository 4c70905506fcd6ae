"""The record: one image with its captions and regions, as it lies in ArrayRecord files.

`short` and `long` are the captions that FG-CLIP trains on. Where a picture or a region has more of them, `captions` is
the whole set (`caption_set.py`), in fields that are only written where there are any.

A record is a serialized `tf.train.Example` with the fields that `features` names, so that
TensorFlow Datasets reads the same files; here they are read and written without it, which is
several times as quick. A data set is a folder of shards named
`NAME-SPLIT.array_record-00000-of-00004`, written with `group_size:1` (random access needs it);
`dataset_folder.py` says what else is in it.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float

from fgclip_jax.data import caption_set
from fgclip_jax.data.annotation_fields import check_box
from fgclip_jax.data.caption_set import ALT_TEXT as ALT_TEXT
from fgclip_jax.data.caption_set import Caption as Caption
from fgclip_jax.data.example_message import check_size, check_texts, make_example, parse_example
from fgclip_jax.data.tokenizers import Tokenizer
from fgclip_jax.storage.errors import RecordError

DEFAULT_LANGUAGE = "en"  # of a record that names none
MAX_NEGATIVES = 10  # hard negatives of one region that a batch has room for (FG-CLIP uses exactly ten)
Ids = tuple[int, ...]  # token ids of a whole text, start and end id included
_TOKEN_LISTS = ("region_short", "region_long", "negative")
_SET_LISTS = ("caption", "region_caption", "more_negative")  # of sets, and of negatives beyond the tenth


@dataclasses.dataclass(frozen=True)
class Region:
  """A box with captions of its own.

  Attributes:
    box: x1, y1, x2, y2 as fractions of the image's width and height: 0 <= x1 <= x2 <= 1, same for y.
    short: the region's short caption.
    long: its long caption; empty if there is none.
    negatives: any number of captions that are wrong in one attribute of `short`.
    captions: the whole set of its captions; empty where that is `short` and `long`.
  """

  box: tuple[float, float, float, float]
  short: str
  long: str = ""
  negatives: tuple[str, ...] = ()
  captions: tuple[Caption, ...] = ()

  def caption_set(self) -> tuple[Caption, ...]:
    """All captions of the region."""
    return self.captions or caption_set.plain(self.short, self.long)


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A record's captions as token ids, none of them cut; `info.json` names the tokenizer. No caption has no ids.

  Attributes:
    short, long: of the record's captions.
    region_short, region_long: of each region's.
    negatives: of each region's negatives.
    captions: of the record's set, one for each of `Record.captions`.
    region_captions: of each region's set; empty where no region has one.
  """

  short: Ids
  long: Ids = ()
  region_short: tuple[Ids, ...] = ()
  region_long: tuple[Ids, ...] = ()
  negatives: tuple[tuple[Ids, ...], ...] = ()
  captions: tuple[Ids, ...] = ()
  region_captions: tuple[tuple[Ids, ...], ...] = ()


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
    captions: the whole set of its captions; empty where that is `short` and `long`.
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
  captions: tuple[Caption, ...] = ()

  def caption_set(self) -> tuple[Caption, ...]:
    """All captions of the picture."""
    return self.captions or caption_set.plain(self.short, self.long)


class Inputs(NamedTuple):
  """What a loader takes of a record.

  Attributes:
    image: the encoded image file.
    short: the short caption.
    boxes: float32 [n, 4], xyxy in 0..1, of all regions.
    tokens: its captions as token ids.
    language: the code of their language; empty: English.
    truths: where asked for, each region's short caption as token ids of the text as it is written.
    long: the long caption.
    captions: the record's set, as `Record.captions`.
    region_captions: each region's set; empty where no region has one.
  """

  image: bytes
  short: str
  boxes: Float[np.ndarray, "n 4"]
  tokens: Tokens
  language: str = ""
  truths: tuple[Ids, ...] = ()
  long: str = ""
  captions: tuple[Caption, ...] = ()
  region_captions: tuple[tuple[Caption, ...], ...] = ()


@functools.cache
def features():
  """The schema for TensorFlow Datasets (imported here: it takes a third of a second)."""
  import tensorflow_datasets as tfds

  def tensor(dtype: type, *shape: int | None):
    return tfds.features.Tensor(shape=shape, dtype=dtype)

  def texts(prefix: str) -> dict[str, Any]:
    return {f"{prefix}/{name}": tensor(dtype, None) for name, dtype in caption_set.DTYPES.items()}

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
      **{f"tokens/{name}": tensor(np.int32, None) for name in _TOKEN_LISTS + _SET_LISTS},
      **{f"tokens/{name}_length": tensor(np.int32, None) for name in _TOKEN_LISTS + _SET_LISTS},
      # what follows is absent where it would be empty, and in data sets of earlier versions
      **texts("caption"),
      **texts("region/caption"),  # of all regions, one after the other
      "region/caption_count": tensor(np.int32, None),
      "region/more_negatives": tensor(np.str_, None),  # those beyond the tenth, of all regions
      "region/more_negative_count": tensor(np.int32, None),
    }
  )


def tokenize(record: Record, tokenizer: Tokenizer) -> Tokens:
  """The ids of every caption of a record, whole, with start and end id; an empty long caption has none.

  Made once, when a record is written, they need not be made each time that it is read. Of more text than
  `example_message.MAX_TEXTS`, a `RecordError` is raised.
  """
  check_texts(texts := _texts(record))
  encoded = iter(tokenizer.encode_batch(texts))

  def take(text: str | None = None) -> Ids:
    ids = tuple(next(encoded))
    return () if text == "" else ids

  short, long = take(), take(record.long)
  region_short, region_long, negatives = [], [], []
  for region in record.regions:
    region_short.append(take())
    region_long.append(take(region.long))
    negatives.append(tuple(take() for _ in region.negatives))
  captions, *region_captions = (tuple(take() for _ in captions) for captions in _sets(record))
  region_captions = tuple(region_captions) if any(region_captions) else ()
  return Tokens(short, long, tuple(region_short), tuple(region_long), tuple(negatives), captions, region_captions)


def _texts(record: Record) -> list[str]:
  """All captions of a record."""
  texts = [record.short, record.long]
  texts += [text for region in record.regions for text in (region.short, region.long, *region.negatives)]
  return texts + [caption.text for captions in _sets(record) for caption in captions]


def _sets(record: Record) -> list[tuple[Caption, ...]]:
  """The set of a record, and that of each region."""
  return [record.captions, *(region.captions for region in record.regions)]


def encode(record: Record) -> bytes:
  """Serializes a record, equal ones to equal bytes.

  Raises:
    RecordError: a box or caption that the schema forbids, tokens of other captions, or more than `decode` reads.
  """
  caption_set.check(record.captions, "captions")
  for index, region in enumerate(record.regions):
    check_box(region.box, f"regions[{index}].box")
    caption_set.check(region.captions, f"regions[{index}].captions")
  example = make_example()
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
  padded = [(*region.negatives, *[""] * MAX_NEGATIVES)[:MAX_NEGATIVES] for region in regions]
  put_texts("region/negatives", itertools.chain.from_iterable(padded))
  put_numbers("region/negative_count", [min(len(region.negatives), MAX_NEGATIVES) for region in regions])
  more = tuple(region.negatives[MAX_NEGATIVES:] for region in regions)
  caption_set.write(feature, caption_set.Further(record.captions, tuple(region.captions for region in regions), more))
  _put_tokens(record, put_numbers)
  # the order of a message's fields differs from process to process unless it is asked for
  data = example.SerializeToString(deterministic=True)
  check_size(len(data), len(record.image))
  return data


def _put_tokens(record: Record, put: Callable[[str, Iterable[int]], None]) -> None:
  tokens = record.tokens or Tokens(short=())
  sets = list(map(len, _sets(record)))
  if record.tokens:
    counts = [len(region.negatives) for region in record.regions]
    regions = len(record.regions)
    agree = len(tokens.region_short) == len(tokens.region_long) == regions and tokens.short
    agree = agree and [len(region) for region in tokens.negatives] == counts
    held = [len(tokens.captions), *map(len, tokens.region_captions or ((),) * regions)]
    if not agree or held != sets:
      raise RecordError("tokens_disagree", "tokens", "are not those of the record's captions: make them again")
  put("tokens/short", tokens.short)
  put("tokens/long", tokens.long)
  negatives = [ids for region in tokens.negatives for ids in region[:MAX_NEGATIVES]]
  lists = dict(zip(_TOKEN_LISTS, (tokens.region_short, tokens.region_long, negatives), strict=True))
  more = [ids for region in tokens.negatives for ids in region[MAX_NEGATIVES:]]
  region_captions = [ids for region in tokens.region_captions for ids in region]
  for key, texts in zip(_SET_LISTS, (tokens.captions, region_captions, more), strict=True):
    lists |= {key: texts} if texts else {}
  for key, texts in lists.items():
    put(f"tokens/{key}", itertools.chain.from_iterable(texts))
    put(f"tokens/{key}_length", map(len, texts))


def decode(data: bytes) -> Record:
  """Reads a serialized record; raises `RecordError` where `data` is not one, or is larger than any may be."""
  try:
    found = _decode(parse_example(data))
    check_texts(_texts(found))
    return found
  except RecordError:
    raise
  except Exception as error:  # protobuf raises several types; the cause is chained
    raise RecordError("record_unreadable", "record", f"is not a serialized record ({error})") from error


def decode_inputs(data: bytes) -> Inputs | None:
  """Reads what a loader takes of a serialized record, in half the time of `decode`: texts are counted, not read.

  None where there are no token ids, and where anything is unusual: `decode` repairs it or says what is wrong.
  """
  try:
    feature = parse_example(data)
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
    further = caption_set.read(feature, len(counts))
    tokens = _decode_tokens(feature, counts, further)
    if tokens is None:
      return None
    (long,) = feature["long"].bytes_list.value
    sets = further.captions, further.region_captions
    return Inputs(image, short.decode(), boxes, tokens, _language(feature), (), long.decode(), *sets)
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
      f"captions, {len(negatives)} negatives, of which {counts!r:.80} are announced",
    )
  further = caption_set.read(feature, len(counts))
  none = ((),) * len(counts)
  rows = zip(counts, further.negatives or none, further.region_captions or none, strict=True)
  regions = tuple(
    Region(
      box=check_box(boxes[4 * index : 4 * index + 4], f"regions[{index}].box"),
      short=short[index],
      long=long[index],
      negatives=(*negatives[MAX_NEGATIVES * index : MAX_NEGATIVES * index + count], *more),
      captions=captions,
    )
    for index, (count, more, captions) in enumerate(rows)
  )
  tokens = _decode_tokens(feature, counts, further)
  language = _language(feature)
  return Record(identity, image, caption, long_caption, regions, width, height, tokens, language, further.captions)


def _language(feature: Mapping[str, Any]) -> str:
  texts = feature["language"].bytes_list.value if "language" in feature else []
  return texts[0].decode() if texts else ""


def _decode_tokens(feature: Any, counts: list[int], further: caption_set.Further) -> Tokens | None:
  short = tuple(feature["tokens/short"].int64_list.value)
  if not short:
    return None

  def ids(key: str, expected: int) -> tuple[Ids, ...]:
    ids, lengths = (feature[f"tokens/{name}"].int64_list.value[:] for name in (key, f"{key}_length"))
    return caption_set.split(ids, lengths, expected, f"tokens/{key}")

  lists = {
    key: ids(key, count) for key, count in zip(_TOKEN_LISTS, (len(counts), len(counts), sum(counts)), strict=True)
  }
  negatives = caption_set.split(lists["negative"], counts, len(counts), "tokens/negative")
  captions = ids("caption", len(further.captions)) if further.captions else ()
  region_captions = ()
  if further.region_captions:
    held = list(map(len, further.region_captions))
    region_captions = caption_set.split(ids("region_caption", sum(held)), held, len(held), "tokens/region_caption")
  if further.negatives:
    held = list(map(len, further.negatives))
    more = caption_set.split(ids("more_negative", sum(held)), held, len(held), "tokens/more_negative")
    negatives = tuple(map(operator.add, negatives, more))
  long = tuple(feature["tokens/long"].int64_list.value)
  return Tokens(short, long, lists["region_short"], lists["region_long"], negatives, captions, region_captions)
