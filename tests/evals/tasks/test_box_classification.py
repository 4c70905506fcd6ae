"""Classification of boxes, against a calculation by hand; faults."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data import image as images
from fgclip_jax.evals import encoding, templates
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.tasks import box_classification, detection, fgovd, segmentation
from fgclip_jax.inference import model as api
from fgclip_jax.models import params
from fgclip_jax.storage.skip_report import SkipReport
from tests.helpers.region_sets import SIDE, model, picture, write_coco, write_pictures

CLASSES = ["cat", "dog", "stop_sign", "cup", "tree", "hat", "boat"]  # the last has no box
NAMES = [f"{number}.png" for number in range(7)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Seven images: 1 has no box, 2 is missing, 3 is broken."""
  folder = tmp_path_factory.mktemp("boxes")
  write_pictures(folder, NAMES)
  (folder / "2.png").unlink()
  (folder / "3.png").write_bytes(b"no picture")
  rng = np.random.default_rng(0)
  rows = []
  for image in (0, 2, 3, 4, 5, 6):
    for _ in range(rng.integers(1, 6)):
      left, top = rng.uniform(0, 250, 2)
      box = [left, top, *rng.uniform(20, 120, 2)]  # some go over the edge
      rows.append((len(rows) + 1, image, int(rng.integers(1, 7)), box, {}))
  rows += [(90, 4, 1, [0, 0, 99, 99], {"iscrowd": 1}), (91, 5, 2, [10, 10, 0, 5], {}), (92, 6, 2, [500, 9, 5, 5], {})]
  return folder, write_coco(folder / "a.json", list(enumerate(NAMES)), rows, CLASSES, "rcfrcff")


def test_it_is_what_the_calculation_by_hand_gives(data):
  folder, annotations = data
  result = box_classification.BoxClassification(annotations, str(folder), templates="openai7").run(model())
  classes = templates.class_embeddings(model(), [name.replace("_", " ") for name in CLASSES], templates.OPENAI_7)
  read = instances.read(annotations)
  hits, expected = {1: [], 5: []}, []
  for row, identity in enumerate(read.identity):
    image = int(read.image[row])
    if image in (2, 3) or identity >= 90:
      continue
    left, top, width, height = read.box[row]
    corners = [left / 400, top / 300, min((left + width) / 400, 1), min((top + height) / 300, 1)]
    pixels = images.to_levels(picture(image), SIDE)[None]
    scores = model().encode_regions(pixels, [[corners]])[0] @ classes.T
    order = np.argsort(-scores[0]).tolist()
    rank = order.index(read.label[row])
    expected.append((identity, read.names[order[0]], rank, scores[0][read.label[row]], read.label[row]))
    for k in hits:
      hits[k].append(rank < k)
  assert result.examples["box"] == [each[0] for each in expected] and len(expected) > 8
  assert result.examples["predicted"] == [each[1] for each in expected]
  np.testing.assert_array_equal(result.examples["rank"], [each[2] for each in expected])
  np.testing.assert_allclose(result.examples["score"], [each[3] for each in expected], atol=1e-5)
  for k in (1, 5):
    metric = result.metrics[f"box_top{k}"]
    assert metric.value == pytest.approx(np.mean(hits[k])) and metric.count == len(expected)
    assert metric.chance == pytest.approx(k / len(CLASSES))
  for key, name in instances.FREQUENCIES.items():
    group = [each for each in expected if read.frequencies[each[4]] == key]
    metric = result.metrics[f"box_{name}_top1"]
    assert metric.count == len(group) and metric.value == pytest.approx(np.mean([each[2] == 0 for each in group]))
  lost = sum(read.image[row] in (2, 3) for row in range(len(read.label)))
  assert result.skipped == {"box_of_crowd": 1, "box_without_size": 2, "box_without_image": lost}
  assert result.records == len(read.label) == len(expected) + sum(result.skipped.values())
  assert any("2.png" in note and "3.png" in note and "2 of 6 images" in note for note in result.notes)


def test_each_image_is_encoded_once(monkeypatch, data):
  seen = []
  encode = api.FGCLIP.encode_regions
  monkeypatch.setattr(api.FGCLIP, "encode_regions", lambda self, *args: seen.append(args) or encode(self, *args))
  box_classification.BoxClassification(data[1], str(data[0]), templates="name").run(model())
  assert [(len(pixels), len(rows)) for pixels, rows in seen] == [(4, 4)]  # 0, 4, 5, 6


