"""A model gives the same embeddings from pictures in every format that it is written to."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

import fgclip_jax
from fgclip_jax import convert
from fgclip_jax.data import image as images
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import unflatten
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.weights import clip_to_fgclip, native
from fgclip_jax.weights import formats as folders

FGCLIP = preset("tiny").replace(text={"activation": "gelu"}, vision={"activation": "gelu"})
HALF = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)}
SPECS = {
  "CLIP": CLIP_PIXELS,
  "mean and std": PixelSpec(**HALF),
  "squash": PixelSpec(resize="squash"),
  "bilinear": PixelSpec(interpolation="bilinear", **HALF),
  "pad": PixelSpec(resize="pad", fill=(10, 20, 30), **HALF),
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8))


@pytest.fixture
def write(random_params, tmp_path):
  """Writes a model folder of ours; returns its path and its flat parameters."""

  def write(config):
    flat = random_params(config)
    native.write(str(tmp_path / "ours"), config, flat)
    return str(tmp_path / "ours"), flat

  return write


def by_numpy(config, picture):
  """A picture as the tower reads it, without the package's own code."""
  side, spec = config.vision.image_size, config.vision.pixels
  resample = Image.Resampling[spec.interpolation.upper()]
  width, height = picture.size
  if config.resize == "squash":
    levels = picture.resize((side, side), resample)
  elif config.resize == "center_crop":
    scale = side / min(width, height)
    wide, high = int(width * scale), int(height * scale)
    left, top = (wide - side) // 2, (high - side) // 2
    levels = picture.resize((wide, high), resample).crop((left, top, left + side, top + side))
  else:
    scale = side / max(width, height)
    inner = picture.resize((round(width * scale), round(height * scale)), resample)
    levels = Image.new("RGB", (side, side), spec.fill)
    levels.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
  return (np.asarray(levels, np.float64) / 255 - spec.mean) / spec.std


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_embeddings_from_pictures_are_the_same_in_every_format(spec, write, tmp_path, capsys):
  config = FGCLIP.replace(text={"long_length": None}, vision={"pixels": spec})
  ours, _ = write(config)
  model = fgclip_jax.load(ours)
  np.testing.assert_allclose(model.preprocess(PICTURE)[0], by_numpy(config, PICTURE), atol=0.03)
  expected, pixels = model.encode_image(PICTURE), model.preprocess(PICTURE)
  np.testing.assert_allclose(model.encode_image(pixels), expected, atol=1e-5)
  chain = [("jax", "open_clip"), ("open_clip", "clip"), ("clip", "jax"), ("clip", "pytorch"), ("pytorch", "open_clip")]
  made = {"jax": ours}
  for number, (source, target) in enumerate(chain):
    path = str(tmp_path / f"{number}_{target}")
    code = convert.main([made[source], path, "--to", target])
    if spec.resize == "pad" and target in ("clip", "pytorch"):
      assert code == 1 and "write it as jax or open_clip" in capsys.readouterr().err
      break
    assert code == 0
    made[target] = path
    assert folders.read_config(path).vision.pixels == spec, path
    np.testing.assert_array_equal(fgclip_jax.load(path).preprocess(PICTURE), pixels)
    np.testing.assert_allclose(fgclip_jax.load(path).encode_image(PICTURE), expected, atol=1e-6)


@pytest.mark.parametrize("to", ["clip", "open_clip"])
def test_the_clip_that_an_fgclip_is_written_as_squashes(to, write, tmp_path):
  """Its own way: cropping, the default of a plain CLIP, would give other embeddings than the FG-CLIP."""
  ours, _ = write(FGCLIP)
  assert convert.main([ours, str(tmp_path / to), "--to", to]) == 0
  model, clip = fgclip_jax.load(ours), fgclip_jax.load(str(tmp_path / to))
  assert not clip.config.fine_grained and clip.config.resize == "squash"
  np.testing.assert_array_equal(clip.preprocess(PICTURE), model.preprocess(PICTURE))
  np.testing.assert_allclose(clip.encode_image(PICTURE), model.encode_image(PICTURE), atol=1e-6)
  # and becomes an FG-CLIP again, which squashes by itself
  assert convert.main([str(tmp_path / to), str(tmp_path / "again"), "--as", "fgclip"]) == 0
  assert fgclip_jax.load(str(tmp_path / "again")).config.vision.pixels == CLIP_PIXELS


