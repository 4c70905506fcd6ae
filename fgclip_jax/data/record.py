"""The record: one image with its captions and regions, as it lies in ArrayRecord files.

A record is a serialized `tf.train.Example` made and read by TensorFlow Datasets' feature
connectors (no TensorFlow needed), so that `tfds.data_source` can read the same files. A data
set is a folder of shards named `NAME-SPLIT.array_record-00000-of-00004`, written with
`group_size:1` (random access needs it), next to `features.json` (the schema) and
`info.json` (what `prepare` counted, and the data set's own facts).
"""

import dataclasses
import functools
import json
import math
import os
import re

import numpy as np

MAX_NEGATIVES = 10  # hard negatives of one region that a record can hold (FG-CLIP uses exactly ten)
INFO_FILE = "info.json"
_SHARD = re.compile(r"^(?P<name>.+)-(?P<split>[A-Za-z0-9_]+)\.array_record-(?P<index>\d{5})-of-(?P<count>\d{5})$")


class RecordError(ValueError):
  """A record that cannot be used.

  Attributes:
    kind: the class of the fault in snake_case, e.g. `box_outside`; reports count by it.
    field: the field at fault, e.g. `bbox_info[2].bbox`.
  """

  def __init__(self, kind: str, field: str, message: str):
    super().__init__(f"{field}: {message}")
    self.kind, self.field, self.message = kind, field, message

  def __reduce__(self):
    return type(self), (self.kind, self.field, self.message)


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
class Record:
  """One training example.

  Attributes:
    id: names the image within its data set, e.g. its relative path.
    image: the encoded image file (JPEG, PNG, WebP, ...), as it came.
    short: the short caption.
    long: the long caption; empty if there is none.
    regions: any number of regions.
  """

  id: str
  image: bytes
  short: str
  long: str = ""
  regions: tuple[Region, ...] = ()


@functools.cache
def features():
  """The TensorFlow Datasets feature connectors of a record (imported here: it takes a third of a second)."""
  import tensorflow_datasets as tfds

  def strings():
    return tfds.features.Tensor(shape=(None,), dtype=np.str_)

  return tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "image": tfds.features.Text(),  # raw bytes: any encoding Pillow reads
      "short": tfds.features.Text(),
      "long": tfds.features.Text(),
      "region/box": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
      "region/short": strings(),
      "region/long": strings(),
      "region/negative_count": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "region/negatives": strings(),  # of all regions, one after the other
    }
  )


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


def encode(record: Record) -> bytes:
  """Serializes a record; raises `RecordError` for a box or a number of negatives that the schema forbids."""
  for index, region in enumerate(record.regions):
    check_box(region.box, f"regions[{index}].box")
    if len(region.negatives) > MAX_NEGATIVES:
      raise RecordError(
        "too_many_negatives", f"regions[{index}].negatives", f"holds {len(region.negatives)}, at most {MAX_NEGATIVES}"
      )
  from tensorflow_datasets.proto import tf_example_pb2

  connectors = features()
  data = connectors.serialize_example(
    connectors.encode_example(
      {
        "id": record.id,
        "image": record.image,
        "short": record.short,
        "long": record.long,
        "region/box": np.asarray([r.box for r in record.regions], np.float32).reshape(-1, 4),
        "region/short": [r.short for r in record.regions],
        "region/long": [r.long for r in record.regions],
        "region/negative_count": np.asarray([len(r.negatives) for r in record.regions], np.int32),
        "region/negatives": [text for r in record.regions for text in r.negatives],
      }
    )
  )
  # the order of a message's fields differs from process to process unless it is asked for
  return tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
  """Reads a serialized record; raises `RecordError` of kind `record_unreadable` where `data` is not one."""
  try:
    fields = features().deserialize_example_np(data)
    short = [text.decode() for text in fields["region/short"]]
    long = [text.decode() for text in fields["region/long"]]
    negatives = [text.decode() for text in fields["region/negatives"]]
    boxes = np.asarray(fields["region/box"], np.float64).reshape(-1, 4)
    counts = [int(count) for count in fields["region/negative_count"]]
    identity, caption, long_caption = (fields[key].decode() for key in ("id", "short", "long"))
    image = fields["image"]
    if not isinstance(image, bytes):
      raise TypeError(f"its image is of type {type(image).__name__}")
  except Exception as error:  # protobuf and TFDS raise many types; the cause is chained
    raise RecordError("record_unreadable", "record", f"is not a serialized record ({error})") from error
  agree = len(short) == len(long) == len(boxes) == len(counts) and sum(counts) == len(negatives)
  if not agree or not all(0 <= count <= MAX_NEGATIVES for count in counts):
    raise RecordError(
      "record_unreadable",
      "region",
      f"counts disagree or are impossible: {len(boxes)} boxes, {len(short)} short and {len(long)} long captions, "
      f"{counts} negatives announced, {len(negatives)} held",
    )
  ends = np.cumsum(counts, dtype=int) if counts else np.zeros(0, int)
  regions = tuple(
    Region(
      box=check_box(boxes[i], f"regions[{i}].box"),
      short=short[i],
      long=long[i],
      negatives=tuple(negatives[ends[i] - counts[i] : ends[i]]),
    )
    for i in range(len(counts))
  )
  return Record(id=identity, image=image, short=caption, long=long_caption, regions=regions)


def shard_path(folder: str, name: str, split: str, index: int, count: int) -> str:
  """The path of one shard, named as TensorFlow Datasets names them."""
  return os.path.join(folder, f"{name}-{split}.array_record-{index:05d}-of-{count:05d}")


def find_shards(folder: str, split: str) -> list[str]:
  """The shards of a split, in order.

  Raises:
    FileNotFoundError: no such folder or no shard of that split (the message lists the splits there are).
    ValueError: a shard of the set is missing.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"no data set folder at {folder!r}; make one with `python -m fgclip_jax.prepare`")
  found, splits = {}, set()
  for entry in sorted(os.listdir(folder)):
    match = _SHARD.match(entry)
    if match:
      splits.add(match["split"])
      if match["split"] == split:
        found.setdefault((match["name"], int(match["count"])), []).append(int(match["index"]))
  if not found:
    has = f"it has the splits {sorted(splits)}" if splits else "it has no ArrayRecord shard at all"
    raise FileNotFoundError(f"no shard of split {split!r} in {folder!r}: {has}")
  if len(found) > 1:
    raise ValueError(f"{folder!r} holds several sets of shards of split {split!r}: {sorted(found)}; keep one")
  (((name, count), indices),) = found.items()
  missing = sorted(set(range(count)) - set(indices))
  if missing:
    raise ValueError(f"{folder!r}, split {split!r}: shards {missing} of {count} are missing; run `prepare` again")
  return [shard_path(folder, name, split, index, count) for index in range(count)]


def write_info(folder: str, info: dict) -> None:
  """Writes `features.json` (TensorFlow Datasets' schema) and `info.json` (counts and facts) into a data set folder."""
  features().save_config(folder)
  path = os.path.join(folder, INFO_FILE)
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    json.dump(info, file, indent=2, ensure_ascii=False)
    file.write("\n")
  os.replace(path + ".tmp", path)


def read_info(folder: str) -> dict:
  """Reads `info.json` of a data set folder; empty if there is none."""
  path = os.path.join(folder, INFO_FILE)
  if not os.path.exists(path):
    return {}
  with open(path, encoding="utf-8") as file:
    return json.load(file)
