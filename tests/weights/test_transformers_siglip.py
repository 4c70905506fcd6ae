"""Weights pass between transformers' SigLIP and SigLIP 2 and ours, and both compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import build, count, unflatten
from fgclip_jax.models.positions import resize
from fgclip_jax.models.siglip import PatchRows
from fgclip_jax.weights import formats, huggingface
from tests.helpers.features import assert_close

KINDS = {"squares": "Siglip", "any shape": "Siglip2"}
SHAPES = np.array([(3, 4), (4, 4), (1, 6), (5, 2)])
SLOTS = 20  # more than any of the pictures has: padding


@pytest.fixture(scope="module")
def make(transformers):
  """Makes a random model of theirs, of small size if none is given, with parameters away from their initial values."""
  import torch

  def make(kind, **sizes):
    torch.manual_seed(0)
    small = {"intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {"hidden_size": 32, "vocab_size": 300, "projection_size": 24, "eos_token_id": 1, "bos_token_id": 2, **small}
    vision = {"hidden_size": 24, "patch_size": 8, **small}
    vision |= {"image_size": 32} if kind == "Siglip" else {"num_patches": 25}
    sizes = sizes or {"text_config": text, "vision_config": vision}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.add_(max(0.02, 0.5 * float(parameter.std(correction=0))) * torch.randn_like(parameter))
    return model

  return make


def _inputs(model, kind, shapes=SHAPES, slots=SLOTS):
  """Ids and pictures as their processors give them."""
  rng = np.random.default_rng(0)
  ids = rng.integers(2, model.config.text_config.vocab_size, (3, 64))
  ids[:, 20:] = 0
  if kind == "Siglip":
    side = model.config.vision_config.image_size
    return {"input_ids": ids, "pixel_values": rng.normal(size=(2, 3, side, side)).astype(np.float32)}
  width = 3 * model.config.vision_config.patch_size**2
  pixels, mask = np.zeros((len(shapes), slots, width), np.float32), np.zeros((len(shapes), slots), np.int64)
  for number, (height, breadth) in enumerate(shapes):
    pixels[number, : height * breadth] = rng.normal(size=(height * breadth, width))
    mask[number, : height * breadth] = 1
  return {"input_ids": ids, "pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _theirs(model, inputs):
  import torch

  with torch.no_grad():
    found = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
  return [
    value.numpy()
    for value in (
      found.vision_model_output.pooler_output,
      found.text_model_output.pooler_output,
      found.logits_per_image,
    )
  ]


def _ours(path, inputs):
  config, flat, _ = formats.read(str(path))
  model = build(config, unflatten({name: jnp.asarray(value) for name, value in flat.items()}))
  pixels, ids = inputs["pixel_values"], jnp.asarray(inputs["input_ids"], jnp.int32)
  if config.vision.takes_patches:
    images, slots = pixels.shape[:2]
    mask, place = inputs["pixel_attention_mask"], np.zeros((images, slots, 4), np.int32)
    place[:] = (0, 0, 1, 1)
    for row, (height, width) in zip(place, inputs["spatial_shapes"], strict=True):
      row[: height * width] = [(i, j, height, width) for i in range(height) for j in range(width)]
    slot = np.where(mask, np.arange(images * slots).reshape(images, slots), -1)
    arrays = (jnp.asarray(x, jnp.int32) for x in (mask, place, slot))
    segment, place, slot = arrays
    image, _ = jax.jit(type(model).patch_features)(model, PatchRows(jnp.asarray(pixels), segment, place), slot)
  else:
    image, _ = jax.jit(type(model).image_features)(model, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
  rows, length = ids.shape
  position = jnp.broadcast_to(jnp.arange(length), ids.shape)
  end = jnp.full(rows, length - 1)
  text = jax.jit(type(model).text_features)(model, ids, jnp.ones_like(ids), position, jnp.arange(rows), end)
  units = [np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
  logits = np.exp(flat["temperature/global"]) * units[0] @ units[1].T + flat["temperature/bias"]
  return np.asarray(image), np.asarray(text), logits


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_features_and_logits_equal_theirs_both_ways(kind, make, transformers, tmp_path):
  model = make(kind)
  model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
  assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
  inputs = _inputs(model, kind)
  theirs = _theirs(model, inputs)
  for found, expected in zip(_ours(tmp_path / "theirs", inputs), theirs, strict=True):
    assert_close(found, expected)

  config, flat, _ = formats.read(str(tmp_path / "theirs"))
  formats.write(str(tmp_path / "fresh"), "siglip", config, flat)
  loaded, info = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path / "fresh", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  for found, expected in zip(_theirs(loaded.eval(), inputs), theirs, strict=True):
    np.testing.assert_array_equal(found, expected)
  assert type(transformers.AutoModel.from_pretrained(tmp_path / "fresh")) is type(model)


def test_another_image_size_is_their_interpolation_of_positions(make, tmp_path):
  import torch

  model = make("Siglip")
  model.save_pretrained(tmp_path / "theirs")
  config, flat, _ = formats.read(str(tmp_path / "theirs"))
  params, config = resize(unflatten(flat), config, 48)
  pixels = np.random.default_rng(1).normal(size=(2, 3, 48, 48)).astype(np.float32)
  ours = build(config, jax.tree.map(jnp.asarray, params))
  image, _ = jax.jit(type(ours).image_features)(ours, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
  with torch.no_grad():
    theirs = model.vision_model(torch.from_numpy(pixels), interpolate_pos_encoding=True).pooler_output.numpy()
  assert_close(np.asarray(image), theirs)


def test_their_squares_as_pictures_of_any_shape(make, transformers, tmp_path):
  """The convolution is the linear layer: what `--as naflex` writes is a model of theirs with the same features."""
  model = make("Siglip")
  model.save_pretrained(tmp_path / "theirs")
  assert convert.main([str(tmp_path / "theirs"), str(tmp_path / "naflex"), "--as", "naflex", "--to", "siglip"]) == 0
  naflex = transformers.Siglip2Model.from_pretrained(tmp_path / "naflex").eval()
  inputs = _inputs(model, "Siglip")
  pixels = inputs["pixel_values"].reshape(2, 3, 4, 8, 4, 8).transpose(0, 2, 4, 3, 5, 1).reshape(2, 16, 192)
  patches = {"pixel_values": np.ascontiguousarray(pixels), "pixel_attention_mask": np.ones((2, 16), np.int64)}
  patches |= {"input_ids": inputs["input_ids"], "spatial_shapes": np.full((2, 2), 4)}
  for found, expected in zip(_theirs(naflex, patches), _theirs(model, inputs), strict=True):
    assert_close(found, expected)


def test_an_fgclip2_holds_a_model_of_theirs(transformers, tmp_path, random_params):
  config = preset("tiny_fgclip2")
  huggingface.write(str(tmp_path / "fgclip2"), config, random_params(config))
  assert convert.main([str(tmp_path / "fgclip2"), str(tmp_path / "plain"), "--to", "siglip"]) == 0
  _, info = transformers.Siglip2Model.from_pretrained(tmp_path / "plain", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_their_processors_load_from_what_is_written(transformers, tmp_path, random_params):
  for name in ("tiny_siglip", "tiny_naflex"):
    config = preset(name)
    huggingface.write(str(tmp_path / name), config, random_params(config))
  squares, patches = (getattr(transformers, f"{kind}ImageProcessorPil", None) for kind in KINDS.values())
  if squares is None or patches is None:
    pytest.skip("needs processors that go without torchvision")
  pictures = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in ((30, 50, 3), (70, 20, 3))]
  assert np.asarray(squares.from_pretrained(tmp_path / "tiny_siglip")(pictures)["pixel_values"]).shape == (2, 3, 32, 32)
  found = patches.from_pretrained(tmp_path / "tiny_naflex")(pictures)
  assert np.asarray(found["pixel_values"]).shape == (2, 16, 192)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_real_size(kind, make, tmp_path):
  name = {"Siglip": "siglip2_b16", "Siglip2": "siglip2_naflex_b16"}[kind]
  model = make(kind, text_config={"vocab_size": 256000}, vision_config={})
  model.save_pretrained(tmp_path)
  assert formats.read_config(str(tmp_path)) == preset(name)
  inputs = _inputs(model, kind, np.array([(12, 20), (16, 16)]), 256)
  ours, theirs = _ours(tmp_path, inputs), _theirs(model, inputs)
  for part, found, expected in zip(("image", "text", "logits"), ours, theirs, strict=True):
    print(f"{name} {part}: largest difference {np.abs(found - expected).max() / np.abs(expected).max():.1e}")
    assert_close(found, expected)
  assert model.num_parameters() == count(unflatten(formats.read(str(tmp_path))[1]))
