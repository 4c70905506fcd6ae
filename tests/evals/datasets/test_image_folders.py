"""Folders of labelled pictures, class lists and label maps as people have them."""

import codecs
import os

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.evals import Classification, LinearProbe, Segmentation
from fgclip_jax.evals.datasets import class_lists, image_folders, images, label_maps
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import SkipReport


def test_stray_folders_are_no_classes_and_nested_pictures_are_read(tmp_path, draw, model):
  for seed, name in enumerate(("cat", "dog", ".ipynb_checkpoints", "__MACOSX", "cat/sub", "@eaDir", "lost+found")):
    draw(tmp_path / "c" / name / "x.jpg", seed)
  for seed, name in enumerate(("cat/._x.jpg", "dog/.x.jpg", "beside.png")):
    draw(tmp_path / "c" / name, seed)
  (tmp_path / "c" / "cat" / "Thumbs.db").write_bytes(b"")
  (tmp_path / "c" / "cat" / "x.jpg:Zone.Identifier").write_bytes(b"")  # of Windows, by way of WSL
  result = Classification("folder", str(tmp_path / "c")).run(model)
  assert result.examples["id"] == ["cat/x.jpg", "cat/sub/x.jpg", "dog/x.jpg"]
  assert result.examples["class"] == ["cat", "cat", "dog"] and result.records == 3 and not result.skipped
  assert result.metrics["top1"].chance == 0.5
  notes = "\n".join(result.notes)
  for part in ("folder_hidden 4, the first: ", "file_hidden 3", "file_not_picture 1", "picture_without_class 1"):
    assert part in notes
  assert ".ipynb_checkpoints" in notes and "1 pictures lie in folders below those of their classes" in notes
  assert "cat/sub/x.jpg" in notes


def test_folders_without_pictures_are_named_and_hidden_classes_shift_no_numbers(tmp_path, draw, model):
  for seed, name in enumerate(("b", "a", ".git")):
    draw(tmp_path / "c" / name / "x.jpg", seed)
  (tmp_path / "c" / "empty_one").mkdir()
  (tmp_path / "names.txt").write_text("first\nsecond\nthird\n")
  data = image_folders.read_folder(str(tmp_path / "c"), image_folders.read_classes(str(tmp_path / "names.txt")))
  assert data.labels.tolist() == [0, 1] and data.names == ("first", "second", "third")
  result = Classification("folder", str(tmp_path / "c")).run(model)
  assert any("1 of 3 classes have no picture; they are answers all the same: empty one" in n for n in result.notes)


def test_loops_pipes_and_devices_end_nothing(tmp_path, draw, model):
  folder = tmp_path / "c"
  for seed, name in enumerate(("cat/x.jpg", "dog/x.jpg", "elsewhere/y.jpg")):
    draw((tmp_path if name.startswith("else") else folder) / name, seed)
  (folder / "loop").symlink_to(folder)
  (folder / "cat" / "up").symlink_to("..")
  (folder / "fox").symlink_to(tmp_path / "elsewhere")
  os.mkfifo(folder / "cat" / "pipe.jpg")
  (folder / "dog" / "zero.png").symlink_to("/dev/zero")
  (folder / "dog" / "gone.png").symlink_to("nowhere")
  result = Classification("folder", str(folder)).run(model)
  assert result.examples["id"] == ["cat/x.jpg", "dog/x.jpg", "fox/y.jpg"] and result.records == 6
  assert result.skipped == {"image_not_a_file": 2, "image_missing": 1}
  assert any("folder_loop 2" in note for note in result.notes)


def test_folders_that_are_not_utf8_or_differ_in_case_alone(tmp_path, draw, model):
  for seed, name in enumerate(("Cat", "cat", "dog", "red_fox", "red fox")):
    draw(tmp_path / "c" / name / "x.jpg", seed)
  odd = os.fsencode(tmp_path / "c") + b"/f\xfcchse"
  os.mkdir(odd)
  result = Classification("folder", str(tmp_path / "c")).run(model)
  notes = "\n".join(result.notes)
  assert result.records == 5 and "folder_not_unicode 1" in notes
  assert "classes of the same name are one answer: Cat, cat, red fox" in notes
  assert result.metrics["top1"].chance == pytest.approx((2 + 2 + 1 + 2 + 2) / 25)


