"""Every form of input through its command: the records that come out, the counts, and going on where a run stopped."""

import json

import pytest
from array_record.python.array_record_module import ArrayRecordReader

from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.prepare import __main__ as prepare
from tests.helpers import standin, trees
from tests.prepare.sources import test_image_store, test_joins, test_tfds

folder = test_tfds.folder  # a data set of TensorFlow Datasets


def convert(output, command, *options, **named):
  """Runs a command in this process; returns its exit code."""
  named = [text for name, value in named.items() for text in (f"--{name}", str(value))]
  return prepare.main([command, *options, *named, "--output", str(output), "--workers", "1", "--shards", "2"])


def count(output):
  """How many records were read and written, and the count of each class of findings."""
  found = json.loads((output / "report-train.json").read_text())
  return found["read"], found["records"], {kind: finding["count"] for kind, finding in found["findings"].items()}


def read(output):
  """The records of the data set by their ids."""
  records = {}
  for path in find_shards(str(output), "train"):
    reader = ArrayRecordReader(path)
    found = [record.decode(data) for data in reader.read_all()] if reader.num_records() else []
    records |= {entry.id: entry for entry in found}
    reader.close()
  return records


def make_picture(index):
  """An image that differs from that of every other index."""
  return trees.make_image((index * 37 % 256, index * 91 % 256, 128), (40, 30))


def make_annotations(names):
  """FineHARD's annotations of images."""
  box = {"bbox": [0, 0, 0.5, 1], "short_expr": "a dog", "long_expr": "a brown dog", "flag_short_neg": 0}
  return [
    {"f_path": f"grit-20m/data-12m/{name}", "caption": f"long {name}", "short_caption": f"a {name}", "bbox_info": [box]}
    for name in names
  ]


@pytest.mark.parametrize("form", ["files", "tar", "parquet"])
@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("where", [str, standin.remote])
def test_finehard_gives_the_same_records_however_its_images_lie(tmp_path, monkeypatch, capsys, form, renamed, where):
  pictures = {name: make_picture(index) for index, name in enumerate(test_image_store.NAMES)}
  monkeypatch.setattr(test_image_store, "DATA", pictures)
  (test_image_store.write_download if renamed else test_image_store.write)(tmp_path / "images", form)
  test_image_store.write_keys(tmp_path / "keys", "object")
  annotations = make_annotations([*pictures, "coyo_image_0/00000/000000500.jpg"])
  (tmp_path / "a.json").write_text(json.dumps(annotations))
  options = {"annotations": where(tmp_path / "a.json"), "images": where(tmp_path / "images")}
  options |= {"url2key": where(tmp_path / "keys")} if renamed else {}
  assert convert(tmp_path / "out", "finehard", **options) == 0
  records = read(tmp_path / "out")
  assert {name: (entry.image, entry.long) for name, entry in records.items()} == {
    name: (data, f"long {name}") for name, data in pictures.items()
  }
  assert count(tmp_path / "out")[:2] == (4, 3)
  assert count(tmp_path / "out")[2]["image_missing"] == 1
  capsys.readouterr()
  assert convert(tmp_path / "out", "finehard", **options) == 0
  assert "2 of 2 shards are finished already" in capsys.readouterr().out


def test_finehard_is_not_continued_with_other_images(tmp_path, capsys):
  names = [f"coyo_image_0/00000/{index:09d}.jpg" for index in range(3)]
  (tmp_path / "a.json").write_text(json.dumps(make_annotations(names)))

  def write(count):
    samples = [trees.make_sample(name[-13:-4], make_picture(index)) for index, name in enumerate(names[:count])]
    trees.write_tar(tmp_path / "images" / "coyo_image_0" / "00000.tar", samples)

  write(2)
  options = {"annotations": tmp_path / "a.json", "images": tmp_path / "images"}
  assert convert(tmp_path / "out", "finehard", **options) == 0
  assert sorted(read(tmp_path / "out")) == names[:2]
  write(3)
  assert convert(tmp_path / "out", "finehard", **options) == 1
  assert "Add --overwrite" in capsys.readouterr().err
  assert convert(tmp_path / "out", "finehard", "--overwrite", **options) == 0
  assert sorted(read(tmp_path / "out")) == names


