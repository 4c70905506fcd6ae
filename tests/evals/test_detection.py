"""Detection: names and suppression against brute force, average precision against pycocotools and by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.evals import detection, instances, pictures
from tests.evals.region_sets import model, write_coco, write_pictures

CLASSES = ["cat", "dog", "cup", "boat"]
NAMES = [f"{number}.png" for number in range(4)]


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def iou(a, b):
  width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  shared = max(width, 0) * max(height, 0)
  return shared / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared)


def make_data(seed=0, images=6, lvis=False, crowds=0):
  """True boxes, and detections that are some of them, moved a little, with some of another class."""
  rng = np.random.default_rng(seed)
  count = 5 * images
  box = np.concatenate([rng.uniform(0, 250, (count, 2)), rng.uniform(5, 140, (count, 2))], 1)
  crowd = np.arange(count) < crowds
  data = instances.Instances(
    names=tuple(CLASSES),
    categories=(11, 12, 13, 14),
    frequencies=tuple("rccf") if lvis else (),
    images=tuple(instances.Image(100 + i, f"{i}.png", 400.0, 400.0, (13, 14), (14,)) for i in range(images)),
    identity=tuple(range(count)),
    image=rng.integers(0, images, count),
    label=rng.integers(0, 3, count),
    box=box,
    area=box[:, 2] * box[:, 3],
    crowd=crowd,
  )
  detections = []
  for image in range(images):
    mine = np.flatnonzero(data.image == image)
    moved = data.box[mine] + rng.normal(0, 5, (len(mine), 4))
    corners = np.concatenate([moved[:, :2], moved[:, :2] + np.maximum(moved[:, 2:], 1)], 1) / 400
    label = np.where(rng.random(len(mine)) < 0.7, data.label[mine], rng.integers(0, 4, len(mine)))
    score = rng.random(len(mine)).astype(np.float32)
    detections.append((image, corners.astype(np.float32), score, label))
  return data, detections


@given(seed=st.integers(0, 1000), most=st.sampled_from([3, 40]), nms=st.sampled_from([0.2, 0.5, 0.9]))
def test_names_and_suppression(seed, most, nms):
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, 0.6, (9, 2))
  box = np.concatenate([low, low + rng.uniform(0.1, 0.4, (9, 2))], 1).astype(np.float32)
  proposals = detection.Proposals(box, rng.uniform(0.1, 1, 9).astype(np.float32), np.full(9, -1))
  features, classes = unit(rng.normal(size=(9, 5))), unit(rng.normal(size=(4, 5)))
  found = detection.name_boxes(proposals, features, classes, np.float32(10), nms, most)

  candidates = []
  for place in range(9):
    exponentials = [math.exp(10 * float(features[place] @ each)) for each in classes]
    for name, value in enumerate(exponentials):
      score = math.sqrt(float(proposals.score[place]) * value / sum(exponentials))
      candidates.append((-score, place, name))
  kept = []
  for score, place, name in sorted(candidates):
    if len(kept) < most and not any(other == name and iou(box[at], box[place]) > nms for _, at, other in kept):
      kept.append((-score, place, name))
  np.testing.assert_allclose(found[1], [score for score, _, _ in kept], rtol=1e-4)
  np.testing.assert_array_equal(found[2], [name for _, _, name in kept])
  np.testing.assert_array_equal(found[0], box[[place for _, place, _ in kept]])


def test_a_class_of_its_own_is_the_only_one_scored():
  rng = np.random.default_rng(0)
  proposals = detection.Proposals(detection.grid().box[1:5], np.ones(4, np.float32), np.asarray([1, 0, 2, 1]))
  box, _, label = detection.name_boxes(
    proposals, unit(rng.normal(size=(4, 5))), unit(rng.normal(size=(3, 5))), np.float32(1), 0.9, 10
  )
  assert sorted(label.tolist()) == [0, 1, 1, 2] and len(box) == 4


def test_overlaps():
  box = detection.grid().box[:12]
  expected = [[iou(a, b) for b in box.astype(np.float64)] for a in box.astype(np.float64)]
  np.testing.assert_allclose(detection.overlaps(box), expected, atol=1e-9)


def test_the_grid_covers_the_picture_in_three_sizes():
  box = detection.grid().box
  assert (
    instances.have_size(box).all() and (box >= 0).all() and (box <= 1).all() and len(np.unique(box, axis=0)) == len(box)
  )
  points = np.random.default_rng(0).random((200, 2))
  inside = ((box[None, :, :2] <= points[:, None]) & (points[:, None] <= box[None, :, 2:])).all(-1)
  small = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) < 0.1
  assert inside[:, small].any(1).all()


@pytest.mark.parametrize("crowds", [0, 4])
def test_average_precision_is_pycocotools(crowds):
  coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
  data, detections = make_data(crowds=crowds)
  used = [0, 1, 2, 4, 5]
  detections = [each for each in detections if each[0] in used]
  found = detection.average_precision(data, used, detections)

  truth = coco.COCO()
  rows = np.flatnonzero(data.image != 3)
  annotations = [
    {"id": int(row) + 1, "image_id": int(data.image[row]), "category_id": int(data.label[row]), "area": data.area[row]}
    | {"bbox": data.box[row].tolist(), "iscrowd": int(data.crowd[row])}
    for row in rows
  ]
  sizes = [{"id": number, "width": 400, "height": 400} for number in used]
  classes = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
  truth.dataset = {"images": sizes, "annotations": annotations, "categories": classes}
  truth.createIndex()
  results = []
  for number, box, score, label in detections:
    corners = box.astype(np.float64) * 400
    for each, value, name in zip(corners, score, label, strict=True):
      sides = [*each[:2].tolist(), *(each[2:] - each[:2]).tolist()]
      results.append({"image_id": number, "category_id": int(name), "bbox": sides, "score": float(value)})
  evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
  evaluation.evaluate()
  evaluation.accumulate()
  evaluation.summarize()
  for place, name in enumerate(("ap", "ap50", "ap75")):
    metric = found[f"detection_{name}"]
    assert metric.value == pytest.approx(evaluation.stats[place], abs=1e-6) and 0 < metric.value < 1
    assert metric.chance is None and metric.count == len(rows) - data.crowd[rows].sum()


def test_perfect_boxes_have_a_precision_of_one_and_boxes_of_another_class_of_none():
  for lvis in (False, True):
    data, _ = make_data(lvis=lvis)
    fractions = data.fractions()

    def detections(label, data=data, fractions=fractions):
      rows = [np.flatnonzero(data.image == image) for image in range(len(data.images))]
      return [(i, fractions[mine], np.ones(len(mine), np.float32), label[mine]) for i, mine in enumerate(rows)]

    used = list(range(len(data.images)))
    found = detection.average_precision(data, used, detections(data.label))
    names = {"ap", "ap50", "ap75"} | ({"ap_rare", "ap_common"} if lvis else set())  # no true box is of the frequent one
    assert {name: metric.value for name, metric in found.items()} == {f"detection_{name}": 1.0 for name in names}
    none = detection.average_precision(data, used, detections(np.full(len(data.label), 3)))
    assert none["detection_ap"].value == 0


def test_lvis_rules_by_hand():
  """A class that an image is not marked for does not count; one that is known to be absent is a false alarm."""
  box = np.asarray([[0, 0, 50.0, 50]])
  image = instances.Image(1, "a.png", 100.0, 100.0, absent=(2,), incomplete=(3,))
  data = instances.Instances(
    tuple(CLASSES), (1, 2, 3, 4), tuple("rcff"), (image,), (1,), np.zeros(1, int), np.zeros(1, int), box,
    np.asarray([2500.0]), np.zeros(1, bool),
  )  # fmt: skip
  right, wrong = np.asarray([[0, 0, 0.5, 0.5]], np.float32), np.asarray([[0.5, 0.5, 1, 1]], np.float32)

  def ap(*found):
    boxes, scores, labels = zip(*found, strict=True)
    arrays = np.concatenate(boxes), np.asarray(scores, np.float32), np.asarray(labels)
    return detection.average_precision(data, [0], [(0, *arrays)])["detection_ap_rare"].value

  assert ap((right, 0.9, 0)) == 1
  assert ap((right, 0.5, 0), (wrong, 0.9, 0)) == pytest.approx(0.5)  # precision 1/2 at every recall
  assert ap((right, 0.5, 0), (wrong, 0.9, 3)) == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Four images, of which the last is missing; true boxes that do not overlap, and themselves as proposals."""
  folder = tmp_path_factory.mktemp("detection")
  write_pictures(folder, NAMES[:3])
  rows, proposals = [], []
  rng = np.random.default_rng(0)
  for image in range(4):
    for place in range(4):
      box = [100.0 * place + 5, 40.0 + 20 * place, 90.0, 120.0]
      rows.append((len(rows) + 1, image, int(rng.integers(1, 5)), box, {}))
      score = float(rng.uniform(0.2, 1))
      proposals.append({"image_id": image, "bbox": box, "score": score, "category_id": rows[-1][2]})
  proposals += [
    {"image_id": 99, "bbox": [0, 0, 9, 9], "score": 0.5, "category_id": 1},
    {"image_id": 1, "bbox": [0, 0, 0, 9], "score": 0.5, "category_id": 1},
  ]
  annotations = write_coco(folder / "a.json", list(enumerate(NAMES)), rows, CLASSES)
  (folder / "proposals.json").write_text(json.dumps(proposals))
  return folder, annotations, str(folder / "proposals.json")


