"""FineHARD's annotations: what is kept, what is left out, and under which name it is counted."""

import copy
import json
import math

import pytest

from fgclip_jax.data import annotation_fields
from fgclip_jax.data.record import Region
from fgclip_jax.prepare.sources import finehard, image_store
from fgclip_jax.storage.errors import RecordError

NEGATIVES = tuple(f"a {colour} dog" for colour in "red blue green grey pink black white tan gold teal".split())


def make_annotation(**changes):
  """A faultless annotation with one region; a change to `...` removes a field."""
  annotation = {
    "f_path": "grit-20m/data-12m/coyo_image_0/00069/000699825.jpg",
    "caption": "a brown dog runs over a wide green lawn",
    "short_caption": "a dog on a lawn",
    "bbox_info": [make_region()],
    **changes,
  }
  return {key: value for key, value in annotation.items() if value is not ...}


def make_region(**changes):
  """A faultless region with ten negatives; a change to `...` removes a field."""
  region = {
    "bbox": [0.1, 0.2, 0.5, 0.75, 0.92],
    "short_expr": "a brown dog",
    "long_expr": "a brown dog with its ears up",
    "flag_short_neg": 1,
    "short_expr_negs": {str(index): text for index, text in enumerate(NEGATIVES)},
    **changes,
  }
  return {key: value for key, value in region.items() if value is not ...}


def parse(value):
  """Parses, and returns the record and what was reported: (scope, kind, field)."""
  reported = []
  record, _ = finehard.parse(value, lambda scope, error: reported.append((scope, error.kind, error.field)))
  return record, reported


def test_a_faultless_annotation_becomes_a_record_and_nothing_is_told():
  annotation = make_annotation()
  before = copy.deepcopy(annotation)
  record, reported = parse(annotation)
  assert reported == []
  assert annotation == before
  assert (record.id, record.image) == ("coyo_image_0/00069/000699825.jpg", b"")
  assert (record.short, record.long) == ("a dog on a lawn", "a brown dog runs over a wide green lawn")
  region = Region((0.1, 0.2, 0.5, 0.75), "a brown dog", "a brown dog with its ears up", NEGATIVES)
  assert record.regions == (region,)


@pytest.mark.parametrize("value", [1, True, 0, "", None])
def test_a_record_with_the_key_is_cn_is_chinese_and_keeps_its_regions(value):
  record, reported = parse(make_annotation(is_cn=value, caption="草地上有一只棕色的狗", short_caption="一只狗"))
  assert (record.language, record.short, len(record.regions), reported) == ("zh", "一只狗", 1, [])
  assert parse(make_annotation())[0].language == ""


def test_records_in_the_other_language_can_be_left_out(tmp_path):
  (tmp_path / "coyo_image_0" / "00069").mkdir(parents=True)
  (tmp_path / "coyo_image_0" / "00069" / "000699825.jpg").write_bytes(b"image")
  lines = [json.dumps(make_annotation(**changes)) for changes in ({}, {"is_cn": 1})]
  path = tmp_path / "both.jsonl"
  path.write_text("\n".join(lines))
  for take, kept in (("", ["", "zh"]), ("en", [""]), ("zh", ["zh"])):
    source = finehard.FineHard((str(path),), image_store.Folder(str(tmp_path)), take)
    assert source.arguments().get("take", "") == take
    found = []
    for _, raw in source.scan(str(path)):
      try:
        found.append(source.load(raw, lambda *_: None).language)
      except RecordError as error:
        assert (error.kind, error.field) == ("language_not_taken", "is_cn")
    assert found == kept


@pytest.mark.parametrize(
  ("f_path", "paths"),
  [
    ("grit-20m/data-12m/coyo_image_0/1/2.jpg", ("coyo_image_0/1/2.jpg", "grit-20m/data-12m/coyo_image_0/1/2.jpg")),
    (
      "data/down-grit-12m/coyo_image_0/1/2/3.jpg",
      ("coyo_image_0/1/2/3.jpg", "data/down-grit-12m/coyo_image_0/1/2/3.jpg"),
    ),
    ("./data/grit-12m//coyo_image_0/1/2.jpg", ("coyo_image_0/1/2.jpg", "data/grit-12m/coyo_image_0/1/2.jpg")),
    (
      "data/down-grit-12m/coyo_image_0/00069/00000/000009825.jpg",
      (
        "coyo_image_0/00069/00000/000009825.jpg",
        "coyo_image_0/00069/000699825.jpg",
        "data/down-grit-12m/coyo_image_0/00069/00000/000009825.jpg",
      ),
    ),
    ("mine/2.jpg", ("mine/2.jpg",)),
  ],
)
def test_known_prefixes_of_paths_are_stripped(f_path, paths):
  assert finehard.find_paths(f_path) == paths


