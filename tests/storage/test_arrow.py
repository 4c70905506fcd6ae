"""Rows of Arrow files: streams and files with an index, and damaged ones."""

import pickle

import pyarrow
import pytest

from fgclip_jax.storage import arrow
from fgclip_jax.storage.errors import RecordError

ROWS = [{"name": f"row {number}", "data": bytes([number]) * 100} for number in range(7)]


def write(path, kind):
  table = pyarrow.Table.from_pylist(ROWS)
  make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
  with pyarrow.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=3)
  return str(path)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_rows_are_read_from_any_number_on(tmp_path, kind):
  path = write(tmp_path / "a.arrow", kind)
  found = list(arrow.scan(path))
  assert [number for number, _ in found] == list(range(7))
  assert [row.read() for _, row in found] == ROWS
  assert [pickle.loads(pickle.dumps(row)).read() for _, row in arrow.scan(path, 5)] == ROWS[5:]


def test_an_empty_table_has_no_rows(tmp_path):
  table = pyarrow.table({"name": pyarrow.array([], pyarrow.string())})
  with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table)
  assert list(arrow.scan(str(tmp_path / "a.arrow"))) == []


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_damaged_file_is_a_record_error_whatever_is_damaged(tmp_path, kind):
  data = bytearray((tmp_path / write(tmp_path / "a.arrow", kind)).read_bytes())
  damaged = [b"", b"no arrow", bytes(data[: len(data) // 2])]
  for place in range(0, len(data), 13):
    changed = bytearray(data)
    changed[place] ^= 0xFF
    damaged.append(bytes(changed))
  for number, content in enumerate(damaged):
    path = tmp_path / f"{number}.arrow"
    path.write_bytes(content)
    try:
      for _, row in arrow.scan(str(path)):
        row.read()
    except RecordError as error:
      assert error.kind == "arrow_unreadable"
      assert str(path) in str(error) and "\n" not in str(error)
  with pytest.raises(RecordError):
    list(arrow.scan(str(tmp_path / "1.arrow")))


def test_what_is_no_file_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError):
    list(arrow.scan(str(tmp_path / "none.arrow")))
  (tmp_path / "folder.arrow").mkdir()
  with pytest.raises(OSError, match="folder.arrow"):
    list(arrow.scan(str(tmp_path / "folder.arrow")))
