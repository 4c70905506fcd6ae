"""When an output is finished, and that an earlier one stays whole until then."""

import errno
import json
import os
import stat

import jax
import numpy as np
import pyarrow.parquet
import pytest

from fgclip_jax import embed
from fgclip_jax.inference import bulk_outputs
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from tests.helpers.toy_models import init

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


@pytest.fixture
def texts(tmp_path):
  (tmp_path / "in").mkdir()
  path = tmp_path / "in" / "t.txt"
  path.write_text("a cat\n\na dog\n")
  return str(path)


@pytest.fixture
def run(model, texts, tmp_path):
  """Embeds the texts; returns the names of what was written."""
  (tmp_path / "out").mkdir()

  def embed_texts(name, **options):
    written, _ = embed.embed(model, "texts", texts, str(tmp_path / "out" / name), **options)
    return sorted(map(os.path.basename, written))

  return embed_texts


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_report_of_another_file_is_not_taken_for_ones_own(run, tmp_path):
  out = tmp_path / "out"
  for first, second in (("x.npy", "x.parquet"), ("y.parquet", "y.npy")):
    run(first)
    before = contents(out)
    assert first in before
    assert f"{second}.report.json" in run(second) and (out / second).exists()
    assert {name: data for name, data in contents(out).items() if name in before} == before
    assert run(first) == run(second) == []
  assert pyarrow.parquet.read_table(out / "x.parquet")["id"].to_pylist() == ["1", "3"]
  assert np.load(out / "y.npy").shape == (2, 16) and (out / "y.npy.ids.txt").read_text() == "1\n3\n"


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_what_is_gone_is_made_again(run, tmp_path, ending):
  out = tmp_path / "out"
  run(f"x.{ending}")
  before = contents(out)
  for name in before:
    (out / name).unlink()
    if name == "x.report.json":
      with pytest.raises(ValueError, match="is there already"):
        run(f"x.{ending}")
      run(f"x.{ending}", overwrite=True)
    else:
      assert name in run(f"x.{ending}"), name
    assert contents(out) == before, name


@pytest.mark.parametrize("name", ["x.npy", "x.ids.txt", "x.left_out.jsonl", "x.parquet"])
@pytest.mark.parametrize("change", ["cut", "longer", "changed", "empty"])
def test_what_was_changed_is_not_finished_and_not_replaced(run, tmp_path, name, change):
  output = "x.parquet" if name == "x.parquet" else "x.npy"
  run(output)
  path = tmp_path / "out" / name
  data = path.read_bytes()
  changed = {"cut": data[:-3], "longer": data + b"\n", "changed": data[:-2] + b"??", "empty": b""}[change]
  path.write_bytes(changed)
  with pytest.raises(ValueError, match=f"{name}' is not as embed wrote it: .*--overwrite"):
    run(output)
  assert path.read_bytes() == changed
  run(output, overwrite=True)
  assert path.read_bytes() == data


def test_an_output_of_an_older_version_is_finished_if_it_is_whole(run, tmp_path):
  run("x.npy")
  path = tmp_path / "out" / "x.report.json"
  report = json.loads(path.read_text())
  for key in ("files", "output", "ids_repeated"):
    del report[key]
  path.write_text(json.dumps(report))
  assert run("x.npy") == []
  assert "x.parquet" in run("x.parquet") and json.loads(path.read_text()) == report
  (tmp_path / "out" / "x.ids.txt").write_text("1\n")
  with pytest.raises(ValueError, match="x.ids.txt' is not as embed wrote it"):
    run("x.npy")


@pytest.mark.parametrize(
  "content", ["", "[]", "{", '{"settings": 3}', '{"settings": {}}', '{"settings": {}, "rows": "2"}']
)
def test_a_report_that_is_none(run, tmp_path, content):
  run("x.npy")
  before = contents(tmp_path / "out")
  (tmp_path / "out" / "x.report.json").write_text(content)
  with pytest.raises(ValueError, match=r"x\.npy|x\.report\.json"):
    run("x.npy")
  run("x.npy", overwrite=True)
  assert contents(tmp_path / "out") == before


def test_other_inputs_and_models_are_not_finished(model, run, texts, tmp_path):
  run("x.npy")
  before = contents(tmp_path / "out")
  with open(texts, "a") as file:
    file.write("a bird\n")
  with pytest.raises(ValueError, match="was made with other settings .fingerprint was"):
    run("x.npy")
  with pytest.raises(ValueError, match="kind"):
    run("x.npy", kind="long")
  assert contents(tmp_path / "out") == before
  (tmp_path / "out" / "x.npy").unlink()
  (tmp_path / "out" / "x.ids.txt").unlink()
  (tmp_path / "out" / "x.left_out.jsonl").unlink()
  run("x.npy", kind="long")  # the report was of a file that is gone
  assert np.load(tmp_path / "out" / "x.npy").shape == (3, 16)