@pytest.mark.parametrize("spec", ["CLIP", "bilinear"])
@pytest.mark.parametrize("fine_grained", [True, False])
def test_transformers_makes_the_same_pixels_of_a_picture(fine_grained, spec, write, transformers, tmp_path):
  """With the image processor that each of its formats is written with, of pictures that are not square."""
  config = FGCLIP.replace(text={} if fine_grained else {"long_length": None}, vision={"pixels": SPECS[spec]})
  ours, _ = write(config)
  model = fgclip_jax.load(ours)
  kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
  for to in ("pytorch", "clip", "clip_vision"):
    assert convert.main([ours, str(tmp_path / to), "--to", to]) == 0
    processor = kind.from_pretrained(str(tmp_path / to))
    for picture in (PICTURE, PICTURE.rotate(90, expand=True)):
      pixels = np.asarray(processor(picture, return_tensors="pt")["pixel_values"])[0].transpose(1, 2, 0)
      np.testing.assert_allclose(model.preprocess(picture)[0], pixels, atol=1e-4)
    if to != "clip_vision":
      read = fgclip_jax.load(str(tmp_path / to))
      np.testing.assert_allclose(read.encode_image(PICTURE), model.encode_image(PICTURE), atol=1e-6)


def test_a_run_gives_the_same_embeddings_in_every_format(tmp_path, random_params):
  run = tmp_path / "run"
  state = {"params": unflatten(random_params(FGCLIP))}
  run.mkdir()
  native.write_model_file(str(run), FGCLIP)
  with ocp.training.Checkpointer(str(run / native.FOLDER)) as checkpointer:
    checkpointer.save_checkpointables(3, state)
  expected = fgclip_jax.load(str(run)).encode_image(PICTURE)
  for to in ("jax", "pytorch", "clip", "open_clip"):
    assert convert.main([str(run), str(tmp_path / to), "--to", to]) == 0
    np.testing.assert_allclose(fgclip_jax.load(str(tmp_path / to)).encode_image(PICTURE), expected, atol=1e-6)


@pytest.mark.parametrize(("mean", "squash"), [*itertools.product([None, [0.5] * 3], [False, True])])
def test_an_open_clip_folder_says_how_its_pictures_are_made_ready(mean, squash, write, tmp_path):
  ours, _ = write(FGCLIP.replace(text={"long_length": None}))
  folder = tmp_path / "theirs"
  assert convert.main([ours, str(folder), "--to", "open_clip"]) == 0
  file = folder / "open_clip_config.json"
  values = json.loads(file.read_text())
  values["preprocess_cfg"] = {"size": 32, "mode": "RGB", "fill_color": 0, "interpolation": "bicubic"}
  values["preprocess_cfg"] |= {"mean": mean, "std": mean} if mean else {}
  values["preprocess_cfg"] |= {"resize_mode": "squash"} if squash else {}
  file.write_text(json.dumps(values))
  model = fgclip_jax.load(str(folder))
  expected = CLIP_PIXELS if mean is None else PixelSpec(mean, mean)
  assert model.config.vision.pixels == PixelSpec(expected.mean, expected.std, "squash" if squash else None)
  np.testing.assert_allclose(model.preprocess(PICTURE)[0], by_numpy(model.config, PICTURE), atol=0.03)
  # there and back, the JSON goes out as it came in
  assert convert.main([str(folder), str(tmp_path / "mine")]) == 0
  assert convert.main([str(tmp_path / "mine"), str(tmp_path / "back"), "--to", "open_clip"]) == 0
  assert json.loads((tmp_path / "back" / file.name).read_text()) == values


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("mean", [0.5]), ("mean", "clip"), ("std", [0.5, 0.5, 0]), ("resize_mode", "stretch"), ("interpolation", "random"),
    ("mode", "L"), ("size", 64), ("size", [32, 64]), ("crop_pct", 0.9),
  ],
)  # fmt: skip
def test_what_open_clip_says_and_cannot_be_done_is_named(key, value, write, tmp_path):
  ours, _ = write(FGCLIP.replace(text={"long_length": None}))
  folder = tmp_path / "theirs"
  assert convert.main([ours, str(folder), "--to", "open_clip"]) == 0
  file = folder / "open_clip_config.json"
  values = json.loads(file.read_text())
  values["preprocess_cfg"][key] = value
  file.write_text(json.dumps(values))
  with pytest.raises(ValueError, match=f"open_clip_config.json.*preprocess_cfg.*{key}.*must be"):
    folders.read_config(str(folder))


