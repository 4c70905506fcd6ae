"""Tables on disk: what goes in comes out, whatever the number of inputs and processes."""

import pickle
import sqlite3
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage import lookup_table
from fgclip_jax.storage.errors import RecordError
from tests.helpers import standin


def read_rows(rows):
  """Yields the rows of an input; None stands for the place at which it breaks off."""
  for row in rows:
    if row is None:
      raise RecordError("broken", "row", "is broken")
    yield row


def never(value):
  raise AssertionError(f"read again: {value}")


def make(folder, inputs, read=read_rows, workers=1, **arguments):
  named = [(f"input {number}", value) for number, value in enumerate(inputs)]
  return lookup_table.make(str(folder), read, named, arguments, workers, label="testing")


_texts = st.text(st.characters(codec="utf-8"), max_size=4)


@given(inputs=st.lists(st.lists(st.tuples(_texts, _texts)), min_size=1, max_size=40))
def test_the_first_value_of_a_key_is_found(tmp_path_factory, inputs):
  table = make(tmp_path_factory.mktemp("table"), inputs)
  expected = {}
  rows = [row for rows in inputs for row in rows]
  for key, value in rows:
    expected.setdefault(key, value)
  assert {key: table.get(key) for key in expected} == expected
  assert table.get("no such key") is None
  assert table.entries + table.repeated == len(rows)
  assert table.entries >= len(expected)
  assert table.parts <= lookup_table.MAX_PARTS


def test_what_comes_before_a_break_is_kept_and_the_break_is_told(tmp_path):
  table = make(tmp_path, [[("a", "1"), None, ("b", "2")], [("c", "3")]])
  assert [table.get(key) for key in "abc"] == ["1", None, "3"]
  assert table.broken == (("input 0", "row: is broken"),)


def test_what_cannot_be_used_is_counted(tmp_path):
  bad = RecordError("bad", "entry 7", "has no key")
  table = make(tmp_path, [[("a", "1")], [("\ud800", "2"), bad, ("b", "\udfff"), ("c", "3")]])
  assert [table.get(key) for key in ("a", "b", "c", "\ud800")] == ["1", None, "3", None]
  assert (table.entries, table.skipped[0]) == (2, 3)
  assert "input 1: ('\\ud800', '2') is no text" in table.skipped[1]
  assert make(tmp_path / "other", [[bad]]).skipped == (1, "input 0: entry 7: has no key")


def test_a_table_is_used_again_until_what_it_is_made_of_changes(tmp_path):
  first = make(tmp_path, [[("a", "1")]], size=3)
  assert first.get("a") == "1"
  assert make(tmp_path, [[("a", "1")]], read=never, size=3) == first
  second = make(tmp_path, [[("a", "2")]], size=4)
  assert second.get("a") == "2"
  (tmp_path / "table.json").write_text("{")
  assert make(tmp_path, [[("a", "3")]], size=5).get("a") == "3"


def test_processes_make_the_same_table(tmp_path):
  inputs = [[(f"{number} {index}", str(index)) for index in range(20)] for number in range(20)]
  one, two = make(tmp_path / "one", inputs), make(tmp_path / "two", inputs, workers=2)
  assert (one.entries, one.parts) == (two.entries, two.parts) == (400, 16)
  assert all(two.get(key) == value for rows in inputs for key, value in rows)


class Elsewhere:
  """An engine that sends tasks and results away, as one does that has other machines."""

  def run(self, function, tasks, *, label):
    for task in reversed(tasks):
      send = pickle.loads(pickle.dumps((function, task)))
      yield pickle.loads(pickle.dumps(send[0](send[1])))


def test_another_engine_makes_the_same_table(tmp_path):
  inputs = [[(f"{number} {index}", str(index)) for index in range(5)] for number in range(20)]
  here = make(tmp_path / "here", inputs)
  there = make(standin.remote(tmp_path / "there"), inputs, workers=Elsewhere())
  assert (here.digest, here.parts, here.entries) == (there.digest, there.parts, there.entries)
  assert all(there.get(key) == value for rows in inputs for key, value in rows)


def test_a_table_may_lie_in_storage_and_cannot_be_written_to_afterwards(tmp_path, monkeypatch):
  scratch = tmp_path / "scratch"
  scratch.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(scratch))
  table = make(standin.remote(tmp_path / "50% #1?"), [[("a", "1")], [("b", "2")]])
  assert (table.get("a"), table.get("b")) == ("1", "2")
  assert not list(scratch.iterdir())
  connection = lookup_table._connect(table.folder, table.parts, table.digest)[0]
  with pytest.raises(sqlite3.OperationalError, match="readonly"):
    connection.execute("DELETE FROM entries")