def test_limit_and_settings(data):
  evaluator = box_classification.BoxClassification(data[1], str(data[0]), templates="name", limit=1)
  result = evaluator.run(model())
  assert set(result.metrics) >= {"box_top1", "box_top5"} and 0 < result.records < 10
  assert evaluator.settings()["limit"] == 1 and evaluator.name == "box classification"
  with pytest.raises(ValueError, match="none of 1 images could be used"):
    dataclasses.replace(evaluator, images=str(data[0] / "elsewhere")).run(model())


def test_nothing_usable_is_an_error(tmp_path):
  path = write_coco(tmp_path / "a.json", [(1, "a.png")], [(1, 1, 1, [0, 0, 0, 0], {})], ["cat", "dog"])
  with pytest.raises(ValueError, match=r"a\.json: none of the 1 boxes can be used"):
    box_classification.BoxClassification(path, str(tmp_path)).run(model())


@pytest.mark.parametrize(("bound", "sizes"), [(1 << 16, [5]), (30, [4, 1]), (6, [1] * 5)])
def test_many_boxes_are_encoded_some_pictures_at_a_time(monkeypatch, data, bound, sizes):
  folder, annotations = data
  read = instances.read(annotations)
  rows = [read.fractions()[(read.image == number) & instances.have_size(read.fractions())] for number in range(7)]
  files = [str(folder / name) for name in NAMES]
  seen, encode = [], api.FGCLIP.encode_regions
  monkeypatch.setattr(api.FGCLIP, "encode_regions", lambda self, *args: seen.append(args) or encode(self, *args))
  monkeypatch.setattr(encoding, "_MAX_BOXES", bound)
  found = dict(encoding.encode_boxes(model(), files, rows, SkipReport()))
  assert list(found) == [0, 1, 4, 5, 6]
  assert [len(pixels) for pixels, _ in seen] == sizes
  for number, features in found.items():
    (expected,) = encode(model(), files[number], [rows[number]])
    np.testing.assert_allclose(features, expected, atol=1e-5)


def regions(folder):
  rows = [(1, 1, 1, [10, 10, 200, 200], {}), (2, 1, 2, [50, 90, 99, 99], {})]
  return write_coco(folder / "a.json", [(1, "a.png")], rows, ["cat", "dog"]), str(folder)


def descriptions(folder):
  row = {"bbox": [4, 3, 20, 15], "width": 40, "height": 30, "test_type": "1_attributes", "img_path": "a.png"}
  row |= {"pos_expression": ["a red cup"], "neg_expression": ["a blue cup"]}
  (folder / "rows.jsonl").write_text(json.dumps(row))
  return (str(folder / "rows.jsonl"),), str(folder)


def label_maps(folder):
  (folder / "labels").mkdir()
  Image.fromarray(np.eye(20, dtype=np.uint8)).save(folder / "labels" / "a.png")
  (folder / "classes.txt").write_text("cat\ndog\n")
  return str(folder), str(folder / "labels"), str(folder / "classes.txt")


@pytest.mark.parametrize(
  ("evaluator", "files", "things"),
  [
    (box_classification.BoxClassification, regions, "2 of 2 boxes"),
    (detection.Detection, regions, "boxes"),
    (fgovd.FgOvd, descriptions, "1 of 1 boxes"),
    (segmentation.Segmentation, label_maps, "16 of 16 patches"),
  ],
)
def test_a_broken_image_tower_is_told(tmp_path, evaluator, files, things):
  write_pictures(tmp_path, ["a.png"])
  flat = params.flatten(model().params)
  flat["vision_projection/kernel"] = np.full_like(flat["vision_projection/kernel"], np.nan)
  broken = api.FGCLIP(model().config, params.unflatten(flat))
  made = evaluator(*files(tmp_path))
  assert made.run(model()).metrics
  with pytest.raises(ValueError, match=f"{things} are not finite: the model is broken"):
    made.run(broken)


def test_boxes_of_no_picture():
  skips = SkipReport()
  assert list(encoding.encode_boxes(model(), [], [], skips)) == [] and not skips.counts
