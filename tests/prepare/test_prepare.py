"""The `prepare` command: annotations and images become shards, and what cannot be used is reported."""

import io
import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.prepare import __main__ as prepare


def make_image(size=(12, 8), mode="RGB", form="PNG", **options):
  """The bytes of a small picture."""
  file = io.BytesIO()
  Image.new(mode, size).save(file, form, **options)
  return file.getvalue()


def make_deep_image():
  file = io.BytesIO()
  Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600).save(file, "PNG")
  return file.getvalue()


def make_animation():
  file = io.BytesIO()
  frames = [Image.new("RGB", (12, 8), colour) for colour in ("red", "blue")]
  frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
  return file.getvalue()


def make_annotation(name, **changes):
  box = {"bbox": [0, 0, 0.5, 1, 0.9], "short_expr": "a dog", "long_expr": "a brown dog", "flag_short_neg": 0}
  prefix = "grit-20m/data-12m/"
  return {
    "f_path": prefix + name,
    "caption": f"long {name}",
    "short_caption": f"short {name}",
    "bbox_info": [box],
  } | changes


class Input:
  """A folder with annotations and images, and how to convert it."""

  def __init__(self, folder):
    self.images, self.annotations, self.output = (folder / name for name in ("images", "annotations", "output"))
    self.images.mkdir()
    self.annotations.mkdir()

  def add(self, file, records, image=None):
    """Writes an annotation file, and an image for each of its records that has none yet."""
    (self.annotations / file).write_text(json.dumps(records))
    for item in records:
      path = self.images / item["f_path"].removeprefix("grit-20m/data-12m/")
      path.parent.mkdir(parents=True, exist_ok=True)
      if not path.exists():
        path.write_bytes(image or make_image())

  def convert(self, *options):
    paths = ["--annotations", self.annotations, "--images", self.images, "--output", self.output]
    return prepare.main(["finehard", *map(str, paths), "--workers", "1", *options])

  def report(self, split="train"):
    return json.loads((self.output / f"report-{split}.json").read_text())


@pytest.fixture
def given(tmp_path):
  return Input(tmp_path)


def read(folder, split="train"):
  """The records of each shard of a split."""
  shards = []
  for path in find_shards(str(folder), split):
    reader = ArrayRecordReader(path)
    shards.append([record.decode(data) for data in reader.read_all()] if reader.num_records() else [])
    reader.close()
  return shards


def test_records_keep_their_order_texts_and_image_bytes(given, capsys):
  picture = make_image(form="JPEG")
  given.add("b.json", [make_annotation("0/3.jpg")], picture)
  given.add("a.json", [make_annotation("0/1.jpg"), make_annotation("0/2.jpg")], picture)
  assert given.convert() == 0
  ((first, second, third),) = read(given.output)
  assert [item.id for item in (first, second, third)] == ["0/1.jpg", "0/2.jpg", "0/3.jpg"]
  assert (first.image, first.short, first.long) == (picture, "short 0/1.jpg", "long 0/1.jpg")
  assert first.regions == (record.Region((0.0, 0.0, 0.5, 1.0), "a dog", "a brown dog"),)
  out = capsys.readouterr().out
  assert "3 of 3 records (0 left out)" in out
  assert f"Next: python -m fgclip_jax.main --config=configs/stage2.py --config.data.path={given.output}" in out
  info = dataset_folder.read_info(str(given.output))
  assert dataset_folder.read_name(str(given.output)) == "finehard"
  assert dataset_folder.read_splits(str(given.output)) == {"train": [3]}
  assert info["sources"]["train"]["counts"]["regions"] == 3


def test_an_image_may_lie_at_the_path_as_it_is(given):
  given.add("a.json", [make_annotation("x.png")])
  (given.images / "grit-20m" / "data-12m").mkdir(parents=True)
  (given.images / "x.png").rename(given.images / "grit-20m" / "data-12m" / "x.png")
  assert given.convert() == 0
  assert read(given.output)[0][0].id == "x.png"


