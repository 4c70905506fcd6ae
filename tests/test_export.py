"""Exported graphs: the model's own embeddings for any batch, in JAX and in ONNX Runtime; runners; clear errors."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from fgclip_jax import export
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from fgclip_jax.models import params
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.weights import native
from tests.helpers.toy_models import init

pytestmark = pytest.mark.slow

TINY = presets.preset("tiny").replace(text={"vocab_size": 49408, "short_length": 24, "long_length": 40})
PLAIN = TINY.replace(text={"long_length": None})
BOX = np.asarray([[[0.1, 0.2, 0.7, 0.6], [0.0, 0.0, 1.0, 1.0]]], np.float32)


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


@pytest.fixture(scope="module", params=export.FORMATS)
def exported(request, model, tmp_path_factory):
  """A folder with every part of the model."""
  if request.param == "onnx":
    pytest.importorskip("jax2onnx", reason="needs jax2onnx, see requirements-export.txt")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, see requirements-export.txt")
  folder = tmp_path_factory.mktemp(request.param)
  export.export(model, str(folder), request.param, export.PARTS)
  return folder


def run(folder, what, *arrays):
  description = json.loads((folder / "export.json").read_text())
  data = (folder / description["parts"][what]["file"]).read_bytes()
  return export.run(description["format"], data, arrays)


def test_files_give_the_models_embeddings_for_any_batch(exported, model):
  count = 5  # the batch that each was checked with when it was written had another size
  pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
  boxes = np.repeat(BOX, count, 0)
  texts = ["a cat", "a red cup on a table", "", "two", "x y z"]
  pairs = [
    (run(exported, "image", pixels), model.encode_image(pixels)),
    (run(exported, "dense", pixels), model.encode_dense(pixels)),
    (run(exported, "regions", pixels, boxes), model.encode_regions(pixels, boxes)),
    (run(exported, "text", model.tokenizer(texts, 24)), model.encode_text(texts)),
    (run(exported, "long_text", model.tokenizer(texts, 40)), model.encode_text(texts, "long")),
  ]
  for found, expected in pairs:
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.usefixtures("unchecked")  # jaxtyping takes no 1 for a size that may be anything
@pytest.mark.parametrize("format", export.FORMATS)
def test_pictures_of_any_shape_at_a_fixed_budget(tmp_path, root, format):
  if format == "onnx":
    pytest.importorskip("jax2onnx", reason="needs jax2onnx, see requirements-export.txt")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, see requirements-export.txt")
  config = presets.preset("tiny_fgclip2")
  model = api.FGCLIP(config, init(config, 0), max_patches=12)
  rng = np.random.default_rng(0)
  pictures = model.preprocess([rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((30, 40, 3), (90, 20, 3))])
  grid = np.asarray([each.grid for each in pictures], np.int32)
  patches = np.zeros((2, 12, 192), np.uint8)
  for row, each in zip(patches, pictures, strict=True):
    row[: len(each.patches)] = each.patches
  boxes = np.repeat(BOX, 2, 0)
  export.export(model, str(tmp_path), format, ["image", "dense", "regions", "region_text"])
  np.testing.assert_allclose(run(tmp_path, "image", patches, grid), model.encode_image(pictures), atol=2e-6)
  dense = run(tmp_path, "dense", patches, grid)
  for found, expected in zip(dense, model.encode_dense(pictures), strict=True):
    height, width = expected.shape[:2]
    np.testing.assert_allclose(found[: height * width], expected.reshape(height * width, -1), atol=2e-6)
    assert not found[height * width :].any()
  regions = run(tmp_path, "regions", patches, grid, boxes)
  np.testing.assert_allclose(regions, model.encode_regions(pictures, boxes), atol=2e-6)
  text = run(tmp_path, "region_text", model.tokenizer(["a cat", "x"], 16))
  np.testing.assert_allclose(text, model.encode_text(["a cat", "x"], "region"), atol=2e-6)
  if format == "stablehlo":
    export.export(model, str(tmp_path), format, ["image", "text"])
    Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    runner = [sys.executable, "examples/run_stablehlo.py", str(tmp_path), "--image", str(tmp_path / "a.png")]
    found = subprocess.run([*runner, "--text", "a cat"], cwd=root, capture_output=True, text=True, check=True).stdout
    cosine = model.similarity(model.encode_image(tmp_path / "a.png"), model.encode_text("a cat"))
    assert float(found.split()[0]) == pytest.approx(cosine[0, 0], abs=1e-3)
  preparation = json.loads((tmp_path / "export.json").read_text())["parts"]["image"]["preprocessing"]
  assert preparation["max_patches"] == 12 and preparation["patch_size"] == 8 and "resize" not in preparation


def test_the_description_tells_what_goes_in_and_comes_out(exported):
  description = json.loads((exported / "export.json").read_text())
  assert set(description["parts"]) == set(export.PARTS)
  for name, part in description["parts"].items():
    assert (exported / part["file"]).stat().st_size > 1000
    assert part["largest_difference"] < 1e-5
    (output,) = part["outputs"].values()
    assert output["shape"][0] == "batch" and output["shape"][-1] == TINY.embedding_width, name
  image, text = (description["parts"][name] for name in ("image", "text"))
  assert image["inputs"] == {"pixels": {"shape": ["batch", 32, 32, 3], "dtype": "uint8"}}
  assert text["inputs"] == {"tokens": {"shape": ["batch", 24], "dtype": "int32"}}
  assert image["preprocessing"]["resize"] == "squash"


def test_the_runner_prints_the_models_cosines(exported, model, root, tmp_path):
  picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 40, 3), dtype=np.uint8))
  picture.save(tmp_path / "p.png")
  texts = ["a cat", "two dogs on a sofa"]
  code = f"{root / 'examples'}/run_{exported.name.rstrip('0')}.py"
  command = [sys.executable, code, str(exported), "--image", str(tmp_path / "p.png"), "--text", *texts]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=120, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
  )
  assert done.returncode == 0, done.stderr
  expected = model.similarity(model.encode_image(picture), model.encode_text(texts))[0]
  assert done.stdout.splitlines() == [f"{score:.3f} {text}" for score, text in zip(expected, texts, strict=True)]


def test_a_resnet_a_plain_clip_and_the_rule_of_the_largest_id(tmp_path):
  resnet = presets.ResNetConfig(8, (1, 1, 1, 1), 32)
  config = presets.ModelConfig(resnet, PLAIN.replace(text={"end_id": 2}).text, 16)
  flat = {
    name: np.abs(leaf) if name.endswith("variance") else leaf for name, leaf in params.flatten(init(config, 1)).items()
  }
  model = api.FGCLIP(config, params.unflatten(flat))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
  ids = model.tokenizer(["a", "a b"], 24)
  export.export(model, str(tmp_path), "stablehlo", ["image", "text"])
  np.testing.assert_allclose(run(tmp_path, "image", pixels), model.encode_image(pixels), atol=1e-5)
  np.testing.assert_allclose(run(tmp_path, "text", ids), model.encode_text(ids), atol=1e-5)
  description = json.loads((tmp_path / "export.json").read_text())
  assert description["parts"]["image"]["preprocessing"]["resize"] == "center_crop"
  with pytest.raises(ValueError, match="plain CLIP, which reads no long texts"):
    export.make_part(model, "long_text")
  with pytest.raises(ValueError, match="jax2onnx cannot write a ResNet's convolutions"):
    export.export(model, str(tmp_path), "onnx", ["text", "image"])


@pytest.mark.parametrize("resize", [None, "squash", "pad"])
def test_the_graph_normalises_as_the_models_pixels_say(tmp_path, resize):
  """The same levels and weights with other means give other embeddings, and the file gives the model's."""
  pixels = presets.PixelSpec((0.5,) * 3, (0.5,) * 3, resize, "bilinear", (127, 127, 127))
  config, params = PLAIN.replace(vision={"pixels": pixels}), init(PLAIN, 0)
  model, published = api.FGCLIP(config, params), api.FGCLIP(PLAIN, params)
  levels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
  export.export(model, str(tmp_path), "stablehlo", ["image", "dense"])
  found = run(tmp_path, "image", levels)
  np.testing.assert_allclose(found, model.encode_image(levels / np.float32(127.5) - 1), atol=2e-6)
  np.testing.assert_allclose(found, model.encode_image(levels), atol=2e-6)
  assert np.abs(found - published.encode_image(levels)).max() > 1e-3
  np.testing.assert_allclose(run(tmp_path, "dense", levels), model.encode_dense(levels), atol=2e-6)
  parts = json.loads((tmp_path / "export.json").read_text())["parts"]
  assert parts["dense"]["preprocessing"]["resize"] == "squash"
  preparation = parts["image"]["preprocessing"]
  assert preparation["resize"] == (resize or "center_crop") and preparation["resample"] == "bilinear"
  assert preparation["mean"] == preparation["std"] == [0.5] * 3 and preparation["fill"] == [127] * 3


