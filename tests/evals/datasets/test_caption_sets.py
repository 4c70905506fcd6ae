"""Captions of retrieval benchmarks: the forms that `prepare` reads, odd entries, files of another set."""

import json

import pytest

from fgclip_jax.evals.datasets import caption_sets
from fgclip_jax.evals.datasets.caption_sets import Options
from fgclip_jax.prepare.sources.caption_files import Fields
from fgclip_jax.storage.skip_report import SkipReport
from tests.prepare.sources.test_caption_files import FORMS, LONG, NAMES, SHORTS, jsonl


def read(path, dataset="pairs", **options):
  """Reads a set; returns the entries' images and captions, and what was counted."""
  skips = SkipReport()
  notes = options.setdefault("notes", [])
  entries = caption_sets.read(dataset, str(path), Options(**options), None, skips)
  return [(entry.image, entry.captions) for entry in entries], dict(skips.counts), notes


@pytest.mark.parametrize("name", FORMS)
def test_pairs_reads_what_prepare_reads(tmp_path, name):
  (tmp_path / name).write_bytes(FORMS[name])
  entries, skips, _ = read(tmp_path / name)
  assert len(entries) == 3 and not skips
  long = name.startswith(("sharegpt4v", "docci"))
  expected = {
    "lists.jsonl": [[text, "another"] for text in SHORTS],
    "rows.parquet": [[text, "more"] for text in SHORTS],
  }
  expected |= {"paths.parquet": [["a cat"]] * 3}
  texts = expected.get(name, [[LONG]] * 3 if long else [[text] for text in SHORTS])
  assert [list(captions) for _, captions in entries] == texts


def test_the_lines_of_prepare_are_read_with_either_kind(tmp_path):
  rows = [{"image": name, "short": "a cat", "long": LONG, "regions": []} for name in NAMES]
  del rows[2]["long"]
  (tmp_path / "a.jsonl").write_bytes(jsonl(*rows))
  assert read(tmp_path / "a.jsonl") == ([(name, ("a cat",)) for name in NAMES], {}, [])
  longs = [captions for _, captions in read(tmp_path / "a.jsonl", kind="long")[0]]
  assert longs == [(LONG,), (LONG,), ("a cat",)]


def test_fields_are_named_and_splits_chosen(tmp_path):
  rows = [{"picture": name, "words": ["a", "b"], "split": name[2]} for name in NAMES]
  (tmp_path / "a.jsonl").write_bytes(jsonl(*rows))
  fields = Fields("picture", "words")
  entries, _, notes = read(tmp_path / "a.jsonl", fields=fields, split="1")
  assert entries == [(NAMES[1], ("a", "b"))] and "image from 'picture', short caption from 'words'" in notes[0]
  with pytest.raises(ValueError, match="no record of split 'x': the splits are '0', '1', '2'"):
    read(tmp_path / "a.jsonl", fields=fields, split="x")
  with pytest.raises(ValueError, match="likely --image_field picture"):
    read(tmp_path / "a.jsonl")


def test_a_picture_in_a_row_is_read_when_it_is_needed(tmp_path):
  (tmp_path / "a.parquet").write_bytes(FORMS["rows.parquet"])
  entries = caption_sets.read("pairs", str(tmp_path / "a.parquet"), Options(), None, SkipReport())
  pictures = [entry.read_picture() for entry in entries if entry.read_picture]
  assert len(pictures) == 3 and all(picture.startswith(b"\xff\xd8") for picture in pictures)
  assert [entry.image for entry in entries] == ["a/0", "a/1", "a/2"]


COCO = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
KARPATHY = {"images": [{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "a cat"}]}], "dataset": "coco"}


@pytest.mark.parametrize(
  ("dataset", "content", "command"),
  [
    ("coco", KARPATHY, "retrieve karpathy"),
    ("flickr30k", COCO, "retrieve coco"),
    ("sharegpt4v", COCO, "retrieve coco"),
    ("pairs", KARPATHY, "retrieve karpathy"),
    ("pairs", COCO, "retrieve coco"),
  ],
)
def test_a_file_of_another_set_is_named_with_its_command(tmp_path, dataset, content, command):
  (tmp_path / "a.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=f"use `python -m fgclip_jax.evaluate {command} --annotations"):
    read(tmp_path / "a.json", dataset, split="test")


def test_karpathys_form_has_a_name_of_its_own(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(KARPATHY))
  assert read(tmp_path / "a.json", "karpathy", split="test")[0] == [("1.jpg", ("a cat",))]


def test_captions_that_are_no_text_are_left_out_with_a_note(tmp_path):
  annotations = [{"image_id": 1, "caption": text} for text in (None, "a cat", 3)]
  (tmp_path / "a.json").write_text(json.dumps(COCO | {"annotations": annotations}))
  entries, skips, notes = read(tmp_path / "a.json", "coco")
  assert entries == [("1.jpg", ("a cat",))] and not skips
  assert notes == ["2 captions are no text and are left out, the first of '1.jpg'"]


@pytest.mark.parametrize(
  ("dataset", "content"),
  [
    ("coco", {"images": 3}),
    ("coco", {"images": [{"id": [], "file_name": "a"}], "annotations": []}),
    ("coco", {"images": [3], "annotations": []}),
    ("coco", {"images": [{"id": 1, "file_name": None}], "annotations": []}),
    ("coco", COCO | {"annotations": {"a": 1}}),
    ("karpathy", {"images": [{"filename": None, "split": "test", "sentences": [{"raw": "a"}]}]}),
    ("karpathy", {"images": [{"filename": "a", "split": "test", "sentences": 3}]}),
    ("sharegpt4v", [{"image": "a", "conversations": {"a": 1}}]),
    ("sharegpt4v", [{"image": ["a"], "conversations": [{}, {"value": "b"}]}]),
    ("sharegpt4v", [3]),
    ("pairs", [3]),
    ("pairs", [{"image": {"a": 1}, "caption": "a"}]),
  ],
)
def test_odd_entries_are_an_error_of_one_line(tmp_path, dataset, content):
  (tmp_path / "a.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match="a.json") as caught:
    read(tmp_path / "a.json", dataset, split="test")
  assert "\n" not in str(caught.value)


def test_odd_rows_of_a_table_are_counted(tmp_path):
  (tmp_path / "a.csv").write_text('filename,split,raw\n1.jpg,test,"[""a cat""]"\n2.jpg,test,[\n3.jpg,test,3\n')
  entries, skips, _ = read(tmp_path / "a.csv", "flickr30k", split="test")
  assert entries == [("1.jpg", ("a cat",))] and skips == {"captions_not_json": 1, "caption_missing": 1}
