"""Files of boxes with classes, in each layout, and what is wrong in them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.evals.datasets import instances
from tests.helpers.region_sets import write_coco


def test_cocos_layout(tmp_path):
  box = [40.0, 30.0, 80.0, 60.0]
  rows = [(7, 5, 2, box, {"area": 99.0}), (8, 3, 1, box, {"iscrowd": 1}), (9, 5, 1, [0, 0, 0, 10], {})]
  data = instances.read(write_coco(tmp_path / "a.json", [(5, "b.jpg"), (3, "a.jpg")], rows, ["cat", "traffic light"]))
  assert [image.path for image in data.images] == ["a.jpg", "b.jpg"] and data.names == ("cat", "traffic light")
  assert data.identity == (7, 8, 9) and data.frequencies == () and data.categories == (1, 2)
  np.testing.assert_array_equal(data.image, [1, 0, 1])
  np.testing.assert_array_equal(data.label, [1, 0, 0])
  np.testing.assert_array_equal(data.area, [99, 4800, 0])
  np.testing.assert_array_equal(data.crowd, [False, True, False])
  np.testing.assert_allclose(data.fractions()[:2], [[0.1, 0.1, 0.3, 0.3]] * 2, atol=1e-7)
  np.testing.assert_array_equal(instances.have_size(data.fractions()), [True, True, False])
  first = data.limit(1)
  assert len(first.images) == 1 and first.identity == (8,) and first.box.shape == (1, 4) and data.limit(9) is data


def test_lviss_layout(tmp_path):
  path = write_coco(tmp_path / "l.json", [(3, "")], [(1, 3, 1, [0, 0, 4, 4], {})], ["bow_tie", "cup"], "rf")
  content = json.loads((tmp_path / "l.json").read_text())
  content["images"][0] |= {
    "coco_url": "http://images.cocodataset.org/train2017/000000000003.jpg",
    "neg_category_ids": [2],
    "not_exhaustive_category_ids": [1],
  }
  del content["images"][0]["file_name"]
  (tmp_path / "l.json").write_text(json.dumps(content))
  data = instances.read(path)
  assert data.names == ("bow tie", "cup") and data.frequencies == ("r", "f")
  assert data.images == (instances.Image(3, "train2017/000000000003.jpg", 400.0, 300.0, (2,), (1,)),)


def test_open_images_layout(tmp_path):
  (tmp_path / "classes.csv").write_text("/m/01,Tortoise\n/m/02,Toy, soft\n".replace("Toy, soft", '"Toy, soft"'))
  heading = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
  rows = ["b1,x,/m/02,1,0.25,0.5,0.5,1,0,0,0", "a2,x,/m/01,1,0,1,0,1,0,0,1"]
  (tmp_path / "boxes.csv").write_text("\n".join([heading, *rows]) + "\n")
  data = instances.read(str(tmp_path / "boxes.csv"), str(tmp_path / "classes.csv"))
  assert data.names == ("Tortoise", "Toy, soft") and [image.path for image in data.images] == ["b1.jpg", "a2.jpg"]
  np.testing.assert_allclose(data.fractions(), [[0.25, 0.5, 0.5, 1], [0, 0, 1, 1]])
  np.testing.assert_array_equal(data.crowd, [False, True])
  np.testing.assert_array_equal(data.label, [1, 0])
  with pytest.raises(ValueError, match="need the file with the names of classes"):
    instances.read(str(tmp_path / "boxes.csv"))


def test_a_broken_file_is_named(tmp_path):
  path = write_coco(tmp_path / "a.json", [(5, "b.jpg")], [(7, 6, 1, [0, 0, 1, 1], {})], ["cat"])
  with pytest.raises(ValueError, match=r"a\.json: box 7 is of image 6, which is not listed"):
    instances.read(path)
  path = write_coco(tmp_path / "b.json", [(5, "b.jpg")], [(7, 5, 4, [0, 0, 1, 1], {})], ["cat"])
  with pytest.raises(ValueError, match=r"b\.json: box 7 is of class 4, which is not listed"):
    instances.read(path)
  path = write_coco(tmp_path / "c.json", [(5, "b.jpg")], [(7, 5, 1, [0, 0, 1, 1], {"bbox": [1, 2]})], ["cat"])
  with pytest.raises(ValueError, match=r"c\.json: not the expected fields"):
    instances.read(path)


@given(st.lists(st.tuples(*[st.floats(-50, 450)] * 4), min_size=1, max_size=5))
def test_boxes_are_cut_at_the_edges(rows):
  box = np.asarray(rows)
  found = instances.to_fractions(box, np.tile([[400.0, 300.0]], (len(box), 1)))
  assert (found >= 0).all() and (found <= 1).all() and (found[:, :2] <= found[:, 2:]).all()
  inside = (box[:, :2] >= 0).all(1) & (box[:, 0] + box[:, 2] <= 400) & (box[:, 1] + box[:, 3] <= 300)
  inside &= (box[:, 2:] > 0).all(1)
  back = found * [400, 300, 400, 300]
  np.testing.assert_allclose(back[inside, 2:] - back[inside, :2], box[inside, 2:], atol=1e-3)
