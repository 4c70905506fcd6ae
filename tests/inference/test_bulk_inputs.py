"""What `embed` reads: odd folders, lists, patterns and files, each thing read or left out by name."""

import gzip
import json
import os
import socket

import numpy as np
import pytest
from PIL import Image

from fgclip_jax import embed
from fgclip_jax.inference import bulk_inputs
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from fgclip_jax.storage.errors import RecordError
from tests.helpers.toy_models import init

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
  path = tmp_path_factory.mktemp("one") / "a.jpg"
  Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
  return path.read_bytes()


@pytest.fixture
def run(model, tmp_path):
  """Embeds something; returns the ids, and what was left out: kinds by name."""

  def embed_all(what, given, **options):
    output = tmp_path / "out" / "o.npy"
    _, report = embed.embed(model, what, str(given), str(output), overwrite=True, **options)
    ids = (tmp_path / "out" / "o.ids.txt").read_text().splitlines()
    assert len(ids) == report["rows"] == len(np.load(output))
    path = tmp_path / "out" / "o.left_out.jsonl"
    left_out = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert sum(report["left_out"].values()) == len(left_out)
    if what == "images":
      assert report["items"] == len(ids) + len(left_out)
    return ids, {fault["id"]: fault["kind"] for fault in left_out}

  return embed_all


@pytest.fixture
def photos(tmp_path, jpeg):
  """A folder of pictures with everything in it that is none."""
  folder = tmp_path / "photos"
  (folder / "sub" / "x.jpg").mkdir(parents=True)
  for name in ("ok.jpg", "sub/ok.jpg", "sub/x.jpg/inside.jpg", ".hidden.jpg", "two\nlines.jpg", "sep\u2028.jpg"):
    (folder / name).write_bytes(jpeg)
  with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
    file.write(jpeg)
  os.mkfifo(folder / "pipe.jpg")
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(os.path.relpath(folder / "socket.jpg"))
  (folder / "zero.jpg").symlink_to("/dev/zero")
  (folder / "circle.jpg").symlink_to("circle.jpg")
  (folder / "gone.jpg").symlink_to("nowhere")
  (folder / "sub" / "loop").symlink_to(folder)
  (folder / "again").symlink_to(".")
  with open(folder / "large.jpg", "wb") as file:
    file.truncate(1 << 33)
  return folder


ODD = {
  "pipe.jpg": "image_unreadable",
  "socket.jpg": "image_unreadable",
  "zero.jpg": "image_unreadable",
  "circle.jpg": "image_unreadable",
  "gone.jpg": "image_missing",
  "large.jpg": "image_too_large",
  r"two\nlines.jpg": "id_of_several_lines",
  r"sep\u2028.jpg": "id_of_several_lines",
}


def test_a_folder_with_everything_in_it(run, photos):
  ids, left_out = run("images", photos)
  assert ids == ["ok.jpg", "sub/ok.jpg", "sub/x.jpg/inside.jpg"]
  listed = {os.path.relpath(name, photos) if name.startswith("/") else name: kind for name, kind in left_out.items()}
  assert listed == ODD | {
    r"caf\udce9.jpg": "id_not_unicode",
    ".hidden.jpg": "file_hidden",
    "sub/loop": "folder_loop",
    "again": "folder_loop",
  }


@pytest.mark.parametrize("pattern", ["**/*.jpg", "**", "[!.]*/**/*.jpg", "*"])
def test_a_pattern_goes_round_in_no_circles(run, photos, pattern, monkeypatch):
  monkeypatch.chdir(photos.parent)
  ids, left_out = run("images", os.path.join("photos", pattern))
  if pattern == "*":
    assert ids == ["photos/ok.jpg"] and left_out[r"photos/caf\udce9.jpg"] == "id_not_unicode"
  else:
    assert "photos/sub/x.jpg/inside.jpg" in ids and len(ids) == len(set(ids)) <= 12
  if pattern[0] != "[":
    assert {f"photos/{name}": kind for name, kind in ODD.items()}.items() <= left_out.items()


