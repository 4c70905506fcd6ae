"""Web pairs of img2dataset's tar and Parquet files: captions from wherever they lie, and what failed by its name."""

import gzip
import io
import json
import subprocess
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fgclip_jax.data.caption_set import ALT_TEXT, Caption
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare.sources import webdataset
from fgclip_jax.storage import tars
from tests.helpers import standin, trees
from tests.helpers.trees import load_all


def write(path, samples):
  (trees.write_tar if path.suffix == ".tar" else trees.write_parquet)(path, samples)
  return str(path)


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("where", [str, standin.remote])
def test_samples_become_records(tmp_path, form, where):
  samples = [
    trees.make_sample("000000000", long="a long caption", short="another"),
    trees.make_sample("000000001", long=None, short="another"),
  ]
  path = where(write(tmp_path / f"00007.{form}", samples))
  (first, second), reported = load_all(webdataset.WebDataset((path,), long_field="long"))
  assert (first.id, first.image) == ("00007/000000000", b"image")
  assert (first.short, first.long) == ("short 000000000", "a long caption")
  assert (second.id, second.short, second.long) == ("00007/000000001", "short 000000001", "")
  assert reported == [("note", "long_caption_none")]
  (first, _), reported = load_all(webdataset.WebDataset((path,), short_field="short"))
  assert (first.short, first.long, reported) == ("another", "", [])


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_what_cannot_be_used_is_named(tmp_path, form):
  samples = [
    trees.make_sample("0", None),
    trees.make_sample("1", None, status="success"),
    trees.make_sample("2", caption=" "),
    trees.make_sample("3"),
  ]
  found, reported = load_all(webdataset.WebDataset((write(tmp_path / f"a.{form}", samples),)))
  assert (found[:3], reported) == (["image_not_downloaded", "image_missing", "short_empty"], [])
  assert found[3].short == "short 3"


def test_samples_of_tar_files_without_json_or_with_other_than_json(tmp_path):
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    for name, data in [
      ("0.png", b"0"),
      ("0.txt", "café".encode()),
      ("1.PNG", b"1"),
      ("1.json", b'{"caption": "one"}'),
      ("2.webp", b"2"),
      ("2.json", b"[]"),
      ("3.webp", b"3"),
      ("3.json", b'{"caption": '),
      ("4.webp", b"4"),
      ("4.txt", "café".encode("latin-1")),
      ("5.jpg", b"5"),
    ]:
      trees.add_member(archive, name, data)
  found, _ = load_all(webdataset.WebDataset((str(tmp_path / "a.tar"),)))
  assert [(record.image, record.short) for record in found[:2]] == [(b"0", "café"), (b"1", "one")]
  assert found[2:] == ["side_file_not_object", "record_not_json", "short_not_unicode", "short_missing"]


def test_a_tar_file_of_a_folder_of_images_with_texts_is_read(tmp_path):
  for name in ("a/1", "b/1"):
    path = tmp_path / "photos" / name
    path.parent.mkdir(parents=True)
    path.with_suffix(".jpg").write_bytes(name.encode())
    path.with_suffix(".txt").write_text(f"caption of {name}")
  subprocess.run(["tar", "--sort=name", "-cf", "photos.tar", "photos"], cwd=tmp_path, check=True)
  found, _ = load_all(webdataset.WebDataset((str(tmp_path / "photos.tar"),)))
  assert [(record.id, record.image, record.short) for record in found] == [
    (f"photos/photos/{name}", name.encode(), f"caption of {name}") for name in ("a/1", "b/1")
  ]


def test_a_broken_tar_file_gives_what_lies_before_the_break(tmp_path):
  path = tmp_path / "a.tar"
  data = trees.write_tar(path, [trees.make_sample(f"{index}", b"x" * 5000) for index in range(10)])
  offset = [offset for offset, _ in tars.scan(str(path))][4]
  path.write_bytes(data[: offset + 3000])
  found, _ = load_all(webdataset.WebDataset((str(path),)), broken=True)
  assert [record.id for record in found[:-1]] == ["a/0", "a/1", "a/2", "a/3"]
  assert found[-1] == "tar_truncated"


_ENTRIES = [{"url": "http://a.b/0.jpg", "key": "0", "long": "long 0"}, {"url": "http://a.b/1.jpg", "key": "1"}]