@pytest.mark.parametrize(
  ("data", "kind"),
  [
    (None, "image_missing"),
    (b"", "image_empty"),
    (b"<html>404</html>", "image_unreadable"),
    (make_image((64, 64), form="JPEG")[:-300], "image_truncated"),
    (make_image((1, 8)), "image_too_thin"),
    (make_image((20_000, 9_000), mode="1"), "image_too_large"),
  ],
  ids=["missing", "empty", "html", "truncated", "thin", "large"],
)
def test_an_image_that_cannot_be_used_is_left_out_and_counted(given, capsys, data, kind):
  given.add("a.json", [make_annotation("good.png"), make_annotation("bad.png")])
  if data is None:
    (given.images / "bad.png").unlink()
  else:
    (given.images / "bad.png").write_bytes(data)
  assert given.convert() == 0
  ((kept,),) = read(given.output)
  assert kept.id == "good.png"
  ((found, finding),) = given.report()["findings"].items()
  assert found == kind
  assert (finding["loss"], finding["count"], finding["record"], finding["field"]) == ("record", 1, 1, "image")
  assert finding["file"].endswith("a.json")
  assert "'bad.png'" in finding["message"]
  out = capsys.readouterr().out
  assert kind in out
  assert "1 of 2 records (1 left out)" in out


@pytest.mark.parametrize(
  "data",
  [
    make_image(mode="CMYK", form="JPEG"),
    make_deep_image(),
    make_image(mode="RGBA"),
    make_image(mode="LA"),
    make_image(mode="P", transparency=0),
    make_image(mode="1"),
    make_image(form="WEBP"),
    make_animation(),
    make_image((200, 10)),
  ],
  ids=["cmyk", "16-bit", "rgba", "grey-alpha", "palette", "1-bit", "webp", "animated", "wide"],
)
def test_an_unusual_image_is_kept_byte_for_byte(given, data):
  given.add("a.json", [make_annotation("odd")], data)
  assert given.convert("--strict") == 0
  assert read(given.output)[0][0].image == data
  assert given.report()["findings"] == {}


def test_images_may_be_stored_smaller_and_captions_are_stored_as_tokens(given):
  given.add("a.json", [make_annotation("large.png")], make_image((200, 100)))
  given.add("b.json", [make_annotation("small.jpg")], make_image((60, 30), form="JPEG"))
  assert given.convert("--max_side", "64", "--quality", "80") == 0
  large, small = (item for shard in read(given.output) for item in shard)
  assert (large.width, large.height) == (64, 32)
  with Image.open(io.BytesIO(large.image)) as picture:
    assert (picture.format, picture.size) == ("JPEG", (64, 32))
  assert (small.image, small.width, small.height) == (make_image((60, 30), form="JPEG"), 60, 30)
  tokenizer = Tokenizer()
  assert list(large.tokens.short) == tokenizer.encode("short large.png")
  assert list(large.tokens.region_long[0]) == tokenizer.encode("a brown dog")
  assert dataset_folder.read_info(str(given.output))["tokenizer"] == tokenizer.name


def test_max_side_and_skip_image_check_exclude_each_other(given, capsys):
  given.add("a.json", [make_annotation("a.png")])
  assert given.convert("--max_side", "64", "--skip_image_check") == 1
  assert "--max_side decodes every image" in capsys.readouterr().err


def test_without_the_image_check_only_missing_and_empty_images_are_found(given):
  given.add("a.json", [make_annotation(name) for name in ("good", "html", "empty", "missing")])
  (given.images / "html").write_bytes(b"<html>404</html>")
  (given.images / "empty").write_bytes(b"")
  (given.images / "missing").unlink()
  assert given.convert("--skip_image_check") == 0
  assert [item.id for item in read(given.output)[0]] == ["good", "html"]
  assert set(given.report()["findings"]) == {"image_empty", "image_missing"}