@pytest.mark.parametrize("f_path", ["/etc/passwd", "../secret.jpg", "data/grit-12m/../../../secret.jpg", ".", "a\0b"])
def test_a_path_outside_the_images_folder_is_refused(f_path):
  with pytest.raises(RecordError) as caught:
    finehard.find_paths(f_path)
  assert (caught.value.kind, caught.value.field) == ("path_outside", "f_path")


@pytest.mark.parametrize(
  ("value", "kind", "field"),
  [
    (["a"], "record_not_object", "record"),
    (None, "record_not_object", "record"),
    (make_annotation(f_path=...), "f_path_missing", "f_path"),
    (make_annotation(f_path=7), "f_path_wrong_type", "f_path"),
    (make_annotation(f_path=""), "f_path_empty", "f_path"),
    (make_annotation(caption=...), "caption_missing", "caption"),
    (make_annotation(caption=None), "caption_missing", "caption"),
    (make_annotation(caption=["a"]), "caption_wrong_type", "caption"),
    (make_annotation(caption=""), "caption_empty", "caption"),
    (make_annotation(caption=" \n"), "caption_empty", "caption"),
    (make_annotation(caption="a \ud83d dog"), "caption_not_unicode", "caption"),
    (make_annotation(short_caption=...), "short_caption_missing", "short_caption"),
    (make_annotation(short_caption=1.5), "short_caption_wrong_type", "short_caption"),
    (make_annotation(short_caption=""), "short_caption_empty", "short_caption"),
    (make_annotation(caption="", short_caption=""), "caption_empty", "caption"),
  ],
)
def test_a_record_that_cannot_be_used_is_refused(value, kind, field):
  with pytest.raises(RecordError) as caught:
    parse(value)
  assert (caught.value.kind, caught.value.field) == (kind, field)


@pytest.mark.parametrize(
  ("region", "kind", "field"),
  [
    (make_region(bbox=...), "box_not_four_numbers", ".bbox"),
    (make_region(bbox=[0, 0, 1]), "box_not_four_numbers", ".bbox"),
    (make_region(bbox=[0, 0, 1, 1, 0.5, 0.5]), "box_not_four_numbers", ".bbox"),
    (make_region(bbox=["0", 0, 1, 1]), "box_not_four_numbers", ".bbox"),
    (make_region(bbox={"x": 0}), "box_not_four_numbers", ".bbox"),
    (make_region(bbox=[0, 0, math.nan, 1]), "box_not_finite", ".bbox"),
    (make_region(bbox=[0, 0, 1.5, 1]), "box_outside", ".bbox"),
    (make_region(bbox=[0, 0, 10**400, 1]), "box_outside", ".bbox"),
    (make_region(bbox=[0.5, 0, 0.4, 1]), "box_swapped", ".bbox"),
    (make_region(short_expr=...), "short_expr_missing", ".short_expr"),
    (make_region(short_expr=""), "short_expr_empty", ".short_expr"),
    (make_region(short_expr=3), "short_expr_wrong_type", ".short_expr"),
    (make_region(long_expr=3), "long_expr_wrong_type", ".long_expr"),
    ("a dog", "region_not_object", ""),
  ],
)
def test_a_bad_region_is_left_out_and_the_others_are_kept(region, kind, field):
  record, reported = parse(make_annotation(bbox_info=[make_region(), region, make_region()]))
  assert len(record.regions) == 2
  assert reported == [("region", kind, f"bbox_info[1]{field}")]


def test_four_numbers_are_a_box_and_the_fifth_may_be_anything():
  for bbox in ([0.1, 0.2, 0.5, 0.75], [0.1, 0.2, 0.5, 0.75, math.nan], [0.1, 0.2, 0.5, 0.75, None]):
    record, reported = parse(make_annotation(bbox_info=[make_region(bbox=bbox)]))
    assert record.regions[0].box == (0.1, 0.2, 0.5, 0.75)
    assert reported == []


@pytest.mark.parametrize(
  ("bbox_info", "count", "expected"),
  [
    ([], 0, [("note", "regions_none", "bbox_info")]),
    (..., 0, [("note", "regions_none", "bbox_info")]),
    (None, 0, [("note", "regions_none", "bbox_info")]),
    ({}, 0, [("region", "bbox_info_wrong_type", "bbox_info"), ("note", "regions_none", "bbox_info")]),
    ([make_region()], 1, []),
    ([make_region()] * 4, 4, []),
    ([make_region()] * 7, 7, [("note", "regions_over_4", "bbox_info")]),
  ],
)
def test_any_number_of_boxes_is_kept(bbox_info, count, expected):
  record, reported = parse(make_annotation(bbox_info=bbox_info))
  assert (len(record.regions), reported) == (count, expected)


