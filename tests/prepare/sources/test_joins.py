"""COCO, Visual Genome and Flickr30k Entities: from their files to records, and what is left out by its name."""

import json
import pathlib

import pytest

from fgclip_jax.data.caption_set import Caption
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
  assert first.captions == (Caption("a dog runs"), Caption("a brown dog"))
  assert first.regions == (Region((0.1, 0.1, 0.6, 0.6), "dog"),)
  assert (second.id, second.short, second.regions, second.captions) == ("2.jpg", "a cat", (), ())
  assert rest == ["short_missing", "image_not_listed"]
  assert reported == [
    ("region", "box_outside"),
    ("region", "box_not_finite"),
    ("region", "box_of_crowd"),
    ("region", "region_short_missing"),
  ]


def test_coco_needs_no_boxes(tmp_path, pictures):
  captions, _ = write_coco(tmp_path)
  source = coco.make(standin.remote(tmp_path / "state"), [standin.remote(captions[0])], [], pictures)
  assert [record.short for record in load_all(source)[0][:2]] == ["a dog runs", "a cat"]


def test_a_file_of_another_kind_is_an_error_that_names_it(tmp_path, pictures):
  captions, instances = write_coco(tmp_path, categories=[])
  with pytest.raises(ValueError, match="instances.json has no entries 'categories': is it the right file?"):
    coco.make(str(tmp_path / "state"), captions, instances, pictures)


DOG = {"image_id": 1, "bbox": [0, 0, 10, 10], "category_id": 1}


@pytest.mark.parametrize(
  ("odd", "kind"),
  [
    ({**DOG, "bbox": None}, "box_not_four_numbers"),
    ({"image_id": 1, "category_id": 1}, "box_not_four_numbers"),
    ({**DOG, "bbox": [1, 2, 3]}, "box_not_four_numbers"),
    ({**DOG, "bbox": ["a", "b", "c", "d"]}, "box_not_four_numbers"),
    ({**DOG, "bbox": [1, None, 2, 3]}, "box_not_four_numbers"),
    ({**DOG, "bbox": {"x": 1}}, "box_not_four_numbers"),
    ({**DOG, "bbox": [1, 2, 3, 10**400]}, "box_not_four_numbers"),
    ({**DOG, "bbox": [1, 2, 3, float("inf")]}, "box_not_finite"),
    ({"image_id": 1, "bbox": [0, 0, 10, 10]}, "category_id_missing"),
    ({**DOG, "category_id": [1]}, "category_id_wrong_type"),
    ({**DOG, "category_id": 7}, "region_short_missing"),
  ],
)
def test_an_odd_box_is_left_out_and_counted_by_kind(tmp_path, pictures, odd, kind):
  captions, instances = write_coco(tmp_path, annotations=[odd, DOG], categories=[{"id": 1, "name": "dog"}])
  found, reported = load_all(coco.make(str(tmp_path / "state"), captions, instances, pictures))
  assert [region.short for region in found[0].regions] == ["dog"]
  assert [entry for entry in reported if entry[0] == "region"] == [("region", kind)]
  assert len(found) == 4


@pytest.mark.parametrize(
  ("odd", "kind"),
  [
    (3, "annotation_not_object"),
    (None, "annotation_not_object"),
    ([DOG], "annotation_not_object"),
    ({"bbox": [0, 0, 1, 1], "category_id": 1}, "image_id_missing"),
    ({**DOG, "image_id": None}, "image_id_missing"),
    ({**DOG, "image_id": True}, "image_id_wrong_type"),
    ({**DOG, "image_id": {"a": 1}}, "image_id_wrong_type"),
    ({**DOG, "image_id": "\ud800"}, "image_id_not_unicode"),
    ({**DOG, "image_id": 1 << 80}, "image_not_listed"),
    ({**DOG, "image_id": "another"}, "image_not_listed"),
  ],
)
def test_an_annotation_of_no_image_is_counted_as_a_record(tmp_path, pictures, odd, kind):
  captions, instances = write_coco(tmp_path, annotations=[odd, DOG], categories=[{"id": 1, "name": "dog"}])
  found, _ = load_all(coco.make(str(tmp_path / "state"), captions, instances, pictures))
  assert sorted(entry for entry in found if isinstance(entry, str)) == sorted(
    ["short_missing", "image_not_listed", kind]
  )
  assert [region.short for region in found[0].regions] == ["dog"]


