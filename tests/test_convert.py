"""The convert command: there and back gives the same bytes, and nothing is overwritten unasked."""

import dataclasses
import itertools
import json
import os
import re
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.weights import clip_to_fgclip, huggingface
from fgclip_jax.weights import formats as folders
from fgclip_jax.weights.name_map import leaf_shapes

FGCLIP = preset("tiny").replace(text={"vocab_size": 60})
CLIP = FGCLIP.replace(text={"long_length": None, "end_id": 2})
SIGLIP = preset("tiny_siglip").replace(text={"vocab_size": 60, "end_id": 1, "tokenizer": "gemma"})
CHECKPOINTS = ("fgclip_p14", "fgclip_p16", "fgclip_p16_world2", "common/clip_gelu", "common/clip_quick_gelu")


def _write(path, config, dtype=np.float32, seed=0):
  """A folder in PyTorch format with random weights."""
  rng = np.random.default_rng(seed)
  shapes = leaf_shapes(config)
  flat = {name: np.asarray(rng.normal(size=shape, scale=0.1), dtype) for name, shape in shapes.items()}
  huggingface.write(str(path), config, flat)
  return path


def _start(path, to):
  """A folder of a model that can be written as the format `to`."""
  return _write(path, SIGLIP if to in ("siglip", "big_vision") else CLIP)


def _same_bytes(before, after):
  """Names, shapes, dtypes and bytes are equal."""
  before, after = (safetensors.numpy.load_file(path / "model.safetensors") for path in (before, after))
  assert before.keys() == after.keys()
  for name, value in before.items():
    assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype), name
    assert after[name].tobytes() == value.tobytes(), name