@pytest.mark.parametrize(
  ("flag", "values", "kept", "expected"),
  [
    (1, list(NEGATIVES), NEGATIVES, []),
    (1, [], (), [("note", "negatives_none", "")]),
    (1, NEGATIVES[:3], NEGATIVES[:3], [("note", "negatives_under_10", "")]),
    (1, [*NEGATIVES, "a 10th", "an 11th"], [*NEGATIVES, "a 10th", "an 11th"], [("note", "negatives_over_10", "")]),
    (1, ["", *NEGATIVES], NEGATIVES, [("negative", "negative_empty", "[0]")]),
    (1, [*NEGATIVES, 5], NEGATIVES, [("negative", "negative_wrong_type", "[10]")]),
    (1, [*NEGATIVES, " a brown dog"], NEGATIVES, [("negative", "negative_equals_positive", "[10]")]),
    (1, [*NEGATIVES, "\udead"], NEGATIVES, [("negative", "negative_not_unicode", "[10]")]),
    (0, list(NEGATIVES), (), []),
    (..., list(NEGATIVES), (), []),
  ],
)
def test_any_number_of_negatives_is_kept(flag, values, kept, expected):
  negatives = {f"key {index}": value for index, value in enumerate(values)}
  region = make_region(flag_short_neg=flag, short_expr_negs=negatives)
  record, reported = parse(make_annotation(bbox_info=[region]))
  assert record.regions[0].negatives == tuple(kept)
  assert reported == [(scope, kind, f"bbox_info[0].short_expr_negs{field}") for scope, kind, field in expected]


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"flag_short_neg": "yes"}, [("negative", "flag_short_neg_wrong", "bbox_info[0].flag_short_neg")]),
    (
      {"short_expr_negs": "a red dog"},
      [
        ("negative", "short_expr_negs_wrong_type", "bbox_info[0].short_expr_negs"),
        ("note", "negatives_none", "bbox_info[0].short_expr_negs"),
      ],
    ),
    ({"short_expr_negs": ...}, [("note", "negatives_none", "bbox_info[0].short_expr_negs")]),
  ],
)
def test_negatives_of_a_wrong_kind_cost_the_negatives_only(changes, expected):
  record, reported = parse(make_annotation(bbox_info=[make_region(**changes)]))
  assert record.regions[0].short == "a brown dog"
  assert record.regions[0].negatives == ()
  assert reported == expected


def test_odd_captions_are_kept_as_they_are():
  long = " ".join(["word"] * 5000)
  record, reported = parse(make_annotation(caption=long, short_caption="一只猫 🐈\u200d⬛ on a mat"))
  assert record.long == long
  assert record.short == "一只猫 🐈\u200d⬛ on a mat"
  assert reported == [("note", "caption_long", "caption")]
  assert annotation_fields.LONG_CAPTION_WORDS < 5000


def test_a_region_without_long_caption_or_area_is_worth_a_note():
  record, reported = parse(make_annotation(bbox_info=[make_region(long_expr="", bbox=[0.5, 0, 0.5, 1])]))
  assert record.regions[0].long == ""
  assert [(scope, kind) for scope, kind, _ in reported] == [("note", "box_without_area"), ("note", "long_expr_empty")]


def test_annotations_are_found_in_a_folder_a_list_or_a_file(tmp_path):
  for name in ("b.json", "a.JSONL", "c.parquet", "._b.json"):
    (tmp_path / name).write_text("[]")
  files = tuple(str(tmp_path / name) for name in ("a.JSONL", "b.json"))
  assert finehard.find_annotations(str(tmp_path)) == files
  listing = tmp_path / "list.txt"
  listing.write_text(f"b.json\n\n{tmp_path}/a.JSONL\n")
  assert finehard.find_annotations(str(listing)) == (files[1], files[0])
  assert finehard.find_annotations(files[1]) == (files[1],)
  listing.write_text("nowhere.json\n")
  with pytest.raises(FileNotFoundError, match="lists 'nowhere.json'"):
    finehard.find_annotations(str(listing))
  with pytest.raises(FileNotFoundError, match="no annotation file or folder"):
    finehard.find_annotations(str(tmp_path / "nowhere"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="no .json or .jsonl file"):
    finehard.find_annotations(str(tmp_path / "empty"))


def test_real_annotations_are_faultless(shared):
  folder = shared / "data" / "real_mini"
  if not folder.is_dir():
    pytest.skip(f"needs {folder}")
  count = 0
  for path in finehard.find_annotations(str(folder / "jsonfiles")):
    with open(path, encoding="utf-8") as file:
      for value in json.load(file):
        record, reported = parse(value)
        assert {scope for scope, _, _ in reported} <= {"note"}
        assert len(record.regions) == len(value["bbox_info"])
        assert (folder / "images" / record.id).is_file()
        count += 1
  assert count == 48