def test_every_class_is_counted_with_its_first_example(given, capsys):
  region = {"bbox": [0, 0, 1, 1], "short_expr": "a cat", "long_expr": "a black cat"}
  negatives = {"0": "a dog", "1": "a cat", "2": ""}
  records = [
    make_annotation("0.png"),
    make_annotation("1.png", caption=""),
    make_annotation("2.png", bbox_info=[region | {"bbox": [0, 0, 2, 1]}, region]),
    make_annotation("3.png", caption="", bbox_info=[region | {"bbox": [0, 0, 2, 1]}]),
    make_annotation("4.png", bbox_info=[region | {"flag_short_neg": 1, "short_expr_negs": negatives}]),
    make_annotation(
      "5.png", bbox_info=[], caption=" ".join(f"word{index}" for index in range(5000)), short_caption="一只猫 🐈"
    ),
  ]
  given.add("a.json", records)
  (given.annotations / "b.json").write_text(json.dumps([make_annotation("0.png")] * 2)[:-20])
  (given.annotations / "c.json").write_text("<html>")
  (given.annotations / "d.jsonl").write_text(json.dumps(make_annotation("0.png")) + '\n{"f_path": "café\n')
  assert given.convert("--shards", "3") == 0
  report = given.report()
  assert {kind: (item["loss"], item["count"], item["record"]) for kind, item in report["findings"].items()} == {
    "annotation_truncated": ("file", 1, 1),
    "annotation_not_json": ("file", 1, 0),
    "record_not_json": ("record", 1, 1),
    "caption_empty": ("record", 2, 1),
    "box_outside": ("region", 1, 2),
    "negative_equals_positive": ("negative", 1, 4),
    "negative_empty": ("negative", 1, 4),
    "negatives_under_10": ("note", 1, 4),
    "regions_none": ("note", 1, 5),
    "caption_long": ("note", 1, 5),
    "id_twice": ("note", 2, 0),
  }
  assert report["findings"]["box_outside"]["field"] == "bbox_info[0].bbox"
  assert (report["read"], report["records"], report["regions"], report["negatives"]) == (9, 6, 5, 1)
  assert [item.id for shard in read(given.output) for item in shard] == [
    "0.png",
    "2.png",
    "4.png",
    "5.png",
    "0.png",
    "0.png",
  ]
  assert read(given.output)[1][-1].short == "一只猫 🐈"
  out = capsys.readouterr().out
  assert f"{given.annotations}/a.json, record 2: bbox_info[0].bbox must lie in 0..1" in out
  assert "c.json" in out


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"caption": ""}, "a.json, record 1: caption: is empty"),
    ({"f_path": "nowhere.png"}, "a.json, record 1: image: no file 'nowhere.png'"),
    ({"bbox_info": [{"bbox": [0, 0, 2, 1]}]}, "a.json, record 1: bbox_info[0].bbox: must lie in 0..1"),
  ],
)
def test_strict_stops_at_the_first_fault(given, capsys, change, message):
  given.add("a.json", [make_annotation("0.png"), make_annotation("1.png"), make_annotation("2.png", caption=3)])
  records = [make_annotation("0.png"), make_annotation("1.png") | change, make_annotation("2.png", caption=3)]
  (given.annotations / "a.json").write_text(json.dumps(records))
  assert given.convert("--strict") == 1
  assert message in capsys.readouterr().err
  assert given.convert() == 0
  assert given.convert("--strict") == 1  # the shards are kept, and so are the faults found while they were written
  assert "a.json, record 1: " in capsys.readouterr().err


def test_strict_stops_at_a_broken_annotation_file(given, capsys):
  given.add("a.json", [make_annotation("0.png")])
  (given.annotations / "b.json").write_text("[{")
  assert given.convert("--strict") == 1
  assert "b.json, record 0: byte 2: the file ends inside a record" in capsys.readouterr().err