def test_pictures_that_were_replaced_are_not_finished(model, tmp_path):
  from PIL import Image

  (tmp_path / "p").mkdir()
  Image.new("RGB", (30, 30)).save(tmp_path / "p" / "a.png")
  output = str(tmp_path / "o.npy")
  assert embed.embed(model, "images", str(tmp_path / "p"), output)[0]
  assert not embed.embed(model, "images", str(tmp_path / "p"), output)[0]
  Image.new("RGB", (90, 30), (3, 4, 5)).save(tmp_path / "p" / "a.png")
  with pytest.raises(ValueError, match="sizes was"):
    embed.embed(model, "images", str(tmp_path / "p"), output)


def test_files_beside_the_output_that_are_somebody_elses_stay(run, tmp_path):
  (tmp_path / "out" / "x.ids.txt").write_text("mine")
  with pytest.raises(ValueError, match=r"x\.ids\.txt' is there already"):
    run("x.npy")
  assert contents(tmp_path / "out") == {"x.ids.txt": b"mine"}


def test_an_output_does_not_replace_its_input(model, tmp_path):
  names = tmp_path / "x.ids.txt"
  names.write_text("a cat\n")
  (tmp_path / "link.txt").symlink_to("x.ids.txt")
  for given in (names, tmp_path / "link.txt"):
    with pytest.raises(ValueError, match="would replace its own input"):
      embed.embed(model, "texts", str(given), str(tmp_path / "x.npy"), overwrite=True)
  assert names.read_text() == "a cat\n"


@pytest.mark.parametrize("when", ["begin", "part", "finish"])
def test_a_full_disk_leaves_the_earlier_output_whole(model, run, texts, tmp_path, monkeypatch, when):
  run("x.npy")
  before = contents(tmp_path / "out")
  with open(texts, "a") as file:
    file.write("a bird\n")

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    if when == "begin":
      patch.setattr(bulk_outputs, "_dump_json", full)
    elif when == "part":
      patch.setattr(np.lib.format, "write_array_header_1_0", full)
    else:
      patch.setattr(bulk_outputs, "crc32", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.npy"):
      run("x.npy", overwrite=True)
  assert contents(tmp_path / "out") == before
  assert os.path.exists(tmp_path / "out" / "x.npy.parts") == (when != "begin")
  if when != "begin":  # the run is continued without the option, too: it was to replace the output
    assert "x.npy" in run("x.npy")
    assert np.load(tmp_path / "out" / "x.npy").shape == (3, 16)


def test_no_row_is_an_error_with_the_reason_and_writes_nothing(model, tmp_path):
  (tmp_path / "t.jsonl").write_text('{"text": ""}\n{"text": 3}\n{"text": null}\n')
  with pytest.raises(ValueError, match=r"nothing to write: 3 of 3 records of texts .*text_empty 1, the first: 1: "):
    embed.embed(model, "texts", str(tmp_path / "t.jsonl"), str(tmp_path / "o.npy"))
  (tmp_path / "r.jsonl").write_text("")
  with pytest.raises(ValueError, match="holds none of the regions"):
    embed.embed(model, "regions", str(tmp_path / "r.jsonl"), str(tmp_path / "o.npy"))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "t.jsonl"]


def test_an_output_that_cannot_be_written(run, tmp_path):
  (tmp_path / "out" / "folder.npy").mkdir()
  (tmp_path / "out" / "file").write_text("")
  (tmp_path / "mine").write_text("mine")
  (tmp_path / "out" / "link.npy.lock").symlink_to(tmp_path / "mine")
  for name in ("folder.npy", "file/x.npy", "link.npy"):
    for overwrite in (False, True):
      with pytest.raises(OSError, match=name.split("/")[0]):
        run(name, overwrite=overwrite)
  assert (tmp_path / "mine").read_text() == "mine" and list((tmp_path / "out" / "folder.npy").iterdir()) == []


def test_the_umask_decides_the_modes(run, tmp_path):
  before = os.umask(0o027)
  try:
    run("x.npy")
  finally:
    os.umask(before)
  assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


def test_the_devices_do_not_change_the_bytes(model, run, texts, tmp_path):
  run("x.npy")
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
  other = api.FGCLIP(TINY, jax.device_put(model.params, jax.sharding.NamedSharding(mesh, jax.P())))
  embed.embed(other, "texts", texts, str(tmp_path / "out" / "y.npy"))
  assert (tmp_path / "out" / "x.npy").read_bytes() == (tmp_path / "out" / "y.npy").read_bytes()
