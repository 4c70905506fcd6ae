"""Rows of Parquet files: from any row on, in any order, whole or broken."""

import os
import pickle

import pyarrow
import pyarrow.parquet
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


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "zstd", "gzip"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_sizes_of_all_pages_are_found(tmp_path, version, codec, dictionary):
  rows = {
    "n": [*range(500)],
    "s": ["x" * (n % 7) for n in range(500)],
    "o": [{"a": [1, n], "b": None} for n in range(500)],
  }
  table = pyarrow.table(rows | {"jpg": [os.urandom(3000) for _ in range(500)]})
  options = {"compression": codec, "use_dictionary": dictionary, "data_page_version": version, "row_group_size": 300}
  pyarrow.parquet.write_table(table, tmp_path / "x.parquet", write_page_checksum=True, **options)
  metadata = pyarrow.parquet.ParquetFile(tmp_path / "x.parquet").metadata
  with open(tmp_path / "x.parquet", "rb") as file:
    for group in range(metadata.num_row_groups):
      for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
        sizes = list(parquet._page_sizes(file, column))
        headers = column.total_uncompressed_size - sum(sizes)  # hold the least and the greatest value
        assert sizes and 0 < headers < 10_000 * len(sizes)


def test_a_cell_that_unpacks_to_more_than_any_picture_has(tmp_path, monkeypatch):
  """Nothing of its row group is unpacked; other groups, and other columns, are read."""
  monkeypatch.setattr(parquet, "MAX_BYTES", 1 << 20)
  cells = [b"a", bytes(2 << 20), b"c", b"d"]
  table = pyarrow.table({"jpg": cells, "key": ["a", "b", "c", "d"]})
  pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2, compression="zstd", use_dictionary=False)
  assert (tmp_path / "x.parquet").stat().st_size < 5000
  reader = parquet.Reader(str(tmp_path / "x.parquet"))
  for number in (0, 1, 0):
    with pytest.raises(RecordError, match=r"x\.parquet: a cell of its row group 0 unpacks to 2,097,1") as found:
      reader.get(number)
    assert found.value.kind == "parquet_cell_too_large"
  assert reader.get(3) == {"jpg": b"d", "key": "d"}
  assert parquet.Reader(str(tmp_path / "x.parquet"), ["key"]).get(1) == {"key": "b"}


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x15" * 100, b"\x1c" * 100, b"\x18\xff\xff\xff\xff\x7f"])
def test_headers_of_pages_that_are_none(data):
  with pytest.raises((IndexError, ValueError)):
    parquet._read_struct(data, 0)
