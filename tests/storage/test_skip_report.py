"""`SkipReport`: reports of parts add up to that of the whole, and texts are one line each."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport, printable

SKIPS = st.lists(st.builds(Skip, st.sampled_from(["image_missing", "box_outside", "text_empty"]), st.text()))


def fill(skips, limit=1):
  report = SkipReport(limit)
  for skip in skips:
    report.add(skip)
  return report


@given(SKIPS, SKIPS, st.integers(1, 3))
def test_a_report_of_parts_is_that_of_the_whole(first, second, limit):
  merged, whole = fill(first, limit), fill(first + second, limit)
  merged.merge(pickle.loads(pickle.dumps(fill(second, limit))))
  assert merged == whole and list(merged.counts) == list(whole.counts)
  assert len(whole) == len(first + second)
  assert all(1 <= len(examples) <= limit for examples in whole.examples.values())
  assert bool(whole) == bool(first + second)


def test_only_the_first_are_kept():
  report = SkipReport(limit=2)
  kept = [report.add(Skip("image_missing", f"no file {number}")) for number in range(4)]
  assert kept == [True, True, False, False]
  assert [skip.message for skip in report.examples["image_missing"]] == ["no file 0", "no file 1"]
  assert list(report.firsts()) == [(Skip("image_missing", "no file 0"), 4)]
  assert report.counts["anything_else"] == 0


def test_the_summary_names_the_first_of_each_kind():
  report = SkipReport()
  report.add(Skip.of(RecordError("text_empty", "short", "is empty"), "a.json, record 7"))
  report.add(Skip("image_missing", "no file 'b.jpg'"), count=1000)
  assert report.summary(2000) == (
    "1,001 of 2,000 images could not be used and were skipped (image_missing 1000, the first: no file 'b.jpg'; "
    "text_empty 1, the first: a.json, record 7: short: is empty)"
  )
  assert SkipReport().summary(2000) == ""


@pytest.mark.parametrize(("given", "kept"), [("two\nlines", "two lines"), ("cut \ud83d off", "cut \\ud83d off")])
def test_texts_are_one_line_of_unicode(given, kept):
  report = SkipReport()
  report.add(Skip("text_wrong", given, given, given))
  assert report.examples["text_wrong"] == [Skip("text_wrong", kept, kept, kept)]


def test_what_could_rewrite_a_terminal_is_escaped():
  assert printable("caf\u00e9 \u3000 \U0001f415.jpg") == "caf\u00e9 \u3000 \U0001f415.jpg"
  assert printable("\x1b[2J\x07a\r\n\x9b1m\u202egpj\udcff") == r"\x1b[2J\x07a\r\n\x9b1m\u202egpj\udcff"
  report = SkipReport()
  report.add(Skip("text_wrong", "\x1b[31mred", place="a\x07.tar"))
  assert report.examples["text_wrong"] == [Skip("text_wrong", r"\x1b[31mred", place=r"a\x07.tar")]
