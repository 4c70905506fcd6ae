"""The command: what it prints and writes, and what it refuses."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.index import __main__ as command
from fgclip_jax.inference import programs

pytest.importorskip("usearch", reason="needs usearch, see requirements-serve.txt")


@pytest.fixture(autouse=True)
def the_toy_model(model, monkeypatch):
  monkeypatch.setattr(command, "load", lambda path, *arguments, **options: model)
  monkeypatch.setattr(programs, "use_compilation_cache", lambda *arguments: None)


def test_build_search_and_info(photos, tmp_path, capsys):
  index = str(tmp_path / "i")
  assert command.main(["build", "--model", "toy", "--images", str(photos), "--output", index, "--scales", "2"]) == 0
  assert "10 pictures added, 0 changed, 0 removed, 0 kept: 10 pictures with 90 regions" in capsys.readouterr().out
  example = ["--image", str(photos / "a" / "4.png"), "--box", "0", "0", "0.5", "0.5"]
  for name in ("found.json", "found.csv"):
    options = ["--output", str(tmp_path / name), "--sheet", str(tmp_path / "sheet.png"), "--count", "3"]
    assert command.main(["search", index, *example, *options]) == 0
  assert "a/4.png  0.00 0.00 0.50 0.50" in capsys.readouterr().out
  rows = json.loads((tmp_path / "found.json").read_text())
  assert rows[0]["name"] == "a/4.png" and rows[0]["box"] == [0, 0, 0.5, 0.5] and len(rows) == 3
  table = list(csv.DictReader((tmp_path / "found.csv").read_text(encoding="utf-8").splitlines()))
  assert [row["name"] for row in table] == [row["name"] for row in rows] and float(table[0]["x2"]) == 0.5
  sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
  assert sheet.shape[1] > 900 and (sheet != 255).any()
  assert command.main(["search", index, "--text", "a red cup", "--whole", "--only", "b/*", "--exact"]) == 0
  assert capsys.readouterr().out.count("/b/") == 5
  assert command.main(["add", index]) == 0
  assert command.main(["info", index, "--recall", "5"]) == 0
  told = capsys.readouterr().out
  assert "0 pictures added, 0 changed, 0 removed, 10 kept" in told and "recall  100.0%" in told


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--text", "x", "--output", "found.txt"], "must end in .json or .csv"),
    (["--text", "x", "--box", "0", "0", "1", "1"], "--box is of --image"),
    (["--image", "gone.png"], "gone.png"),
    (["--image", "gone.png", "--box", "0.5", "0", "0.2", "1"], "--box"),
  ],
)
def test_wrong_options(index_folder, capsys, options, message):
  assert command.main(["search", index_folder, *options]) == 1
  assert message in capsys.readouterr().err


def test_no_index(tmp_path, capsys):
  assert command.main(["search", str(tmp_path), "--text", "x"]) == 1
  assert "is no index" in capsys.readouterr().err
