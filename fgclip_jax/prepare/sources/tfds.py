"""Any data set of TensorFlow Datasets with images and captions, as it lies on this machine in ArrayRecord files.

TensorFlow is not needed. An image is taken as its encoded bytes. Of a field with several captions the first is taken.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, ClassVar

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import Record
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError

Place = tuple[str, int]  # a file and the number of a record in it


@dataclasses.dataclass(frozen=True)
class Tfds:
  """The source.

  Attributes:
    files: the ArrayRecord files of a split.
    folder: the data set's folder, with `features.json`.
    image_field: the field of the image; parts of nested names are parted by `/`, as `captions/text`.
    caption_field: the field of the short caption.
    long_field: the field of the long caption; None: there is none.
  """

  form: ClassVar[str] = "tfds"
  files: tuple[str, ...]
  folder: str
  image_field: str
  caption_field: str
  long_field: str | None = None

  def arguments(self) -> dict[str, Any]:
    names = {"image_field": self.image_field, "caption_field": self.caption_field, "long_field": self.long_field}
    return {"folder": paths.absolute(self.folder), **names}

  def scan(self, file: str, offset: int = 0) -> Iterator[tuple[int, Place]]:
    try:
      count = len(_open(file))
    except (RuntimeError, ValueError) as error:
      raise RecordError("array_record_unreadable", "file", f"is no whole ArrayRecord file ({error})") from error
    for number in range(offset, count):
      yield number, (file, number)

  def load(self, raw: Place, tell: annotation_fields.Tell) -> Record:
    file, number = raw
    try:
      example = _read_example(self.folder, self.image_field, _open(file)[number])
    except Exception as error:  # protobuf and TFDS raise many types; the cause is chained
      raise RecordError("record_unreadable", "record", f"cannot be read ({type(error).__name__}: {error})") from error
    image = _first(_get(example, self.image_field), self.image_field, tell)
    if not isinstance(image, bytes):
      raise RecordError("image_wrong_type", self.image_field, f"must be encoded bytes, got {type(image).__name__}")
    short = _get_caption(example, self.caption_field, "short", tell)
    long = _get_caption(example, self.long_field, "long", tell) if self.long_field else ""
    return Record(id=f"{os.path.basename(file)}/{number}", image=image, short=short, long=long)


def find(
  dataset: str, data_dir: str | None, split: str, image_field: str, caption_field: str, long_field: str | None
) -> Tfds:
  """Finds a data set.

  Args:
    dataset: its folder (with `features.json`), or its name, as `coco_captions`.
    data_dir: where named data sets lie; None: `~/tensorflow_datasets`.
    split: the split to read.
    image_field, caption_field, long_field: see `Tfds`.

  Raises:
    FileNotFoundError: no such data set or split on this machine.
    ValueError: it has no such fields, or lies in files other than ArrayRecord.
  """
  import tensorflow_datasets as tfds

  try:
    if os.path.isfile(os.path.join(dataset, "features.json")):
      builder = tfds.builder_from_directory(dataset)
    else:
      builder = tfds.builder(dataset, data_dir=data_dir)
  except (tfds.core.registered.DatasetNotFoundError, AssertionError, FileNotFoundError) as error:
    raise FileNotFoundError(f"no data set {dataset!r} of TensorFlow Datasets: {str(error).strip()}") from error
  folder = str(builder.data_path)
  if split not in builder.info.splits:
    known = ", ".join(builder.info.splits) or "none: it has to be made first, see `tfds build`"
    raise FileNotFoundError(f"no split {split!r} in {folder}; there are {known}")
  files = tuple(str(path) for path in builder.info.splits[split].filepaths)
  if not all(".array_record" in os.path.basename(file) for file in files):
    advice = f"make it anew with `tfds build {builder.name} --file_format=array_record`"
    raise ValueError(f"{folder} does not lie in ArrayRecord files, which need no TensorFlow: {advice}")
  flat = sorted(_flatten(builder.info.features))
  for name in filter(None, (image_field, caption_field, long_field)):
    if name not in flat:
      raise ValueError(f"{folder} has no field {name!r}; there are {', '.join(flat)}")
  return Tfds(files, folder, image_field, caption_field, long_field)


def _flatten(features: Any, prefix: str = "") -> list[str]:
  """The names of all fields."""
  inner = getattr(features, "feature", features)  # of a sequence
  if not hasattr(inner, "keys"):
    return [prefix.removesuffix("/")]
  return [name for key in inner.keys() for name in _flatten(inner[key], f"{prefix}{key}/")]


@functools.lru_cache(maxsize=8)
def _open(file: str):
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  return ArrayRecordDataSource(file)


@functools.lru_cache(maxsize=2)
def _load_features(folder: str):
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict.from_config(folder)


def _read_example(folder: str, image_field: str, data: bytes) -> dict[str, Any]:
  import tensorflow_datasets as tfds

  decoders: Any = tfds.decode.SkipDecoding()
  for part in reversed(image_field.split("/")):
    decoders = {part: decoders}
  return _load_features(folder).deserialize_example_np(data, decoders=decoders)


def _get(example: Any, name: str) -> Any:
  for part in name.split("/"):
    example = example[part]
  return example


def _first(value: Any, name: str, tell: annotation_fields.Tell) -> Any:
  """A value, or the first of several; None where there is none."""
  if not hasattr(value, "__len__") or isinstance(value, bytes | str):
    return value
  if len(value) > 1:
    tell("note", RecordError("captions_unused", name, f"{len(value)} values, of which the first is taken"))
  return value[0] if len(value) else None


def _get_caption(example: Any, name: str, kind: str, tell: annotation_fields.Tell) -> str:
  value = _first(_get(example, name), name, tell)
  if isinstance(value, bytes):
    value = value.decode("utf-8", "surrogateescape")  # what is not UTF-8 is found below
  return annotation_fields.get_text({kind: value}, kind, name, tell, optional=kind == "long")