def test_half_precision_makes_a_smaller_file_with_nearly_the_same_embeddings(model, tmp_path):
  half = api.FGCLIP(TINY, model.params, Runtime(dtype="bfloat16"))
  whole, small = (export.to_stablehlo(export.make_part(each, "image")) for each in (model, half))
  assert len(small) < 0.8 * len(whole)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
  difference = np.abs(export.run("stablehlo", small, [pixels]) - model.encode_image(pixels)).max()
  assert 1e-6 < difference < 0.05
  with pytest.raises(ValueError, match="ONNX is written in float32 alone, got bfloat16"):
    export.export(half, str(tmp_path), "onnx", ["image"])


def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
  monkeypatch.setattr(export, "run", lambda *_: np.full((3, 16), np.nan, np.float32))
  with pytest.raises(ArithmeticError, match="part 'image' as stablehlo differs from the model by nan"):
    export.export(model, str(tmp_path / "out"), "stablehlo", ["image"])
  assert not list((tmp_path / "out").iterdir())


def test_the_command_says_what_it_wrote_and_what_is_wrong(model, tmp_path, capsys):
  native.write(str(tmp_path / "m"), TINY, params.flatten(jax.device_get(model.params)))
  command = ["--model", str(tmp_path / "m"), str(tmp_path / "out"), "--format", "stablehlo", "--what"]
  assert export.main([*command, "text"]) == 0
  said = capsys.readouterr().out
  assert f"wrote {tmp_path / 'out' / 'text.stablehlo'}" in said and "next: python examples/run_stablehlo.py" in said
  assert export.main([*command, "text,sound"]) == 1
  assert "there is no part 'sound': choose of image, text" in capsys.readouterr().err


