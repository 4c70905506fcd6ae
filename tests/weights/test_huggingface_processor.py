"""What transformers' `preprocessor_config.json` says of pictures is what is done with them, or an error."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data import image as images
from fgclip_jax.models.config import preset
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.weights import huggingface_processor
from fgclip_jax.weights.huggingface_processor import write_image

SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8))

# settings, and what they mean
READ = {
  "nothing": ({}, CLIP_PIXELS),
  "CLIP": (
    {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE, "resample": 3},
    CLIP_PIXELS,
  ),
  "mean and std": (HALF, PixelSpec((0.5,) * 3, (0.5,) * 3)),
  "one mean for all colours": ({"image_mean": 0.5, "image_std": 0.25}, PixelSpec((0.5,) * 3, (0.25,) * 3)),
  "nulls": ({"image_mean": None, "resample": None, "do_center_crop": None, "size": None}, CLIP_PIXELS),
  "not normalised": ({"do_normalize": False, **HALF}, PixelSpec((0, 0, 0), (1, 1, 1))),
  "not rescaled": (
    {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3},
    PixelSpec((0.5,) * 3, (0.2,) * 3),
  ),
  "rescaled to 0..2": (
    {"rescale_factor": 2 / 255, "image_mean": [1] * 3, "image_std": [1] * 3},
    PixelSpec((0.5,) * 3, (0.5,) * 3),
  ),
  "squashed": ({"size": SQUARE, "do_center_crop": False}, PixelSpec(resize="squash")),
  "squashed, then cropped to the same": ({"size": SQUARE, "crop_size": SQUARE}, PixelSpec(resize="squash")),
  "squashed as a list": ({"size": [SIDE, SIDE], "crop_size": [SIDE, SIDE]}, PixelSpec(resize="squash")),
  "squashed by an old switch": ({"size": SIDE, "use_square_size": True}, PixelSpec(resize="squash")),
  "shortest edge": ({"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}, CLIP_PIXELS),
  "bilinear": ({"resample": 2}, PixelSpec(interpolation="bilinear")),
  "lanczos": ({"resample": 1, "do_convert_rgb": False}, PixelSpec(interpolation="lanczos")),
  "SigLIP": (
    {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    PixelSpec((0.5,) * 3, (0.5,) * 3, "squash"),
  ),
  "ViT": ({"image_processor_type": "ViTImageProcessorFast"}, PixelSpec((0.5,) * 3, (0.5,) * 3, "squash", "bilinear")),
}  # fmt: skip
# settings that no PixelSpec can express, and what the error says of them
REFUSED = {
  "size.shortest_edge": ({"size": {"shortest_edge": 40}}, "size = {'shortest_edge': 40} gives pictures of 40 pixels"),
  "size.longest_edge": ({"size": {"longest_edge": SIDE}}, "size = {'longest_edge': 32} must be"),
  "oblong": ({"size": {"height": 32, "width": 64}}, "size = .* must be"),
  "size of text": ({"size": "224"}, "size = '224' must be"),
  "crop_size": ({"crop_size": 24}, "crop_size = 24 gives pictures of 24 pixels, and the model reads 32"),
  "do_resize": ({"do_resize": False}, "do_resize = False"),
  "do_center_crop": ({"do_center_crop": False}, "do_center_crop = False"),
  "do_pad": ({"do_pad": True}, "do_pad = True"),
  "crop_pct": ({"crop_pct": 0.9}, "crop_pct = 0.9"),
  "resample": ({"resample": 7}, "resample = 7"),
  "resample by name": ({"resample": "bicubic"}, "resample = 'bicubic'"),
  "two means": ({"image_mean": [0.5, 0.5]}, r"image_mean = \[0.5, 0.5\]"),
  "std of zero": ({"image_std": [0.5, 0.5, 0]}, r"image_std = \[0.5, 0.5, 0\]"),
  "mean of words": ({"image_mean": "imagenet"}, "image_mean = 'imagenet'"),
  "rescale_factor": ({"rescale_factor": 0}, "rescale_factor = 0"),
  "do_normalize of text": ({"do_normalize": "yes"}, "do_normalize = 'yes'"),
  "type": ({"image_processor_type": "DonutImageProcessor"}, "'DonutImageProcessor' is not known here"),
}  # fmt: skip


def save(folder, values, name="preprocessor_config.json"):
  (folder / name).write_text(json.dumps(values))
  return str(folder)


def read_image(folder, side, fine_grained):
  """How pictures are made ready for a CLIP, or for an FG-CLIP."""
  config = preset("tiny").replace(text={} if fine_grained else {"long_length": None}, vision={"image_size": side})
  return huggingface_processor.read_image(folder, config).vision.pixels


def close(found: PixelSpec, expected: PixelSpec) -> bool:
  numbers = [np.allclose(getattr(found, name), getattr(expected, name), atol=1e-12) for name in ("mean", "std")]
  return all(numbers) and (found.resize, found.interpolation) == (expected.resize, expected.interpolation)


@pytest.mark.parametrize(("values", "expected"), READ.values(), ids=READ)
def test_settings_are_read_as_transformers_reads_them(values, expected, tmp_path):
  assert close(read_image(save(tmp_path, values), SIDE, fine_grained=False), expected)


@pytest.mark.parametrize("name", READ)
def test_pictures_become_what_transformers_makes_of_them(name, transformers, tmp_path):
  values = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE} | {
    k: v for k, v in READ[name][0].items() if v is not None
  }
  kind = values.get("image_processor_type", "CLIPImageProcessor").removesuffix("Fast")
  if not kind.startswith("CLIP"):
    values |= {"size": SQUARE}
  if values.pop("use_square_size", False):
    values["size"] = SQUARE
  spec = read_image(save(tmp_path, values), SIDE, fine_grained=False)
  theirs = getattr(transformers, f"{kind}Pil", getattr(transformers, kind))(**values)
  expected = np.asarray(theirs(PICTURE, return_tensors="pt")["pixel_values"])[0].transpose(1, 2, 0)
  found = images.preprocess(PICTURE, SIDE, spec.resize or "center_crop", spec)[0]
  np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_an_error_that_names_file_and_key(values, message, tmp_path):
  with pytest.raises(
    ValueError, match=f"{re.escape(str(tmp_path))}/preprocessor_config.json.*{message}.*remove the file"
  ):
    read_image(save(tmp_path, values), SIDE, fine_grained=False)


def test_transformers_5_keeps_the_settings_in_a_section(tmp_path):
  save(tmp_path, {"image_processor": HALF, "processor_class": "CLIPProcessor"}, "processor_config.json")
  assert read_image(str(tmp_path), SIDE, False).mean == (0.5,) * 3
  save(tmp_path, {"image_mean": [0.1] * 3})
  assert read_image(str(tmp_path), SIDE, False).mean == (0.5,) * 3
  save(tmp_path, {"processor_class": "CLIPProcessor"}, "processor_config.json")
  assert read_image(str(tmp_path), SIDE, False).mean == (0.1,) * 3
  save(tmp_path, {"image_processor": {"do_pad": True}}, "processor_config.json")
  with pytest.raises(ValueError, match="processor_config.json.*do_pad"):
    read_image(str(tmp_path), SIDE, False)


@pytest.mark.parametrize(
  "values",
  [
    {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE},
    {"size": SQUARE, "do_center_crop": False},
    {"do_resize": False},
  ],
)
def test_an_fgclip_squashes_whatever_its_processor_does_with_the_square(values, tmp_path):
  """The published folder crops, after the published code has squashed."""
  assert read_image(save(tmp_path, values), SIDE, fine_grained=True) == CLIP_PIXELS
  with pytest.raises(ValueError, match="crop_size = 24"):
    read_image(save(tmp_path, {"crop_size": 24}), SIDE, fine_grained=True)


@pytest.mark.parametrize("resize", [None, "squash", "center_crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_what_is_written_is_read_again(resize, interpolation, tmp_path):
  spec = PixelSpec((0.1, 0.2, 0.3), (0.5, 0.4, 0.3), resize, interpolation)
  config = preset("tiny").replace(text={"long_length": None}, vision={"pixels": spec})
  write_image(str(tmp_path), config)
  found = read_image(str(tmp_path), config.vision.image_size, fine_grained=False)
  assert config.replace(vision={"pixels": found}).resize == config.resize
  assert (found.mean, found.std, found.interpolation) == (spec.mean, spec.std, spec.interpolation)


def test_a_padded_picture_has_no_place(tmp_path):
  config = preset("tiny").replace(text={"long_length": None}, vision={"pixels": PixelSpec(resize="pad")})
  with pytest.raises(ValueError, match="padded .* write it as jax or open_clip"):
    write_image(str(tmp_path), config)
  assert huggingface_processor.IMAGE_FILE in huggingface_processor.FILES and not list(tmp_path.iterdir())


# ---- SigLIP

PATCHES = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 20}
FGCLIP2 = {"image_processor_type": "Fgclip2ImageProcessor", "patch_size": 8, "dynamic_max_patches": True}
NOT_PATCHES = {
  "squares": ({"image_processor_type": "SiglipImageProcessor"}, "makes no patches of pictures of any shape"),
  "patch_size": ({"patch_size": 14}, "patch_size = 14 is not the model's, 8"),
  "patch_size is silent": ({}, "patch_size = 16 is not the model's, 8"),
  "max_num_patches": (PATCHES | {"max_num_patches": 0}, "max_num_patches = 0 must be a positive number"),
  "do_resize": (PATCHES | {"do_resize": False}, "do_resize = False"),
  "do_center_crop": (PATCHES | {"do_center_crop": True}, "do_center_crop = True"),
  "resample": (PATCHES | {"resample": 9}, "resample = 9"),
}


def test_processors_of_patches_are_read_and_written(tmp_path):
  naflex = preset("tiny_naflex")
  assert huggingface_processor.read_image(str(tmp_path), naflex) == naflex  # there is no file
  found = huggingface_processor.read_image(save(tmp_path, PATCHES | HALF | {"resample": 3}), naflex)
  assert found.vision.max_patches == 20
  assert found.vision.pixels == PixelSpec((0.5,) * 3, (0.5,) * 3, "squash", "bicubic")
  write_image(str(tmp_path), found)
  assert json.loads((tmp_path / "preprocessor_config.json").read_text())["max_num_patches"] == 20
  assert huggingface_processor.read_image(str(tmp_path), naflex) == found
  config = preset("tiny_fgclip2")
  assert huggingface_processor.read_image(save(tmp_path, FGCLIP2), config).vision.max_patches == 256


def test_squares_of_siglip_are_read_and_written(tmp_path):
  config = preset("tiny_siglip")
  values = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": 3}
  found = huggingface_processor.read_image(save(tmp_path, values), config)
  assert found.vision.pixels == PixelSpec((0.5,) * 3, (0.5,) * 3, "squash")
  write_image(str(tmp_path), found)
  assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == SQUARE
  assert huggingface_processor.read_image(str(tmp_path), config) == found


@pytest.mark.parametrize(("values", "message"), NOT_PATCHES.values(), ids=NOT_PATCHES)
def test_what_makes_no_patches_is_an_error(values, message, tmp_path):
  with pytest.raises(ValueError, match=f"preprocessor_config.json.*{message}.*remove the file"):
    huggingface_processor.read_image(save(tmp_path, values), preset("tiny_naflex"))
