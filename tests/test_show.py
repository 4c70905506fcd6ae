"""The command that draws heat maps."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fgclip_jax import show
from fgclip_jax.models import config, params
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.weights import native

TINY = config.preset("tiny")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  rng = np.random.default_rng(0)
  flat = params.flatten(params.abstract_params(TINY))
  folder = str(tmp_path_factory.mktemp("models") / "tiny")
  native.write(folder, TINY, {name: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for name, leaf in flat.items()})
  return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("scenes"))
  scenes.write(folder, train=1, validation=3, workers=1)
  return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
  path = tmp_path_factory.mktemp("photos") / "a.png"
  Image.new("RGB", (90, 60), (200, 30, 30)).save(path)
  return str(path)


def test_a_record_is_shown_with_its_region_captions(model, data, tmp_path, capsys):
  output = tmp_path / "new" / "heat.png"
  assert show.main(["--model", model, "--data", data, "--index", "2", "--output", str(output)]) == 0
  said = capsys.readouterr().out
  regions = scenes.make_record(0, 2, "validation").regions
  for region in regions:
    assert re.search(rf"{region.short}: -?0\.\d+ to -?0\.\d+ over the picture; in the box -?0\.\d+\n", said)
  assert f"wrote {output}" in said and "next: python -m fgclip_jax.show" in said
  with Image.open(output) as sheet:
    sheet.load()
    assert sheet.width > 4 * 300
  assert show.main(["--model", model, "--data", data, "--region", "1", "--output", str(output)]) == 0
  assert len(re.findall("over the picture", capsys.readouterr().out)) == 1
  assert show.main(["--model", model, "--data", data, "--text", "a cat", "--output", str(output)]) == 0
  assert re.search(r"a cat: .*in the box -?0\.\d+, -?0\.\d+, -?0\.\d+\n", capsys.readouterr().out)


def test_a_picture_is_shown_with_texts_and_boxes(model, photo, tmp_path, capsys):
  output = tmp_path / "heat.jpg"
  argv = ["--model", model, "--image", photo, "--output", str(output), "--text", "a red wall", "a dog"]
  assert show.main(argv) == 0
  assert "in the box" not in capsys.readouterr().out
  assert show.main([*argv, "--box", "0.1", "0.1", "0.5", "0.9"]) == 0
  assert len(re.findall(r"in the box -?0\.\d+\n", capsys.readouterr().out)) == 2
  with Image.open(output) as sheet:
    assert sheet.format == "JPEG"


@pytest.mark.parametrize(
  ("name", "content", "count"),
  [
    ("3x2", None, 6),
    ("b.json", "[[0, 0, 0.5, 1], [0.1, 0.2, 0.9, 1]]", 2),
    ("b.jsonl", '{"box": [0, 0, 0.5, 1]}\n[0.1, 0.2, 0.9, 1]\n', 2),
    ("b.csv", "x1,y1,x2,y2\n0, 0,.5,1\n0.1,2e-1,0.9,1.0\n", 2),
  ],
)
def test_captions_are_scored_with_boxes(model, photo, tmp_path, capsys, name, content, count):
  boxes = name
  if content:
    boxes = str(tmp_path / name)
    (tmp_path / name).write_text(content)
  output = tmp_path / "heat.png"
  argv = ["--model", model, "--image", photo, "--output", str(output), "--captions", "a red wall", "a dog 猫"]
  assert show.main(argv) == 0
  with Image.open(output) as sheet:
    alone = sheet.size
  assert show.main([*argv, "--boxes", boxes]) == 0
  said = capsys.readouterr().out
  rows = re.findall(r"^ *\d+ +(\d\.\d\d \d\.\d\d \d\.\d\d \d\.\d\d) .*\*", said, re.MULTILINE)
  assert len(rows) == count and ("0.10 0.20 0.90 1.00" in rows) == (content is not None)
  with Image.open(output) as sheet:
    assert sheet.width >= alone[0] and sheet.height > alone[1]


def test_what_is_wrong_is_said(model, data, photo, tmp_path, capsys):
  text = tmp_path / "no.png"
  text.write_text("no picture")
  boxes = tmp_path / "boxes.csv"
  boxes.write_text("x1,y1,x2,y2\n0,0,one,1\n")
  for argv, message in (
    (["--image", str(tmp_path / "none.png"), "--text", "a"], "No such file"),
    (["--image", str(text), "--text", "a"], "no.png: is no image"),
    (["--image", photo, "--text", "a", "--box", "0", "0", "90", "60"], "--box 1: must lie in 0..1"),
    (["--image", photo, "--text", "a", "--output", "heat.xyz"], "'heat.xyz' must end in"),
    (["--image", photo, "--text", "a", "--boxes", "4by3"], "'4by3' must be a grid such as 4x3, or end in"),
    (["--image", photo, "--text", "a", "--attention"], "this model has no text-conditioned pooling"),
    (["--image", photo, "--text", "a", "--boxes", str(boxes)], "boxes.csv, box 1: needs x1, y1, x2, y2, got"),
    (["--data", data, "--index", "3"], "no record 3 in split 'validation' of .*: it has 3"),
    (["--data", data, "--region", "3"], "has 3 regions, there is no region 3"),
    (["--data", data, "--split", "test"], "no shard of split 'test'"),
  ):
    assert show.main(["--model", model, *argv]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err), message
  for argv, message in (
    (["--image", photo], "--image needs --text"),
    (["--image", photo, "--text", "a", "--region", "1"], "--region belongs to --data"),
    (["--data", data, "--box", "0", "0", "1", "1"], "--box and --boxes belong to --image"),
  ):
    with pytest.raises(SystemExit):
      show.main(["--model", model, *argv])
    assert message in capsys.readouterr().err


def test_an_output_that_is_the_input_or_cannot_be_written(model, photo, tmp_path, capsys):
  picture = tmp_path / "p.png"
  shutil.copy(photo, picture)
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "folder.png").mkdir()
  data = picture.read_bytes()
  for image, output, message in (
    (picture, picture, "would replace its own input"),
    (tmp_path / "pipe.png", tmp_path / "h.png", "is a named pipe"),
    ("/dev/zero", tmp_path / "h.png", "is a device"),
    (picture, tmp_path / "folder.png", "folder.png"),
    (picture, tmp_path / "h.psd", "must end in"),
    (picture, picture / "h.png", "p.png"),
  ):
    assert show.main(["--model", model, "--image", str(image), "--text", "a", "--output", str(output)]) == 1
    assert message in capsys.readouterr().err, message
  assert picture.read_bytes() == data
  assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "p.png", "pipe.png"]
