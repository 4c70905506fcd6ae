"""The message `tf.train.Example` that a record is, and its limits.

Whoever passes a data set on could otherwise have one record fill the memory of all who read it.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from fgclip_jax.storage.errors import RecordError

MAX_BYTES = 512 << 20  # of a serialized record
MAX_ANNOTATIONS = 16 << 20  # bytes of a serialized record but for its picture
MAX_TEXTS = 1 << 20  # characters of all captions; a tokenizer takes seconds and 200 MB of memory for each million


@functools.cache
def _example_class() -> Any:
  """The class of the message (imported here: it takes a third of a second)."""
  from tensorflow_datasets.proto import tf_example_pb2

  return getattr(tf_example_pb2, "Example")  # noqa: B009 - protobuf makes it at run time, unseen by type checkers


def make_example() -> Any:
  """An empty message."""
  return _example_class()()


def parse_example(data: bytes) -> Mapping[str, Any]:
  """The features of a serialized message; lists of theirs are not copied yet.

  Raises:
    DecodeError: it is none.
    RecordError: as `check_size`.
  """
  check_size(len(data), len(data))  # first: what is larger is not even parsed
  feature = _example_class().FromString(data).features.feature
  check_size(len(data), sum(map(len, feature["image"].bytes_list.value)))
  return feature


def check_size(whole: int, image: int) -> None:
  """Raises `RecordError` of kind `record_too_large`; takes the bytes of a record and of the picture in it."""
  if whole > MAX_BYTES:
    raise RecordError("record_too_large", "record", f"has {whole:,} bytes, at most {MAX_BYTES:,} are read")
  if whole - image > MAX_ANNOTATIONS:
    message = f"has {whole - image:,} bytes beside its picture, at most {MAX_ANNOTATIONS:,} are read"
    raise RecordError("record_too_large", "record", message)


def check_texts(texts: Iterable[str]) -> None:
  """Raises `RecordError` of kind `texts_too_large` for the captions of a record."""
  if (size := sum(map(len, texts))) > MAX_TEXTS:
    raise RecordError(
      "texts_too_large", "record", f"has {size:,} characters of captions, at most {MAX_TEXTS:,} are read"
    )