def write_captions(path):
  """Writes the long captions in the form that a file's name asks for."""
  if path.suffix == ".parquet":
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_ENTRIES), path)
  elif path.suffix == ".csv":
    path.write_text("url,key,long\nhttp://a.b/0.jpg,0,long 0\nhttp://a.b/1.jpg,1,\n")
  elif path.name == "object.json":
    names = {entry[name]: entry.get("long") for entry in _ENTRIES for name in ("url", "key")}
    path.write_text(json.dumps({**names, "http://a.b/1.jpg": 3}))
  elif path.suffix == ".json":
    path.write_text(json.dumps(_ENTRIES))
  else:
    text = "".join(json.dumps(entry) + "\n" for entry in _ENTRIES).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
  return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "object.json"])
@pytest.mark.parametrize("by", ["url", "key"])
def test_long_captions_come_from_files_of_any_form(tmp_path, name, by, capsys):
  files = [standin.remote(write_captions(tmp_path / name))]
  table = webdataset.read_long_captions(files, by, "long", str(tmp_path / "state"), 1)
  out = capsys.readouterr().out
  count = 2 if name == "object.json" else 1
  assert f"Found {count} long captions in 1 files" in out
  assert f"{count} entries have no {by} or no long" in out
  path = write(tmp_path / "0.tar", [trees.make_sample(key) for key in "012"])
  found, reported = load_all(webdataset.WebDataset((path,), long_captions=table, by=by))
  assert [record.long for record in found] == ["long 0", "", ""]
  assert reported == [("note", "long_caption_none")] * 2


def test_files_of_long_captions_that_cannot_be_read_are_named(tmp_path):
  def read(text, name="a.json"):
    (tmp_path / name).write_text(text)
    return webdataset.read_long_captions([str(tmp_path / name)], "url", "long", str(tmp_path / "state"), 1)

  with pytest.raises(ValueError, match="a.json: byte 17: the file ends inside the list"):
    read('[{"url": "a"}, 3 ')
  with pytest.raises(ValueError, match="no long caption in .*a.json: .*entry 0: url: is missing"):
    read('[{"uri": "a"}]')
  with pytest.raises(ValueError, match="a.parquet: long: is no column; there are key, url"):
    trees.write_parquet(tmp_path / "a.parquet", [{"image": b"", "side": {"key": "a", "url": "b"}}], images=False)
    webdataset.read_long_captions([str(tmp_path / "a.parquet")], "url", "long", str(tmp_path / "state"), 1)


