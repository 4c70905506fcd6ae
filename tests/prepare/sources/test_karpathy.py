"""Karpathy's files of captions, through the command."""

import json

import pytest

from tests.prepare.sources.test_sources import convert, count, make_picture, read

SPLITS = ("train", "restval", "test", "train")


def write(folder, **changes):
  """Writes a file like `dataset_coco.json`, and its pictures; `changes` are of its second image."""
  images = []
  for index, split in enumerate(SPLITS):
    sentences = [
      {"tokens": text.lower().split(), "raw": text, "imgid": index, "sentid": place}
      for place, text in enumerate((f"A cat {index}.", "Another."))
    ]
    name = f"COCO_{index}.jpg"
    images.append(
      {"filepath": "train2014", "sentids": [0, 1], "filename": name, "imgid": index, "split": split, "cocoid": index}
      | {"sentences": sentences}
    )
    (folder / "coco" / "train2014").mkdir(parents=True, exist_ok=True)
    (folder / "coco" / "train2014" / name).write_bytes(make_picture(index))
  images[1] |= changes
  (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
  return {"annotations": folder / "dataset_coco.json", "images": folder / "coco"}


def test_the_first_sentence_of_each_image_is_its_caption_and_all_are_kept(tmp_path):
  options = write(tmp_path)
  assert convert(tmp_path / "out", "karpathy", **options) == 0
  records = read(tmp_path / "out")
  assert {name: entry.short for name, entry in records.items()} == {
    f"train2014/COCO_{index}.jpg": f"A cat {index}." for index in range(4)
  }
  assert all(len(entry.captions) == 2 and entry.captions[0].text == entry.short for entry in records.values())
  assert count(tmp_path / "out")[:2] == (4, 4)


def test_splits_are_chosen_and_unknown_ones_named(tmp_path, capsys):
  options = write(tmp_path)
  assert convert(tmp_path / "out", "karpathy", "--from_split", "train", "restval", **options) == 0
  assert len(read(tmp_path / "out")) == 3
  assert convert(tmp_path / "other", "karpathy", "--from_split", "dev", **options) == 1
  assert "has no image of split dev: the splits are train, restval, test" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("changes", "kind"),
  [
    ({"sentences": []}, "short_missing"),
    ({"sentences": [{"raw": None}]}, "short_missing"),
    ({"filename": "x.jpg"}, "image_missing"),
    ({"filename": None}, "filename_missing"),
    ({"filename": ["x.jpg"]}, "filename_wrong_type"),
    ({"sentences": "A cat"}, "sentences_wrong_type"),
    ({"filepath": 7}, "filepath_wrong_type"),
  ],
)
def test_an_image_without_captions_or_file_is_counted(tmp_path, changes, kind):
  options = write(tmp_path, **changes)
  assert convert(tmp_path / "out", "karpathy", **options) == 0
  assert count(tmp_path / "out")[:2] == (4, 3) and count(tmp_path / "out")[2][kind] == 1


@pytest.mark.parametrize("sentence", [{"raw": 7}, {"tokens": []}, "text", None, {"raw": "\udc80"}])
def test_a_sentence_at_fault_is_counted_and_the_next_one_taken(tmp_path, sentence):
  options = write(tmp_path, sentences=[sentence, {"raw": "A cat."}])
  assert convert(tmp_path / "out", "karpathy", **options) == 0
  assert read(tmp_path / "out")["train2014/COCO_1.jpg"].short == "A cat."
  kinds = {"raw_wrong_type", "raw_missing", "annotation_not_object", "raw_not_unicode"}
  assert sum(count(tmp_path / "out")[2].get(kind, 0) for kind in kinds) == 1


def test_a_file_of_another_form_is_an_error_that_names_it(tmp_path, capsys):
  options = write(tmp_path)
  for content, message in (
    ('{"annotations": []}', "has no entries 'images'"),
    ('{"images": [{"filename": "a.jpg"}, 7, null]}', "annotation_not_object"),
    ('{"images": [', "is broken at"),
  ):
    options["annotations"].write_text(content)
    assert convert(tmp_path / "out", "karpathy", **options) == 1
    assert message in capsys.readouterr().err
