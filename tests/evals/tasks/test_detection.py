"""Detection: names and suppression against brute force, Fixed AP against packages and by hand, the evaluator."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.evals import average_precision, registry, results, templates
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.tasks import detection
from fgclip_jax.storage.skip_report import SkipReport
from tests.helpers.region_sets import CLASSES, coco_stats, model, pack, write_coco, write_pictures

NAMES = [f"{number}.png" for number in range(4)]


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def iou(a, b):
  width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  shared = max(width, 0) * max(height, 0)
  return shared / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared)


@given(seed=st.integers(0, 1000), most=st.sampled_from([3, 40, None]), nms=st.sampled_from([0.2, 0.5, 0.9]))
def test_names_and_suppression(seed, most, nms):
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, 0.6, (9, 2))
  box = np.concatenate([low, low + rng.uniform(0.1, 0.4, (9, 2))], 1).astype(np.float32)
  proposals = detection.Proposals(box, rng.uniform(0.1, 1, 9).astype(np.float32), np.full(9, -1))
  features, classes = unit(rng.normal(size=(9, 5))), unit(rng.normal(size=(4, 5)))
  found = detection.name_boxes(7, proposals, features, classes, np.float32(10), nms, most)

  candidates = []
  for place in range(9):
    exponentials = [math.exp(10 * float(features[place] @ each)) for each in classes]
    for name, value in enumerate(exponentials):
      score = math.sqrt(float(proposals.score[place]) * value / sum(exponentials))
      candidates.append((-score, place, name))
  kept = []
  for score, place, name in sorted(candidates):
    if (most is None or len(kept) < most) and not any(
      other == name and iou(box[at], box[place]) > nms for _, at, other in kept
    ):
      kept.append((-score, place, name))
  np.testing.assert_allclose(found.score, [score for score, _, _ in kept], rtol=1e-4)
  np.testing.assert_array_equal(found.label, [name for _, _, name in kept])
  np.testing.assert_array_equal(found.box, box[[place for _, place, _ in kept]])
  assert (found.image == 7).all()

  floor = rng.uniform(0, 0.6, 4).astype(np.float32)  # what lies below drops nothing that lies above
  above = detection.name_boxes(7, proposals, features, classes, np.float32(10), nms, None, floor)
  whole = detection.name_boxes(7, proposals, features, classes, np.float32(10), nms, None)
  expected = whole.take(whole.score > floor[whole.label])
  np.testing.assert_array_equal(above.score, expected.score)
  np.testing.assert_array_equal(above.label, expected.label)


def test_many_equal_boxes_leave_room_for_other_classes():
  """The first candidates are all of one class and one place: one detection; more are looked for among the others."""
  box = np.tile(np.asarray([[0, 0, 0.5, 0.5]], np.float32), (40, 1))
  proposals = detection.Proposals(box, np.ones(40, np.float32), np.full(40, -1))
  features, classes = np.tile(unit(np.asarray([[1.0, 0.2]])), (40, 1)), np.eye(2, dtype=np.float32)
  found = detection.name_boxes(0, proposals, features, classes, np.float32(5), 0.5, 2)
  assert found.label.tolist() == [0, 1] and found.score[0] > found.score[1]


def test_a_class_of_its_own_is_the_only_one_scored():
  rng = np.random.default_rng(0)
  proposals = detection.Proposals(detection.grid().box[1:5], np.ones(4, np.float32), np.asarray([1, 0, 2, 1]))
  features, classes = unit(rng.normal(size=(4, 5))), unit(rng.normal(size=(3, 5)))
  found = detection.name_boxes(0, proposals, features, classes, np.float32(1), 0.9, 10)
  assert sorted(found.label.tolist()) == [0, 1, 1, 2] and len(found.box) == 4
  floor = np.asarray([0, 2, 0], np.float32)
  found = detection.name_boxes(0, proposals, features, classes, np.float32(1), 0.9, None, floor)
  assert sorted(found.label.tolist()) == [0, 2]


def test_overlaps():
  box = detection.grid().box[:12]
  expected = [[iou(a, b) for b in box.astype(np.float64)] for a in box.astype(np.float64)]
  np.testing.assert_allclose(detection.overlaps(box, box), expected, atol=1e-9)
  np.testing.assert_array_equal(detection.overlaps(box[3:5], box), detection.overlaps(box, box)[3:5])


def test_thousands_of_boxes_with_their_classes(monkeypatch):
  """Overlaps are computed some rows at a time; with `nms` 1 nothing is dropped."""
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 0.6, (50, 2))
  box = np.concatenate([low, low + 0.4], 1).astype(np.float32)
  proposals = detection.Proposals(box, rng.uniform(0.1, 1, 50).astype(np.float32), rng.integers(0, 3, 50))
  arguments = 0, proposals, unit(rng.normal(size=(50, 5))), unit(rng.normal(size=(3, 5))), np.float32(5)
  whole = detection.name_boxes(*arguments, 0.5, 100)
  assert len(whole.score) < 50 == len(detection.name_boxes(*arguments, 1.0, 100).score)
  monkeypatch.setattr(detection, "_ROWS", 7)
  np.testing.assert_array_equal(detection.name_boxes(*arguments, 0.5, 100).score, whole.score)


def test_the_grid_covers_the_picture_in_three_sizes():
  box = detection.grid().box
  assert (
    instances.have_size(box).all() and (box >= 0).all() and (box <= 1).all() and len(np.unique(box, axis=0)) == len(box)
  )
  points = np.random.default_rng(0).random((200, 2))
  inside = ((box[None, :, :2] <= points[:, None]) & (points[:, None] <= box[None, :, 2:])).all(-1)
  small = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) < 0.1
  assert inside[:, small].any(1).all()


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
  assert result.skipped == {"image_missing": 1} and len(result.examples["score"]) == 12
  assert any("proposal_elsewhere 1" in note and "proposal_without_size 1" in note for note in result.notes)
  sides = zip(*(result.examples[name].tolist() for name in ("left", "top", "width", "height")), strict=True)
  for image, label, side in zip(result.examples["image_id"], result.examples["category_id"], sides, strict=True):
    mine = [each for each in json.loads((folder / "proposals.json").read_text()) if each["image_id"] == image]
    assert label in [each["category_id"] for each in mine if np.allclose(each["bbox"], side, atol=0.02)]


def test_without_classes_the_model_names_the_boxes(files, capsys):
  folder, annotations, proposals = files
  result = detection.Detection(annotations, str(folder), proposals, templates="name", scale=None).run(model())
  data = instances.read(annotations)
  read, count = detection.read_proposals(proposals, data, 300, False, SkipReport(), progress=True)
  assert "proposals: 18box" in capsys.readouterr().err
  assert count == 18 and [len(each.box) for each in read] == [4] * 4 and all((each.label == -1).all() for each in read)
  assert (np.diff(read[0].score) <= 0).all()
  assert len(result.examples["score"]) == 3 * 4 * len(CLASSES)  # no two boxes overlap
  assert 0 <= result.metrics["detection_ap"].value < 1
  few = detection.read_proposals(proposals, data, 2, False, SkipReport())[0]
  assert [each.box.tolist() for each in few] == [each.box[:2].tolist() for each in read]


ROWS = st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans(), st.integers(1, 2))


@given(rows=st.lists(ROWS, min_size=1, max_size=40), most=st.integers(1, 5))
def test_the_best_proposals_of_each_picture_are_read(tmp_path_factory, rows, most):
  """As sorting all of them gives: of equal scores the first; what has no size or lies elsewhere is counted."""
  images = tuple(instances.Image(f"picture {number}", "a.png", 100.0, 50.0) for number in range(3))
  none = np.zeros(0)
  truth = instances.Instances(
    ("cat", "dog"), (1, 2), (), images, (), none.astype(int), none.astype(int), none.reshape(0, 4), none, none > 0
  )
  entries = [
    {"image_id": f"picture {image}", "bbox": [place / 2, 1, 20 * sized, 9], "score": score / 4, "category_id": label}
    for place, (image, score, sized, label) in enumerate(rows)
  ]
  path = tmp_path_factory.mktemp("proposals") / "p.json"
  path.write_text(json.dumps(entries))
  skips = SkipReport()
  found, read = detection.read_proposals(str(path), truth, most, True, skips)
  assert read == len(rows) and len(found) == 3
  for image, each in enumerate(found):
    mine = [place for place, row in enumerate(rows) if row[0] == image and row[2]]
    mine = sorted(mine, key=lambda place: -rows[place][1])[:most]
    np.testing.assert_allclose(each.box.reshape(-1, 4)[:, 0], [place / 200 for place in mine], rtol=1e-6)
    assert each.score.tolist() == [rows[place][1] / 4 for place in mine]
    assert each.label.tolist() == [rows[place][3] - 1 for place in mine]
  elsewhere, flat = sum(row[0] == 3 for row in rows), sum(row[0] < 3 and not row[2] for row in rows)
  assert skips.counts["proposal_elsewhere"] == elsewhere and skips.counts["proposal_without_size"] == flat


def test_a_grid_where_there_are_no_proposals(files):
  folder, annotations, _ = files
  result = detection.Detection(annotations, str(folder), templates="name", limit=1).run(model())
  assert result.records == 1 and 0 < len(result.examples["score"]) <= 100
  assert any("grid of" in note for note in result.notes)
  with pytest.raises(ValueError, match="keep_classes needs proposals"):
    detection.Detection(annotations, str(folder), keep_classes=True).run(model())


def test_a_wrong_proposal_is_named(files, tmp_path):
  for entry, message in (
    ({"score": 1.5}, r"p\.json, entry 0: `score` must be from 0 to 1, got 1.5"),
    ({"bbox": [1, 2]}, r"no proposal can be used.*p\.json, entry 0: not the expected fields"),
    ({"category_id": 77}, "proposal_of_unknown_class 1, the first: .* there is no class 77"),
    ({"image_id": "a.png"}, "proposal_elsewhere 1, the first: .* image 'a.png' is not among"),
  ):
    whole = {"image_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5, "category_id": 1} | entry
    (tmp_path / "p.json").write_text(json.dumps([whole]))
    with pytest.raises(ValueError, match=message):
      detection.Detection(files[1], str(files[0]), str(tmp_path / "p.json"), keep_classes=True).run(model())


def test_odd_proposals_are_counted_and_the_others_used(tmp_path):
  """Ids as text where the annotations have numbers, scores that are no numbers, records of other forms."""
  annotations = instances.read(write_coco(tmp_path / "a.json", [(1, "1.png")], [(1, 1, 1, [0, 0, 9, 9], {})], CLASSES))
  whole = {"image_id": "1", "bbox": ["0", 0, 9, 9], "score": "0.5", "category_id": "2"}
  odd = [{"score": float("nan")}, {"bbox": None}, {"bbox": {"x": 1}}, {"score": None}, {"category_id": [1]}]
  entries = [whole, *(whole | each for each in odd), {"image": 1}, [1], None, 7, "x", whole | {"image_id": {"a": 1}}]
  (tmp_path / "p.json").write_text(json.dumps(entries))
  skips = SkipReport(limit=9)
  (found,), read = detection.read_proposals(str(tmp_path / "p.json"), annotations, 300, True, skips)
  assert read == 12 and found.label.tolist() == [1] and found.score.tolist() == [0.5]
  assert skips.counts == {"proposal_broken": 9, "proposal_of_unknown_class": 1, "proposal_elsewhere": 1}
  assert "has no 'image_id', but image; is 'image' meant?" in str(skips.examples["proposal_broken"][4])


def test_the_learned_scale():
  expected = np.exp(np.asarray(model().params["temperature"]["regional"]))
  assert detection.learned_scale(model()) == pytest.approx(float(expected))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
  """Three images with 40 proposals each, of which some are true boxes: 160 pairs with the four classes."""
  folder = tmp_path_factory.mktemp("crowded")
  write_pictures(folder, NAMES[:3])
  rng = np.random.default_rng(1)
  rows, proposals = [], []
  for image in range(3):
    for place in range(40):
      box = [float(each) for each in (rng.integers(0, 300), rng.integers(0, 200), *rng.integers(30, 100, 2))]
      proposals.append({"image_id": image, "bbox": box, "score": float(rng.uniform(0.2, 1))})
      if place < 15:
        rows.append((len(rows) + 1, image, int(rng.integers(1, 5)), box, {}))
  annotations = write_coco(folder / "a.json", list(enumerate(NAMES[:3])), rows, CLASSES)
  (folder / "proposals.json").write_text(json.dumps(proposals))
  return detection.Detection(
    annotations, str(folder), str(folder / "proposals.json"), templates="name", scale=20.0, nms=1.0
  )


def all_pairs(evaluator, model):
  """Every proposal as a detection of every class, scored one by one."""
  data = instances.read(evaluator.annotations)
  proposals, _ = detection.read_proposals(evaluator.proposals, data, 300, False, SkipReport())
  classes = templates.class_embeddings(model, data.names, ["{}"])
  found = []
  for number, each in enumerate(proposals):
    (features,) = model.encode_regions([f"{evaluator.images}/{NAMES[number]}"], [each.box])
    scores = np.exp(20 * features.astype(np.float64) @ classes.T)
    scores = np.sqrt(each.score[:, None] * scores / scores.sum(1, keepdims=True))
    box, label = np.repeat(each.box, 4, axis=0), np.tile(np.arange(4), len(each.box))
    found.append(pack(number, box, scores.ravel(), label))
  return data, average_precision.join(found)


def test_fixed_ap_counts_more_than_the_best_of_a_picture(crowded, model):
  data, pairs = all_pairs(crowded, model)
  fixed = dataclasses.replace(crowded, fixed_ap=True).run(model)
  plain = crowded.run(model)
  assert len(fixed.examples["score"]) == 3 * 160 and len(plain.examples["score"]) == 3 * 100
  values = coco_stats(data, [0, 1, 2], pairs, [10_000])
  best = [
    pairs.take(np.flatnonzero(pairs.image == n)[np.argsort(-pairs.score[pairs.image == n])][:100]) for n in range(3)
  ]
  capped = coco_stats(data, [0, 1, 2], average_precision.join(best), [10_000])
  for place, name in enumerate(("ap", "ap50", "ap75")):
    assert fixed.metrics[f"detection_{name}"].value == pytest.approx(values[place], abs=1e-6)
    assert plain.metrics[f"detection_{name}"].value == pytest.approx(capped[place], abs=1e-6)
  assert fixed.metrics["detection_ap"].value > plain.metrics["detection_ap"].value


@pytest.mark.parametrize("most", [7, 30])
def test_fixed_ap_counts_so_many_of_a_class_over_all_pictures(crowded, model, monkeypatch, most):
  """Also where they are sorted out as the pictures come."""
  data, pairs = all_pairs(crowded, model)
  monkeypatch.setattr(detection, "_FIXED_AP", most)
  result = dataclasses.replace(crowded, fixed_ap=True).run(model)
  rows = np.concatenate(
    [np.flatnonzero(pairs.label == n)[np.argsort(-pairs.score[pairs.label == n])][:most] for n in range(4)]
  )
  values = coco_stats(data, [0, 1, 2], pairs.take(rows), [10_000])
  assert result.metrics["detection_ap"].value == pytest.approx(values[0], abs=1e-6)
  np.testing.assert_allclose(sorted(result.examples["score"]), np.sort(pairs.score[rows]), rtol=1e-4)


def test_fixed_ap_by_hand():
  """Two wrong boxes of a picture stand before the right one of another: it counts among three of the class, not two."""
  box = np.asarray([[0, 0, 50.0, 50]])
  images = tuple(instances.Image(number, "a.png", 100.0, 100.0) for number in range(2))
  one, zero = np.ones(1, int), np.zeros(1, int)
  data = instances.Instances(
    ("cat",), (1,), (), images, (1,), one, zero, box, np.asarray([2500.0]), np.zeros(1, bool)
  )  # fmt: skip
  wrong = [[0.5, 0.5, 1, 1], [0.6, 0.6, 1, 1]]
  whole = average_precision.join([pack(0, wrong, [0.9, 0.8], [0, 0]), pack(1, [[0, 0, 0.5, 0.5]], [0.7], [0])])
  for most, expected in ((2, 0), (3, 1 / 3)):
    found, _ = average_precision.best_of_class(whole, 1, most)
    assert average_precision.average_precision(data, [0, 1], found)["detection_ap"].value == pytest.approx(expected)


@pytest.mark.parametrize("fixed", [False, True])
def test_of_lvis_the_detections_that_count_are_written(crowded, model, tmp_path, monkeypatch, fixed):
  content = json.loads(pathlib.Path(crowded.annotations).read_text())
  for entry, frequency in zip(content["categories"], "rcff", strict=True):
    entry["frequency"] = frequency
  content["annotations"] = [each for each in content["annotations"] if each["category_id"] != 4]
  content["images"][0]["neg_category_ids"] = [4]
  (tmp_path / "lvis.json").write_text(json.dumps(content))
  evaluator = dataclasses.replace(crowded, annotations=str(tmp_path / "lvis.json"), fixed_ap=fixed)
  result = evaluator.run(model)
  found = set(zip(result.examples["image_id"], result.examples["category_id"], strict=True))
  there = {(each["image_id"], each["category_id"]) for each in content["annotations"]}
  assert found == there | {(0, 4)}
  assert {"detection_ap_rare", "detection_ap_common", "detection_ap_frequent"} <= set(result.metrics)
  monkeypatch.setattr(results, "_ROWS", 50)
  count = len(result.examples["score"])
  assert count % 50 and results.write_examples(str(tmp_path / "found.jsonl"), result) == count
  rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
  assert rows == [
    dict(zip(result.examples, row, strict=True))
    for row in zip(*(column.tolist() for column in result.examples.values()), strict=True)
  ]


def same(one, other):
  """Whether two results are equal, but for the order of detections and the last digits of scores."""
  names = ("image_id", "category_id", "left", "top", "width", "height", "score")
  rows = [sorted(zip(*(result.examples[name] for name in names), strict=True)) for result in (one, other)]
  scores = ([row[-1] for row in each] for each in rows)
  np.testing.assert_allclose(*scores, rtol=1e-5)
  return one.metrics == other.metrics and [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]]


@pytest.mark.parametrize("fixed", [False, True])
def test_batches_and_devices_and_order_change_nothing(crowded, model, spread_model, monkeypatch, fixed):
  evaluator = dataclasses.replace(crowded, nms=0.5, fixed_ap=fixed)
  expected = evaluator.run(model)
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 2))
  for other in (model, spread_model):
    found = evaluator.run(other)
    assert same(found, expected)
  read = instances.read

  def turned(*arguments):
    data = read(*arguments)
    return dataclasses.replace(data, images=data.images[::-1], image=len(data.images) - 1 - data.image)

  monkeypatch.setattr(instances, "read", turned)
  found = evaluator.run(model)
  assert same(found, expected)


def test_the_command():
  made = registry.parse("detect --annotations a.json --images i --proposals p.json --fixed_ap --nms 1 --scale model")
  assert made == detection.Detection("a.json", "i", "p.json", scale=None, nms=1.0, fixed_ap=True)
  assert not registry.parse("detect --annotations a.json --images i").fixed_ap
