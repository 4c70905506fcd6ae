"""COCO, Visual Genome and Flickr30k Entities: from their files to records, and what is left out by its name."""

import json
import pathlib

import pytest

from fgclip_jax.data.record import Region
from fgclip_jax.prepare.sources import coco, flickr30k, image_store, visual_genome
from fgclip_jax.storage.streams import read_entries
from tests.helpers import standin
from tests.helpers.trees import load_all


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  return str(path)


@pytest.fixture
def pictures(tmp_path):
  """A folder of images."""
  for name in ("1.jpg", "2.jpg", "VG_100K/1.jpg", "VG_100K_2/2.jpg"):
    write(tmp_path / "images" / name, f"bytes of {name}")
  return image_store.Folder(standin.remote(tmp_path / "images"))


IMAGES = [
  {"id": 2, "file_name": "2.jpg", "width": 10, "height": 20},
  {"id": 1, "file_name": "1.jpg", "width": 100, "height": 50},
  {"id": 3, "file_name": "3.jpg", "width": 100, "height": 50},
]


def write_coco(folder, **changes):
  """Writes a captions and an instances file."""
  captions = [
    {"image_id": 1, "id": 7, "caption": "a dog runs\\n".replace("\\n", "\n")},
    {"image_id": 2, "id": 8, "caption": "a cat"},
    {"image_id": 1, "id": 9, "caption": "a brown dog"},
    {"image_id": 9, "id": 10, "caption": "an image that is not listed"},
  ]
  instances = [
    {"image_id": 1, "bbox": [10, 5, 50, 25], "category_id": 18, "iscrowd": 0, "segmentation": [[1, 2, 3]]},
    {"image_id": 1, "bbox": [0, 0, 100, 50], "category_id": 18, "iscrowd": 1},
    {"image_id": 1, "bbox": [0, 0, 120, 50], "category_id": 18, "iscrowd": 0},
    {"image_id": 1, "bbox": [0, 0, 10, float("nan")], "category_id": 18},
    {"image_id": 2, "bbox": [0, 0, 10, 20], "category_id": 99},
  ]
  first = {"info": {}, "images": IMAGES, "annotations": captions}
  second = {"annotations": instances, "categories": [{"id": 18, "name": "dog"}], "images": IMAGES} | changes
  return [write(folder / "captions.json", first)], [write(folder / "instances.json", second)]


def test_coco_gives_its_first_captions_and_its_boxes(tmp_path, pictures):
  source = coco.make(str(tmp_path / "state"), *write_coco(tmp_path), pictures)
  found, reported = load_all(source)
  first, second, *rest = found
  assert (first.id, first.short, first.long, first.image) == ("1.jpg", "a dog runs", "", b"bytes of 1.jpg")
  assert first.regions == (Region((0.1, 0.1, 0.6, 0.6), "dog"),)
  assert (second.id, second.short, second.regions) == ("2.jpg", "a cat", ())
  assert rest == ["short_missing", "image_not_listed"]
  assert reported == [
    ("region", "box_outside"),
    ("region", "box_not_finite"),
    ("note", "captions_unused"),
    ("region", "box_of_crowd"),
    ("region", "region_short_missing"),
  ]


def test_coco_needs_no_boxes(tmp_path, pictures):
  captions, _ = write_coco(tmp_path)
  source = coco.make(standin.remote(tmp_path / "state"), [standin.remote(captions[0])], [], pictures)
  assert [record.short for record in load_all(source)[0][:2]] == ["a dog runs", "a cat"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"categories": []}, "instances.json has no entries 'categories': is it the right file?"),
    ({"annotations": [{"image_id": 1, "category_id": 1}]}, 'not the expected fields .*bbox.* in {"image_id": 1'),
    ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, None, 2, 3]}]}, "not the expected fields"),
    ({"annotations": [3]}, "not the expected fields"),
    ({"images": [{"id": 1, "file_name": "1.jpg", "width": 0, "height": 5}]}, "0.0 x 5.0 is no size"),
  ],
)
def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path, pictures, changes, message):
  captions, instances = write_coco(tmp_path, **changes)
  with pytest.raises(ValueError, match=message):
    coco.make(str(tmp_path / "state"), captions, instances, pictures)


def test_a_broken_or_missing_file_is_an_error_that_names_it(tmp_path, pictures):
  captions, instances = write_coco(tmp_path)
  path = pathlib.Path(instances[0])
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(ValueError, match="instances.json is broken at byte .*; get it again"):
    coco.make(str(tmp_path / "state"), captions, instances, pictures)
  with pytest.raises(FileNotFoundError, match="no annotation file at .*none.json"):
    coco.make(str(tmp_path / "state"), captions, ["none.json"], pictures)


def test_a_join_is_kept_until_a_file_changes(tmp_path, pictures, monkeypatch):
  captions, instances = write_coco(tmp_path)
  source = coco.make(str(tmp_path / "state"), captions, instances, pictures)
  before = pathlib.Path(source.files[0]).stat().st_mtime_ns
  assert coco.make(str(tmp_path / "state"), captions, instances, pictures) == source
  assert pathlib.Path(source.files[0]).stat().st_mtime_ns == before
  write_coco(tmp_path, categories=[{"id": 18, "name": "wolf"}])
  source = coco.make(str(tmp_path / "state"), captions, instances, pictures)
  assert load_all(source)[0][0].regions[0].short == "wolf"


