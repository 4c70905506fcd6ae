"""Converts a data set of TensorFlow Datasets that has images and captions.

TensorFlow is not needed, but the data set must be on this machine in ArrayRecord files, as `tfds build NAME
--file_format=array_record` writes them. DATASET is its folder or its name. Images are taken as their encoded bytes. Of
a field with several captions, such as captions/text, the first is the short caption, and all are kept.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

from fgclip_jax.data import annotation_fields, caption_set, tfds_reader
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.record import Record
from fgclip_jax.prepare import cli
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report

SHORT = "a data set of TensorFlow Datasets"
TEXT = f"{__doc__}{cli.IMAGE_CHECK}"
EXAMPLE = (
  "--dataset ~/tensorflow_datasets/coco_captions/2014/1.1.0 --caption_field captions/text --output data/coco_captions"
)

Place = tuple[str, int]  # a file and the number of a record in it


@dataclasses.dataclass(frozen=True)
class Tfds:
  """The source.

  Attributes:
    files: the ArrayRecord files of a split.
    folder: the data set's folder, with `features.json`.
    image_field: the field of the image; nested names are written with `/`, such as `captions/text`.
    caption_field: the field of the short caption.
    long_field: the field of the long caption; None: there is none.
  """

  form = "tfds"
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
    except (RuntimeError, ValueError, paths.NotRegularFileError) as error:
      raise RecordError("array_record_unreadable", "file", f"is no whole ArrayRecord file ({error})") from error
    for number in range(offset, count):
      yield number, (file, number)

  def load(self, raw: Place, report: Report) -> Record:
    file, number = raw
    try:
      example = _read_example(self.folder, self.image_field, _open(file)[number])
    except Exception as error:  # protobuf and TFDS raise many types; the cause is chained
      raise RecordError("record_unreadable", "record", f"cannot be read ({type(error).__name__}: {error})") from error
    image = next(iter(_list(_get(example, self.image_field))), None)
    if not isinstance(image, bytes):
      raise RecordError("image_wrong_type", self.image_field, f"must be encoded bytes, got {type(image).__name__}")
    short, *others = _get_captions(example, self.caption_field, "short", report)
    long, *longs = _get_captions(example, self.long_field, "long", report) if self.long_field else [""]
    texts = [*map(Caption, others), *(Caption(text, "long") for text in longs)]
    captions = caption_set.merge([*caption_set.plain(short, long), *texts])
    identity = f"{os.path.basename(file)}/{number}"
    return Record(identity, image, short, long, captions=caption_set.reduce(captions, short, long))


@functools.lru_cache(maxsize=8)
def _open(file: str):
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  paths.open(file).close()  # its own reader would wait at a pipe
  return ArrayRecordDataSource(file)


@functools.lru_cache(maxsize=2)
def _load_features(folder: str) -> Any:
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


def _list(value: Any) -> list[Any]:
  """The values of a field, which may be one or several."""
  return list(value) if hasattr(value, "__len__") and not isinstance(value, bytes | str) else [value]


def _get_captions(example: Any, name: str, kind: str, report: Report) -> list[str]:
  """The first caption of a field, checked, and those that follow it; a long one may be empty."""
  # what is not UTF-8 is found below
  values = [
    value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    for value in _list(_get(example, name)) or [None]
  ]
  first = annotation_fields.get_text({kind: values[0]}, kind, name, report, optional=kind == "long")
  return [first, *(value for value in values[1:] if isinstance(value, str) and value.strip())]


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument("--dataset", required=True, metavar="DIR_OR_NAME", help="the data set's folder or name")
  parser.add_argument("--data_dir", metavar="DIR", help="its folder, if named (default: ~/tensorflow_datasets)")
  parser.add_argument("--from_split", default="train", metavar="NAME", help="the split to read (default: %(default)s)")
  parser.add_argument("--image_field", default="image", metavar="NAME", help="(default: %(default)s)")
  parser.add_argument("--caption_field", default="captions/text", metavar="NAME", help="(default: %(default)s)")
  parser.add_argument("--long_field", metavar="NAME", help="the field of the long caption")
  cli.add_conversion(parser, name="tfds")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  fields = options.image_field, options.caption_field, options.long_field
  dataset = os.path.expanduser(options.dataset)
  folder, files = tfds_reader.find_files(dataset, options.data_dir, options.from_split, [*filter(None, fields)])
  cli.convert(options, Tfds(files, folder, *fields))
