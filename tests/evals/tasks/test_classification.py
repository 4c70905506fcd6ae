"""Zero-shot classification against numpy by hand; folders, class files, ImageNet's numbers, TensorFlow Datasets."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fgclip_jax.evals import Classification, ranking
from fgclip_jax.evals.datasets import image_folders
from fgclip_jax.evals.tasks import classification
from fgclip_jax.evals.templates import OPENAI_7, class_embeddings
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config as presets
from tests.helpers import trees
from tests.helpers.toy_models import init

NAMES = ("black_cat", "dog", "red fox", "dog house")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Twelve pictures in three of four classes, one of them broken, and a file beside the folders."""
  from PIL import Image

  folder = tmp_path_factory.mktemp("pictures")
  for place, name in enumerate(NAMES):
    (folder / name).mkdir()
    for number in range((5, 4, 3, 0)[place]):
      pixels = np.random.default_rng(10 * place + number).integers(0, 256, (20, 24, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{number}.PNG")
  (folder / "dog" / "1.PNG").write_bytes(b"broken")
  (folder / "dog" / "notes.txt").write_text("no picture")
  (folder / "readme.txt").write_text("no class")
  return folder


def test_metrics_are_those_of_the_definition(model, folder):
  result = Classification("folder", str(folder), templates="openai7").run(model, progress=True)
  names = [name.replace("_", " ") for name in sorted(NAMES)]
  classes = class_embeddings(model, names, OPENAI_7)
  hits, at_two, found = {name: [] for name in names}, [], []
  for place, name in enumerate(sorted(NAMES)):
    for file in sorted(folder.joinpath(name).glob("*.PNG")):
      if file.read_bytes() == b"broken":
        continue
      order = np.argsort(-(classes @ model.encode_image(str(file))[0]))
      hits[names[place]].append(order[0] == place)
      at_two.append(place in order[:5])
      found.append(names[order[0]])
  every = [hit for each in hits.values() for hit in each]
  top1, mean = result.metrics["top1"], result.metrics["mean_per_class"]
  assert (top1.value, top1.chance, top1.count) == (np.mean(every), pytest.approx(1 / 4), 11)
  assert result.metrics["top5"].value == np.mean(at_two) == 1
  per_class = np.mean([np.mean(each) for each in hits.values() if each])
  assert (mean.value, mean.chance, mean.count) == (pytest.approx(per_class), pytest.approx(1 / 4), 3)
  assert result.examples["predicted"] == found
  assert (result.examples["rank"] == 0).tolist() == every
  assert result.records == 12 and result.skipped == {"image_unreadable": 1}
  said = "\n".join(result.notes)
  assert "1 of 12 images could not be used" in said and "dog/1.PNG" in said
  assert "1 of 4 classes have no picture" in said and "squash" in said


def test_batches_and_devices_and_order_change_nothing(model, spread_model, folder, monkeypatch):
  expected = Classification("folder", str(folder)).run(model)
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 4))
  for other in (model, spread_model):
    found = Classification("folder", str(folder)).run(other)
    assert found.metrics == expected.metrics and found.examples["predicted"] == expected.examples["predicted"]
  read = image_folders.read_folder

  def turned(*arguments):
    data = read(*arguments)
    return image_folders.Labelled(data.pictures[::-1], data.ids[::-1], data.labels[::-1], data.names)

  monkeypatch.setattr(image_folders, "read_folder", turned)
  assert Classification("folder", str(folder)).run(model).metrics == expected.metrics


def test_ties_count_against_the_model_and_classes_of_the_same_name_are_one(model, folder, tmp_path):
  """All class embeddings are equal: with other names that is a tie, with the same name it is the answer."""
  (tmp_path / "same.txt").write_text("a\na\nb\nc\n")
  result = Classification("folder", str(folder), str(tmp_path / "same.txt")).run(model)
  assert result.metrics["top1"].chance == pytest.approx((8 * 2 / 4 + 3 / 4) / 11)
  assert any("classes of the same name are one answer: a" in note for note in result.notes)
  embedding = np.full((11, 4), 0.5, np.float32)
  pairs = np.stack([np.arange(11), np.arange(11) % 3], 1)
  assert (ranking.search(embedding, embedding[:3], pairs)[0] == 2).all()


def test_limit(model, folder):
  result = Classification("folder", str(folder), limit=5).run(model)
  assert result.records == 5 and result.metrics["top1"].count == 5
  with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
    Classification("folder", str(folder), limit=0).run(model)


