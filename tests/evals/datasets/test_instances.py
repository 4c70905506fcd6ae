"""Files of boxes with classes, in each layout, and what is wrong in them."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.evals.datasets import instances
from fgclip_jax.storage.skip_report import SkipReport
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
  with pytest.raises(ValueError, match=r"no box can be used.*a\.json: box 7 is of image 6, which is not listed"):
    instances.read(path)
  path = write_coco(tmp_path / "b.json", [(5, "b.jpg")], [(7, 5, 4, [0, 0, 1, 1], {})], ["cat"])
  with pytest.raises(ValueError, match=r"b\.json: box 7 is of class 4, which is not listed"):
    instances.read(path)
  path = write_coco(tmp_path / "c.json", [(5, "b.jpg")], [(7, 5, 1, [0, 0, 1, 1], {"bbox": [1, 2]})], ["cat"])
  with pytest.raises(ValueError, match=r"c\.json, annotations\[0\]: not the expected fields"):
    instances.read(path)


def write(path, **lists):
  path.write_text(json.dumps(lists))
  return str(path)


IMAGE = {"id": 5, "file_name": "b.jpg", "width": 400, "height": 300}
BOX = {"id": 7, "image_id": 5, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
CLASS = {"id": 1, "name": "cat"}


def test_odd_entries_are_counted_and_the_others_read(tmp_path):
  odd_boxes = [
    {"id": 1, "image_id": 5, "category_id": 1},
    BOX | {"bbox": None}, BOX | {"bbox": [1, 2, 3]}, BOX | {"bbox": {"x": 1}}, BOX | {"bbox": ["a", 0, 1, 1]},
    BOX | {"bbox": [float("nan"), 0, 1, 1]}, BOX | {"area": float("inf")}, BOX | {"iscrowd": "yes"},
    BOX | {"image_id": None}, BOX | {"image_id": [5]}, BOX | {"category_id": True}, None, [1], "box",
  ]  # fmt: skip
  good = [BOX, BOX | {"image_id": "5", "category_id": "1"}, BOX | {"image_id": 5.0, "iscrowd": "0", "area": None}]
  unknown = [BOX | {"image_id": 6}, BOX | {"category_id": 9}]
  odd_images = [{"id": 8}, IMAGE | {"id": 8, "width": 0}, IMAGE | {"id": 9, "file_name": 3}, IMAGE | {"id": None}, 4]
  path = write(
    tmp_path / "a.json",
    images=[*odd_images, IMAGE, IMAGE, {**IMAGE, "id": "x"}],
    categories=[CLASS],
    annotations=[*odd_boxes, *good, *unknown],
  )
  skips = SkipReport()
  data = instances.read(path, None, skips)
  assert data.identity == (7, 7, 7) and data.image.tolist() == [0, 0, 0] and not data.crowd.any()
  assert [image.identity for image in data.images] == [5, "x"]
  assert skips.counts == {
    "image_broken": 5, "image_twice": 1, "box_broken": 14, "box_of_unknown_image": 1, "box_of_unknown_class": 1,
  }  # fmt: skip


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"annotations": [{"id": 1, "image_id": 5, "caption": "a cat"}]},
      r"annotations\[0\].*has no 'bbox', but id, image_id",
    ),
    ({"categories": [{"id": 1, "name": None}]}, r"categories\[0\]: .*`name` must be text"),
    ({"categories": [CLASS, {"id": 1, "name": "dog"}]}, r"categories\[1\]: .*id 1 is that of another class"),
    ({"categories": [CLASS | {"frequency": "r"}, {"id": 2, "name": "x"}]}, "class 'x' has the frequency ''"),
    ({"categories": [CLASS | {"frequency": ["r"]}]}, "categories.0.: .*`frequency` must be text"),
    ({"images": [], "annotations": [BOX]}, "has no entries 'images'.*It has 'annotations', 'categories'"),
  ],
)
def test_what_would_change_every_answer_is_an_error(tmp_path, change, message):
  lists = {"images": [IMAGE], "annotations": [BOX], "categories": [CLASS]} | change
  with pytest.raises(ValueError, match=message):
    instances.read(write(tmp_path / "a.json", **lists))


@pytest.mark.parametrize(
  "content", ["", "[]", "{}", "null", '{"images": [', "[" * 100_000, '{"images": ' * 90_000, "7"]
)
def test_files_of_other_forms_are_named_in_one_line(tmp_path, content):
  (tmp_path / "a.json").write_text(content)
  with pytest.raises(ValueError, match=r"a\.json") as caught:
    instances.read(str(tmp_path / "a.json"))
  assert "\n" not in str(caught.value)


def test_classes_of_lvis_that_are_not_listed(tmp_path):
  image = IMAGE | {"neg_category_ids": ["1", 77], "not_exhaustive_category_ids": None}
  path = write(tmp_path / "a.json", images=[image], annotations=[BOX], categories=[CLASS | {"frequency": "c"}])
  skips = SkipReport()
  data = instances.read(path, None, skips)
  assert data.images[0].absent == (1,) and data.images[0].incomplete == () and skips.counts == {"class_unknown": 1}


def test_open_images_as_spreadsheets_write_it(tmp_path):
  """A mark, CRLF, quotation marks; a row that is cut, one without numbers, a class that is not listed."""
  (tmp_path / "c.csv").write_bytes('\ufeffLabelName,DisplayName\r\n/m/01,"Toy, soft"\r\n'.encode())
  heading = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
  rows = ['"a","x","/m/01","1","0","0.5","0","1"', "b,x,/m/01,1,nan,1,0,1", "c,x,/m/01,1,0", "d,x,/m/9,1,0,1,0,1"]
  (tmp_path / "b.csv").write_bytes("\r\n".join(["\ufeff" + heading, *rows, ""]).encode())
  skips = SkipReport()
  data = instances.read(str(tmp_path / "b.csv"), str(tmp_path / "c.csv"), skips)
  assert data.names == ("Toy, soft",) and data.box.tolist() == [[0, 0, 0.5, 1]]
  assert skips.counts == {"box_broken": 1, "row_wrong_width": 1, "box_of_unknown_class": 1}
  (tmp_path / "b.csv").write_text(heading.replace("XMin", "xmin") + "\n" + rows[0] + "\n")
  with pytest.raises(ValueError, match=r"b\.csv has no 'XMin', but ImageID, .*; is 'xmin' meant\?"):
    instances.read(str(tmp_path / "b.csv"), str(tmp_path / "c.csv"))
  for content, message in (
    ("/m/01,Toy\n/m/01,Cat\n", "row 2: id '/m/01' is that of another class"),
    ("/m/01\tToy\n", "row 1: needs an id and a name"),
    ('/m/01,"Toy\n', "is no CSV file of classes"),
  ):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
      instances.read(str(tmp_path / "b.csv"), str(tmp_path / "c.csv"))


@given(st.lists(st.tuples(*[st.floats(-50, 450)] * 4), min_size=1, max_size=5))
def test_boxes_are_cut_at_the_edges(rows):
  box = np.asarray(rows)
  found = instances.to_fractions(box, np.tile([[400.0, 300.0]], (len(box), 1)))
  assert (found >= 0).all() and (found <= 1).all() and (found[:, :2] <= found[:, 2:]).all()
  inside = (box[:, :2] >= 0).all(1) & (box[:, 0] + box[:, 2] <= 400) & (box[:, 1] + box[:, 3] <= 300)
  inside &= (box[:, 2:] > 0).all(1)
  back = found * [400, 300, 400, 300]
  np.testing.assert_allclose(back[inside, 2:] - back[inside, :2], box[inside, 2:], atol=1e-3)


def test_bytes_that_are_not_utf8_cost_their_image_only(tmp_path):
  """A name of a picture is left out; one of a class would change every answer."""
  path = write_coco(tmp_path / "a.json", [(3, "a.jpg"), (4, "caf.jpg")], [(1, 3, 1, [0, 0, 4, 4], {})], ["cup"])
  data = pathlib.Path(path).read_text()
  skips = SkipReport()
  pathlib.Path(path).write_bytes(data.replace("caf.jpg", "caf\xe9.jpg").encode("latin-1"))
  assert [image.path for image in instances.read(path, skips=skips).images] == ["a.jpg"] and len(skips) == 1
  pathlib.Path(path).write_bytes(data.replace('"cup"', '"c\xfcp"').encode("latin-1"))
  with pytest.raises(ValueError, match=r"categories\[0\]: .*0xfc, which is not UTF-8"):
    instances.read(path)