def test_without_the_packages_it_says_what_to_install(model, tmp_path, monkeypatch, capsys):
  native.write(str(tmp_path / "m"), TINY, params.flatten(jax.device_get(model.params)))
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  command = ["--model", str(tmp_path / "m"), str(tmp_path / "out"), "--format", "onnx", "--what", "text"]
  assert export.main(command) == 1
  assert "pip install -r requirements-export.txt" in capsys.readouterr().err


def test_an_output_that_cannot_be_is_refused_before_the_model_is_read(model, tmp_path, monkeypatch, capsys):
  native.write(str(tmp_path / "m"), TINY, params.flatten(jax.device_get(model.params)))
  (tmp_path / "link").symlink_to("m")
  (tmp_path / "file").write_text("mine")
  (tmp_path / "w").mkdir()
  (tmp_path / "w" / "m.safetensors").write_text("weights")
  (tmp_path / "linked").mkdir()
  (tmp_path / "linked" / "image.onnx").symlink_to(tmp_path / "w" / "m.safetensors")
  before = sorted(path.name for path in (tmp_path / "m").iterdir())
  monkeypatch.setattr(export, "load", None)
  for given, output, message in (
    ("m", "m", "holds the model that is read"),
    ("m", "link", "holds the model that is read"),
    ("link", "m", "holds the model that is read"),
    ("w/m.safetensors", "w", "holds the model that is read"),
    ("w/m.safetensors", "linked", "holds a link to the input"),
    ("m", "file", "is no folder"),
  ):
    command = ["--model", str(tmp_path / given), str(tmp_path / output), "--format", "stablehlo"]
    assert export.main(command) == 1
    assert message in capsys.readouterr().err
  assert (tmp_path / "file").read_text() == "mine" and sorted(p.name for p in (tmp_path / "m").iterdir()) == before


def test_an_earlier_export_stays_whole_where_a_new_one_fails(model, tmp_path, monkeypatch):
  export.export(model, str(tmp_path), "stablehlo", ["image", "text"])
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  found = export.run
  monkeypatch.setattr(export, "run", lambda *a: found(*a) + (a[2][0].ndim == 2))  # the second part is wrong
  other = api.FGCLIP(TINY, init(TINY, 1))
  with pytest.raises(ArithmeticError, match="part 'text'"):
    export.export(other, str(tmp_path), "stablehlo", ["image", "text"])
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_batch_is_refused_where_it_would_end_the_process():
  for arrays in (
    [np.zeros((0, 32, 32, 3), np.uint8)],
    [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((0, 3, 4), np.float32)],
  ):
    with pytest.raises(ValueError, match="give one row at least"):
      export.run("onnx", b"", arrays)
