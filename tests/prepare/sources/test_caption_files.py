"""Files of captions as people have them: those that are read, and errors that name fields and commands."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from fgclip_jax.prepare.sources import caption_files, known_forms
from fgclip_jax.storage.errors import RecordError
from tests.prepare.sources.test_sources import convert, count, make_picture, read

LONG = "A cat sleeps on a red mat. A dog looks at it, and the sun shines."
NAMES = ("a/0.jpg", "a/1.jpg", "a/2.jpg")
TALK = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": LONG}]


def jsonl(*records):
  return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def table(*rows, delimiter=","):
  return "".join(f"{delimiter.join(row)}\n" for row in rows).encode()


def parquet(records):
  file = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
  return file.getvalue()


def arrow(records):
  """A stream as `save_to_disk` writes it."""
  rows, file = pyarrow.Table.from_pylist(records), io.BytesIO()
  with pyarrow.ipc.new_stream(file, rows.schema) as writer:
    writer.write_table(rows)
  return file.getvalue()


def held(name, index):
  """An image in a row, as Hugging Face's `Image` is stored."""
  return {"bytes": make_picture(index), "path": name}


@pytest.fixture
def photos(tmp_path):
  (tmp_path / "photos" / "a").mkdir(parents=True)
  for index, name in enumerate(NAMES):
    (tmp_path / "photos" / name).write_bytes(make_picture(index))
  return tmp_path / "photos"