def test_a_zip_of_windows_unpacked_with_its_folders_as_names(tmp_path, draw):
  draw(tmp_path / "cat\\x.jpg", 0)
  with pytest.raises(ValueError, match=r"has no sub-folders.*is of a zip file of Windows"):
    image_folders.read_folder(str(tmp_path))


def test_numbers_that_are_one_class_and_folders_with_a_typing_error(tmp_path, draw):
  for name in ("1", "01"):
    draw(tmp_path / "numbers" / name / "x.jpg", 0)
  with pytest.raises(ValueError, match="'01', '1' of .* have the same number"):
    image_folders.read_folder(str(tmp_path / "numbers"), ["a", "b"])
  for name in ("golden_retreiver", "cat"):
    draw(tmp_path / "names" / name / "x.jpg", 0)
  with pytest.raises(ValueError, match="'golden_retreiver' of .* is none of the 2 classes.*is it 'golden_retriever'"):
    image_folders.read_folder(str(tmp_path / "names"), ["golden_retriever", "cat"])


def test_a_linear_probe_counts_classes_over_what_people_put_there(tmp_path, draw, model):
  for split in ("train", "test"):
    for seed, name in enumerate(("cat/1.png", "cat/in/2.png", "dog/1.png", "dog/2.png", "dog/3.png", ".git/1.png")):
      draw(tmp_path / split / name, seed)
  result = LinearProbe("folder", str(tmp_path / "train"), str(tmp_path / "test")).run(model)
  assert result.records == 10 and result.metrics["top1"].chance == 0.5
  assert any("folder_hidden 1" in note for note in result.notes)


MARKS = {
  "utf-8-sig": lambda text: text.encode("utf-8-sig"),
  "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
  "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
  "crlf": lambda text: text.replace("\n", "\r\n").encode(),
  "cr": lambda text: text.replace("\n", "\r").encode(),
  "all": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
}


@pytest.mark.parametrize("form", MARKS)
def test_marks_and_ends_of_lines_change_nothing(tmp_path, draw, form):
  def write(name, content):
    (tmp_path / name).write_bytes(MARKS[form](content))
    return str(tmp_path / name)

  assert class_lists.read(write("s.txt", "background\ncat;kitten\n")).zero == "background"
  assert class_lists.read(write("s.txt", "background\ncat; kitten\n\n")).names == (("background",), ("cat", "kitten"))
  assert image_folders.read_classes(write("c.txt", "cat\tA cat\ndog\tA dog\n")) == {"cat": "A cat", "dog": "A dog"}
  assert image_folders.read_classes(write("c.txt", "a\u2028b\ncafé\n")) == ["a\u2028b", "café"]
  assert image_folders.read_classes(write("c.json", '["cat",\n"dog"]')) == ["cat", "dog"]
  for name in ("a.jpg", "b.jpg"):
    draw(tmp_path / "flat" / name, 0)
  data = image_folders.read_flat(str(tmp_path / "flat"), write("l.csv", '"image","label"\n"b.jpg","cat, big"\na,dog\n'))
  assert list(data.ids) == ["b.jpg", "a.jpg"] and [data.names[label] for label in data.labels] == ["cat, big", "dog"]
  draw(tmp_path / "maps" / "a.png", 0)
  found = label_maps.find(str(tmp_path / "flat"), str(tmp_path / "maps"), split=write("split.txt", "a\nb.jpg\na\n"))
  assert [os.path.basename(image) for image, _ in found] == ["a.jpg", "b.jpg"]


def test_latin1_is_named_as_what_it_is(tmp_path):
  (tmp_path / "c.txt").write_bytes("café\nthé\n".encode("latin-1"))
  for read in (class_lists.read, image_folders.read_classes):
    with pytest.raises(ValueError, match=r"c\.txt: byte 3 \(0xe9.* is not UTF-8; if it is Latin-1"):
      read(str(tmp_path / "c.txt"))


