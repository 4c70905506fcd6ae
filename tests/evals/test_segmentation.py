"""Segmentation: interpolation against PyTorch, label maps and confusion against loops, files of each kind."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.evals import segmentation, templates
from tests.evals.region_sets import model, write_pictures

CLASSES = ["background; sky", "cat", "dog; hound", "boat"]  # nothing is labelled as the last


def write_labels(path, labels, mode="L"):
  path.parent.mkdir(exist_ok=True)
  picture = Image.fromarray(labels.astype(np.uint8))
  if mode == "P":
    picture.putpalette([7, 8, 9] * 256)
  picture.save(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Four label maps of several sizes; one picture is missing."""
  folder = tmp_path_factory.mktemp("segmentation")
  write_pictures(folder / "images", ["a.jpg", "b.png", "d.jpg"])
  rng = np.random.default_rng(0)
  labels = {}
  for stem, shape in (("a", (30, 40)), ("b", (7, 5)), ("c", (9, 9)), ("d", (33, 131))):
    labels[stem] = rng.choice([0, 1, 2, 255], shape)
    write_labels(folder / "labels" / f"{stem}.png", labels[stem], "P" if stem == "a" else "L")
  (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
  (folder / "split.txt").write_text("b\na\n")
  paths = (str(folder / name) for name in ("images", "labels", "classes.txt"))
  return folder, labels, segmentation.Segmentation(*paths, templates="name")


@pytest.mark.parametrize(("size", "cells"), [(7, 4), (30, 4), (300, 24), (3, 14)])
def test_interpolation_is_pytorchs(torch, size, cells):
  values = np.random.default_rng(0).normal(size=(1, 1, cells)).astype(np.float32)
  expected = torch.nn.functional.interpolate(torch.tensor(values), size=size, mode="linear", align_corners=False)
  weights = segmentation.interpolation(size, cells)
  assert len(weights) % segmentation._STEP == 0 and not weights[size:].any()
  np.testing.assert_allclose(weights[:size] @ values[0, 0], expected.numpy()[0, 0], atol=1e-5)


@settings(max_examples=8)
@given(seed=st.integers(0, 100), shape=st.tuples(st.integers(1, 40), st.integers(1, 150)))
def test_the_best_class_of_each_pixel(seed, shape):
  rng = np.random.default_rng(seed)
  cosines = rng.normal(size=(4, 4, 5)).astype(np.float32)
  owner = np.asarray([0, 1, 1, 2, 4])
  rows, columns = (segmentation.interpolation(side, 4)[:side].astype(np.float64) for side in shape)
  wide = np.einsum("Hh,Ww,hwt->HWt", rows, columns, cosines)
  found = segmentation.label_map(cosines, owner, shape)
  clear = np.ptp(np.sort(wide, -1)[..., -2:], axis=-1) > 1e-5
  assert found.shape == shape and clear.mean() > 0.9
  np.testing.assert_array_equal(found[clear], owner[wide.argmax(-1)][clear])


@given(seed=st.integers(0, 1000))
def test_confusion_and_intersection_over_union(seed):
  rng = np.random.default_rng(seed)
  labels = rng.choice([0, 1, 3, 255], (6, 7))
  predicted = rng.choice([0, 1, 2], (6, 7)).astype(np.uint8)
  table = segmentation.confusion(labels, predicted, 5)
  found = segmentation.intersection_over_union(table)
  for number in range(5):
    a, b = labels[labels != 255] == number, predicted[labels != 255] == number
    if (a | b).any():
      assert found[number] == pytest.approx((a & b).sum() / (a | b).sum())
    else:
      assert np.isnan(found[number])
  assert table.sum() == (labels != 255).sum() and np.isnan(found[4])


def expected_map(stem, folder, shape, torch, first=0):
  names = [name.strip() for line in CLASSES[first:] for name in line.split(";")]
  owner = np.repeat(np.arange(first, 4), [line.count(";") + 1 for line in CLASSES[first:]])
  (path,) = (folder / "images").glob(f"{stem}.*")
  cosines = model().encode_dense(path)[0] @ templates.class_embeddings(model(), names, ["{}"]).T
  wide = torch.nn.functional.interpolate(torch.tensor(cosines).permute(2, 0, 1)[None], shape, mode="bilinear")
  return owner[wide[0].argmax(0).numpy()]


def test_it_is_what_the_calculation_by_hand_gives(files, torch):
  folder, labels, evaluator = files
  result = evaluator.run(model())
  for first, name in ((0, ""), (1, "_without_background")):
    true = np.concatenate([labels[stem].ravel() for stem in "abd"])
    found = np.concatenate([expected_map(stem, folder, labels[stem].shape, torch, first).ravel() for stem in "abd"])
    counted = (true != 255) & (true >= first)
    true, found = true[counted], found[counted]
    ious = []
    for number in range(4):
      either = (true == number) | (found == number)
      ious += [((true == number) & (found == number)).sum() / either.sum()] if either.any() else []
    # one pixel that lies between two classes may fall to either
    assert result.metrics[f"segmentation_miou{name}"].value == pytest.approx(np.mean(ious), abs=1e-3)
    assert result.metrics[f"segmentation_miou{name}"].count == len(ious)
    accuracy = result.metrics[f"segmentation_accuracy{name}"]
    assert accuracy.value == pytest.approx(np.mean(true == found), abs=1e-3)
    assert accuracy.count == len(true) and accuracy.chance is None
  assert result.records == 4 and result.skipped == {"image_missing": 1}
  assert result.examples["class"][:3] == ["background", "cat", "dog"] and result.examples["pixels"][0] > 0


def test_level_zero_can_stand_for_no_class(files):
  folder, labels, evaluator = files
  (folder / "two.txt").write_text("cat\ndog\n")
  result = dataclasses.replace(evaluator, classes=str(folder / "two.txt"), reduce_zero_label=True).run(model())
  assert result.metrics["segmentation_accuracy"].count == sum(np.isin(labels[stem], (1, 2)).sum() for stem in "abd")
  assert set(result.metrics) == {"segmentation_miou", "segmentation_accuracy"}
  with pytest.raises(ValueError, match=r"a\.png has a pixel of class 2, and .*two\.txt has 2 .*--reduce_zero_label"):
    dataclasses.replace(evaluator, classes=str(folder / "two.txt")).run(model())


def test_split_limit_and_suffix(files, tmp_path):
  folder, labels, evaluator = files
  split = dataclasses.replace(evaluator, split=str(folder / "split.txt"))
  assert split.run(model()).metrics["segmentation_accuracy"].count == sum((labels[s] != 255).sum() for s in "ab")
  first = dataclasses.replace(split, limit=1)
  assert first.run(model()).metrics["segmentation_accuracy"].count == (labels["b"] != 255).sum()
  assert first.settings()["limit"] == 1 and first.name == "segmentation"
  write_labels(tmp_path / "b_labelTrainIds.png", labels["b"])
  other = dataclasses.replace(evaluator, labels=str(tmp_path), label_suffix="_labelTrainIds.png")
  assert other.run(model()).metrics == first.run(model()).metrics
  with pytest.raises(ValueError, match=r"no file ends with '\.tif'"):
    dataclasses.replace(evaluator, label_suffix=".tif").run(model())


def test_label_maps_that_cannot_be_used_are_counted(files, tmp_path):
  folder, labels, evaluator = files
  write_labels(tmp_path / "a.png", labels["a"])
  (tmp_path / "b.png").write_bytes(b"no picture")
  Image.new("RGB", (4, 4)).save(tmp_path / "d.png")
  other = dataclasses.replace(evaluator, labels=str(tmp_path))
  result = other.run(model())
  assert result.records == 3 and result.skipped == {"labels_unreadable": 2}
  assert any("b.png" in note for note in result.notes)
  (tmp_path / "split.txt").write_text("a\ne\nd\n")
  write_pictures(tmp_path, ["e.png"])
  result = dataclasses.replace(other, split=str(tmp_path / "split.txt"), images=str(folder / "images")).run(model())
  assert result.skipped == {"image_missing": 1, "labels_unreadable": 1}
  (tmp_path / "gone.txt").write_text("e\n")
  (tmp_path / "e.png").rename(tmp_path / "f.png")
  with pytest.raises(ValueError, match="no pixel of 1 label maps could be measured: .*labels_missing 1"):
    (tmp_path / "images").mkdir()
    write_pictures(tmp_path / "images", ["e.png"])
    dataclasses.replace(other, split=str(tmp_path / "gone.txt"), images=str(tmp_path / "images")).run(model())


@pytest.mark.parametrize(("text", "message"), [("cat\n\ndog\n", "line 2: needs"), ("cat\n", "has 1 classes")])
def test_a_wrong_list_of_classes(tmp_path, text, message):
  (tmp_path / "classes.txt").write_text(text)
  with pytest.raises(ValueError, match=message):
    segmentation.read_classes(str(tmp_path / "classes.txt"))
