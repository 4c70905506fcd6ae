"""Folders with captions: ImageFolders, Parquet files by split, what `save_to_disk` wrote, and other folders."""

import json
import os

import pytest

from fgclip_jax.prepare.sources import known_forms
from tests.prepare.sources.test_caption_files import SHORTS, arrow, held, jsonl, parquet, table
from tests.prepare.sources.test_sources import convert, make_picture, read

ROWS = [{"image": held(None, place), "caption": text} for place, text in enumerate(SHORTS)]


def save(folder, rows=ROWS, shards=1):
  """Writes a folder as `Dataset.save_to_disk` does, with a cache beside the files."""
  folder.mkdir(parents=True)
  names = [f"data-{place:05d}-of-{shards:05d}.arrow" for place in range(shards)]
  for place, name in enumerate(names):
    (folder / name).write_bytes(arrow(rows[place::shards]))
  (folder / "cache-0123456789abcdef.arrow").write_bytes(arrow(rows))
  (folder / "state.json").write_text(
    json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None})
  )
  (folder / "dataset_info.json").write_text("{}")


def run(tmp_path, capsys, folder, **options):
  """Converts a folder; returns the short captions, or the error's line."""
  if convert(tmp_path / "out", "pairs", captions=folder, **options) == 0:
    return sorted(entry.short for entry in read(tmp_path / "out").values())
  return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
  ("name", "data"),
  [
    ("metadata.jsonl", jsonl(*({"file_name": f"x/{place}.jpg", "text": text} for place, text in enumerate(SHORTS)))),
    ("metadata.csv", table(("file_name", "text"), ("x/0.jpg", "a cat"), ("x/1.jpg", '"a, b"'), ("x/2.jpg", "a dog"))),
    ("metadata.parquet", parquet([{"file_name": f"x/{place}.jpg", "text": text} for place, text in enumerate(SHORTS)])),
  ],
)
def test_an_image_folder_is_read_with_its_images(tmp_path, capsys, name, data):
  for split in ("train", "validation"):
    (tmp_path / "set" / split / "x").mkdir(parents=True)
    (tmp_path / "set" / split / name).write_bytes(data)
    for place in range(3):
      (tmp_path / "set" / split / "x" / f"{place}.jpg").write_bytes(make_picture(place))
  expected = sorted(["a cat", "a, b", "a dog"] if name.endswith("csv") else SHORTS)
  assert run(tmp_path, capsys, tmp_path / "set" / "train") == expected
  assert "has several splits: choose one of train, validation (--from_split)" in run(tmp_path, capsys, tmp_path / "set")


@pytest.mark.parametrize("shards", [1, 2])
def test_what_save_to_disk_wrote_is_read(tmp_path, capsys, shards):
  save(tmp_path / "set", shards=shards)
  assert run(tmp_path, capsys, tmp_path / "set") == sorted(SHORTS)


def test_a_split_of_several_is_chosen(tmp_path, capsys):
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test", "../set"]}')
  save(tmp_path / "set" / "train", ROWS[:1])
  save(tmp_path / "set" / "test", ROWS[1:])
  assert "choose one of train, test (--from_split)" in run(tmp_path, capsys, tmp_path / "set")
  assert "has no split 'dev'" in run(tmp_path, capsys, tmp_path / "set", from_split="dev")
  assert run(tmp_path, capsys, tmp_path / "set", from_split="test") == sorted(SHORTS[1:])


@pytest.mark.parametrize(
  "state",
  ["[]", "{", "{}", '{"_data_files": [{"filename": "../a.arrow"}]}', '{"_data_files": [{"filename": 3}]}', "[" * 9999],
)
def test_a_state_that_lists_no_files_is_an_error(tmp_path, capsys, state):
  save(tmp_path / "set")
  (tmp_path / "set" / "state.json").write_text(state)
  assert str(tmp_path / "set" / "state.json") in run(tmp_path, capsys, tmp_path / "set")


@pytest.mark.parametrize(
  "files",
  [
    ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    ("train/0000.parquet", "test/0000.parquet"),
    ("train-00000-of-00001-0123456789abcdef.parquet", "test-00000-of-00001-0123456789abcdef.parquet"),
  ],
)
def test_parquet_files_are_taken_by_split(tmp_path, capsys, files):
  for file, rows in zip(files, (ROWS[:2], ROWS[2:]), strict=True):
    (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "set" / file).write_bytes(parquet(rows))
  assert "choose one of" in run(tmp_path, capsys, tmp_path / "set")
  assert run(tmp_path, capsys, tmp_path / "set", from_split="train") == sorted(SHORTS[:2])


@pytest.mark.parametrize(
  ("names", "form"),
  [
    (["00000.tar", "00001.tar"], "tar"),
    (["x-train.array_record-00000-of-00001", "features.json"], "prepared"),
    (["Sentences/1.txt", "Annotations/1.xml"], "flickr30k"),
    (["images/1.jpg", "labels/1.txt"], "yolo"),
    (["data.yaml", "train/1.jpg"], "yolo"),
    (["a.jpg", "captions.jsonl"], None),
    (["a.jpg"], None),
  ],
)
def test_other_folders_are_named_with_what_to_do(tmp_path, capsys, names, form):
  for name in names:
    (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "set" / name).write_text("names: [a]")
  error = run(tmp_path, capsys, tmp_path / "set")
  if form:
    assert error == f"error: {known_forms.advise(form, str(tmp_path / 'set'), 'prepare')}"
  else:
    assert f"give {'one of its files' if len(names) > 1 else 'the file of captions'}" in error


def test_pipes_are_refused_and_not_waited_for(tmp_path, capsys):
  save(tmp_path / "set")
  os.remove(tmp_path / "set" / "data-00000-of-00001.arrow")
  os.mkfifo(tmp_path / "set" / "data-00000-of-00001.arrow")
  assert "only regular files are read" in run(tmp_path, capsys, tmp_path / "set")
