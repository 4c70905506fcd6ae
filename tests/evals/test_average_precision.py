"""Average precision of detections against packages and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.evals import average_precision
from fgclip_jax.evals.datasets import instances
from tests.helpers.region_sets import CLASSES, coco_stats, pack


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
    detections.append(pack(image, corners, score, label))
  return data, average_precision.join(detections)


@pytest.mark.parametrize("crowds", [0, 4])
def test_average_precision_is_pycocotools(crowds):
  data, detections = make_data(crowds=crowds)
  used = [0, 1, 2, 4, 5]
  detections = detections.take(np.isin(detections.image, used))
  found = average_precision.average_precision(data, used, detections)
  values = coco_stats(data, used, detections, [1, 10, 100])
  for place, name in enumerate(("ap", "ap50", "ap75")):
    metric = found[f"detection_{name}"]
    assert metric.value == pytest.approx(values[place], abs=1e-6) and 0 < metric.value < 1
    assert metric.chance is None and metric.count == (~data.crowd[data.image != 3]).sum()


def test_lvis_numbers_are_those_of_the_package():
  """Classes measured one at a time have the average precision that they have in one run of the whole."""
  faster = pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval, see requirements-evals.txt")
  for seed in range(3):
    data, detections = make_data(seed, lvis=True)
    used = list(range(len(data.images)))
    truth = average_precision._coco_layout(data, average_precision._image_layout(data, used), range(4))
    box = detections.box.astype(np.float64) * 400
    box[:, 2:] -= box[:, :2]
    columns = (detections.image.tolist(), detections.label.tolist(), box.tolist(), detections.score.tolist())
    names = ("image_id", "category_id", "bbox", "score")
    results = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    silent = {"print_function": lambda *_: None}
    api = faster.COCO(truth, **silent)
    evaluation = faster.COCOeval_faster(api, api.loadRes(results), "bbox", lvis_style=True, **silent)
    evaluation.params.maxDets = [300]
    evaluation.run()
    keys = {
      "ap": "AP_all",
      "ap50": "AP_50",
      "ap75": "AP_75",
      "ap_rare": "APr",
      "ap_common": "APc",
      "ap_frequent": "APf",
    }
    expected = {f"detection_{name}": evaluation.stats_as_dict[key] for name, key in keys.items()}
    for classes in (64, 1, 3):
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(average_precision, "_CLASSES", classes)
        found = average_precision.average_precision(data, used, detections)
      assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {name: value for name, value in expected.items() if value >= 0}, abs=1e-9
      )
    assert 0 < found["detection_ap"].value < 1 and len(found) == 5  # the frequent class has no true box


@given(seed=st.integers(0, 1000), most=st.integers(1, 6))
def test_the_best_of_each_class(seed, most):
  rng = np.random.default_rng(seed)
  score = rng.integers(0, 6, 30) / 8  # with ties
  whole = pack(0, np.arange(120).reshape(30, 4), score, rng.integers(0, 3, 30))
  found, floor = average_precision.best_of_class(whole, 4, most)
  rows = []
  for name in range(4):
    mine = sorted((-score[row], row) for row in np.flatnonzero(whole.label == name))
    rows += [row for _, row in mine[:most]]
    assert floor[name] == (-mine[most - 1][0] if len(mine) >= most else -np.inf)
  np.testing.assert_array_equal(found.box, whole.take(np.sort(rows)).box)


def test_perfect_boxes_have_a_precision_of_one_and_boxes_of_another_class_of_none():
  for lvis in (False, True):
    data, _ = make_data(lvis=lvis)
    fractions = data.fractions()

    def detections(label, data=data, fractions=fractions):
      rows = [np.flatnonzero(data.image == image) for image in range(len(data.images))]
      return average_precision.join([pack(i, fractions[r], np.ones(len(r)), label[r]) for i, r in enumerate(rows)])

    used = list(range(len(data.images)))
    found = average_precision.average_precision(data, used, detections(data.label))
    names = {"ap", "ap50", "ap75"} | ({"ap_rare", "ap_common"} if lvis else set())  # no true box is of the frequent one
    assert {name: metric.value for name, metric in found.items()} == {f"detection_{name}": 1.0 for name in names}
    none = average_precision.average_precision(data, used, detections(np.full(len(data.label), 3)))
    assert none["detection_ap"].value == 0
    nothing = detections(data.label).take(np.zeros(0, int))
    assert average_precision.average_precision(data, used, nothing) == none


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
    packed = pack(0, np.concatenate(boxes), scores, labels)
    assert len(average_precision.that_count(data, packed).label) == sum(label in (0, 1) for label in labels)
    return average_precision.average_precision(data, [0], packed)["detection_ap_rare"].value

  assert ap((right, 0.9, 0)) == 1
  assert ap((right, 0.5, 0), (wrong, 0.9, 0)) == pytest.approx(0.5)  # precision 1/2 at every recall
  assert ap((right, 0.5, 0), (wrong, 0.9, 3)) == 1
