"""Records that are made to fill the memory of whoever reads them are refused, and few bytes are looked at for it."""

import pytest

from fgclip_jax.data import example_message, record
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.storage.errors import RecordError
from tests.helpers.toy import RECORDS


def change(**fields) -> bytes:
  """A record of the data set with other values in some of its fields."""
  data = record.encode(RECORDS[1])
  example = example_message.make_example()
  example.ParseFromString(data)
  for name, values in fields.items():
    field = example.features.feature[name.replace("__", "/")]
    field.Clear()
    kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(values[0])]
    getattr(field, kind).value.extend(values)
  return example.SerializeToString()


@pytest.mark.parametrize(
  ("fields", "kind", "message"),
  [
    ({"region__box": [0.5] * 5_000_000}, "record_too_large", "bytes beside its picture, at most 16,777,216"),
    ({"short": [b"a" * (2 << 20)]}, "texts_too_large", "has 2,097,.* characters of captions, at most 1,048,576"),
    ({"region__negative_count": [0] * 100_000}, "record_unreadable", r"of which \[0, 0.{0,80} are announced$"),
  ],
)
def test_a_record_that_is_too_large_is_named_by_what_it_has_too_much_of(fields, kind, message):
  data = change(**fields)
  assert record.decode_inputs(data) is None  # `decode` says why
  with pytest.raises(RecordError, match=message) as found:
    record.decode(data)
  assert found.value.kind == kind and len(str(found.value)) < 300


def test_a_record_that_is_too_large_is_not_even_parsed(monkeypatch):
  monkeypatch.setattr(example_message, "MAX_BYTES", 100)
  with pytest.raises(RecordError, match="has 101 bytes, at most 100 are read"):
    record.decode(b"\xff" * 101)


def test_what_could_not_be_read_again_is_not_written(monkeypatch):
  with pytest.raises(RecordError, match="characters of captions"):
    record.tokenize(record.Record("a", b"", "dog " * (1 << 19)), get_tokenizer("clip"))
  monkeypatch.setattr(example_message, "MAX_ANNOTATIONS", 100)
  with pytest.raises(RecordError, match="beside its picture"):
    record.encode(RECORDS[1])


def test_a_large_picture_is_no_fault():
  data = record.encode(record.Record("a", bytes(20 << 20), "a dog"))
  assert len(record.decode(data).image) == 20 << 20