@pytest.mark.parametrize("section", ["preprocess_cfg", "vision_cfg"])
def test_keys_that_could_rewrite_a_terminal_are_escaped(section, write, tmp_path):
  ours, _ = write(FGCLIP.replace(text={"long_length": None}))
  folder = tmp_path / "theirs"
  assert convert.main([ours, str(folder), "--to", "open_clip"]) == 0
  file = folder / "open_clip_config.json"
  values = json.loads(file.read_text())
  (values if section == "preprocess_cfg" else values["model_cfg"])[section]["a\x1b[2J\x00"] = "x"
  file.write_text(json.dumps(values))
  with pytest.raises(ValueError, match=rf"{section}\.a\\x1b\[2J\\x00 = 'x' has no counterpart here") as raised:
    folders.read_config(str(folder))
  assert str(raised.value).isprintable()


def test_a_filter_that_open_clip_does_not_know(write, tmp_path, capsys):
  ours, _ = write(FGCLIP.replace(text={"long_length": None}, vision={"pixels": PixelSpec(interpolation="lanczos")}))
  assert convert.main([ours, str(tmp_path / "theirs"), "--to", "open_clip"]) == 1
  assert "'lanczos'" in capsys.readouterr().err and not (tmp_path / "theirs").exists()


def test_pixels_that_changed_since_a_folder_was_read_are_written(write, tmp_path):
  ours, _ = write(FGCLIP.replace(text={"long_length": None}))
  assert convert.main([ours, str(tmp_path / "theirs"), "--to", "open_clip"]) == 0
  config, flat, source = folders.read(str(tmp_path / "theirs"))
  changed = config.replace(vision={"pixels": PixelSpec(**HALF)})
  folders.FORMATS["open_clip"].write(str(tmp_path / "changed"), changed, flat, source)
  assert folders.read_config(str(tmp_path / "changed")) == changed


def test_a_model_folder_from_before_has_the_pixels_that_it_had(write):
  ours, _ = write(FGCLIP)
  values = json.loads((pathlib.Path(ours) / "model.json").read_text())
  assert "pixels" not in values["model"]["vision"] and "tokenizer" not in values["model"]["text"]
  assert folders.read_config(ours) == FGCLIP


def test_pixels_in_0_to_255_are_as_the_model_asks(write):
  """A tower that reads levels as they are: the check of normalised floats follows the model's own range."""
  spec = PixelSpec((0, 0, 0), (1 / 255,) * 3)
  ours, _ = write(FGCLIP.replace(vision={"pixels": spec}))
  model = fgclip_jax.load(ours)
  pixels = model.preprocess(PICTURE)
  assert 200 < pixels.max() <= 255.001
  np.testing.assert_allclose(model.encode_image(pixels), model.encode_image(PICTURE), atol=1e-5)
  with pytest.raises(ValueError, match=r"about 0.0 to 255.0"):
    model.encode_image(pixels * 1000)
  mixed = [pixels[0], np.asarray(PICTURE)]
  np.testing.assert_allclose(model.encode_image(mixed), np.repeat(model.encode_image(PICTURE), 2, 0), atol=1e-5)


def test_dense_features_and_regions_squash_whatever_the_model_says(write):
  config = FGCLIP.replace(text={"long_length": None}, vision={"pixels": SPECS["pad"]})
  ours, _ = write(config)
  model = fgclip_jax.load(ours)
  squashed = images.to_square(PICTURE, 32, config.vision.pixels)[None]
  np.testing.assert_allclose(model.encode_dense(PICTURE), model.encode_dense(squashed), atol=1e-6)
  assert jax.default_backend() == "cpu" and clip_to_fgclip.fgclip_config(config).resize == "squash"


def test_a_text_pooling_is_kept_by_our_format_alone(write, tmp_path, capsys):
  folder, flat = write(FGCLIP.replace(text_pooling={"heads": 2}))
  config, found, _ = folders.read(folder)
  assert config.text_pooling is not None and set(found) == set(flat)
  said = "open_clip has no place for the text pooling: it is left out"
  for to in ("jax", "open_clip"):
    convert.convert(folder, str(tmp_path / to), to)
    assert (said in capsys.readouterr().out) == (to == "open_clip")
    written, leaves, _ = folders.read(str(tmp_path / to))
    assert (written.text_pooling is None) == (to == "open_clip")
    assert any(name.startswith("text_pooling/") for name in leaves) == (to == "jax")
