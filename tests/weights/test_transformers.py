"""Weights pass between transformers' CLIPModel and ours, and both compute the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fgclip_jax.data.packing import Example, Layout, assemble, cut
from fgclip_jax.models.parameters import build, unflatten
from fgclip_jax.weights import huggingface

END = 49407


def _texts(end_id):
  """Padded rows of ids of several lengths; under the old rule padding need not be the end token."""
  rng = np.random.default_rng(1)
  ids = np.full((5, 77), END if end_id == END else 0, np.int64)
  for row, length in zip(ids, (0, 1, 5, 30, 75), strict=True):
    row[: length + 2] = [49406, *rng.integers(0, 49406, length), END]
  return ids


def _ours(folder, pixels, ids):
  config, flat, _ = huggingface.read(str(folder))
  model = build(config, unflatten({name: jnp.asarray(value) for name, value in flat.items()}))
  image, _ = jax.jit(type(model).image_features)(model, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
  blank = np.zeros((1, 1, 3), np.uint8)
  layout = Layout(boxes=0, row_length=96, long_length=None)
  batch = assemble([Example(blank, cut(row, config.text.end_id)) for row in ids], 1, layout)
  row, end = np.divmod(batch["short_end"][0], layout.row_length)
  packed = (jnp.asarray(batch[key][0]) for key in ("tokens", "segment", "position"))
  text = jax.jit(type(model).text_features)(model, *packed, jnp.asarray(row), jnp.asarray(end))
  unit = [np.asarray(x / jnp.linalg.norm(x, axis=-1, keepdims=True)) for x in (image, text)]
  return {
    "image_embeds": unit[0],
    "text_embeds": unit[1],
    "logits_per_image": np.exp(flat["temperature/global"]) * unit[0] @ unit[1].T,
  }


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
  pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
  ids = _texts(end_id)
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
  assert whole.keys() == shards.keys()
  for name, value in whole.items():
    np.testing.assert_array_equal(shards[name], value, err_msg=name)


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
