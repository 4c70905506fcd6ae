"""Journals: nothing that was answered is lost, whatever becomes of the process."""

import dataclasses
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.annotate.journal import Journal, Outcome
from fgclip_jax.storage import paths
from tests.helpers import standin

TEXTS = st.text(max_size=20)
VALUES = st.none() | TEXTS | st.lists(st.integers(), max_size=3) | st.dictionaries(TEXTS, st.floats(0, 1), max_size=3)
OUTCOMES = st.builds(
  Outcome, TEXTS, VALUES, TEXTS, TEXTS, st.integers(1, 3), TEXTS, st.tuples(st.integers(0), st.integers(0))
)


@given(OUTCOMES)
def test_a_line_comes_back(outcome):
  line = outcome.line()
  assert line.count(b"\n") == 1 and Outcome.parse(line) == outcome


@pytest.fixture(params=["local", "remote"])
def path(request, tmp_path):
  return paths.join(
    str(tmp_path) if request.param == "local" else standin.remote(tmp_path), "stage", "part-00000.jsonl"
  )


def test_outcomes_of_several_runs(path):
  for run in range(3):
    with Journal(path) as journal:
      assert len(journal.read()) == 300 * run
      for number in range(300):
        journal.add(Outcome(f"{run}-{number}", {"text": "é"}))
  with Journal(path) as journal:
    journal.add(Outcome("0-0", failure="answer_cut"))
  found = Journal(path).read()
  assert len(found) == 900 and found["0-0"].failure == "answer_cut" and found["2-299"].value == {"text": "é"}


@given(st.data())
def test_a_file_that_was_cut_off_anywhere(tmp_path_factory, data):
  path = str(tmp_path_factory.mktemp("journal") / "part-00000.jsonl")
  with Journal(path) as journal:
    for number in range(4):
      journal.add(Outcome(str(number), "x" * number))
  whole = pathlib.Path(path).read_bytes()
  length = data.draw(st.integers(0, len(whole)))
  os.truncate(path, length)
  complete = whole[:length].count(b"\n")
  with Journal(path) as journal:
    before = journal.read()
    assert {str(number) for number in range(complete)} <= before.keys()
    journal.add(Outcome("later"))
  assert Journal(path).read().keys() == before.keys() | {"later"}


def test_what_is_no_outcome_is_passed_over(tmp_path):
  path = tmp_path / "part-00000.jsonl"
  path.write_bytes(b'{"key": "a"}\n[1]\n{"key": "b", "colour": 3}\n\xff\n{"value": 3}\n{"key": "c", "value": 1}\n')
  assert Journal(str(path)).read() == {"a": Outcome("a"), "c": Outcome("c", 1)}
  assert dataclasses.replace(Outcome("c"), value=1) == Outcome("c", 1)


@pytest.mark.parametrize(
  "line",
  [
    '{"key": [1]}',
    '{"key": {}}',
    '{"key": 5}',
    '{"key": "a", "model": ["b"]}',
    '{"key": "a", "failure": 5}',
    '{"key": "a", "attempts": "z"}',
    '{"key": "a", "tokens": ["a", 1]}',
    '{"key": "a", "tokens": []}',
    "[" * 60_000,
  ],
)
def test_values_of_other_types_are_no_outcome(line):
  assert Outcome.parse(line.encode()) is None


def test_only_regular_files_are_journals(tmp_path):
  target = tmp_path / "precious"
  target.write_bytes(b"precious\n")
  (tmp_path / "link").symlink_to(target)
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(ValueError, match="is a link; remove it"), Journal(str(tmp_path / "link")) as journal:
    journal.add(Outcome("a"))
  with pytest.raises(ValueError, match="is no file; remove it"), Journal(str(tmp_path / "pipe")) as journal:
    journal.add(Outcome("a"))
  with pytest.raises(paths.NotRegularFileError):
    Journal(str(tmp_path / "pipe")).read()
  assert target.read_bytes() == b"precious\n"