def test_pairs_may_lie_in_storage(tmp_path):
  (tmp_path / "images" / "a").mkdir(parents=True)
  for index in range(2):
    (tmp_path / "images" / "a" / f"{index}.jpg").write_bytes(make_picture(index))
  (tmp_path / "captions.csv").write_text("image,short\na/0.jpg,a dog\na/1.jpg,a cat\na/2.jpg,a bird\n")
  options = {"captions": standin.remote(tmp_path / "captions.csv"), "images": standin.remote(tmp_path / "images")}
  assert convert(tmp_path / "out", "pairs", **options) == 0
  assert {name: entry.short for name, entry in read(tmp_path / "out").items()} == {
    "a/0.jpg": "a dog",
    "a/1.jpg": "a cat",
  }
  assert count(tmp_path / "out")[2]["image_missing"] == 1


def test_coco_goes_through_the_command(tmp_path):
  captions, instances = test_joins.write_coco(tmp_path)
  for index in (1, 2):
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / f"{index}.jpg").write_bytes(make_picture(index))
  options = {"captions": captions[0], "instances": instances[0], "images": tmp_path / "images"}
  assert convert(tmp_path / "out", "coco", **options) == 0
  records = read(tmp_path / "out")
  assert {name: entry.short for name, entry in records.items()} == {"1.jpg": "a dog runs", "2.jpg": "a cat"}
  assert [region.short for region in records["1.jpg"].regions] == ["dog"]
  assert [caption.text for caption in records["1.jpg"].captions] == ["a dog runs", "a brown dog"]
  found = count(tmp_path / "out")
  assert found[:2] == (4, 2)
  assert {"box_of_crowd": 1, "image_not_listed": 1}.items() <= found[2].items()
  # the folder says that its records may hold sets, and of what
  assert dataset_folder.check_version(str(tmp_path / "out")) == 2
  assert dataset_folder.read_info(str(tmp_path / "out"))["sources"]["train"]["counts"]["captions"] == 2
  # annotations that an earlier version joined are joined again with --overwrite
  (joined,) = (tmp_path / "out").rglob("annotations.jsonl")
  lines = [json.loads(line) for line in joined.read_text().splitlines()]
  stale = "".join(json.dumps({key: line[key] for key in line if key != "captions"}) + "\n" for line in lines)
  joined.write_text(stale)
  marker = joined.with_suffix(".json")
  marker.write_text(json.dumps(json.loads(marker.read_text()) | {"bytes": len(stale)}))
  assert convert(tmp_path / "out", "coco", "--overwrite", **options) == 0
  assert len(read(tmp_path / "out")["1.jpg"].captions) == 2


def test_flickr30k_goes_through_the_command(tmp_path):
  test_joins.write_entities(tmp_path / "entities")
  (tmp_path / "images").mkdir()
  (tmp_path / "images" / "1.jpg").write_bytes(make_picture(1))
  options = {"entities": tmp_path / "entities", "images": tmp_path / "images"}
  assert convert(tmp_path / "out", "flickr30k", **options) == 0
  (entry,) = read(tmp_path / "out").values()
  assert [region.short for region in entry.regions] == ["Two young guys", "a bench", "a dog"]
  assert count(tmp_path / "out")[2]["image_missing"] == 1


def test_visual_genome_goes_through_the_command(tmp_path):
  data = [{"image_id": 1, "url": "https://a.b/VG_100K/1.jpg", "width": 40, "height": 30}]
  phrases = [{"phrase": "a small dog", "x": 0, "y": 0, "width": 20, "height": 15}]
  (tmp_path / "image_data.json").write_text(json.dumps(data))
  (tmp_path / "regions.json").write_text(json.dumps([{"id": 1, "regions": phrases}]))
  (tmp_path / "images" / "VG_100K").mkdir(parents=True)
  (tmp_path / "images" / "VG_100K" / "1.jpg").write_bytes(make_picture(1))
  options = {"image_data": tmp_path / "image_data.json", "regions": tmp_path / "regions.json"}
  assert convert(tmp_path / "out", "visual_genome", images=tmp_path / "images", **options) == 0
  (entry,) = read(tmp_path / "out").values()
  assert (entry.short, entry.regions[0].box) == ("a small dog", (0.0, 0.0, 0.5, 0.5))


def test_tfds_goes_through_the_command(tmp_path, folder):
  assert convert(tmp_path / "out", "tfds", dataset=folder, long_field="extra/long") == 0
  assert "one" in [entry.short for entry in read(tmp_path / "out").values()]
  assert count(tmp_path / "out")[2]["short_missing"] == 1
