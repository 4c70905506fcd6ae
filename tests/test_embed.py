"""The command that embeds: every input, both outputs, what is left out, and runs that are stopped."""

import json
import os
import pathlib

import jax
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from fgclip_jax import embed
from fgclip_jax.inference import model as api
from fgclip_jax.models import config
from fgclip_jax.models import params as parameters
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.weights import native
from tests.helpers.toy_models import init

TINY = config.preset("tiny")


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """A folder of eleven pictures, of which one is none, and of another file."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(1)
  for number in range(10):
    path = folder / ("b" if number % 2 else "a") / f"é {number}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(path)
  (folder / "b" / "broken.jpg").write_bytes(b"no picture")
  (folder / "notes.md").write_text("not asked for")
  return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=3, validation=1, workers=1)
  return folder


def read(path):
  """Embeddings and ids of an output, and what its report and its list of what was left out say."""
  path = pathlib.Path(path)
  stem = path.with_suffix("")
  left_out = pathlib.Path(f"{stem}.left_out.jsonl")
  faults = [json.loads(line) for line in left_out.read_text().splitlines()] if left_out.exists() else []
  if path.suffix == ".parquet":
    table = pyarrow.parquet.read_table(path)
    return np.stack(table["embedding"].to_numpy()), table["id"].to_pylist(), faults
  return np.load(path), pathlib.Path(f"{stem}.ids.txt").read_text().splitlines(), faults


def test_a_folder_of_images(model, photos, tmp_path):
  written, report = embed.embed(model, "images", str(photos), str(tmp_path / "new" / "out.npy"))
  features, ids, faults = read(tmp_path / "new" / "out.npy")
  assert ids == [f"{folder}/é {n}.png" for folder, first in (("a", 0), ("b", 1)) for n in range(first, 10, 2)]
  assert features.dtype == np.float32
  np.testing.assert_allclose(features, model.encode_image([photos / name for name in ids]), atol=1e-6)
  assert [(fault["id"], fault["kind"]) for fault in faults] == [("b/broken.jpg", "image_unreadable")]
  assert (report["rows"], report["items"], report["left_out"]) == (10, 11, {"image_unreadable": 1})
  assert sorted(os.listdir(tmp_path / "new")) == sorted(os.path.basename(path) for path in written)


def test_patterns_lists_and_single_files(model, photos, tmp_path):
  def ids(given, root=""):
    embed.embed(model, "images", str(given), str(tmp_path / "out.npy"), root=root, overwrite=True)
    return read(tmp_path / "out.npy")[1:]

  assert ids(photos / "**" / "*2.png") == ([str(photos / "a" / "é 2.png")], [])
  (tmp_path / "list.txt").write_text("b/é 3.png\n\na/é 0.png\na/gone.png\n")
  found, faults = ids(tmp_path / "list.txt", str(photos))
  assert found == ["b/é 3.png", "a/é 0.png"] and [fault["kind"] for fault in faults] == ["image_missing"]
  assert ids(photos / "a" / "é 4.png") == ([str(photos / "a" / "é 4.png")], [])


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_stopped_run_ends_with_the_same_bytes(model, photos, tmp_path, monkeypatch, suffix):
  monkeypatch.setattr(embed, "PART", 3)
  whole, stopped = tmp_path / f"whole{suffix}", tmp_path / f"stopped{suffix}"
  embed.embed(model, "images", str(photos), str(whole))
  encode, encoded = api.FGCLIP.encode_image, []

  def stop(self, pictures):
    if len(encoded) == 2:
      raise KeyboardInterrupt
    encoded.append(1)
    return encode(self, pictures)

  with monkeypatch.context() as patch:
    patch.setattr(api.FGCLIP, "encode_image", stop)
    with pytest.raises(KeyboardInterrupt):
      embed.embed(model, "images", str(photos), str(stopped))
  state = tmp_path / f"stopped{suffix}.parts"
  kept = {path.name: path.stat().st_mtime_ns for path in state.glob("00000[01].*")}
  (state / "000002.npy").write_bytes(b"half a part")
  assert len(kept) == 4 and not stopped.exists()
  with monkeypatch.context() as patch:  # stopped again, when the parts are there and the output is being made
    patch.setattr("shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      embed.embed(model, "images", str(photos), str(stopped))
  assert kept == {path.name: path.stat().st_mtime_ns for path in state.glob("00000[01].*")}, "parts are made once"
  embed.embed(model, "images", str(photos), str(stopped))
  assert not state.exists() and not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.lock"))
  names = [path.name.removeprefix("whole") for path in tmp_path.glob("whole*")]
  assert len(names) == (4 if suffix == ".npy" else 3)
  for name in names:
    assert (tmp_path / f"stopped{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes(), name


def test_what_is_there_already_is_kept(model, photos, tmp_path):
  output = tmp_path / "out.npy"
  embed.embed(model, "images", str(photos), str(output))
  before = output.stat().st_mtime_ns
  written, report = embed.embed(model, "images", str(photos), str(output))
  assert written == [] and report["rows"] == 10 and output.stat().st_mtime_ns == before
  other = api.FGCLIP(TINY, jax.tree.map(lambda leaf: leaf * 2, model.params))
  with pytest.raises(ValueError, match="was made with other settings .model was .*--overwrite"):
    embed.embed(other, "images", str(photos), str(output))
  assert embed.embed(other, "images", str(photos), str(output), overwrite=True)[0]
  (tmp_path / "mine.npy").write_bytes(b"of another origin")
  with pytest.raises(ValueError, match="is there already"):
    embed.embed(model, "images", str(photos), str(tmp_path / "mine.npy"))
  assert (tmp_path / "mine.npy").read_bytes() == b"of another origin"


def test_texts(model, tmp_path):
  (tmp_path / "t.txt").write_bytes("a cat\n\n  two dogs \r\n猫\nno \xff text\n".encode("latin-1", "ignore"))
  (tmp_path / "t.jsonl").write_text(
    '{"id": "x", "caption": "a cat"}\n{"caption": 3}\n{"caption": "' + "a " * 90 + '"}\n'
  )
  (tmp_path / "t.csv").write_text("id,text\n7,a cat\n8,two dogs\n")
  expected = model.encode_text(["a cat", "two dogs", "a " * 75])
  embed.embed(model, "texts", str(tmp_path / "t.txt"), str(tmp_path / "txt.npy"))
  features, ids, faults = read(tmp_path / "txt.npy")
  assert ids == ["1", "3"] and [fault["kind"] for fault in faults] == ["text_empty", "text_empty", "record_not_utf8"]
  np.testing.assert_allclose(features, expected[:2], atol=1e-6)
  _, report = embed.embed(model, "texts", str(tmp_path / "t.jsonl"), str(tmp_path / "json.parquet"), field="caption")
  features, ids, faults = read(tmp_path / "json.parquet")
  assert ids == ["x", "3"] and faults[0]["id"] == "2" and report["texts_cut"] == 1
  np.testing.assert_allclose(features, expected[[0, 2]], atol=1e-6)
  embed.embed(model, "texts", str(tmp_path / "t.csv"), str(tmp_path / "csv.npy"), kind="long")
  features, ids, _ = read(tmp_path / "csv.npy")
  assert ids == ["7", "8"]
  np.testing.assert_allclose(features, model.encode_text(["a cat", "two dogs"], "long"), atol=1e-6)


def test_regions(model, photos, tmp_path):
  boxes = {"a/é 0.png": [[0, 0, 0.5, 1], [0.2, 0.2, 0.9, 0.8]], "a/é 2.png": [], "b/é 1.png": [[0.1, 0, 1, 1]]}
  lines = [{"image": name, "boxes": each} for name, each in boxes.items()]
  lines[-1] = {"image": "b/é 1.png", "regions": [{"box": boxes["b/é 1.png"][0], "short": "as prepare takes it"}]}
  lines += [{"image": "a/é 4.png", "boxes": [[0.5, 0, 0.1, 1]]}, {"image": "gone.png", "boxes": []}]
  (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
  embed.embed(model, "regions", str(tmp_path / "r.jsonl"), str(tmp_path / "r.npy"), root=str(photos))
  features, ids, faults = read(tmp_path / "r.npy")
  assert ids == ["a/é 0.png#0", "a/é 0.png#1", "b/é 1.png#0"]
  assert [(fault["id"], fault["kind"]) for fault in faults] == [("4", "box_swapped"), ("5", "image_missing")]
  expected = model.encode_regions([photos / name for name in boxes], list(boxes.values()))
  np.testing.assert_allclose(features, np.concatenate(expected), atol=1e-6)


def test_record_folders(model, data, tmp_path):
  found = [scenes.make_record(0, number, "train") for number in range(3)]
  wanted = {
    ("images", "short"): (model.encode_image([r.image for r in found]), [r.id for r in found]),
    ("texts", "short"): (model.encode_text([r.short for r in found]), [r.id for r in found]),
    ("texts", "long"): (model.encode_text([r.long for r in found], "long"), [r.id for r in found]),
    ("texts", "region"): (
      model.encode_text([g.short for r in found for g in r.regions], "region"),
      [f"{r.id}#{k}" for r in found for k in range(len(r.regions))],
    ),
    ("regions", "short"): (
      np.concatenate(model.encode_regions([r.image for r in found], [[g.box for g in r.regions] for r in found])),
      [f"{r.id}#{k}" for r in found for k in range(len(r.regions))],
    ),
  }
  for (what, kind), (expected, names) in wanted.items():
    embed.embed(model, what, data, str(tmp_path / "out.parquet"), kind=kind, overwrite=True)
    features, ids, faults = read(tmp_path / "out.parquet")
    assert sorted(ids) == sorted(names) and not faults  # shards are filled in an order of their own
    np.testing.assert_allclose(features, expected[[names.index(name) for name in ids]], atol=1e-5)


def test_the_command(photos, model, tmp_path, capsys):
  folder = str(tmp_path / "model")
  native.write(folder, TINY, parameters.flatten(jax.device_get(model.params)))
  argv = ["--model", folder, "--images", str(photos), "--output", str(tmp_path / "out.npy")]
  assert embed.main(argv) == 0
  said = capsys.readouterr().out
  assert "10 rows of 16 numbers, of 11 items" in said and "left out 1 items: image_unreadable 1" in said
  assert f"wrote {tmp_path / 'out.npy'}" in said and "next: python -c" in said and "on 8 x cpu" in said
  features, ids, _ = read(tmp_path / "out.npy")
  np.testing.assert_allclose(features, model.encode_image([photos / name for name in ids]), atol=1e-5)
  assert embed.main(argv) == 0 and "is finished already: 10 rows" in capsys.readouterr().out
  (tmp_path / "broken.json").write_text('[{"text": "a"}, {"te')
  for argv, message in (
    (["--images", str(tmp_path / "none")], "no image, folder, list or record folder at"),
    (["--images", str(tmp_path / "*.jpg")], "holds none of the images"),
    (["--texts", str(tmp_path / "none.txt")], "no file or record folder at"),
    (["--texts", str(photos)], "is no record folder"),
    (["--texts", str(tmp_path / "broken.json")], "breaks off"),
    (["--regions", str(tmp_path / "out.ids.txt")], "must end in one of .jsonl, .json"),
  ):
    assert embed.main(["--model", folder, "--output", str(tmp_path / "new.npy"), *argv]) == 1
    assert message in capsys.readouterr().err, message
  assert embed.main(["--model", folder, "--images", str(photos), "--output", "out.csv"]) == 1
  assert "must end in .npy or .parquet" in capsys.readouterr().err


def test_a_name_that_is_not_unicode_and_a_wrong_field_in_the_command(model, tmp_path, capsysbinary):
  folder = str(tmp_path / "model")
  native.write(folder, TINY, parameters.flatten(jax.device_get(model.params)))
  (tmp_path / "ph").mkdir()
  picture = Image.new("RGB", (30, 30))
  picture.save(tmp_path / "ph" / "b.png")
  os.rename(tmp_path / "ph" / "b.png", os.fsencode(tmp_path) + b"/ph/caf\xe9.png")
  argv = ["--model", folder, "--images", str(tmp_path / "ph"), "--output", str(tmp_path / "o.npy")]
  assert embed.main(argv) == 1
  error = capsysbinary.readouterr().err.decode()
  assert "nothing to write: 1 of 1 images could not be used" in error and "id_not_unicode" in error
  picture.save(tmp_path / "ph" / "a.png")
  assert embed.main(argv) == 0
  assert "left out 1 items: id_not_unicode 1" in capsysbinary.readouterr().out.decode()
  os.rename(tmp_path / "ph", os.fsencode(tmp_path) + b"/\xff\x1b[2J")  # a folder's own name is no part of the ids
  argv = ["--model", folder, "--images", f"{tmp_path}/\udcff\x1b[2J", "--output", f"{tmp_path}/\udcff.npy"]
  assert embed.main(argv) == 0
  said = b"".join(capsysbinary.readouterr())
  assert rb"\udcff\x1b[2J" in said and b"\x1b[2J" not in said
  assert embed.main(argv) == 0 and b"is finished already: 1 rows" in capsysbinary.readouterr().out
  (tmp_path / "c.csv").write_text("id,caption\n1,a cat\n")
  argv = ["--model", folder, "--texts", str(tmp_path / "c.csv"), "--output", str(tmp_path / "c.npy")]
  assert embed.main(argv) == 1 and b"give --field caption" in capsysbinary.readouterr().err
  assert embed.main([*argv, "--field", "caption"]) == 0


def test_pictures_of_any_shape_and_their_regions(photos, data, tmp_path):
  size = config.preset("tiny_fgclip2")
  model = api.FGCLIP(size, init(size, 0))
  _, report = embed.embed(model, "images", str(photos), str(tmp_path / "images.npy"))
  features, ids, _ = read(tmp_path / "images.npy")
  np.testing.assert_allclose(features, model.encode_image([photos / name for name in ids]), atol=1e-6)
  assert report["settings"]["read"] == {"max_patches": 16}
  embed.embed(model, "regions", data, str(tmp_path / "regions.npy"))
  assert len(read(tmp_path / "regions.npy")[0]) > 3
  with pytest.raises(ValueError, match=r"with other settings \(read was .*16.*, now .*9"):
    embed.embed(model.with_max_patches(9), "images", str(photos), str(tmp_path / "images.npy"))
