"""The command that measures how the code is laid out, and the figures that stay within their bounds."""

import ast
import re

import pytest

from benchmarks import house


def test_the_table(capsys):
  assert house.main(["--no_types"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == ["| figure | measured |", "|---|---|"]
  figures = dict(re.fullmatch(r"\| (.+) \| (.+) \|", line).groups() for line in lines[2:])
  assert figures["import circles; upward imports"] == "0; 0"
  assert int(figures["files in the largest flat folder"].split()[0]) <= 20
  assert int(figures["modules at top level"]) <= 9
  assert {"longest function of the trainer", "highest cyclomatic complexity of the trainer"} <= set(figures)


def test_circles():
  needed = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d2"}, "d2": {"d"}, "e": {"a"}}
  assert house.circles(needed) == [frozenset({"b", "c"}), frozenset({"d", "d2"})]


@pytest.mark.parametrize(
  ("body", "expected"),
  [
    ("pass", 1),
    ("return 1 if a else 2", 2),
    ("for b in a:\n    if b: return b", 3),
    ("return [b for b in a if b if b > 1]", 4),
    ("def g():\n    while a: pass\n  return g", 2),
    ("try: a()\n  except OSError: pass\n  except ValueError: pass", 3),
  ],
)
def test_complexity(body, expected):
  (function,) = ast.parse(f"def f(a):\n  {body}\n").body
  assert house.complexity(function) == expected
