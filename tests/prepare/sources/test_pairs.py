"""Images with captions of one's own: JSON objects and CSV rows."""

import pytest

from fgclip_jax.data.caption_set import ALT_TEXT, Caption
from fgclip_jax.data.record import Record, Region
from fgclip_jax.prepare.sources import caption_files, pairs
from fgclip_jax.storage.errors import RecordError


def parse(value):
  """Parses, and returns the record and what was reported: (scope, kind, field)."""
  reported = []
  record, paths = pairs.parse(value, lambda scope, error: reported.append((scope, error.kind, error.field)))
  assert paths == (record.id,)
  return record, reported


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    ({"image": "a/1.jpg", "short": "a dog"}, Record("a/1.jpg", b"", "a dog")),
    ({"image": "a/1.jpg", "caption": "a dog"}, Record("a/1.jpg", b"", "a dog")),
    ({"image": "a/1.jpg", "short": "a dog", "long": None}, Record("a/1.jpg", b"", "a dog")),
    ({"image": "a/1.jpg", "short": "a dog", "long": ""}, Record("a/1.jpg", b"", "a dog")),
    ({"image": "./a/1.jpg", "short": "狗 🐕", "long": "a dog runs"}, Record("a/1.jpg", b"", "狗 🐕", "a dog runs")),
  ],
)
def test_captions_are_kept(value, expected):
  assert parse(value) == (expected, [])


LONG = Caption("A dog runs.", "long")
ALT = {"text": "dog 7", "source": "alt_text", "weight": 0.5}
ALT_CAPTION = Caption("dog 7", source=ALT_TEXT, weight=0.5)


@pytest.mark.parametrize(
  ("fields", "short", "long", "captions"),
  [
    ({"short": ["a dog"]}, "a dog", "", ()),
    ({"caption": ["a dog", " ", "a cat"]}, "a dog", "", (Caption("a dog"), Caption("a cat"))),
    ({"captions": ["a dog"], "long": ["A dog runs."]}, "a dog", "A dog runs.", ()),
    (
      {"short": "a dog", "long": ["A dog runs.", "A dog."]},
      "a dog",
      "A dog runs.",
      (Caption("a dog"), LONG, Caption("A dog.", "long")),
    ),
    ({"short": "a dog", "captions": ["a cat", "a dog"]}, "a dog", "", (Caption("a dog"), Caption("a cat"))),
    ({"short": "a dog", "captions": [ALT]}, "a dog", "", (Caption("a dog"), ALT_CAPTION)),
    # what is known of a caption is kept where it is
    ({"short": "dog 7", "captions": ["a dog", ALT]}, "dog 7", "", (ALT_CAPTION, Caption("a dog"))),
    ({"captions": [{"text": "A dog runs.", "kind": "long"}, "a dog"]}, "a dog", "A dog runs.", ()),
    ({"caption": {"text": "狗", "language": "zh", "weight": 2}}, "狗", "", (Caption("狗", language="zh", weight=2.0),)),
  ],
)
def test_all_captions_are_kept_as_a_set(fields, short, long, captions):
  record, reported = parse({"image": "1.jpg", **fields})
  assert (record.short, record.long, record.captions, reported) == (short, long, captions, [])
  if "caption" not in fields:  # which regions do not have
    region = {"box": [0, 0, 1, 1], **fields}
    record, reported = parse({"image": "1.jpg", "short": "a picture", "regions": [region]})
    assert record.regions == (Region((0.0, 0.0, 1.0, 1.0), short, long, captions=captions),) and not reported


@pytest.mark.parametrize(
  ("captions", "kind", "field"),
  [
    ([{"text": 3}], "caption_wrong_type", "captions[0].text"),
    ([{"text": None}], "caption_wrong_type", "captions[0].text"),
    (["a dog", {"text": ""}], "caption_empty", "captions[1].text"),
    (["a dog", {"text": "a", "weight": -1}], "caption_weight_wrong", "captions[1].weight"),
    (["a dog", {"text": "a", "weight": "1"}], "caption_weight_wrong", "captions[1].weight"),
    (["a dog", {"text": "a", "kind": "medium"}], "caption_kind_unknown", "captions[1].kind"),
    (["a dog", {"text": "a", "source": ["x"]}], "caption_wrong_type", "captions[1].source"),
    (["a dog", 3], "captions_wrong_type", "captions"),
    (["a dog", {"en": "a"}], "captions_wrong_type", "captions"),
    ([{"text": "a", "kind": "long"}], "short_missing", "captions"),
    ([], "captions_empty", "captions"),
  ],
)
def test_a_bad_caption_is_refused(captions, kind, field):
  with pytest.raises(RecordError) as caught:
    parse({"image": "1.jpg", "captions": captions})
  assert (caught.value.kind, caught.value.field) == (kind, field)
  if kind.startswith("caption_"):  # of a region, only the region is left out
    region = {"box": [0, 0, 1, 1], "captions": captions}
    record, reported = parse({"image": "1.jpg", "short": "a dog", "regions": [region]})
    assert (record.regions, reported) == ((), [("region", kind, f"regions[0].{field}")])