def test_a_list_in_any_form(run, photos):
  names = ["ok.jpg", "caf\udce9.jpg", "pipe.jpg", "sub", "sub/ok.jpg", "zero.jpg", "a\0b.jpg", "/dev/zero"]
  data = b"\r\n".join(os.fsencode(name) for name in names) + b"\r"
  path = photos.parent / "list.txt"
  expected = {
    r"caf\udce9.jpg": "id_not_unicode",
    "pipe.jpg": "image_unreadable",
    "sub": "image_unreadable",
    "zero.jpg": "image_unreadable",
    r"a\x00b.jpg": "image_unreadable",
    "/dev/zero": "image_unreadable",
  }
  for form in (data, b"\xef\xbb\xbf" + data.replace(b"\r\n", b"\r")):
    path.write_bytes(form)
    assert run("images", path, root=str(photos)) == (["ok.jpg", "sub/ok.jpg"], expected)
  path.write_bytes("ok.jpg\nsub/ok.jpg\n".encode("utf-16"))
  assert run("images", path, root=str(photos)) == (["ok.jpg", "sub/ok.jpg"], {})
  with gzip.open(photos.parent / "list.txt.gz", "wt") as file:
    file.write("ok.jpg\n")
  assert run("images", photos.parent / "list.txt.gz", root=str(photos)) == (["ok.jpg"], {})