@pytest.mark.parametrize(
  ("image", "kind"),
  [
    ({"id": 5, "file_name": None}, "file_name_missing"),
    ({"id": 5}, "file_name_missing"),
    ({"id": 5, "file_name": 7}, "file_name_wrong_type"),
    ({"file_name": "1.jpg"}, "id_missing"),
    ({"id": 1, "file_name": "2.jpg"}, "image_id_twice"),
    ("1.jpg", "annotation_not_object"),
  ],
)
def test_an_odd_image_is_counted(tmp_path, pictures, image, kind):
  images = [{"id": 1, "file_name": "1.jpg"}, image]
  texts = [{"image_id": 1, "caption": "a dog"}]
  captions = write(tmp_path / "captions.json", {"images": images, "annotations": texts})
  found, _ = load_all(coco.make(str(tmp_path / "state"), [captions], [], pictures))
  assert (found[0].short, found[1:]) == ("a dog", [kind])


def test_captions_at_fault_do_not_take_the_place_of_good_ones(tmp_path, pictures):
  texts = [None, "", 7, "\ud800", "a dog", "a cat"]
  texts = [{"image_id": 1, "caption": caption} for caption in texts] + [{"image_id": 1}]
  captions = write(tmp_path / "captions.json", {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": texts})
  (record,), reported = load_all(coco.make(str(tmp_path / "state"), [captions], [], pictures))
  assert record.short == "a dog"
  kinds = ["caption_missing", "caption_empty", "caption_wrong_type", "caption_not_unicode", "caption_missing"]
  assert [kind for scope, kind in reported if scope == "annotation"] == kinds


@pytest.mark.parametrize(
  ("listed", "used"), [("img_1", "img_1"), (1, "1"), ("1", 1), (1 << 70, 1 << 70), (-5, -5), (1.0, 1)]
)
def test_texts_and_numbers_are_ids(tmp_path, pictures, listed, used):
  images = [{"id": listed, "file_name": "1.jpg", "width": 10, "height": 10}]
  texts, boxes = [{"image_id": used, "caption": "a dog"}], [{**DOG, "image_id": used, "category_id": "k"}]
  captions = write(tmp_path / "captions.json", {"images": images, "annotations": texts})
  classes = [{"id": "k", "name": "dog"}]
  instances = write(tmp_path / "instances.json", {"images": images, "annotations": boxes, "categories": classes})
  (record,), reported = load_all(coco.make(str(tmp_path / "state"), [captions], [instances], pictures))
  assert (record.short, [region.short for region in record.regions]) == ("a dog", ["dog"])
  assert reported == []


@pytest.mark.parametrize(
  "size", [{}, {"width": None, "height": 5}, {"width": 0, "height": 5}, {"width": "x", "height": []}]
)
def test_only_boxes_need_the_size_of_an_image(tmp_path, pictures, size):
  captions, instances = write_coco(tmp_path, annotations=[DOG], categories=[{"id": 1, "name": "dog"}])
  images = [{"id": 1, "file_name": "1.jpg", **size}]
  text = [{"image_id": 1, "caption": "a dog"}]
  captions = write(tmp_path / "captions.json", {"images": images, "annotations": text})
  (record,), reported = load_all(coco.make(str(tmp_path / "state"), [captions], [], pictures))
  assert (record.short, reported) == ("a dog", [("note", "regions_none")] if reported else [])
  boxes = {"images": images, "annotations": [DOG], "categories": [{"id": 1, "name": "dog"}]}
  instances = [write(tmp_path / "instances.json", boxes)]
  (record,), reported = load_all(coco.make(str(tmp_path / "state"), [captions], instances, pictures))
  assert (record.regions, reported[-1]) == ((), ("region", "image_size_missing"))


def test_deeply_nested_and_marked_files_are_read_or_named_in_one_line(tmp_path, pictures):
  deep = tmp_path / "deep.json"
  deep.write_text('{"images": ' + "[" * 200_000)
  for path in (deep, write(tmp_path / "number.json", '{"images": [{"id": ' + "1" * 5000 + "}]}")):
    with pytest.raises(ValueError, match="is broken at") as caught:
      coco.make(str(tmp_path / "state"), [str(path)], [], pictures)
    assert "\n" not in str(caught.value)
  captions, instances = write_coco(tmp_path)
  for path in (*captions, *instances):
    pathlib.Path(path).write_bytes(pathlib.Path(path).read_text().encode("utf-16"))
  found, _ = load_all(coco.make(str(tmp_path / "state"), captions, instances, pictures))
  assert found[0].short == "a dog runs"


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
  assert first.captions[1] == Caption("Two men talk about it near a dog .") and len(first.captions) == 2
  named = Caption("Two young guys"), Caption("Two men")
  assert first.regions == (
    Region((0.1, 0.1, 0.5, 1.0), "Two young guys", captions=named),
    Region((0.0, 0.8, 1.0, 1.0), "a bench"),
    Region((0.3, 0.2, 0.5, 1.0), "a dog"),
  )
  assert (second.id, second.regions) == ("2.jpg", first.regions)
  assert reported == [("note", "phrase_without_box")] * 2
  ids = write(tmp_path / "train.txt", "2\n")
  found, _ = load_all(flickr30k.make(str(tmp_path / "state"), entities, ids, pictures))
  assert [record.id for record in found] == ["2.jpg"]


def test_broken_or_missing_entities_are_errors_that_name_the_file(tmp_path, pictures):
  entities = tmp_path / "entities"
  with pytest.raises(FileNotFoundError, match="--entities is the one that holds Sentences and Annotations"):
    flickr30k.make(str(tmp_path / "state"), str(entities), None, pictures)
  write_entities(entities)
  ids = write(tmp_path / "ids.txt", "1 7")
  with pytest.raises(FileNotFoundError, match="image 7: no file .*7.txt"):
    flickr30k.make(str(tmp_path / "state"), str(entities), ids, pictures)


def test_odd_regions_are_left_out_and_counted(tmp_path, pictures):
  data = [{"image_id": 1, "url": "https://a.b/VG_100K/1.jpg", "width": 100, "height": 50}, {"image_id": 2, "url": None}]
  good = {"phrase": "a dog", "x": 0, "y": 0, "width": 10, "height": 10}
  odd = [{**good, "phrase": None}, {**good, "x": None}, {**good, "width": "wide"}, None, {"phrase": "no box"}, good]
  regions = [{"id": "1", "regions": odd}, {"id": 1, "regions": None}, 3, {"regions": [good]}]
  files = write(tmp_path / "image_data.json", data), write(tmp_path / "region_descriptions.json", regions)
  (first, *rest), reported = load_all(visual_genome.make(str(tmp_path / "state"), *files, pictures))
  assert [region.short for region in first.regions] == ["a dog"]
  boxes = ["box_not_four_numbers"] * 3
  assert [kind for scope, kind in reported if scope == "region"] == [
    "phrase_missing",
    *boxes[:2],
    "region_not_object",
    boxes[0],
  ]
  assert rest == ["url_missing", "regions_wrong_type", "annotation_not_object", "id_missing"]


def test_odd_entities_are_left_out_and_counted(tmp_path, pictures):
  entities = tmp_path / "entities"
  write_entities(entities)
  write(entities / "Sentences" / "3.txt", SENTENCES)
  write(entities / "Annotations" / "3.xml", OBJECTS[:-20])
  write(entities / "Annotations" / "4.xml", OBJECTS)
  (entities / "Sentences" / "4.txt").write_bytes("caf\u00e9".encode("latin-1"))
  (entities / "Sentences" / "1.txt").write_bytes(b"\xef\xbb\xbf" + SENTENCES.replace("\n", "\r\n").encode())
  write(entities / "Annotations" / "2.xml", OBJECTS.replace("<xmin>30</xmin>", "").replace("<width>100</width>", ""))
  (first, second, *rest), reported = load_all(flickr30k.make(str(tmp_path / "state"), str(entities), None, pictures))
  assert (first.short, len(first.regions)) == ("Two young guys sit on a bench in the park .", 3)
  assert (second.short, second.regions) == (first.short, ())
  assert rest == ["annotation_not_xml", "text_not_utf8"]
  counted = [kind for scope, kind in reported if scope == "region"]
  assert counted == ["box_not_four_numbers", "image_size_missing", "image_size_missing"]


def test_lists_of_a_file_come_with_their_names(tmp_path):
  path = write(tmp_path / "a.json", {"a": [1, 2], "b": 3, "c": [4]})
  assert list(read_entries(path, ("c", "a"))) == [("a", 1), ("a", 2), ("c", 4)]


def test_a_byte_that_is_not_utf8_costs_its_annotation_only(tmp_path, pictures):
  """Latin-1 in a caption, in a file name, in a class, and in a field that is not read."""
  captions, instances = write_coco(tmp_path, categories=[{"id": 18, "name": "d\xf6g"}, {"id": 99, "name": "cat"}])
  for file, old, new in ((captions[0], "a dog runs", "a d\xf6g runs"), (captions[0], '"3.jpg"', '"\xe9.jpg"')):
    path = pathlib.Path(file)
    path.write_bytes(
      path.read_text("latin-1").replace(old, new).replace('"info": {}', '"info": "\xe9"').encode("latin-1")
    )
  path = pathlib.Path(instances[0])
  path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode("latin-1"))
  found, reported = load_all(coco.make(str(tmp_path / "state"), captions, instances, pictures))
  assert {entry.id: entry.short for entry in found[:2]} == {"1.jpg": "a brown dog", "2.jpg": "a cat"}
  kinds = {*found[2:], *(kind for _, kind in reported)}
  assert kinds > {"caption_not_unicode", "category_name_not_unicode", "file_name_not_unicode"}
