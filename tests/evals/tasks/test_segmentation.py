"""Segmentation: interpolation against PyTorch, label maps and counts against loops, files and lists of each kind."""

import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.evals import registry, templates
from fgclip_jax.evals.datasets import class_lists, label_maps
from fgclip_jax.evals.evaluator import NothingToMeasureError
from fgclip_jax.evals.tasks import segmentation
from fgclip_jax.inference.model import FGCLIP
from tests.helpers.region_sets import model, write_pictures
from tests.helpers.toy_models import init

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
  dense, texts = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 4, 6), (5, 6)))
  owner = np.asarray([0, 1, 1, 2, 4])
  rows, columns = (segmentation.interpolation(side, 4)[:side].astype(np.float64) for side in shape)
  wide = np.einsum("Hh,Ww,hwd,td->HWt", rows, columns, dense, texts)
  maps = segmentation.predict(dense, texts, owner, shape, background=True)
  for first, found in enumerate(maps):
    mine = wide[..., first:]
    clear = np.ptp(np.sort(mine, -1)[..., -2:], axis=-1) > 1e-5
    assert found.shape == shape and found.dtype == np.uint8 and clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], owner[first:][mine.argmax(-1)][clear])
  (alone,) = segmentation.predict(dense, texts, owner, shape)
  np.testing.assert_array_equal(alone, maps[0])
  (many,) = segmentation.predict(dense, texts, owner * 200, shape)
  np.testing.assert_array_equal(many, maps[0].astype(int) * 200)


@given(seed=st.integers(0, 1000))
def test_counts_and_intersection_over_union(seed):
  rng = np.random.default_rng(seed)
  first = seed % 2
  labels = rng.choice([-1, 0, 1, 3], (6, 7))
  predicted = rng.choice([0, 1, 2], (6, 7)).astype(np.uint8)
  counts = segmentation.count(labels, predicted, 5, first)
  found = segmentation.intersection_over_union(counts)
  for number in range(5):
    a, b = labels[labels >= first] == number, predicted[labels >= first] == number
    assert counts[:, number].tolist() == [a.sum(), b.sum(), (a & b).sum()]
    if (a | b).any():
      assert found[number] == pytest.approx((a & b).sum() / (a | b).sum())
    else:
      assert np.isnan(found[number])
  assert np.isnan(found[4])


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


def ious_of(true, found):
  either = [(true == number) | (found == number) for number in range(4)]
  return [((true == n) & (found == n)).sum() / each.sum() if each.any() else None for n, each in enumerate(either)]


def test_a_row_for_each_picture_and_a_note_of_the_classes(files, torch):
  folder, labels, evaluator = files
  result = evaluator.run(model())
  true = {stem: labels[stem][labels[stem] != 255] for stem in "abd"}
  found = {stem: expected_map(stem, folder, labels[stem].shape, torch)[labels[stem] != 255] for stem in "abd"}
  assert result.examples["image"] == ["a.jpg", "b.png", "d.jpg"]
  assert result.examples["pixels"] == [len(each) for each in true.values()]
  for row, stem in enumerate("abd"):
    assert result.examples["accuracy"][row] == pytest.approx(np.mean(true[stem] == found[stem]), abs=1e-2)
    ious = [iou for iou in ious_of(true[stem], found[stem]) if iou is not None]
    assert result.examples["miou"][row] == pytest.approx(np.mean(ious), abs=2e-2)
  ious = ious_of(*(np.concatenate(list(each.values())) for each in (true, found)))
  note = result.notes[-1].split(": ")[1].split("; ")
  assert [each.rsplit(" ", 1)[0] for each in note] == ["background", "cat", "dog", "boat"]
  np.testing.assert_allclose([float(each.rsplit(" ", 1)[1]) for each in note], 100 * np.asarray(ious), atol=0.2)