def test_visual_genome_gives_its_phrases_and_the_largest_one_for_the_image(tmp_path, pictures):
  data = [
    {"image_id": 2, "url": "https://a.b/VG_100K_2/2.jpg", "width": 100, "height": 50},
    {"image_id": 1, "url": "https://a.b/VG_100K/1.jpg", "width": 100, "height": 50},
  ]
  regions = [
    {
      "id": 1,
      "regions": [
        {"image_id": 1, "phrase": "a small dog", "x": 0, "y": 0, "width": 10, "height": 10},
        {"image_id": 1, "phrase": "a wide lawn ", "x": 0, "y": 25, "width": 100, "height": 25},
        {"image_id": 1, "phrase": " ", "x": 0, "y": 0, "width": 100, "height": 50},
      ],
    },
    {"id": 2, "regions": []},
    {"id": 3, "regions": [{"phrase": "a cat", "x": 0, "y": 0, "width": 10, "height": 10}]},
  ]
  files = write(tmp_path / "image_data.json", data), write(tmp_path / "region_descriptions.json", regions)
  (first, *rest), reported = load_all(visual_genome.make(str(tmp_path / "state"), *files, pictures))
  assert (first.id, first.short, first.image) == ("VG_100K/1.jpg", "a wide lawn", b"bytes of VG_100K/1.jpg")
  expected = (Region((0.0, 0.0, 0.1, 0.2), "a small dog"), Region((0.0, 0.5, 1.0, 1.0), "a wide lawn"))
  assert first.regions == expected
  assert rest == ["short_missing", "image_not_listed"]
  assert reported == [("region", "region_short_empty")]


SENTENCES = (
  "[/EN#1/people Two young guys] sit on [/EN#2/other a bench] in [/EN#3/scene the park] .\n"
  "[/EN#1/people Two men] talk about [/EN#0/notvisual it] near [/EN#4/animals/other a dog] .\n"
)
OBJECTS = """
<annotation><filename>1.jpg</filename><size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>20</xmax><ymax>45</ymax></bndbox></object>
<object><name>1</name><name>4</name>
<bndbox><xmin>30</xmin><ymin>10</ymin><xmax>50</xmax><ymax>50</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>2</name><bndbox><xmin>0</xmin><ymin>40</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>
</annotation>"""


def write_entities(folder):
  for name in ("1", "2"):
    write(folder / "Sentences" / f"{name}.txt", SENTENCES)
    write(folder / "Annotations" / f"{name}.xml", OBJECTS)
  return str(folder)


def test_flickr30k_gives_one_region_for_each_thing(tmp_path, pictures):
  entities = write_entities(tmp_path / "entities")
  (first, second), reported = load_all(flickr30k.make(str(tmp_path / "state"), entities, None, pictures))
  assert (first.id, first.short) == ("1.jpg", "Two young guys sit on a bench in the park .")
  assert first.regions == (
    Region((0.1, 0.1, 0.5, 1.0), "Two young guys"),
    Region((0.0, 0.8, 1.0, 1.0), "a bench"),
    Region((0.3, 0.2, 0.5, 1.0), "a dog"),
  )
  assert (second.id, second.regions) == ("2.jpg", first.regions)
  assert reported == [("note", "phrase_without_box"), ("note", "captions_unused")] * 2
  ids = write(tmp_path / "train.txt", "2\n")
  found, _ = load_all(flickr30k.make(str(tmp_path / "state"), entities, ids, pictures))
  assert [record.id for record in found] == ["2.jpg"]


def test_broken_or_missing_entities_are_errors_that_name_the_file(tmp_path, pictures):
  entities = tmp_path / "entities"
  with pytest.raises(FileNotFoundError, match="--entities is the one that holds Sentences and Annotations"):
    flickr30k.make(str(tmp_path / "state"), str(entities), None, pictures)
  write_entities(entities)
  write(entities / "Annotations" / "2.xml", OBJECTS[:-20])
  with pytest.raises(ValueError, match="2.xml is broken"):
    flickr30k.make(str(tmp_path / "state"), str(entities), None, pictures)
  write(entities / "Annotations" / "2.xml", "<annotation/>")
  with pytest.raises(ValueError, match="2.xml: not the expected fields"):
    flickr30k.make(str(tmp_path / "state"), str(entities), None, pictures)
  ids = write(tmp_path / "ids.txt", "1 7")
  with pytest.raises(FileNotFoundError, match="image 7: no file .*7.txt"):
    flickr30k.make(str(tmp_path / "state"), str(entities), ids, pictures)


def test_lists_of_a_file_come_with_their_names(tmp_path):
  path = write(tmp_path / "a.json", {"a": [1, 2], "b": 3, "c": [4]})
  assert list(read_entries(path, ("c", "a"))) == [("a", 1), ("a", 2), ("c", 4)]