def test_files_are_found_under_folders(tmp_path):
  samples = [trees.make_sample("0")]
  for name in ("b/00001.tar", "b/00000.tar", "c/1.parquet"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write(path, samples)
  trees.write_parquet(tmp_path / "b" / "00000.parquet", samples, images=False)
  files = [str(tmp_path / name) for name in ("b/00000.tar", "b/00001.tar", "c/1.parquet")]
  assert webdataset.find_files([str(tmp_path)]) == tuple(files)
  assert webdataset.find_files([files[1], str(tmp_path / "b")]) == (files[1], files[0])
  with pytest.raises(FileNotFoundError, match="no file or folder at"):
    webdataset.find_files([str(tmp_path / "d")])
  (tmp_path / "d").mkdir()
  with pytest.raises(FileNotFoundError, match="no .tar file"):
    webdataset.find_files([str(tmp_path / "d")])
  (tmp_path / "d.tar.gz").touch()
  with pytest.raises(ValueError, match="must end in .tar or .parquet"):
    webdataset.find_files([str(tmp_path / "d.tar.gz")])


def test_the_command_counts_what_was_planted_and_continues(tmp_path, capsys):
  def make_samples(green):
    pictures = [None if index % 10 == 3 else trees.make_image((index * 6, green, 0)) for index in range(40)]
    return [trees.make_sample(f"{index}", picture) for index, picture in enumerate(pictures)]

  trees.write_tar(tmp_path / "in" / "00000.tar", make_samples(0))
  data = trees.write_tar(tmp_path / "in" / "00001.tar", make_samples(255))
  (tmp_path / "in" / "00001.tar").write_bytes(data[: len(data) // 2])
  captions = tmp_path / "long.jsonl"
  entries = [{"url": f"http://a.b/{index}.jpg", "long": f"long {index}"} for index in range(0, 40, 2)]
  captions.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
  command = ["webdataset", "--input", tmp_path / "in", "--long_captions", captions, "--output", tmp_path / "out"]
  command = [*map(str, command), "--workers", "1", "--shards", "2"]
  assert prepare.main(command) == 0
  report = json.loads((tmp_path / "out" / "report-train.json").read_text())
  findings = {kind: found["count"] for kind, found in report["findings"].items()}
  kept = report["read"] - 40  # of the broken file
  assert 15 <= kept < 25
  failed = sum(index % 10 == 3 for index in range(kept))
  assert (findings["tar_truncated"], findings["image_not_downloaded"]) == (1, 4 + failed)
  assert report["records"] == 36 + kept - failed
  assert report["long_captions"] == 20 + (kept + 1) // 2
  assert findings["long_caption_none"] == report["records"] - report["long_captions"]
  capsys.readouterr()
  assert prepare.main(command) == 0
  assert "2 of 2 shards are finished already" in capsys.readouterr().out
  captions.write_text("")
  assert prepare.main(command) == 1
  assert "no long caption in" in capsys.readouterr().err


def _jpeg(seed):
  picture = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8))
  stream = io.BytesIO()
  picture.save(stream, "JPEG")
  return stream.getvalue()


def _tar(path, members):
  with tarfile.open(path, "w") as archive:
    for name, data in members:
      trees.add_member(archive, name, data)


def _prepare(tmp_path, *tars):
  output = tmp_path / "out"
  code = prepare.main(
    ["webdataset", "--input", *map(str, tars), "--output", str(output), "--workers", "1", "--overwrite"]
  )
  report = output / "report-train.json"
  return code, json.loads(report.read_text()) if report.exists() else None


def test_names_with_dots_are_samples_of_their_own(tmp_path, capsys):
  texts = [("IMG.001.jpg", _jpeg(0)), ("IMG.001.txt", b"first"), ("IMG.002.jpg", _jpeg(1)), ("IMG.002.txt", b"second")]
  _tar(tmp_path / "dots.tar", texts)
  _tar(tmp_path / "compound.tar", [("s0.input.jpg", _jpeg(0)), ("s0.outputs.txt", b"label")])
  code, report = _prepare(tmp_path, tmp_path / "dots.tar", tmp_path / "compound.tar")
  assert (code, report["read"], report["records"]) == (0, 3, 2)
  assert "its files end in .input.jpg, .outputs.txt. An ending begins at the first dot" in capsys.readouterr().out


def test_members_and_ids_that_come_twice_are_counted(tmp_path):
  members = [("000.jpg", 0), ("000.jpg", 1), ("000.txt", b"first"), ("001.jpg", 2), ("001.txt", b"one"), ("000.jpg", 3)]
  members = [(name, _jpeg(data) if isinstance(data, int) else data) for name, data in members]
  _tar(tmp_path / "twice.tar", [*members, ("000.txt", b"again")])
  code, report = _prepare(tmp_path, tmp_path / "twice.tar")
  assert (code, report["read"], report["records"]) == (0, 3, 3)
  found = {kind: entry["count"] for kind, entry in report["findings"].items()}
  assert (found["tar_member_twice"], found["id_twice"]) == (1, 1)
  assert report["findings"]["id_twice"]["record"] == 2


def test_files_of_a_sample_that_are_apart_are_named_with_the_cure(tmp_path):
  pictures = [(f"{number}.jpg", _jpeg(number)) for number in range(3)]
  texts = [(f"{number}.txt", b"text") for number in range(2)]
  _tar(tmp_path / "apart.tar", [*pictures, *texts, ("9.jpg", _jpeg(9)), ("9.txt", b"\xef\xbb\xbfgood")])
  code, report = _prepare(tmp_path, tmp_path / "apart.tar")
  assert (code, report["read"], report["records"]) == (0, 6, 1)
  assert [report["findings"][kind]["count"] for kind in ("short_missing", "image_missing")] == [3, 2]
  assert all(
    "tar --sort=name" in entry["message"] for entry in report["findings"].values() if entry["loss"] == "record"
  )


def test_a_hostile_tar_does_not_end_the_others(tmp_path):
  entry = tarfile.TarInfo("././@LongLink")
  entry.type, entry.size = b"L", 5120
  (tmp_path / "long.tar").write_bytes((entry.tobuf(tarfile.GNU_FORMAT) + b"a" * 5120) * 3000)
  sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1", "GNU.sparse.name": "a.jpg"}
  with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as archive:
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = sparse
    archive.addfile(info)
  _tar(tmp_path / "good.tar", [("0.jpg", _jpeg(0)), ("0.txt", b"text")])
  code, report = _prepare(tmp_path, *(tmp_path / f"{name}.tar" for name in ("long", "sparse", "good")))
  found = {kind: entry["count"] for kind, entry in report["findings"].items()}
  assert (code, report["records"], found["tar_truncated"], found["tar_member_sparse"]) == (0, 1, 1, 1)


def test_lists_of_captions_in_parquet_are_read_as_pairs_reads_them(tmp_path):
  rows = [
    {"jpg": _jpeg(0), "caption": ["one", "two"], "long": ["long one"]},
    {"jpg": _jpeg(1), "caption": [None, " ", "three"], "long": []},
    {"jpg": _jpeg(2), "caption": [], "long": None},
  ]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
  found, reported = load_all(webdataset.WebDataset((str(tmp_path / "a.parquet"),), "caption", "long"))
  assert [(record.short, record.long) for record in found[:2]] == [("one", "long one"), ("three", "")]
  assert found[0].captions == (Caption("one"), Caption("long one", "long"), Caption("two"))
  assert found[1].captions == () and found[2] == "short_empty"
  assert ("note", "captions_unused") not in reported


def test_alt_text_is_kept_beside_captions_of_models(tmp_path):
  members = []
  for number, fields in enumerate(
    [
      {"recaption": "a brown dog", "blip": "a dog", "dense": "A brown dog runs."},
      {"recaption": "a cat", "blip": 3},
      {"recaption": "dog for sale"},
    ]
  ):
    parts = {"jpg": _jpeg(number), "txt": b"dog for sale", "json": json.dumps(fields).encode()}
    members += [(f"{number}.{suffix}", data) for suffix, data in parts.items()]
  _tar(tmp_path / "a.tar", members)
  file = (str(tmp_path / "a.tar"),)
  alt_text = Caption("dog for sale", source=ALT_TEXT)
  found, _ = load_all(webdataset.WebDataset(file, "recaption"))
  assert [record.captions for record in found] == [
    (Caption("a brown dog"), alt_text),
    (Caption("a cat"), alt_text),
    (alt_text,),
  ]
  found, reported = load_all(webdataset.WebDataset(file, "recaption", further_fields=("blip", "dense:long")))
  further = Caption("a dog", source="blip"), Caption("A brown dog runs.", "long", source="dense")
  assert found[0].captions == (Caption("a brown dog"), alt_text, *further)
  assert found[1].captions == (Caption("a cat"), alt_text)
  assert reported == [("annotation", "further_caption_wrong_type")]
  # by itself, the text beside an image is a caption like any other
  found, _ = load_all(webdataset.WebDataset(file))
  assert [(record.short, record.captions) for record in found] == [("dog for sale", ())] * 3
  found, _ = load_all(webdataset.WebDataset(file, alt_text_field="txt", further_fields=("recaption",)))
  assert found[1].captions == (alt_text, Caption("a cat", source="recaption"))


def test_arguments_of_earlier_versions_stay(tmp_path):
  assert webdataset.WebDataset(("a.tar",), "recaption").arguments() == {
    "short_field": "recaption",
    "long_field": None,
    "long_captions": None,
  }


@pytest.mark.parametrize(
  ("names", "options", "message"),
  [
    (("jpg", "TEXT"), (), "has no field 'txt' or 'caption': it has 'jpg', 'TEXT'; name one by --short_field"),
    (
      ("jpg", "caption"),
      ("--long_field", "recap"),
      "has no field 'recap': it has 'jpg', 'caption'; name one by --long",
    ),
    (
      ("picture", "caption"),
      (),
      "has no column of images (jpg, jpeg, png, webp, image, img): it has 'picture', 'caption'",
    ),
  ],
)
def test_wrong_fields_of_parquet_are_said_before_any_picture_is_read(tmp_path, capsys, names, options, message):
  rows = [dict(zip(names, (b"no picture", "text"), strict=True))]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
  command = ["webdataset", "--input", str(tmp_path / "a.parquet"), "--output", str(tmp_path / "o"), *options]
  assert prepare.main(command) == 1 and message in capsys.readouterr().err


def test_wrong_fields_of_tars_are_said_before_any_picture_is_read(tmp_path, capsys):
  members = [("0.jpg", _jpeg(0)), ("0.json", b'{"alt": "a"}'), ("1.jpg", _jpeg(1)), ("1.json", b"["), ("2.json", b"7")]
  _tar(tmp_path / "a.tar", members)
  command = ["webdataset", "--input", str(tmp_path / "a.tar"), "--output", str(tmp_path / "o"), "--workers", "1"]
  assert prepare.main(command) == 1
  assert "has no field 'txt' or 'caption': it has 'alt'; name one by --short_field" in capsys.readouterr().err
  assert prepare.main([*command, "--short_field", "alt"]) == 0