def test_nothing_usable_is_an_error_and_leaves_no_shard(given, capsys):
  given.add("a.json", [make_annotation("0.png", caption="")])
  assert given.convert() == 1
  err = capsys.readouterr().err
  assert "none of 1 records can be used" in err
  assert "caption_empty" in err
  assert not list(given.output.glob("*.array_record*"))
  (given.annotations / "a.json").write_text("[]")
  assert given.convert() == 1
  assert "no record in 1 input files" in capsys.readouterr().err
  (given.annotations / "a.json").write_text("oops")
  assert given.convert() == 1
  assert "neither a JSON list nor JSON lines" in capsys.readouterr().err
  given.add("a.json", [make_annotation("0.png")])
  assert given.convert() == 0


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("--annotations", "nowhere", "no annotation file or folder at 'nowhere'"),
    ("--images", "nowhere", "no images folder at 'nowhere'"),
    ("--name", "a-b", "--name must be made of letters, digits and underscores"),
    ("--split", "a/b", "--split must be made of letters, digits and underscores"),
    ("--output", "/dev/null/x", "/dev/null/x"),
  ],
)
def test_a_wrong_argument_is_an_error_without_a_traceback(given, capsys, option, value, message):
  given.add("a.json", [make_annotation("0.png")])
  assert given.convert(option, value) == 1
  err = capsys.readouterr().err
  assert err.startswith("error: ")
  assert message in err


@pytest.mark.parametrize("arguments", [[], ["photos"], ["finehard"], ["scenes", "--output", "x", "--train", "0"]])
def test_wrong_usage_says_so(capsys, arguments):
  with pytest.raises(SystemExit) as caught:
    prepare.main(arguments)
  assert caught.value.code == 2
  assert "usage: python -m fgclip_jax.prepare" in capsys.readouterr().err


def test_pairs_of_any_form_are_converted(tmp_path, capsys):
  (tmp_path / "1.png").write_bytes(make_image())
  region = {"box": [0, 0, 1, 1], "short": "a dog", "negatives": ["a cat"]}
  rows = [{"image": "1.png", "caption": "a dog, 狗"}, {"image": "2.png", "caption": "lost"}]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tmp_path / "b.csv").write_text('image,short,long\n1.png,"a dog, 狗",\n2.png,lost,lost\n1.png,a\n')
  (tmp_path / "c.json").write_text(json.dumps([{"image": "1.png", "short": "a dog, 狗", "regions": [region]}]))
  for file, next_config, kinds in (
    ("a.jsonl", "clip", {"image_missing"}),
    ("b.csv", "clip", {"image_missing", "row_wrong_width"}),
    ("c.json", "stage2", {"negatives_under_10"}),
  ):
    output = tmp_path / file.replace(".", "_")
    paths = ["--captions", tmp_path / file, "--images", tmp_path, "--output", output]
    assert prepare.main(["pairs", "--workers", "1", *map(str, paths)]) == 0
    ((kept,),) = read(output)
    assert (kept.id, kept.short, kept.long) == ("1.png", "a dog, 狗", "")
    assert set(json.loads((output / "report-train.json").read_text())["findings"]) == kinds
    assert f"configs/{next_config}.py" in capsys.readouterr().out
  assert kept.regions == (record.Region((0.0, 0.0, 1.0, 1.0), "a dog", "", ("a cat",)),)


def test_scenes_are_written(tmp_path, capsys):
  output = tmp_path / "scenes"
  arguments = ["--output", str(output), "--train", "5", "--validation", "2", "--workers", "1"]
  assert prepare.main(["scenes", *arguments]) == 0
  assert [sum(map(len, read(output, split))) for split in ("train", "validation")] == [5, 2]
  assert "--config=configs/quickstart.py" in capsys.readouterr().out


def test_real_photographs_are_all_converted(tmp_path, shared):
  folder = shared / "data" / "real_mini"
  if not folder.is_dir():
    pytest.skip(f"needs {folder}")
  paths = ["--annotations", folder / "jsonfiles", "--images", folder / "images", "--output", tmp_path]
  assert prepare.main(["finehard", "--strict", "--workers", "2", "--shards", "3", *map(str, paths)]) == 0
  shards = read(tmp_path)
  assert [len(shard) for shard in shards] == [16, 16, 16]
  for item in (item for shard in shards for item in shard):
    assert item.image == (folder / "images" / item.id).read_bytes()
    assert {len(region.negatives) for region in item.regions} <= {0, 10}