def test_unknown_fields_of_captions_are_noted():
  _, reported = parse({"image": "1.jpg", "short": "a dog", "captions": [{"text": "a cat", "wieght": 2}]})
  assert reported == [("note", "field_unknown", "captions.wieght")]
  # beside the first field, what is of no known form was never read
  record, reported = parse({"image": "1.jpg", "short": "a dog", "captions": {"en": "a cat"}})
  assert record.captions == () and reported == [("note", "field_unknown", "captions.en")]


def test_regions_are_kept():
  negatives = [f"a {index} dog" for index in range(10)]
  regions = [
    {"box": [0, 0, 0.5, 1], "short": "a dog", "long": "a dog runs", "negatives": negatives},
    {"box": [0, 0, 0.5, 1, 0.9], "short": "a lawn"},
  ]
  record, reported = parse({"image": "1.jpg", "short": "a dog", "regions": regions})
  assert reported == []
  assert record.regions == (
    Region((0.0, 0.0, 0.5, 1.0), "a dog", "a dog runs", tuple(negatives)),
    Region((0.0, 0.0, 0.5, 1.0), "a lawn"),
  )


@pytest.mark.parametrize(
  ("value", "kind"),
  [
    ("a.jpg", "record_not_object"),
    ({"short": "a dog"}, "image_missing"),
    ({"image": 3, "short": "a dog"}, "image_wrong_type"),
    ({"image": "../1.jpg", "short": "a dog"}, "path_outside"),
    ({"image": "1.jpg"}, "short_missing"),
    ({"image": "1.jpg", "short": ""}, "short_empty"),
    ({"image": "1.jpg", "caption": " "}, "caption_empty"),
    ({"image": "1.jpg", "short": {"en": "a dog"}}, "short_wrong_type"),
    ({"image": "1.jpg", "short": "a \udce9 dog"}, "short_not_unicode"),
    ({"image": "1.jpg", "short": "a dog", "long": 3}, "long_wrong_type"),
  ],
)
def test_a_record_that_cannot_be_used_is_refused(value, kind):
  with pytest.raises(RecordError) as caught:
    parse(value)
  assert caught.value.kind == kind


@pytest.mark.parametrize(
  ("regions", "expected"),
  [
    ("all", [("region", "regions_wrong_type", "regions")]),
    (["a dog"], [("region", "region_not_object", "regions[0]")]),
    ([{"short": "a dog"}], [("region", "box_not_four_numbers", "regions[0].box")]),
    ([{"box": [0, 0, 2, 1], "short": "a dog"}], [("region", "box_outside", "regions[0].box")]),
    ([{"box": [0, 0, 1, 1]}], [("region", "region_short_missing", "regions[0].short")]),
    ([{"box": [0, 0, 1, 1], "short": "a", "long": 3}], [("region", "region_long_wrong_type", "regions[0].long")]),
  ],
)
def test_a_bad_region_is_left_out_and_the_record_kept(regions, expected):
  record, reported = parse({"image": "1.jpg", "short": "a dog", "regions": regions})
  assert (record.regions, reported) == ((), expected)


def test_bad_negatives_and_unknown_fields_are_told():
  region = {"box": [0, 0, 1, 1], "short": "a dog", "negatives": ["a cat", "a dog", 3]}
  record, reported = parse({"image": "1.jpg", "short": "a dog", "regions": [region], "long_caption": "a dog runs"})
  assert record.regions[0].negatives == ("a cat",)
  assert reported == [
    ("note", "field_unknown", "long_caption"),
    ("negative", "negative_equals_positive", "regions[0].negatives[1]"),
    ("negative", "negative_wrong_type", "regions[0].negatives[2]"),
    ("note", "negatives_under_10", "regions[0].negatives"),
  ]


def find(path):
  return caption_files.find([str(path)], caption_files.Fields()).files


def test_a_captions_file_must_exist_and_have_a_known_ending(tmp_path):
  with pytest.raises(FileNotFoundError, match="no captions file"):
    find(tmp_path / "a.jsonl")
  (tmp_path / "a.txt").touch()
  with pytest.raises(ValueError, match="must end in one of .json, .jsonl, .csv, .tsv"):
    find(tmp_path / "a.txt")
  (tmp_path / "a.CSV").write_text("image,caption\na.jpg,a dog\n")
  assert find(tmp_path / "a.CSV") == (str(tmp_path / "a.CSV"),)