def test_true_boxes_as_proposals_with_their_classes_are_all_found(files):
  folder, annotations, proposals = files
  result = detection.Detection(annotations, str(folder), proposals, keep_classes=True, templates="name").run(model())
  assert {name: metric.value for name, metric in result.metrics.items()} == {
    "detection_ap": 1.0, "detection_ap50": 1.0, "detection_ap75": 1.0,
  }  # fmt: skip
  assert result.metrics["detection_ap"].count == 12 and result.records == 4
  assert result.skipped == {"image_missing": 1} and len(result.examples["bbox"]) == 12
  assert any("proposal_elsewhere 1" in note and "proposal_without_size 1" in note for note in result.notes)
  np.testing.assert_allclose(result.examples["bbox"][0][2:], [90, 120], atol=0.02)


def test_without_classes_the_model_names_the_boxes(files):
  folder, annotations, proposals = files
  result = detection.Detection(annotations, str(folder), proposals, templates="name", scale=None).run(model())
  data = instances.read(annotations)
  read, count = detection.read_proposals(proposals, data, 300, False, pictures.Faults())
  assert count == 18 and [len(each.box) for each in read] == [4] * 4 and all((each.label == -1).all() for each in read)
  assert (np.diff(read[0].score) <= 0).all()
  assert len(result.examples["score"]) == 3 * 4 * len(CLASSES)  # no two boxes overlap
  assert 0 <= result.metrics["detection_ap"].value < 1
  few = detection.read_proposals(proposals, data, 2, False, pictures.Faults())[0]
  assert [each.box.tolist() for each in few] == [each.box[:2].tolist() for each in read]


def test_a_grid_where_there_are_no_proposals(files):
  folder, annotations, _ = files
  result = detection.Detection(annotations, str(folder), templates="name", limit=1).run(model())
  assert result.records == 1 and 0 < len(result.examples["bbox"]) <= 100
  assert any("grid of" in note for note in result.notes)
  with pytest.raises(ValueError, match="keep_classes needs proposals"):
    detection.Detection(annotations, str(folder), keep_classes=True).run(model())


def test_a_wrong_proposal_is_named(files, tmp_path):
  for entry in ({"score": 1.5}, {"bbox": [1, 2]}, {"category_id": 77}):
    whole = {"image_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5, "category_id": 1} | entry
    (tmp_path / "p.json").write_text(json.dumps([whole]))
    with pytest.raises(ValueError, match=r"p\.json: not the expected fields"):
      detection.Detection(files[1], str(files[0]), str(tmp_path / "p.json"), keep_classes=True).run(model())


def test_the_learned_scale():
  expected = np.exp(np.asarray(model().params["temperature"]["regional"]))
  assert detection.learned_scale(model()) == pytest.approx(float(expected))
