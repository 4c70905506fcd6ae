"""Checks of whole records: what says nothing or comes twice is found, and what is only unusual stays."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.record import Record, Region
from fgclip_jax.prepare import checks
from fgclip_jax.storage.errors import RecordError

WHOLE = (0.0, 0.0, 1.0, 1.0)
WORDS = st.text("abcdefgh", min_size=1, max_size=6)


def make_record(short="two dogs", long="Two dogs play in a park.", regions=()):
  return Record(id="a.jpg", image=b"", short=short, long=long, regions=tuple(regions))


def run(record, size=(640, 480), **limits):
  """The record that is left, and the scopes and classes reported; None for a record left out."""
  reported = []
  try:
    left = checks.check(
      record, size, checks.Checks(**limits), lambda scope, error: reported.append((scope, error.kind))
    )
  except RecordError as error:
    return None, [("record", error.kind)]
  return left, reported


def test_a_usual_record_stays_as_it_is():
  negatives = tuple(f"a dog number {index}" for index in range(10))
  regions = (
    Region((0.0, 0.0, 0.5, 0.5), "a dog", "a brown dog", negatives),
    Region((0.0, 0.0, 0.5, 0.5), "a dog", "another dog"),
    Region((0.0, 0.0, 0.5, 0.6), "a dog", "a brown dog"),
    Region((0.0, 0.0, 0.5, 0.5), "7"),
  )
  record = make_record(regions=regions)
  assert run(record) == (record, [])
  assert run(make_record(long=""), size=None) == (make_record(long=""), [])


def test_useless_captions_of_a_set_are_left_out_alone():
  good, bad = (Caption("a brown dog"), Caption("dog 7", source="alt_text")), (Caption("IMG_7.jpg"), Caption("..."))
  region = Region(WHOLE, "a dog", captions=(Caption("a dog"), bad[0], Caption("a \ud800")))
  record = dataclasses.replace(make_record(regions=[region]), captions=(good[0], *bad, good[1]))
  left, reported = run(record)
  assert left.captions == good and left.regions == (Region(WHOLE, "a dog"),)
  kinds = ["caption_is_file_name", "caption_without_words", "caption_is_file_name", "caption_not_unicode"]
  assert reported == [("annotation", kind) for kind in kinds]


@pytest.mark.parametrize(
  ("size", "kind"),
  [
    ((7, 640), "image_tiny"),
    ((640, 7), "image_tiny"),
    ((1, 1), "image_tiny"),
    ((8, 161), "image_extreme"),
    ((161, 8), "image_extreme"),
    ((8, 160), None),
    ((20_000, 1000), None),
  ],
)
def test_images_of_no_use(size, kind):
  assert run(make_record(), size)[1] == ([("record", kind)] if kind else [])


@pytest.mark.parametrize(
  ("text", "fault"),
  [
    ("...", "without_words"),
    (" - / ! ", "without_words"),
    ("🐈", "without_words"),
    ("https://example.com/a dog", None),
    ("https://example.com/a-dog.jpg?w=3", "is_url"),
    ("www.example.com", "is_url"),
    ("see www.example.com", None),
    ("IMG_1234", "is_file_name"),
    ("DSC00012.JPG", "is_file_name"),
    ("image001", "is_file_name"),
    ("holiday/beach-2.png", "is_file_name"),
    ("d41d8cd98f00b204e9800998ecf8427e", "is_file_name"),
    ("two dogs.jpg", None),
    ("image of a dog", None),
    ("aaaaaaa", "repeats"),
    ("aaaa", None),
    ("dog dog dog dog dog", "repeats"),
    ("dog dog dog dog", None),
    ("a man in a hat in a hat in a hat in a hat in a hat", "repeats"),
    ("a man in a hat, a boy in a hat, a dog in a hat, a cat in a hat, a bird in a hat", None),
    ("一只猫 🐈", None),
    ("1984", None),
    ("the the", None),
  ],
)
def test_captions_that_say_nothing(text, fault):
  expected = [("record", f"caption_{fault}")] if fault else []
  assert run(make_record(short=text))[1] == expected
  assert run(make_record(long=text))[1] == expected
  good = Region(WHOLE, "a dog")
  expected = [("region", f"region_caption_{fault}")] if fault else []
  for region in (Region(WHOLE, text), Region(WHOLE, "a dog", text, ("a cat",))):
    left, reported = run(make_record(regions=[good, region]))
    assert reported == expected
    assert left.regions == ((good,) if fault else (good, region))


@given(st.lists(WORDS, max_size=8), st.lists(WORDS, min_size=1, max_size=24), st.integers(1, 9), st.lists(WORDS))
def test_a_phrase_five_times_in_a_row_is_found_wherever_it_stands(before, phrase, times, after):
  text = " ".join(before + phrase * times + after)
  found = checks.find_repetition(text)
  if times >= checks.REPEATS:
    assert found
  if found and len(text.split()) > 1:
    assert " ".join([found] * checks.REPEATS) in text


@given(st.lists(WORDS, min_size=2, max_size=200, unique=True))
def test_different_words_never_repeat(words):
  assert checks.find_repetition(" ".join(words)) == ""


def test_negatives_that_are_the_positive_or_come_twice_are_left_out():
  negatives = ("a red dog", "A  dog.", "A red dog.", "a ｄog", "a cat", " a dog", "a Cat ")
  left, reported = run(make_record(regions=[Region(WHOLE, "a dog", "", negatives)]))
  assert left.regions[0].negatives == ("a red dog", "a cat")
  kinds = ["negative_equals_positive", "negative_twice", "negative_equals_positive", "negative_equals_positive"]
  assert reported == [("negative", kind) for kind in [*kinds, "negative_twice"]]


def test_of_a_region_given_twice_the_one_with_negatives_stays_in_the_place_of_the_first():
  plain = Region(WHOLE, "a dog", "a brown dog")
  other = Region((0.0, 0.0, 0.5, 1.0), "a cat")
  rich = Region(WHOLE, "A dog.", "a brown  dog", ("a red dog",))
  for given_regions, expected in (
    ((plain, other, rich), (rich, other)),
    ((rich, other, plain), (rich, other)),
    ((plain, plain, other, plain), (plain, other)),
  ):
    left, reported = run(make_record(regions=given_regions))
    assert left.regions == expected
    assert reported == [("region", "region_twice")] * (len(given_regions) - 2)


@given(st.lists(st.tuples(WORDS, WORDS, st.lists(WORDS, max_size=10))))
def test_what_is_left_has_nothing_more_to_find(texts):
  regions = [Region(WHOLE, short, long, tuple(negatives)) for short, long, negatives in texts]
  left, reported = run(make_record(regions=regions))
  again, told_again = run(left)
  assert (again, told_again) == (left, [])
  assert len(left.regions) == len(regions) - sum(scope == "region" for scope, _ in reported)


def test_other_languages_are_left_out_where_they_are_plain():
  pytest.importorskip("py3langid", reason="needs py3langid, see requirements-dev.txt")
  assert run(make_record(), language="en")[1] == []
  assert run(make_record("a dog", ""), language="en")[1] == []
  for text in ("deux chiens jouent dans la neige", "Hochzeitskleid lang weiß", "一只猫在沙发上", "собака бежит"):
    assert run(make_record(text, ""), language="en")[1] == [("record", "caption_other_language")]
    assert run(make_record(text, ""))[1] == []
  assert run(make_record("deux chiens jouent dans la neige", ""), language="fr")[1] == []


@pytest.mark.parametrize(
  "limits",
  [{"min_side": 0}, {"max_aspect": 0.5}, {"max_aspect": float("nan")}, {"near_duplicates": 9}, {"near_duplicates": -1}],
)
def test_impossible_limits_are_errors(limits):
  with pytest.raises(ValueError, match="at least 1|must lie in 0..8"):
    checks.Checks(**limits)


def test_an_unknown_language_is_an_error():
  pytest.importorskip("py3langid", reason="needs py3langid, see requirements-dev.txt")
  with pytest.raises(ValueError, match="'english'"):
    checks.Checks(language="english")


def test_real_annotations_have_none_of_it(shared):
  folder = shared / "data" / "real_mini" / "jsonfiles"
  if not folder.is_dir():
    pytest.skip(f"needs {folder}")
  found = [item for path in sorted(folder.iterdir()) for item in json.loads(path.read_text())]
  assert found
  for item in found:
    regions = [
      Region(tuple(map(float, box["bbox"][:4])), box["short_expr"], box["long_expr"], tuple(negatives.values()))
      for box in item["bbox_info"]
      for negatives in [box["short_expr_negs"] or {}]
    ]
    record = make_record(item["short_caption"], item["caption"], regions)
    assert run(record) == (record, [])