def test_patches_may_be_what_text_conditioned_pooling_makes_of_them(files, monkeypatch):
  _, _, evaluator = files
  plain = model()
  size = plain.config.replace(text_pooling={"heads": 2})
  pooling = FGCLIP(size, init(size, 0))
  found = dataclasses.replace(evaluator, pooling=True).run(pooling)
  with monkeypatch.context() as patch:  # the same by hand: dense features that are these values
    encode = pooling.encode_dense
    patch.setattr(pooling, "encode_dense", lambda *arguments: pooling.patch_values(encode(*arguments)))
    expected = evaluator.run(pooling)
  assert found.examples == expected.examples != evaluator.run(pooling).examples
  assert "pooling" not in evaluator.settings() and dataclasses.replace(evaluator, pooling=True).settings()["pooling"]
  with pytest.raises(NothingToMeasureError, match="this model has no text-conditioned pooling"):
    dataclasses.replace(evaluator, pooling=True).run(plain)


def test_level_zero_can_stand_for_no_class(files):
  folder, labels, evaluator = files
  (folder / "two.txt").write_text("cat\ndog\n")
  result = dataclasses.replace(evaluator, classes=str(folder / "two.txt"), reduce_zero_label=True).run(model())
  assert result.metrics["segmentation_accuracy"].count == sum(np.isin(labels[stem], (1, 2)).sum() for stem in "abd")
  assert set(result.metrics) == {"segmentation_miou", "segmentation_accuracy"}
  two = dataclasses.replace(evaluator, classes=str(folder / "two.txt"))
  with pytest.raises(ValueError, match=r"a\.png has a pixel of level 2, and the 2 .* 0 to 1,.*use --reduce_zero_label"):
    two.run(model())
  one = dataclasses.replace(two, reduce_zero_label=True, ignore_label=0)
  with pytest.raises(ValueError, match=r"a\.png has a pixel of level 255, and the 2 classes .* 1 to 2, beside 0 where"):
    one.run(model())


@pytest.mark.parametrize("level", [-1, 65536, 70000])
def test_a_level_that_no_label_map_has_is_refused(files, level):
  with pytest.raises(ValueError, match=f"levels from 0 to 65535, and none of {level}: give --ignore_label 255, or"):
    dataclasses.replace(files[2], ignore_label=level).run(model())


def test_batches_and_devices_and_order_change_nothing(files, model, spread_model, monkeypatch):
  expected = files[2].run(model)
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 4))
  for other in (model, spread_model):
    found = files[2].run(other)
    assert found.metrics == expected.metrics and found.notes == expected.notes and found.examples == expected.examples
  find = label_maps.find
  monkeypatch.setattr(label_maps, "find", lambda *arguments: find(*arguments)[::-1])
  turned = files[2].run(model)
  assert turned.metrics == expected.metrics and turned.notes == expected.notes
  assert turned.examples == {name: column[::-1] for name, column in expected.examples.items()}


@pytest.mark.parametrize(("form", "suffix"), [("PNG", ".png"), ("TIFF", ".tif")])
def test_more_than_255_classes(files, tmp_path, form, suffix):
  """With 16 bits 255 is the level of a class like others."""
  _, labels, evaluator = files
  (tmp_path / "many.txt").write_text("\n".join(f"thing {number}" for number in range(300)))
  for stem in "abd":
    levels = np.where(labels[stem] == 255, 65535, 299 - 22 * labels[stem]).astype(np.uint16)
    assert set(np.unique(levels)) <= {255, 277, 299, 65535}
    Image.fromarray(levels).save(tmp_path / f"{stem}{suffix}", form)
    np.testing.assert_array_equal(label_maps.decode((tmp_path / f"{stem}{suffix}").read_bytes()), levels)
  many = dataclasses.replace(evaluator, labels=str(tmp_path), classes=str(tmp_path / "many.txt"), label_suffix=suffix)
  with pytest.raises(ValueError, match="300 classes, and level 255 .* give --ignore_label"):
    many.run(model())
  result = dataclasses.replace(many, ignore_label=65535).run(model())
  assert result.metrics["segmentation_accuracy"].count == sum((labels[s] != 255).sum() for s in "abd")
  assert "thing 255 " in result.notes[-1] and "thing 277 " in result.notes[-1]


def test_levels_of_more_than_16_bits_are_refused():
  file = io.BytesIO()
  Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(file, "TIFF")
  with pytest.raises(ValueError, match="has numbers from 70000 to 70000"):
    label_maps.decode(file.getvalue())


