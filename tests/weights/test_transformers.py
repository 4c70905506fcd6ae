"""Weights pass between transformers' CLIPModel and ours, and both compute the same."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from fgclip_jax import convert
from fgclip_jax.data.image import preprocess
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params, flatten, unflatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.models.vit import VisionTower
from fgclip_jax.weights import clip_to_fgclip, huggingface, native
from fgclip_jax.weights import formats as folders
from tests.helpers.features import assert_close, features, images, texts


def _ours(folder, pixels, ids):
  image, text, scale = features(folder, pixels, ids)
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
  return {"image_embeds": unit[0], "text_embeds": unit[1], "logits_per_image": scale * unit[0] @ unit[1].T}


def _theirs(model, pixels, ids):
  import torch

  with torch.no_grad():
    outputs = model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels))
  return {key: outputs[key].numpy() for key in ("image_embeds", "text_embeds", "logits_per_image")}


@pytest.mark.parametrize(
  ("activation", "end_id"), [("quick_gelu", 2), ("gelu", 49407)], ids=["first checkpoints", "later checkpoints"]
)
def test_embeddings_and_logits_equal_theirs_both_ways(activation, end_id, make_clip, transformers, tmp_path):
  model = make_clip(activation, end_id)
  model.save_pretrained(tmp_path / "theirs")
  pixels = images(32)
  ids = texts(end_id)
  theirs, ours = _theirs(model, pixels, ids), _ours(tmp_path / "theirs", pixels, ids)
  for key, value in theirs.items():
    np.testing.assert_allclose(ours[key], value, rtol=0, atol=2e-6 * np.abs(value).max(), err_msg=key)

  config, flat, _ = huggingface.read(str(tmp_path / "theirs"))
  assert (config.text.activation, config.vision.activation, config.text.end_id) == (activation, activation, end_id)
  # without the source: config.json is then written from the model's size alone
  huggingface.write(str(tmp_path / "ours"), config, flat)
  loaded, info = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  for key, value in _theirs(loaded.eval(), pixels, ids).items():
    np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def test_a_sharded_save_is_read_through_its_index(make_clip, tmp_path):
  model = make_clip()
  model.save_pretrained(tmp_path / "whole")
  model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
  assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
  whole, shards = (huggingface.read(str(tmp_path / name))[1] for name in ("whole", "shards"))
  chex.assert_trees_all_equal(shards, whole)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_save_comes_back_byte_for_byte(dtype, make_clip, transformers, tmp_path):
  import torch

  make_clip().to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
  config, flat, source = huggingface.read(str(tmp_path / "theirs"))
  assert {value.dtype.name for value in flat.values()} == {dtype}
  huggingface.write(str(tmp_path / "ours"), config, flat, source)
  before, after = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
  assert before.keys() == after.keys()
  assert all(before[key].tobytes() == after[key].tobytes() for key in before)
  assert all(before[key].dtype == after[key].dtype for key in before)
  written, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
  assert written == theirs
  # and a config.json of our own names the dtype
  huggingface.write(str(tmp_path / "fresh"), config, flat)
  model = transformers.CLIPModel.from_pretrained(tmp_path / "fresh", dtype="auto")
  assert model.dtype == getattr(torch, dtype)


def test_a_pickle_of_theirs_under_an_index(make_clip, transformers, tmp_path):
  import torch

  model = make_clip()
  model.save_pretrained(tmp_path)
  whole = huggingface.read(str(tmp_path))[1]
  (tmp_path / "model.safetensors").unlink()
  state = model.state_dict()
  names, files = sorted(state), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
  for index, file in enumerate(files):
    torch.save({name: state[name] for name in names[index::2]}, tmp_path / file)
  weight_map = {name: files[index % 2] for index, name in enumerate(names)}
  (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(ValueError, match="is a pickle"):
    folders.read(str(tmp_path))
  flat = folders.read(str(tmp_path), allow_pickle=True)[1]
  assert flat.keys() == whole.keys()
  assert all(np.array_equal(flat[name], value) for name, value in whole.items())


# ---- the image tower alone


def _their_tower(model, pixels):
  import torch

  with torch.no_grad():
    return model(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()


def _our_tower(config, flat, pixels):
  tower = nnx.eval_shape(lambda: VisionTower(config, Runtime(), rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(tower)
  nnx.replace_by_pure_dict(state, unflatten({name: jnp.asarray(value) for name, value in flat.items()})["vision"])
  return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)[0])(state, jnp.asarray(pixels.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
def test_their_image_towers_in_ours(kind, make_clip, transformers, tmp_path):
  whole = make_clip("gelu")
  model = whole
  if kind != "CLIPModel":
    model = getattr(transformers, kind)(whole.config.vision_config).eval()
    missing, _ = model.load_state_dict(whole.vision_model.state_dict(), strict=False)
    if missing:
      model.vision_model.load_state_dict(whole.vision_model.state_dict())
  model.save_pretrained(tmp_path)
  config, flat = huggingface.read_vision(str(tmp_path))
  pixels = images(32)
  expected = _their_tower(whole.vision_model, pixels)
  assert_close(_our_tower(config, flat, pixels), expected)
  if kind != "CLIPModel":
    with pytest.raises(ValueError, match="describes an image tower alone"):
      folders.read(str(tmp_path))


@pytest.mark.parametrize("length", [None, 248], ids=["CLIP", "FG-CLIP"])
def test_our_image_towers_in_theirs(length, transformers, tmp_path, random_params):
  config = preset("tiny").replace(text={"vocab_size": 60, "long_length": length}, vision={"layer_norm_eps": 1e-3})
  flat = random_params(config)
  native.write(str(tmp_path / "ours"), config, flat)
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "tower"), "--to", "clip_vision"]) == 0
  model, info = transformers.CLIPVisionModel.from_pretrained(tmp_path / "tower", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  pixels = images(32)
  ours = {name: value for name, value in flat.items() if name.startswith("vision/")}
  assert_close(_their_tower(model.eval(), pixels), _our_tower(config.vision, ours, pixels))
  found, read = huggingface.read_vision(str(tmp_path / "tower"))
  assert found == config.vision
  assert read.keys() == ours.keys()
  assert all(read[name].tobytes() == value.tobytes() for name, value in ours.items())


# ---- what transformers needs beside the weights


@pytest.mark.parametrize("length", [None, 248], ids=["CLIP", "FG-CLIP"])
def test_a_written_clip_is_complete_for_its_users(length, transformers, shared, tmp_path, random_params):
  """Model, tokenizer and image processor load by the folder's name alone and do what ours do."""
  from PIL import Image

  config = preset("tiny").replace(text={"long_length": length})
  flat = random_params(config)
  native.write(str(tmp_path / "ours"), config, flat)
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "clip"]) == 0
  model, info = transformers.CLIPModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  pixels, ids = images(32), texts()
  native.write(str(tmp_path / "short"), *clip_to_fgclip.to_clip(config, flat))
  ours, theirs = _ours(tmp_path / "short", pixels, ids), _theirs(model.eval(), pixels, ids)
  for key, value in theirs.items():
    assert_close(ours[key], value)

  tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "theirs")
  sentences = ["A photo of a cat.", "naïve café, 北京 — it's 12:30!", ""]
  rows = tokenizer(sentences, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
  np.testing.assert_array_equal(rows, Tokenizer()(sentences))

  # the processor that needs no torchvision, where transformers has two
  kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
  processor = kind.from_pretrained(tmp_path / "theirs")
  with Image.open(shared / "data" / "pictures" / "cat_dfclor.jpg") as picture:
    theirs = np.asarray(processor(picture, return_tensors="pt")["pixel_values"])
    ours = preprocess(picture, 32, "squash" if length else "center_crop")
  np.testing.assert_allclose(theirs.transpose(0, 2, 3, 1), ours, atol=1e-5)


@pytest.mark.slow
def test_a_real_size(transformers, tmp_path):
  import torch

  torch.manual_seed(0)
  text, vision = ({"hidden_act": "quick_gelu"} for _ in range(2))
  config = transformers.CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=512)
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim:
        parameter.add_(parameter.std() * 0.5 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path)
  found = folders.read_config(str(tmp_path))
  assert found == preset("vit_b16").replace(text={"long_length": None, "end_id": found.text.end_id})
  pixels, ids = images(224, 2), texts()
  ours, theirs = _ours(tmp_path, pixels, ids), _theirs(model, pixels, ids)
  for key, value in theirs.items():
    print(f"ViT-B/16 {key}: largest difference {np.abs(ours[key] - value).max() / np.abs(value).max():.1e}")
    assert_close(ours[key], value, 1e-4)
  assert sum(leaf.size for leaf in flatten(abstract_params(found)).values()) == model.num_parameters()