def make_folders(tmp_path, names, draw):
  for place, name in enumerate(names):
    draw(tmp_path / name / "x.jpg", place)
  return str(tmp_path)


def test_numbered_folders_are_classes_by_number_not_by_order(tmp_path, draw):
  data = image_folders.read_folder(
    make_folders(tmp_path, ("0", "2", "10", "999"), draw), image_folders.imagenet_classes()
  )
  names = list(image_folders.imagenet_classes().values())
  assert dict(zip(data.ids, data.labels.tolist(), strict=True)) == {
    "0/x.jpg": 0, "2/x.jpg": 2, "10/x.jpg": 10, "999/x.jpg": 999,
  }  # fmt: skip
  assert len(names) == 1000 and data.names[10] == "brambling" and data.names == tuple(names)


def test_imagenet_folders_are_classes_by_wordnet_number(tmp_path, draw):
  classes = image_folders.imagenet_classes()
  data = image_folders.read_folder(make_folders(tmp_path, ("n15075141", "n01440764"), draw), classes)
  assert data.labels.tolist() == [0, 999] and (data.names[0], data.names[999]) == ("tench", "toilet paper")
  assert list(classes) == sorted(classes)
  make_folders(tmp_path, ("n00000001",), draw)
  with pytest.raises(ValueError, match="sub-folder 'n00000001' of .* is none of the 1000 classes"):
    image_folders.read_folder(str(tmp_path), classes)


VAL = "ILSVRC2012_val_0000000"


@pytest.mark.parametrize(
  "content",
  [
    f"{VAL}1.JPEG 999\n{VAL}3.JPEG 0\n{VAL}2.JPEG 10\n",
    f"{VAL}1 n15075141\n\n{VAL}3 n01440764\n{VAL}2 n01530575\n",
    f"ImageId,PredictionString\n{VAL}1,n15075141 8 1 9 2 n15075141 1 2 3 4\n{VAL}3,n01440764 1 2 3 4\n"
    f"{VAL}2,n01530575 1 2 3 4 \n",
    f"{VAL}1.JPEG\ttoilet paper\n{VAL}3.JPEG\ttench\n{VAL}2.JPEG\tbrambling\n",
    "n15075141\nn01530575\nn01440764\n",
  ],
)
def test_pictures_of_one_folder_with_a_file_of_labels(tmp_path, draw, content):
  for number in (2, 1, 3):
    draw(tmp_path / "val" / f"{VAL}{number}.JPEG", number)
  (tmp_path / "labels.txt").write_text(content)
  data = image_folders.read_flat(str(tmp_path / "val"), str(tmp_path / "labels.txt"), image_folders.imagenet_classes())
  found = dict(zip(data.ids, data.labels.tolist(), strict=True))
  assert found == {f"{VAL}1.JPEG": 999, f"{VAL}2.JPEG": 10, f"{VAL}3.JPEG": 0} and not data.notes
  assert len(data.names) == 1000 and data.pictures[0] == str(tmp_path / "val" / data.ids[0])


def test_labels_that_do_not_fit_their_folder(tmp_path, draw, model):
  for number in (1, 2, 3):
    draw(tmp_path / "val" / f"{number}.jpg", number)
  (tmp_path / "labels.csv").write_text("image,label\n1.jpg,red_fox\n4.jpg,cat\n2.jpg,cat\n")
  result = Classification("folder", str(tmp_path / "val"), labels=str(tmp_path / "labels.csv")).run(model)
  assert result.examples["id"] == ["1.jpg", "2.jpg"] and result.examples["class"] == ["red fox", "cat"]
  assert result.skipped == {"image_missing": 1} and "1 pictures of" in "\n".join(result.notes)

  def fails(content, message, dataset="imagenet"):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
      Classification(dataset, str(tmp_path / "val"), labels=str(tmp_path / "labels.csv")).read()

  fails("490\n361\n171\n", "labels.csv, line 1: '490' is none of the 1000 classes; numbers are read in lines")
  fails("1.jpg 0\n2.jpg 1000\n", "line 2: '1000' is none of the 1000 classes")
  fails("n01440764\nn01440764\n", "line 1: '' is none of .*: give a line `FILE CLASS` .*; 2 are for 3 pictures")
  fails("", "has 3 pictures .* names 0", "folder")
  fails("", "those of tfds have theirs", "tfds")