SHORTS = ["a cat", 'a "red" cat, here', "a dog"]
QUOTED = '"a ""red"" cat, here"'
PAIRS = list(zip(NAMES, SHORTS, strict=True))
FORMS = {
  "open_clip.csv": table(("filepath", "title"), PAIRS[0], (NAMES[1], QUOTED), PAIRS[2], delimiter="\t"),
  "open_clip.tsv": table(("filepath", "title"), *PAIRS, delimiter="\t"),
  "excel.csv": b"\xef\xbb\xbf" + table(("image", "caption"), *PAIRS, delimiter=";"),
  "lists.jsonl": jsonl(*({"image": name, "captions": [text, "another"]} for name, text in PAIRS)),
  "list.json": json.dumps([{"image": name, "text": text} for name, text in PAIRS]).encode(),
  "windows.jsonl": jsonl(*({"image": name.replace("/", "\\"), "short": text} for name, text in PAIRS)),
  "sharegpt4v.json": json.dumps(
    [{"id": str(index), "image": name, "conversations": TALK} for index, name in enumerate(NAMES)], indent=2
  ).encode(),
  "docci_descriptions.jsonlines": jsonl(
    *({"example_id": name[2], "split": "train", "image_file": name, "description": LONG} for name in NAMES)
  ),
  "metadata.jsonl": jsonl(*({"file_name": name, "text": text} for name, text in PAIRS)),
  "rows.parquet": parquet([{"image": held(None, i), "caption": [text, "more"]} for i, text in enumerate(SHORTS)]),
  "bytes.parquet": parquet([{"image": make_picture(i), "text": text} for i, text in enumerate(SHORTS)]),
  "paths.parquet": parquet([{"image": {"bytes": None, "path": name}, "text": "a cat"} for name in NAMES]),
  "data-00000-of-00001.arrow": arrow([{"image": held("x.jpg", i), "caption": text} for i, text in enumerate(SHORTS)]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_well_known_forms_are_read_as_they_are(tmp_path, photos, name):
  (tmp_path / name).write_bytes(FORMS[name])
  assert convert(tmp_path / "out", "pairs", captions=tmp_path / name, images=photos) == 0
  records = read(tmp_path / "out")
  assert count(tmp_path / "out")[:2] == (3, 3)
  assert sorted(entry.image for entry in records.values()) == sorted(map(make_picture, range(3)))
  long = name.startswith(("sharegpt4v", "docci"))
  assert {entry.long for entry in records.values()} == {LONG if long else ""}
  shorts = [entry.short for entry in records.values()]
  if long:
    assert shorts == ["A cat sleeps on a red mat."] * 3
  elif name != "paths.parquet":
    assert sorted(shorts) == sorted(SHORTS)
  if name not in ("windows.jsonl", "rows.parquet", "bytes.parquet", "data-00000-of-00001.arrow"):
    assert sorted(records) == list(NAMES)


def test_an_evaluation_reads_all_captions_of_the_same_forms(tmp_path):
  for name, data in FORMS.items():
    (tmp_path / name).write_bytes(data)
    found = caption_files.find([str(tmp_path / name)], caption_files.Fields(), command="evaluate")
    entries = [
      caption_files.parse(caption_files.load(raw), found.layout) for _, raw in caption_files.scan(*found.files)
    ]
    assert len(entries) == 3 and all(entry.short or entry.long for entry in entries)
    assert len(entries[0].short) == (2 if name in ("lists.jsonl", "rows.parquet") else 0 if entries[0].long else 1)


ODD = [{"picture": name, "words": "a cat on a mat", "more": {"long": [LONG]}, "key": 7} for name in NAMES]


def test_fields_can_be_named(tmp_path, photos):
  (tmp_path / "a.jsonl").write_bytes(jsonl(*ODD))
  fields = {"image_field": "picture", "short_field": "words", "long_field": "more/long", "id_field": "key"}
  assert convert(tmp_path / "out", "pairs", captions=tmp_path / "a.jsonl", images=photos, **fields) == 0
  (entry,) = read(tmp_path / "out").values()  # all three have the same id, which is noted
  assert (entry.id, entry.short, entry.long) == ("7", "a cat on a mat", LONG)
  found = count(tmp_path / "out")
  assert found == (3, 3, {"id_twice": 2})


PICTURE = ("--image_field", "picture")


def fails(tmp_path, capsys, data, *options, name="a.jsonl"):
  """Converts captions without any images; returns the error's line."""
  (tmp_path / name).write_bytes(data)
  (tmp_path / "none").mkdir(exist_ok=True)
  assert convert(tmp_path / "out", "pairs", *options, captions=tmp_path / name, images=tmp_path / "none") == 1
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and not (tmp_path / "out").exists()
  return error


@pytest.mark.parametrize(
  ("data", "name", "options", "messages"),
  [
    (jsonl(*ODD), "a.jsonl", (), ["no field of images", "'picture', 'words', 'more', 'key'", "--image_field picture"]),
    (jsonl(*ODD), "a.jsonl", PICTURE, ["no field of captions", "likely --short_field words"]),
    (jsonl(*ODD), "a.jsonl", (*PICTURE, "--short_field", "word"), ["no field 'word' (--short_field)", "is it 'words'"]),
    (jsonl(*ODD), "a.jsonl", (*PICTURE, "--short_field", "key"), ["none of the first 3 records", "must be text"]),
    (jsonl({"image": "a.jpg", "alt text": "x"}), "a.jsonl", (), ["likely --short_field 'alt text'"]),
    (table(("filepath", "title"), ("a", "b"), delimiter="~"), "a.csv", (), ["the fields are 'filepath~title'"]),
    (table(("a", "b"), ("1", "2")), "a.csv", (), ["the fields are 'a', 'b'", "name it by --image_field"]),
    (table(("image", "caption"), ("http://a/1.jpg", "2")), "a.csv", (), ["lists URLs", "img2dataset", "webdataset"]),
    (parquet([{"URL": "http://a/1.jpg", "TEXT": "a"}]), "a.parquet", (), ["lists URLs", "--url_col URL"]),
    (parquet([{"pic": held("a.jpg", 0), "cap": "a cat"}]), "a.parquet", (), ["likely --image_field pic"]),
    (jsonl(*({"image": f"/data/{x}/1.jpg", "short": "a"} for x in "ab")), "a.jsonl", (), ["give --images /data"]),
    (b"", "a.jsonl", (), ["no record in", "it is empty"]),
    (b"image,short\n", "a.csv", (), ["no record in"]),
    (b'["a", "b"]', "a.json", (), ["not objects with named fields"]),
    (b"[{]", "a.json", (), ["no record in"]),
    (b"no parquet", "a.parquet", (), ["no record in", "cannot be read"]),
    (b"no arrow", "a.arrow", (), ["no record in", "cannot be read"]),
    (b"x", "a.tar", (), ["holds images with captions in tar files: use `python -m fgclip_jax.prepare webdataset"]),
    (b"x", "a.xlsx", (), ["must end in one of"]),
  ],
)  # fmt: skip
def test_a_wrong_field_is_found_before_anything_else(tmp_path, capsys, data, name, options, messages):
  error = fails(tmp_path, capsys, data, *options, name=name)
  for message in messages:
    assert message in error


@pytest.mark.parametrize(
  ("content", "form"),
  [
    ({"info": {}, "images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}, "coco_captions"),
    ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}, "coco_instances"),
    ({"images": [{"filename": "a.jpg", "sentences": [{"raw": "x"}]}], "dataset": "coco"}, "karpathy"),
    ([{"f_path": "a.jpg", "caption": "x", "short_caption": "y"}], "finehard"),
    ([{"id": 1, "regions": [{"phrase": "a dog", "x": 1}]}], "visual_genome"),
    ([{"image_id": 1, "url": "http://a", "width": 1, "height": 1}], "image_data"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
def test_other_forms_are_named_with_the_command_that_reads_them(tmp_path, capsys, content, form, indent):
  error = fails(tmp_path, capsys, json.dumps(content, indent=indent).encode(), name="a.json")
  path = str(tmp_path / "a.json")
  assert error == f"error: {known_forms.advise(form, path, 'prepare')}"
  with pytest.raises(ValueError, match="use `python -m fgclip_jax"):
    caption_files.find([path], caption_files.Fields(), command="evaluate")


@pytest.mark.parametrize(
  ("value", "kind"),
  [
    (None, "id_missing"), ("", "id_missing"), (" \t", "id_missing"),
    ("a\u2028b", "id_of_several_lines"), ("a\x85", "id_of_several_lines"), ("a\vb", "id_of_several_lines"),
    ("a\nb", "id_of_several_lines"), (["a"], "id_wrong_type"), (True, "id_wrong_type"), ({"a": 1}, "id_wrong_type"),
  ],
)  # fmt: skip
def test_ids_that_are_none_are_noted_or_counted(tmp_path, photos, value, kind):
  records = [{"image": name, "short": "a cat", "key": place} for place, name in enumerate(NAMES)]
  records[1]["key"] = value
  (tmp_path / "a.jsonl").write_bytes(jsonl(*records))
  options = {"captions": tmp_path / "a.jsonl", "images": photos, "id_field": "key"}
  assert convert(tmp_path / "out", "pairs", **options) == 0
  kept = kind == "id_missing"
  assert sorted(read(tmp_path / "out")) == (["0", "2", "a/1.jpg"] if kept else ["0", "2"])
  assert count(tmp_path / "out") == (3, 2 + kept, {kind: 1})


def test_several_captions_are_rows_or_lists(tmp_path, photos):
  rows = [{"image": NAMES[0], "caption": text} for text in ("one", "two", "three")]
  (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows))
  assert convert(tmp_path / "out", "pairs", captions=tmp_path / "rows.jsonl", images=photos) == 0
  assert count(tmp_path / "out") == (3, 3, {"id_twice": 2})
  (tmp_path / "list.jsonl").write_bytes(jsonl({"image": NAMES[0], "caption": ["one", " ", "two"]}))
  assert convert(tmp_path / "list", "pairs", captions=tmp_path / "list.jsonl", images=photos) == 0
  assert read(tmp_path / "list")[NAMES[0]].short == "one"
  assert [caption.text for caption in read(tmp_path / "list")[NAMES[0]].captions] == ["one", "two"]
  assert count(tmp_path / "list") == (1, 1, {})


def test_a_split_is_chosen_by_the_field(tmp_path, photos, capsys):
  records = [{"image": name, "short": f"{name} x", "split": place % 2 and "val"} for place, name in enumerate(NAMES)]
  (tmp_path / "a.jsonl").write_bytes(b"{broken\n" + jsonl(*records))
  options = {"captions": tmp_path / "a.jsonl", "images": photos}
  assert convert(tmp_path / "out", "pairs", from_split="val", **options) == 0
  assert list(read(tmp_path / "out")) == [NAMES[1]]
  assert count(tmp_path / "out") == (2, 1, {"record_not_json": 1})
  assert convert(tmp_path / "other", "pairs", from_split="dev", **options) == 1
  assert "no record of split 'dev': the splits are 0, 'val'" in capsys.readouterr().err


def test_absolute_paths_are_found_under_the_images(tmp_path, photos):
  records = [{"image": str(photos / name), "short": f"{name} x"} for name in NAMES]
  (tmp_path / "a.jsonl").write_bytes(jsonl(*records, {"image": "/etc/passwd", "short": "not a picture"}))
  assert convert(tmp_path / "out", "pairs", captions=tmp_path / "a.jsonl", images=photos) == 0
  assert sorted(read(tmp_path / "out")) == list(NAMES)
  assert count(tmp_path / "out") == (4, 3, {"path_outside": 1})


def test_parse_names_the_field():
  layout = caption_files.Layout("picture", ("words",), "more/long", "key")
  for value, kind, field in (
    ([], "record_not_object", "record"),
    ({"words": "x"}, "image_missing", "picture"),
    ({"picture": 3, "words": "x"}, "image_wrong_type", "picture"),
    ({"picture": {"bytes": None, "path": None}, "words": "x"}, "image_missing", "picture"),
    ({"picture": "a", "words": [3]}, "short_wrong_type", "words"),
    ({"picture": "a", "words": "x", "more": {"long": 3}}, "long_wrong_type", "more/long"),
  ):
    with pytest.raises(RecordError) as caught:
      caption_files.parse(value, layout)
    assert (caught.value.kind, caught.value.field) == (kind, field)