def test_a_label_map_without_a_counted_pixel_has_no_accuracy(files, tmp_path):
  _, labels, evaluator = files
  write_labels(tmp_path / "a.png", labels["a"])
  write_labels(tmp_path / "b.png", np.full((4, 4), 255))
  result = dataclasses.replace(evaluator, labels=str(tmp_path)).run(model())
  assert result.examples["accuracy"][1] is result.examples["miou"][1] is None and result.examples["pixels"][1] == 0


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


LENGTHS = {
  "voc20": 20, "voc21": 21, "voc21_sclip": 21, "ade150": 150, "pascal_context59": 59, "pascal_context60": 60,
  "cocostuff171": 171, "cityscapes19": 19,
}  # fmt: skip


def test_the_lists_of_benchmarks():
  assert {name: len(entry["classes"]) for name, entry in class_lists.lists().items()} == LENGTHS
  for name, entry in class_lists.lists().items():
    classes = class_lists.read(name)
    names = [each for names in classes.names for each in names]
    assert len(set(names)) == len(names) and all(each == each.strip() and each for each in names)
    assert entry["source"].startswith("https://") and classes.zero in ("ignored", "background", "class")
    assert all(len(each) == 1 for each in classes.names) or name == "voc21_sclip"
  read = lambda name: [each[0] for each in class_lists.read(name).names]  # noqa: E731
  assert read("voc21") == ["background", *read("voc20")] and read("voc20")[14] == "person"
  assert read("pascal_context60") == ["background", *read("pascal_context59")]
  assert read("pascal_context59") == sorted(read("pascal_context59"))  # as the label maps have them
  assert read("ade150")[12] == "person" and read("ade150")[149] == "flag"
  assert read("cocostuff171")[79:81] == ["toothbrush", "banner"]  # the last thing, and the first of the stuff
  assert read("cocostuff171")[80:] == sorted(read("cocostuff171")[80:]) and read("cityscapes19")[11] == "person"
  assert class_lists.read("voc21_sclip").names[20][:2] == ("television monitor", "tv monitor")


def test_a_list_by_name_knows_what_level_zero_is(files):
  evaluator = files[2]
  voc21 = dataclasses.replace(evaluator, classes="voc21").run(model())
  voc20 = dataclasses.replace(evaluator, classes="voc20").run(model())
  for name in ("miou", "accuracy"):  # the second measurement of the one is the first of the other
    found = voc21.metrics[f"segmentation_{name}_without_background"]
    assert found == voc20.metrics[f"segmentation_{name}"]
  assert not any("level 0" in note for note in (*voc20.notes, *voc21.notes))
  shifted = dataclasses.replace(evaluator, classes="voc20", reduce_zero_label=False).run(model())
  assert any("level 0 is no class in the label maps of voc20" in note for note in shifted.notes)
  assert voc20.metrics != shifted.metrics
  shifted = dataclasses.replace(evaluator, classes="voc21", reduce_zero_label=True).run(model())
  assert any("level 0 is a class in the label maps of voc21" in note for note in shifted.notes)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ("", (None, 255)),
    ("--reduce_zero_label", (True, 255)),
    ("--no-reduce_zero_label --ignore_label 65535", (False, 65535)),
  ],
)
def test_the_command(options, expected):
  made = registry.parse(f"segment --images i --labels l --classes ade150 {options}")
  assert isinstance(made, segmentation.Segmentation) and made.classes == "ade150"
  assert (made.reduce_zero_label, made.ignore_label) == expected
  json.dumps(made.settings())
  assert registry.parse(f"segment {segmentation.EXAMPLE.removeprefix('--model M ')}").reduce_zero_label is None


@pytest.mark.parametrize(("text", "message"), [("cat\n\ndog\n", "line 2: needs"), ("cat\n", "has 1 classes")])
def test_a_wrong_list_of_classes(tmp_path, text, message):
  (tmp_path / "classes.txt").write_text(text)
  with pytest.raises(ValueError, match=message):
    class_lists.read(str(tmp_path / "classes.txt"))
  with pytest.raises(FileNotFoundError, match=r"'voc22' is neither a file nor one of the lists voc20, voc21, .*ade150"):
    class_lists.read("voc22")
