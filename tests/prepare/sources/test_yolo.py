"""YOLO's labels through the command: layouts of folders, forms of lines, files of class names."""

import os

import pytest

from fgclip_jax.prepare.sources import yolo
from tests.prepare.sources.test_sources import convert, count, make_picture, read

YAML = """\
path: ../datasets/coco8  # dataset root dir
train: images/train
names:
  0: person
  1: "traffic light"
"""
LABELS = {"0": "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.125 0.125\n", "1": "1 0.5 0.5 1 1\n"}


def write(folder, images="images/train", labels="labels/train", names=YAML, file="data.yaml", texts=LABELS):
  """Writes pictures 0 and 1, labels and class names."""
  (folder / images).mkdir(parents=True)
  (folder / labels).mkdir(parents=True, exist_ok=True)
  for index in range(2):
    (folder / images / f"{index}.jpg").write_bytes(make_picture(index))
  for name, text in texts.items():
    (folder / labels / f"{name}.txt").write_text(text)
  if names:
    (folder / file).write_text(names)
  return {"images": folder / images}


@pytest.mark.parametrize(
  ("images", "labels"),
  [("images/train", "labels/train"), ("train/images", "train/labels"), ("obj_train_data", "obj_train_data")],
)
@pytest.mark.parametrize(
  ("file", "names"),
  [
    ("data.yaml", YAML),
    ("data.yml", "nc: 2\nnames: ['person', 'traffic light']\n"),
    ("classes.txt", "person\ntraffic light\n"),
    ("obj.names", "\ufeffperson\r\ntraffic light\r\n"),
  ],
)
def test_labels_and_class_names_are_found_beside_the_images(tmp_path, images, labels, file, names):
  options = write(tmp_path / "set", images, labels, names, file)
  assert convert(tmp_path / "out", "yolo", **options) == 0
  records = read(tmp_path / "out")
  assert {name: entry.short for name, entry in records.items()} == {"0.jpg": "person", "1.jpg": "traffic light"}
  assert [(region.short, region.box) for region in records["0.jpg"].regions] == [
    ("person", (0.25, 0.25, 0.75, 0.75)),
    ("traffic light", (0.1875, 0.1875, 0.3125, 0.3125)),
  ]


@pytest.mark.parametrize(
  ("line", "box"),
  [
    ("0 0.5 0.5 0.5 0.5 0.9", (0.25, 0.25, 0.75, 0.75)),  # a detector's score
    ("0 0.25 0.25 0.75 0.5 0.5 0.75", (0.25, 0.25, 0.75, 0.75)),  # a polygon
    ("0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75", (0.25, 0.25, 0.75, 0.75)),  # an oriented box
    ("0.0\t0.5 0.5\t1.0 1.0", (0.0, 0.0, 1.0, 1.0)),
  ],
)
def test_lines_of_other_tasks_give_the_box_around(line, box):
  assert yolo._parse(line, pose=False) == (0, list(box))


def test_points_of_a_pose_are_no_polygon(tmp_path):
  names = YAML + "kpt_shape: [2, 3]\n"
  options = write(tmp_path / "set", names=names, texts={"0": "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 1", "1": ""})
  assert convert(tmp_path / "out", "yolo", **options) == 0
  assert read(tmp_path / "out")["0.jpg"].regions[0].box == (0.25, 0.25, 0.75, 0.75)


def test_what_cannot_be_used_is_counted(tmp_path):
  texts = {
    "0": "0 0.5 0.5 0.5 0.5\n7 0.5 0.5 0.1 0.1\n0 a b c d\n0 0.5 0.5\n0 0.9 0.9 0.9 0.9\n0 nan 0 0 0\n0.5 0 0 0 0\n",
    "8": LABELS["0"],
    "9": LABELS["0"],
  }
  options = write(tmp_path / "set", texts=texts)
  os.mkfifo(tmp_path / "set" / "labels" / "train" / "1.txt")
  assert convert(tmp_path / "out", "yolo", **options) == 0
  assert count(tmp_path / "out") == (
    4,
    1,
    {
      "image_not_listed": 2, "short_missing": 1, "class_unknown": 1, "label_unreadable": 4, "box_outside": 1,
    },
  )  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"names": ""}, "give the file of class names by --classes"),
    ({"names": "names: 3\n"}, "has no list or object `names` of classes"),
    ({"names": "names: [person\n"}, "has no list or object `names` of classes"),
    ({"names": "names:\n  person: 0\n"}, "has no list or object `names` of classes"),
    ({"names": "names: [{a: b}]\n"}, "the name of class 0 must be text"),
    ({"texts": {}}, "no .txt file of labels"),
  ],
)
def test_a_folder_that_is_not_of_this_form_is_an_error(tmp_path, capsys, changes, message):
  options = write(tmp_path / "set", **changes)
  assert convert(tmp_path / "out", "yolo", **options) == 1
  assert message in capsys.readouterr().err


def test_several_files_of_class_names_are_a_question(tmp_path, capsys):
  options = write(tmp_path / "set")
  (tmp_path / "set" / "classes.txt").write_text("x\ny\n")
  assert convert(tmp_path / "out", "yolo", **options) == 1
  assert "classes.txt, data.yaml: say which holds the class names by --classes" in capsys.readouterr().err
  assert convert(tmp_path / "out", "yolo", classes=tmp_path / "set" / "classes.txt", **options) == 0
  assert read(tmp_path / "out")["0.jpg"].short == "x"
