"""Rows of Parquet files: from any row on, in any order, whole or broken."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage import parquet
from fgclip_jax.storage.errors import RecordError
from tests.helpers import standin, trees


@given(count=st.integers(0, 40), rows=st.integers(1, 40), offset=st.integers(0, 40), order=st.lists(st.integers(0, 39)))
def test_rows_are_read_from_any_one_on_and_in_any_order(tmp_path_factory, count, rows, offset, order):
  path = tmp_path_factory.mktemp("parquet") / "a.parquet"
  samples = [trees.make_sample(f"{index:09d}", bytes([index]) * 50) for index in range(count)]
  trees.write_parquet(path, samples or [trees.make_sample("x")], rows=rows)
  found = list(parquet.scan(str(path)))
  assert [number for number, _ in found] == list(range(count or 1))
  if not count:
    return
  for number, row in parquet.scan(standin.remote(path), offset):
    assert row.read() == {"jpg": samples[number]["image"], **samples[number]["side"]}
  reader = parquet.Reader(str(path))
  for number in order:
    if number < count:
      assert reader.get(number)["key"] == f"{number:09d}"
      assert pickle.loads(pickle.dumps(found[number][1])).read()["key"] == f"{number:09d}"
  reader.close()


def test_the_column_of_images_is_found(tmp_path):
  samples = [trees.make_sample("0"), trees.make_sample("1", None)]
  trees.write_parquet(tmp_path / "a.parquet", samples)
  trees.write_parquet(tmp_path / "b.parquet", samples, images=False)
  assert parquet.find_image_column(str(tmp_path / "a.parquet")) == "jpg"
  assert parquet.find_image_column(str(tmp_path / "b.parquet")) is None
  assert [parquet.get_bytes(value) for value in (b"a", {"bytes": b"a", "path": None}, None, "a", {})] == [
    b"a",
    b"a",
    None,
    None,
    None,
  ]


def test_a_broken_file_or_row_is_named(tmp_path):
  path = tmp_path / "a.parquet"
  trees.write_parquet(path, [trees.make_sample(f"{index}", bytes(range(256)) * 9) for index in range(8)])
  data = path.read_bytes()
  path.write_bytes(data[:-20])
  with pytest.raises(RecordError, match="a.parquet cannot be read") as caught:
    list(parquet.scan(str(path)))
  assert caught.value.kind == "parquet_unreadable"
  path.write_bytes(data[:4] + bytes(60) + data[64:])
  rows = [row for _, row in parquet.scan(str(path))]
  with pytest.raises(RecordError, match="a.parquet cannot be read"):
    rows[0].read()
  assert rows[7].read()["key"] == "7"
  with pytest.raises(FileNotFoundError):
    list(parquet.scan(str(tmp_path / "none.parquet")))


def test_a_cell_that_is_no_picture_any_more_is_refused(monkeypatch):
  monkeypatch.setattr(parquet, "MAX_BYTES", 3)
  assert parquet.get_bytes({"bytes": b"abc"}) == b"abc"
  with pytest.raises(RecordError, match="has 4 bytes; at most 3"):
    parquet.get_bytes({"bytes": b"abcd"})