def _there_and_back(source, tmp_path):
  assert convert.main([str(source), str(tmp_path / "ours")]) == 0
  assert (tmp_path / "ours" / "model.json").exists()
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
  _same_bytes(source, tmp_path / "back")
  configs = [json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "back")]
  assert configs[0] == configs[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("config", [FGCLIP, CLIP], ids=["FG-CLIP", "CLIP"])
def test_there_and_back_gives_the_same_bytes(config, dtype, tmp_path):
  _there_and_back(_write(tmp_path / "start", config, dtype), tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_recorded_checkpoints_there_and_back(name, oracle, tmp_path):
  if not (oracle / name).is_dir():
    pytest.skip(f"no folder {name} in {oracle}")
  _there_and_back(oracle / name / "checkpoint", tmp_path)


RESNET = preset("tiny_resnet").replace(text={"long_length": None, "vocab_size": 60})
BIASED = CLIP.replace(text={"end_id": 2}, logit_bias=-10.0)
PAIRS = [
  *itertools.permutations(["jax", "pytorch", "clip", "open_clip"], 2),
  *((name, name) for name in ("jax", "pytorch", "clip", "open_clip")),
]
FEW_PAIRS = [("jax", "open_clip"), ("open_clip", "jax"), ("open_clip", "open_clip")]  # transformers has none of these
CASES = {f"CLIP {a} {b}": (CLIP, a, b) for a, b in PAIRS} | {f"FG-CLIP {a} {b}": (FGCLIP, a, b) for a, b in PAIRS}
CASES |= {f"ResNet {a} {b}": (RESNET, a, b) for a, b in FEW_PAIRS}
CASES |= {f"logit bias {a} {b}": (BIASED, a, b) for a, b in FEW_PAIRS}
SIGLIP_PAIRS = [*itertools.permutations(["jax", "siglip", "big_vision"], 2), ("pytorch", "big_vision")]
CASES |= {f"SigLIP {a} {b}": (SIGLIP, a, b) for a, b in SIGLIP_PAIRS}


@pytest.mark.parametrize(("config", "first", "second"), CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("error")
def test_every_pair_of_formats_there_and_back_is_bit_equal(first, second, config, tmp_path, capsys):
  dtype = ml_dtypes.bfloat16 if first == "pytorch" else np.float32
  shapes = leaf_shapes(config)
  rng = np.random.default_rng(0)
  flat = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
  folders.FORMATS[first].write(str(tmp_path / "a"), config, flat, None)
  for source, output, to in (("a", "b", second), ("b", "c", first)):
    assert convert.main([str(tmp_path / source), str(tmp_path / output), "--to", to]) == 0
  if config.fine_grained and {"clip", "open_clip"} & {first, second}:
    assert "its path for short texts is written" in capsys.readouterr().out or first in ("clip", "open_clip")
    config, flat = clip_to_fgclip.to_clip(config, flat)
  found, read, _ = folders.read(str(tmp_path / "c"))
  assert found == config
  assert read.keys() == flat.keys()
  for name, value in flat.items():
    assert read[name].dtype == value.dtype and read[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("to", ["pytorch", "clip", "clip_vision"])
@pytest.mark.parametrize("config", [RESNET, BIASED], ids=["ResNet", "logit bias"])
def test_what_transformers_has_no_place_for_is_refused(config, to, tmp_path, capsys):
  shapes = leaf_shapes(config)
  flat = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  folders.FORMATS["open_clip"].write(str(tmp_path / "a"), config, flat, None)
  assert "write it as jax or open_clip" in _fails(capsys, tmp_path / "a", tmp_path / "b", "--to", to)
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("config", [CLIP, RESNET], ids=["ViT", "ResNet"])
def test_positions_are_interpolated_for_another_image_size(config, tmp_path, capsys):
  shapes = leaf_shapes(config)
  flat = {name: np.full(shape, 0.25, np.float32) for name, shape in shapes.items()}
  folders.FORMATS["open_clip"].write(str(tmp_path / "a"), config, flat, None)
  size = 2 * config.vision.image_size
  assert convert.main([str(tmp_path / "a"), str(tmp_path / "b"), "--image_size", str(size), "--to", "open_clip"]) == 0
  assert f"image positions interpolated for {size} px" in capsys.readouterr().out
  found, read, _ = folders.read(str(tmp_path / "b"))
  assert found == config.replace(vision={"image_size": size})
  np.testing.assert_allclose(read["vision/positions"], 0.25, rtol=1e-6)
  assert "must be a multiple of" in _fails(capsys, tmp_path / "a", tmp_path / "c", "--image_size", "33")


def test_a_pickle_is_converted_when_asked_for(torch, tmp_path, capsys):
  start = _write(tmp_path / "start", CLIP)
  tensors = safetensors.numpy.load_file(start / "model.safetensors")
  (start / "model.safetensors").unlink()
  torch.save({name: torch.tensor(value) for name, value in tensors.items()}, start / "pytorch_model.bin")
  assert "is a pickle" in _fails(capsys, start, tmp_path / "out")
  assert convert.main([str(start), str(tmp_path / "out"), "--to", "pytorch", "--allow_pickle"]) == 0
  written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  assert all(np.array_equal(written[name], value) for name, value in tensors.items())


def test_a_bare_file_with_its_options(tmp_path, capsys):
  config = CLIP.replace(text={"activation": "gelu"}, vision={"activation": "gelu"})
  shapes = leaf_shapes(config)
  flat = {name: np.full(shape, 0.25, np.float32) for name, shape in shapes.items()}
  folders.FORMATS["open_clip"].write(str(tmp_path / "a"), config, flat, None)
  (tmp_path / "a" / "open_clip_config.json").unlink()
  file = tmp_path / "a" / "open_clip_model.safetensors"
  heads = [str(tower.heads) for tower in (config.vision, config.text)]
  options = ["--activation", "gelu", "--heads", *heads]
  assert convert.main([str(file), str(tmp_path / "b"), *options]) == 0
  assert "open_clip -> jax" in capsys.readouterr().out
  assert folders.read_config(str(tmp_path / "b")) == config
  message = _fails(capsys, tmp_path / "b", tmp_path / "c", *options)
  assert "tells the activation and the heads" in message


@pytest.mark.parametrize("to", sorted(folders.FORMATS))
def test_the_next_command_names_a_library_that_loads_it(to, tmp_path, capsys):
  start = _start(tmp_path / "start", to)
  assert convert.main([str(start), str(tmp_path / "out"), "--to", to]) == 0
  library = {
    "clip": "transformers",
    "siglip": "transformers",
    "clip_vision": "transformers",
    "open_clip": "open_clip",
  }.get(to, "fgclip_jax")
  assert re.search(
    rf"^next: python -c 'import {library}; .*{re.escape(str(tmp_path / 'out'))}", capsys.readouterr().out, re.M
  )


def test_buffers_and_unknown_config_keys_come_back(tmp_path):
  start = _write(tmp_path / "start", CLIP)
  config = json.loads((start / "config.json").read_text()) | {"something_of_theirs": [1, {"x": None}]}
  (start / "config.json").write_text(json.dumps(config))
  tensors = safetensors.numpy.load_file(start / "model.safetensors")
  tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
  safetensors.numpy.save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
  _there_and_back(start, tmp_path)


def test_it_says_what_it_did_and_what_comes_next(tmp_path, capsys):
  start, output = _write(tmp_path / "start", FGCLIP), tmp_path / "ours"
  assert convert.main([str(start), str(output)]) == 0
  printed = capsys.readouterr().out
  assert "FG-CLIP" in printed and "pytorch -> jax" in printed
  assert f"wrote {output / 'model.json'}" in printed
  assert re.search(r"^next: python .*fgclip_jax.*" + re.escape(str(output)), printed, re.MULTILINE)


def test_the_same_format_can_be_asked_for(tmp_path):
  start = _write(tmp_path / "start", FGCLIP)
  assert convert.main([str(start), str(tmp_path / "copy"), "--to", "pytorch"]) == 0
  _same_bytes(start, tmp_path / "copy")


@pytest.mark.parametrize("to", ["jax", "pytorch"])
def test_plain_clip_becomes_fgclip(to, tmp_path, capsys):
  start = _write(tmp_path / "start", CLIP)
  assert convert.main([str(start), str(tmp_path / "made"), "--as", "fgclip", "--to", to]) == 0
  assert "made FG-CLIP from plain CLIP" in capsys.readouterr().out
  config, flat, _ = folders.read(str(tmp_path / "made"))
  expected_config, expected = clip_to_fgclip.to_fgclip(CLIP, folders.read(str(start))[1])
  assert config == expected_config == FGCLIP
  assert all(np.array_equal(flat[name], value) for name, value in expected.items())


def test_an_fgclip_stays_one(tmp_path, capsys):
  start = _write(tmp_path / "start", FGCLIP)
  assert convert.main([str(start), str(tmp_path / "made"), "--as", "fgclip", "--to", "pytorch"]) == 0
  assert "made FG-CLIP" not in capsys.readouterr().out
  _same_bytes(start, tmp_path / "made")


def _fails(capsys, *argv):
  """The message of a command that fails and changes nothing."""
  assert convert.main([str(arg) for arg in argv]) == 1
  out, error = capsys.readouterr()
  assert "wrote" not in out and error.startswith("error: ") and "Traceback" not in error
  return error


def test_the_input_folder_is_no_output(tmp_path, capsys):
  start = _write(tmp_path / "start", CLIP)
  (tmp_path / "link").symlink_to(start)
  for output in (start, f"{start}/", tmp_path / "link"):
    assert "is the input folder" in _fails(capsys, start, output, "--overwrite")
  assert folders.detect(str(start)) == "pytorch"


def _tree(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", ["jax", "clip_vision"])
@pytest.mark.parametrize(
  "place",
  [
    "file in output",
    "inside",
    "deep inside",
    "holds",
    "hard link",
    "link",
    "linked folder",
    "file is a link",
    "shards",
  ],
)
def test_an_output_that_touches_the_input_is_refused(place, to, tmp_path, capsys):
  start = source = _write(tmp_path / "start" / "model", CLIP)
  output = tmp_path / "out"
  if place == "file in output":
    source, output = start / "model.safetensors", start
  elif "inside" in place:
    output = start / ("a/b/c" if "deep" in place else "a")
  elif place == "holds":
    output = start.parent
  elif place == "hard link":
    output.mkdir()
    (output / "model.safetensors").hardlink_to(start / "model.safetensors")
  elif place == "link":
    output.mkdir()
    (output / "config.json").symlink_to(start / "config.json")
  elif place == "linked folder":
    output.mkdir()
    (output / "params").symlink_to(start)
  elif place == "file is a link":  # as in the cache of the model hub
    output.mkdir()
    (start / "model.safetensors").rename(output / "blob")
    (start / "model.safetensors").symlink_to(output / "blob")
  else:
    source, output = start / "model.safetensors.index.json", start
    names = list(safetensors.numpy.load_file(start / "model.safetensors"))
    (start / "model.safetensors").rename(start / "weights.safetensors")
    source.write_text(json.dumps({"weight_map": dict.fromkeys(names, "weights.safetensors")}))
  before = _tree(tmp_path)
  message = _fails(capsys, source, output, "--overwrite", "--to", to)
  assert "name another" in message and str(output) in message
  assert _tree(tmp_path) == before


def test_siblings_and_folders_beside_a_file_are_outputs(tmp_path, monkeypatch):
  start = _write(tmp_path / "model", CLIP)
  monkeypatch.chdir(start)
  for output in ("../model2", "../model/../mode", str(tmp_path / "model_out")):
    assert convert.main([".", output]) == 0
  assert convert.main(["model.safetensors", "ours"]) == 0  # a file's own folder may hold the output
  (tmp_path / "link").symlink_to(tmp_path / "model_out")
  assert convert.main([".", str(tmp_path / "link"), "--overwrite"]) == 0
  assert (tmp_path / "link").is_symlink() and folders.read_config(str(tmp_path / "model_out")) == CLIP


@pytest.mark.parametrize("to", sorted(folders.FORMATS))
def test_a_failed_write_leaves_the_old_output_whole(to, tmp_path, monkeypatch, capsys):
  start, output = _start(tmp_path / "start", to), tmp_path / "out"
  assert convert.main([str(start), str(output)]) == 0
  (output / "notes.txt").write_text("mine")
  capsys.readouterr()
  before, write = _tree(tmp_path), folders.FORMATS[to].write

  def fails(*args):
    write(*args)
    raise OSError(28, "No space left on device")

  monkeypatch.setitem(folders.FORMATS, to, dataclasses.replace(folders.FORMATS[to], write=fails))
  for path in (output, tmp_path / "new"):
    message = _fails(capsys, start, path, "--overwrite", "--to", to)
    assert "No space left on device" in message and str(path) in message
  assert _tree(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out", "start"]


@pytest.mark.parametrize("to", sorted(folders.FORMATS))
def test_a_disk_that_is_full_keeps_the_old_model(to, tmp_path, capsys):
  start, disk = _start(tmp_path / "start", to), tmp_path / "disk"
  disk.mkdir()
  if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
    pytest.skip("needs the right to mount a file system")
  try:
    (disk / "config.json").write_text("{}")
    (disk / "model.safetensors").write_bytes(bytes(3000))
    before = _tree(disk)
    message = _fails(capsys, start, disk, "--overwrite", "--to", to)
    assert "No space left on device" in message and str(disk) in message
    assert _tree(disk) == before
  finally:
    subprocess.run(["umount", disk])


def test_the_umask_decides_the_modes(tmp_path):
  before = os.umask(0o027)
  try:
    for to in folders.FORMATS:
      start = _start(tmp_path / f"start_{to}", to)
      assert convert.main([str(start), str(tmp_path / to), "--to", to]) == 0
      modes = {path.stat().st_mode & 0o777 for path in (tmp_path / to).rglob("*") if path.is_file()}
      assert modes == {0o640}, to
  finally:
    os.umask(before)


def test_an_output_that_holds_files_is_left_alone_unless_told(tmp_path, capsys):
  start, output = _write(tmp_path / "start", CLIP), tmp_path / "out"
  output.mkdir()
  (output / "notes.txt").write_text("mine")
  assert "holds files already" in _fails(capsys, start, output)
  assert [path.name for path in output.iterdir()] == ["notes.txt"]
  assert convert.main([str(start), str(output), "--overwrite"]) == 0
  assert (output / "notes.txt").read_text() == "mine"
  assert folders.read_config(str(output)) == CLIP


@pytest.mark.parametrize("to", ["jax", "pytorch"])
def test_overwriting_replaces_a_model_of_either_format_wholly(to, tmp_path):
  first, second = _write(tmp_path / "first", FGCLIP), _write(tmp_path / "second", CLIP, seed=1)
  output = tmp_path / "out"
  for before in ("jax", "pytorch"):
    assert convert.main([str(first), str(output), "--to", before, "--overwrite"]) == 0
    (output / "model.safetensors.index.json").write_text("{}")  # as a sharded model would have left
    (output / "model-00001-of-00002.safetensors").write_text("")
    assert convert.main([str(second), str(output), "--to", to, "--overwrite"]) == 0
    assert folders.detect(str(output)) == to
    config, flat, _ = folders.read(str(output))
    assert config == CLIP
    assert np.array_equal(flat["vision/positions"], folders.read(str(second))[1]["vision/positions"])
    assert len(list(output.iterdir())) == {"jax": 2, "pytorch": 3}[to]


def test_a_failed_read_leaves_the_output_as_it_was(tmp_path, capsys):
  good, bad, output = _write(tmp_path / "good", CLIP), _write(tmp_path / "bad", CLIP), tmp_path / "out"
  (bad / "model.safetensors").write_bytes(b"short")
  assert convert.main([str(good), str(output)]) == 0
  capsys.readouterr()
  assert "is not a readable safetensors file" in _fails(capsys, bad, output, "--overwrite")
  assert folders.read(str(output))[0] == CLIP


def test_a_run_folder_is_never_overwritten(tmp_path, capsys):
  start, run = _write(tmp_path / "start", CLIP), tmp_path / "run"
  (run / "checkpoints").mkdir(parents=True)
  (run / "model.json").write_text("{}")
  assert "is a run folder" in _fails(capsys, start, run, "--overwrite")
  assert (run / "model.json").read_text() == "{}"


def test_wrong_arguments(tmp_path, capsys):
  start = _write(tmp_path / "start", CLIP)
  assert "no model folder at" in _fails(capsys, tmp_path / "nothing", tmp_path / "out")
  (tmp_path / "empty").mkdir()
  assert "is no model folder" in _fails(capsys, tmp_path / "empty", tmp_path / "out")
  (tmp_path / "file").write_text("")
  assert str(tmp_path / "file") in _fails(capsys, start, tmp_path / "file")
  with pytest.raises(SystemExit) as error:
    convert.main([str(start), str(tmp_path / "out"), "--to", "onnx"])
  assert error.value.code == 2


def test_names_from_inside_a_file_are_escaped_in_errors(tmp_path, capsys):
  (tmp_path / "open_clip_config.json").write_text(
    '{"model_cfg": {"vision_cfg": {"a\\u001b[2J\\rb": 32}, "text_cfg": {}}}'
  )
  (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
  assert convert.main([str(tmp_path), str(tmp_path / "out")]) != 0
  assert capsys.readouterr().err.rstrip("\n").isprintable()