@pytest.mark.parametrize(
  "file, content, expected",
  [
    ("a.txt", "zebra\ncat\nmaus\n", {"b_cat": "cat", "mouse": "maus", "a": "zebra"}),  # in the order of the names
    ("a.json", json.dumps({"mouse": "Maus", "a": "A", "none": "N", "b_cat": "C"}), None),
    ("a.tsv", "mouse\tMaus\na\tA\nnone\tN\nb_cat\tC\n", None),
    ("a.json", json.dumps(["mouse", "b_cat", "none", "a"]), {"a": "a", "b_cat": "b_cat", "mouse": "mouse"}),
  ],
)
def test_class_files(tmp_path, draw, file, content, expected):
  folder = make_folders(tmp_path / "data", ("b_cat", "mouse", "a"), draw)
  (tmp_path / file).write_text(content)
  data = image_folders.read_folder(folder, image_folders.read_classes(str(tmp_path / file)))
  found = {name.split("/")[0]: data.names[label] for name, label in zip(data.ids, data.labels, strict=True)}
  assert found == (expected or {"mouse": "Maus", "a": "A", "b_cat": "C"})


def test_what_is_wrong_is_said(tmp_path, draw, model):
  with pytest.raises(FileNotFoundError):
    image_folders.read_folder(str(tmp_path / "none"))
  with pytest.raises(ValueError, match="has no sub-folders"):
    image_folders.read_folder(str(tmp_path))
  (tmp_path / "a").mkdir()
  with pytest.raises(ValueError, match="hold no pictures"):
    image_folders.read_folder(str(tmp_path))
  make_folders(tmp_path, ("a", "b"), draw)
  with pytest.raises(ValueError, match="sub-folder 'a' of .* is none of the 3 classes"):
    image_folders.read_folder(str(tmp_path), ["x", "y", "z"])
  for content, message in (
    ("{", "is not JSON"),
    ("[]", "must hold class names"),
    ('{"a": 1}', "must hold class names"),
  ):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message):
      image_folders.read_classes(str(tmp_path / "c.json"))
  (tmp_path / "a" / "x.jpg").write_bytes(b"")
  with pytest.raises(ValueError, match="no picture of .* can be used: 1 of 1 images"):
    Classification("folder", str(tmp_path), limit=1).run(model)
  for wrong in ({"dataset": "mnist"}, {"dataset": "folder", "templates": "best"}, {"dataset": "tfds", "classes": "x"}):
    with pytest.raises(ValueError, match="dataset must be one of|classes are given"):
      Classification(images="x", **wrong)


def test_tensorflow_datasets_without_tensorflow(tmp_path, draw, model):
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["n01440764", "polar_bear"])}
  )
  files = [draw(tmp_path / f"{number}.png", number) for number in range(3)]
  examples = [{"image": file, "label": number % 2} for number, file in enumerate(files)]
  trees.write_tfds(tmp_path, "test", features, [examples])
  data = image_folders.read_tfds(str(tmp_path), "test")
  assert data.names == ("tench", "polar bear") and data.labels.tolist() == [0, 1, 0] and data.ids[2] == "test/2"
  with open(files[1], "rb") as file:
    assert data.pictures[1]() == file.read()
  result = Classification("tfds", str(tmp_path)).run(model)
  classes = class_embeddings(model, data.names)
  expected = (model.encode_image(files) @ classes.T).argmax(1)
  assert result.examples["predicted"] == [data.names[number] for number in expected] and result.skipped == {}
  with pytest.raises(FileNotFoundError, match="no split 'train'"):
    image_folders.read_tfds(str(tmp_path), "train")


def test_imagenet_is_measured_with_its_published_patch_budget(tmp_path, draw, monkeypatch):
  draw(tmp_path / "images" / "n01440764" / "a.png", 0)
  size = presets.preset("tiny_fgclip2").replace(vision={"max_patches": 128})
  seen = FGCLIP(size, init(size, 0))
  monkeypatch.setattr(classification, "IMAGENET_PATCHES", 20)
  for model, budget, chosen in ((seen, 20, {"max_patches": 20}), (seen.with_max_patches(6), 6, {})):
    result = Classification("imagenet", str(tmp_path / "images"), templates="name").run(model)
    assert any(f"pictures are patches, budget {budget}," in note for note in result.notes), result.notes
    assert result.settings == chosen