@pytest.mark.parametrize(
  "content, message",
  [
    ("0: background\n1: cat\n", "every line begins with a number, as in '0: background'"),
    ("1 wall\n2 floor, flooring\n", "every line begins with a number"),
    ("wall\t1\nfloor\t2\n", "line 1: .* has several columns"),
    ("cat\n\ndog\n", "line 2: needs the name of a class"),
    ("", "has 0 classes"),
  ],
)
def test_lists_of_classes_with_more_than_names_are_refused(tmp_path, content, message):
  (tmp_path / "s.txt").write_text(content)
  with pytest.raises(ValueError, match=message):
    class_lists.read(str(tmp_path / "s.txt"))


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("c.txt", "cat\tA cat\ndog\n", "line 2: 'dog' has no tab, as other lines have"),
    ("c.txt", "cat\tA cat\ncat\tB\n", "folder 'cat' is on two lines"),
    ("c.json", '{"a": "x", "a": "y"}', "the name 'a' is twice in one object"),
    ("c.json", "[" * 100_000, "is not JSON: maximum recursion depth|is not JSON"),
    ("c.json", '{"a": ["x"]}', "must hold class names"),
  ],
)
def test_class_files_that_contradict_themselves(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    image_folders.read_classes(str(tmp_path / name))


@pytest.mark.parametrize(
  "content, message",
  [
    ("a.jpg,cat,train\nb.jpg,dog,val\n", r"line 1: needs two fields, FILE and CLASS, and goes on with 'cat,train'"),
    ("a.jpg,cat\na.jpg,dog\n", "line 2: 'a.jpg' has another class on an earlier line"),
    ('a.jpg,"cat\nb.jpg,dog\n', "line 1: .* is no row of a CSV file"),
  ],
)
def test_files_of_labels_that_cannot_be_meant(tmp_path, draw, content, message):
  for name in ("a.jpg", "b.jpg", "c.jpg"):
    draw(tmp_path / "flat" / name, 0)
  (tmp_path / "l.csv").write_text(content)
  with pytest.raises(ValueError, match=message):
    image_folders.read_flat(str(tmp_path / "flat"), str(tmp_path / "l.csv"))


def test_pictures_listed_twice_count_once_and_others_are_counted(tmp_path, draw):
  for name in ("a.jpg", "b.jpg", "in/c.jpg", "in/d.jpg"):
    draw(tmp_path / "flat" / name, 0)
  (tmp_path / "l.csv").write_text("a.jpg,cat\na,cat\nin/c.jpg,dog\n")
  data = image_folders.read_flat(str(tmp_path / "flat"), str(tmp_path / "l.csv"))
  assert list(data.ids) == ["a.jpg", "in/c.jpg"] and "picture_listed_twice 1" in data.notes[0]
  assert "2 pictures of" in data.notes[1]


def test_segmentation_pairs_nested_folders_and_never_a_label_map_with_itself(tmp_path, model):
  rng = np.random.default_rng(0)
  for name in ("a", "in/b", ".trash/c"):
    for folder, suffix in (("both", ".jpg"), ("both", ".png"), ("images", ".jpg"), ("labels", ".png")):
      path = tmp_path / folder / f"{name}{suffix}"
      path.parent.mkdir(parents=True, exist_ok=True)
      shape = (20, 26, 3) if suffix == ".jpg" else (20, 26)
      Image.fromarray(rng.integers(0, 2 if suffix == ".png" else 256, shape, np.uint8)).save(path)
  os.mkfifo(tmp_path / "labels" / "pipe.png")
  (tmp_path / "classes.txt").write_text("cat\ndog\n")
  for images_folder, labels_folder, skipped in (("both", "both", {}), ("images", "labels", {"image_missing": 1})):
    folders = str(tmp_path / images_folder), str(tmp_path / labels_folder)
    result = Segmentation(*folders, str(tmp_path / "classes.txt"), templates="name").run(model)
    assert sorted(result.examples["image"]) == ["a.jpg", "b.jpg"] and result.skipped == skipped
    assert any("folder_hidden" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["pipe", "folder", "bomb", "cut"])
def test_label_maps_that_cannot_be_read_are_counted(tmp_path, kind):
  path = tmp_path / "a.png"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  else:
    side = 9000 if kind == "bomb" else 90
    Image.new("1" if kind == "bomb" else "L", (side, side)).save(path)
    data = path.read_bytes()
    path.write_bytes(data if kind == "bomb" else data[: len(data) // 2])
  skips = SkipReport()
  assert label_maps.read(str(path), skips) is None
  kinds = {"pipe": "labels_not_a_file", "folder": "labels_missing"}
  assert skips.counts == {kinds.get(kind, "labels_unreadable"): 1}


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 5000, "", "s3:/\0"])
def test_names_that_no_file_can_have_are_missing(tmp_path, name):
  with pytest.raises(RecordError) as caught:
    images.read_file(os.path.join(str(tmp_path), name))
  assert caught.value.kind == "image_missing"