@pytest.mark.parametrize("what", ["images", "texts", "regions"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle"])
def test_an_input_that_is_no_file_ends_at_once_and_leaves_nothing(model, tmp_path, what, kind):
  path = tmp_path / ("a.jpg" if what == "images" else "t.jsonl")
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  else:
    path.symlink_to("/dev/zero" if kind == "device" else path.name)
  with pytest.raises((OSError, ValueError), match=r"a\.jpg|t\.jsonl"):
    embed.embed(model, what, str(path), str(tmp_path / "o.npy"))
  assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_tall_picture_in_a_small_file_is_refused_by_its_size(run, tmp_path, jpeg):
  (tmp_path / "p").mkdir()
  Image.new("1", (2, 100_000_000)).save(tmp_path / "p" / "tall.png")
  (tmp_path / "p" / "a.jpg").write_bytes(jpeg)
  ids, left_out = run("images", tmp_path / "p")
  assert ids == ["a.jpg"] and list(left_out) == ["tall.png"]


def test_ids_of_texts(run, tmp_path):
  lines = [
    {"id": None, "text": "a"},
    {"id": "", "text": "b"},
    {"id": " \t", "text": "c"},
    {"id": "x", "text": "d"},
    {"id": 7, "text": "e"},
    {"id": "x", "text": ["f", "g"]},
    {"id": True, "text": "h"},
    {"id": ["a"], "text": "i"},
    {"id": float("nan"), "text": "j"},
    {"id": "y", "text": []},
    {"id": "y", "text": ["k", None]},
    *({"id": f"a{mark}b", "text": "k"} for mark in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
    {"id": "end\u2028", "text": "l"},
    {"id": "\ud800", "text": "l"},
  ]
  (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
  ids, left_out = run("texts", tmp_path / "t.jsonl")
  assert ids == ["1", "2", "3", "x", "7", "x#0", "x#1"]
  assert [left_out[str(number)] for number in (7, 8, 9)] == ["id_wrong_type"] * 3
  assert [left_out[str(number)] for number in (10, 11)] == ["text_missing"] * 2
  assert {left_out[str(number)] for number in range(12, 23)} == {"id_of_several_lines"}
  assert left_out["23"] == "id_not_unicode" and len(left_out) == 17
  (tmp_path / "t.csv").write_bytes("\ufeffid,text\r\n,a\r\n\u0085,b\r\nz,c\r\n".encode())
  assert run("texts", tmp_path / "t.csv") == (["1", "2", "z"], {})


def test_ids_that_are_there_twice_are_counted(model, tmp_path):
  (tmp_path / "t.csv").write_text("id,text\na,1\nb,2\na,3\na,4\n")
  _, report = embed.embed(model, "texts", str(tmp_path / "t.csv"), str(tmp_path / "o.npy"))
  assert report["ids_repeated"] == 2 and report["rows"] == 4


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("c.csv", "id,caption\n1,a cat\n", "'text'; the fields are 'id', 'caption': give --field caption"),
    ("c.tsv", "id\tTitle\n1\ta\n", "give --field Title"),
    ("c.jsonl", '{"a": 1}\n{"texts": "x"}\nno json\n', "'a', 'texts': give --field texts"),
    ("c.json", '[{"id": 1, "german_caption": "x"}, {"id": 2}]', "give --field german_caption"),
    ("c.json", '[{"x": 1}]', "the fields are 'x': name one with --field"),
    ("c.csv", "\ufefffilepath\ttitle\na.jpg\ta cat\n", "give --field title"),
  ],
)
def test_a_field_that_no_record_has_is_said_at_once(model, tmp_path, name, content, message, monkeypatch):
  monkeypatch.setattr(api.FGCLIP, "encode_text", None)
  (tmp_path / name).write_text(content, encoding="utf-8")
  with pytest.raises(ValueError, match=f"no record of .*{name}' has a field .*{message}"):
    embed.embed(model, "texts", str(tmp_path / name), str(tmp_path / "o.npy"))
  assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_regions_without_their_fields(model, tmp_path):
  (tmp_path / "r.jsonl").write_text('{"file_name": "a.jpg", "boxes": []}\n')
  with pytest.raises(ValueError, match="has `image` and `boxes` .*; the fields are 'file_name', 'boxes'"):
    embed.embed(model, "regions", str(tmp_path / "r.jsonl"), str(tmp_path / "o.npy"))


def test_a_field_that_comes_late_is_enough(run, tmp_path):
  (tmp_path / "t.jsonl").write_text('{"a": 1}\n' * 300 + '{"text": "x"}\n')
  ids, left_out = run("texts", tmp_path / "t.jsonl")
  assert ids == ["301"] and set(left_out.values()) == {"text_missing"}


def test_texts_that_are_very_long(run, tmp_path):
  (tmp_path / "t.txt").write_text("a cat\n" + "word " * 300_000 + "\na dog")
  assert run("texts", tmp_path / "t.txt") == (["1", "3"], {"2": "text_too_large"})


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.json", "t.csv"])
def test_one_line_of_a_hundred_megabytes_is_an_error_that_names_the_file(model, tmp_path, name):
  with open(tmp_path / name, "wb") as file:
    file.write(b'"' if name != "t.txt" else b"")
    file.writelines(b"word " * (1 << 18) for _ in range(80))
  with pytest.raises(ValueError, match=f"{name}. breaks off"):
    embed.embed(model, "texts", str(tmp_path / name), str(tmp_path / "o.npy"))
  assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_texts_behind_marks_and_in_other_encodings(model, run, tmp_path):
  for name, data in (
    ("a.txt", "\ufeffa cat\r\ntwo\u2028dogs\r\n".encode()),
    ("b.txt", "a cat\rtwo\u2028dogs\r".encode()),
    ("c.txt", "a cat\ntwo\u2028dogs".encode("utf-16")),
    ("d.txt.gz", gzip.compress(b"a cat\ntwo dogs\n")),
  ):
    (tmp_path / name).write_bytes(data)
    assert run("texts", tmp_path / name) == (["1", "2"], {}), name
  expected = model.encode_text(["a cat", "two dogs"])
  np.testing.assert_allclose(np.load(tmp_path / "out" / "o.npy"), expected, atol=1e-6)


def test_ids_are_checked():
  for name in ("a", "a b", "猫.jpg", "a\tb"):
    bulk_inputs.check_id(name)
  for name, kind in (
    ("", "id_empty"),
    (" ", "id_empty"),
    ("a\x85", "id_of_several_lines"),
    ("\udc80", "id_not_unicode"),
  ):
    with pytest.raises(RecordError) as caught:
      bulk_inputs.check_id(name)
    assert caught.value.kind == kind


def test_boxes_that_are_no_numbers_are_left_out(run, tmp_path, jpeg):
  (tmp_path / "a.jpg").write_bytes(jpeg)
  boxes = ["[[0, 0, NaN, 1]]", "[[0, 0, Infinity, 1]]", "[[0, 0, 1, 1]]", '[["0", 0, 1, 1]]', "null", "3"]
  (tmp_path / "r.jsonl").write_text("".join(f'{{"image": "a.jpg", "boxes": {each}}}\n' for each in boxes))
  ids, left_out = run("regions", tmp_path / "r.jsonl", root=str(tmp_path))
  assert ids == ["a.jpg#0"] and set(left_out) == {"1", "2", "4", "6"}
