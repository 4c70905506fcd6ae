"""open_clip's models and ours compute the same from the same files, in both directions."""

import warnings

import jax
import numpy as np
import pytest

from fgclip_jax import convert
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.weights import clip_to_fgclip, native
from fgclip_jax.weights import formats as folders
from tests.helpers.features import assert_close, features, images, texts

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 3}
RESNET = {"image_size": 64, "width": 8, "layers": [2, 1, 3, 1], "patch_size": None}
MODELS = {
  "ViT, quick_gelu": {"embed_dim": 20, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
  "ViT, gelu, other ratios": {
    "embed_dim": 24,
    "vision_cfg": VIT | {"mlp_ratio": 2.3, "norm_kwargs": {"eps": 1e-3}},
    "text_cfg": TEXT | {"mlp_ratio": 3.1, "norm_kwargs": {"eps": 1e-3}, "context_length": 32},
  },
  "text tower of its own": {"embed_dim": 20, "custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
  "logit bias": {"embed_dim": 20, "init_logit_bias": -10.0, "vision_cfg": VIT, "text_cfg": TEXT},
  "ResNet, quick_gelu": {"embed_dim": 20, "quick_gelu": True, "vision_cfg": RESNET, "text_cfg": TEXT},
  "ResNet, gelu": {"embed_dim": 20, "vision_cfg": RESNET, "text_cfg": TEXT},
}


def theirs(model, pixels, ids):
  import torch

  with torch.no_grad():
    image = model.encode_image(torch.from_numpy(pixels))
    text = model.encode_text(torch.from_numpy(ids))
    return image.numpy(), text.numpy(), model.logit_scale.exp().numpy()


def inputs(config):
  return images(config["vision_cfg"]["image_size"]), texts(2, config["text_cfg"]["context_length"])


def loaded(open_clip, folder):
  """The model that open_clip makes of a folder; it is strict about missing and unexpected keys."""
  return open_clip.create_model(f"local-dir:{folder}").eval()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_their_models_in_ours(config, pickled, make, save, tmp_path):
  model = make(config)
  save(model, config, tmp_path / "theirs", pickled)
  pixels, ids = inputs(config)
  ours = features(tmp_path / "theirs", pixels, ids, allow_pickle=pickled)
  for found, expected in zip(ours, theirs(model, pixels, ids), strict=True):
    assert_close(found, expected)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_there_and_back_they_are_what_they_were(config, open_clip, make, save, tmp_path):
  import torch

  model = make(config)
  save(model, config, tmp_path / "theirs")
  assert convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "open_clip"]) == 0
  again = loaded(open_clip, tmp_path / "back")
  assert type(again) is type(model)
  before, after = model.state_dict(), again.state_dict()
  assert before.keys() == after.keys()
  for name, value in before.items():
    assert value.dtype == after[name].dtype and torch.equal(value, after[name]), name
  pixels, ids = inputs(config)
  for found, expected in zip(theirs(again, pixels, ids), theirs(model, pixels, ids), strict=True):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("end_id", [49407, 2, 320])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["ViT", "FG-CLIP", "ResNet"])
def test_our_models_in_theirs(kind, activation, end_id, open_clip, tmp_path):
  """Written from the model's size alone: there is no config of theirs to give back."""
  config = preset("tiny_resnet" if kind == "ResNet" else "tiny").replace(text={"end_id": end_id})
  config = config.replace(text={"activation": activation, "mlp_width": 50})
  if kind != "FG-CLIP":
    config = config.replace(text={"long_length": None})
  if kind != "ResNet":
    config = config.replace(vision={"activation": activation, "mlp_width": 70, "layer_norm_eps": 1e-4})
  rng = np.random.default_rng(0)
  shapes = flatten(abstract_params(config))
  flat = {name: rng.uniform(0.02, 0.3, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
  native.write(str(tmp_path / "ours"), config, flat)
  assert convert.main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "open_clip"]) == 0
  pixels, ids = images(config.vision.image_size), texts()
  if end_id == 320:  # an id that stands for the end of text without being the largest one
    ids[ids == 49407] = 320
  if kind == "FG-CLIP":
    native.write(str(tmp_path / "short"), *clip_to_fgclip.to_clip(config, flat))
  ours = features(tmp_path / ("short" if kind == "FG-CLIP" else "ours"), pixels, ids)
  for found, expected in zip(theirs(loaded(open_clip, tmp_path / "theirs"), pixels, ids), ours, strict=True):
    assert_close(found, expected)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", ["ViT, quick_gelu", "ResNet, quick_gelu"])
def test_archives_as_openai_published_them(name, half, open_clip, make, tmp_path):
  """A TorchScript archive without any config: sizes and activation are known without being told."""
  import torch

  config = MODELS[name] | {"text_cfg": TEXT | {"width": 64, "heads": 1}}
  if "ViT" in name:
    config["vision_cfg"] = VIT | {"width": 64, "head_width": 64}
  model = make(config)
  pixels, ids = inputs(config)
  if half:
    open_clip.model.convert_weights_to_fp16(model)
    expected = {key: value.numpy() for key, value in model.state_dict().items()}
  else:
    expected = theirs(model, pixels, ids)
  path = tmp_path / "model.pt"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    example = (torch.from_numpy(pixels).to(model.logit_scale.dtype), torch.from_numpy(ids))
    if half:
      model = make_traceable(torch, model)
      example = (torch.zeros(2),)
    torch.jit.save(torch.jit.trace(model, example, strict=False), path)
  if not half:
    for found, value in zip(features(path, pixels, ids), expected, strict=True):
      assert_close(found, value)
    return
  found, flat, _ = folders.read(str(path))
  assert found.text.activation == "quick_gelu"
  assert flat["vision/positions"].dtype == np.float32
  assert flat["text/transformer/blocks/mlp/up/kernel"].dtype == np.float16
  np.testing.assert_array_equal(
    flat["text/transformer/blocks/mlp/up/kernel"][1].T, expected["transformer.resblocks.1.mlp.c_fc.weight"]
  )


def make_traceable(torch, model):
  """The model with a forward pass that needs no half-precision arithmetic."""
  model.forward = lambda x: x + 1
  return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pickled"), [("ViT-B-16-quickgelu", False), ("RN50-quickgelu", True)])
def test_real_sizes(name, pickled, open_clip, make, save, tmp_path):
  config = open_clip.get_model_config(name)
  model = make(config)
  save(model, config, tmp_path, pickled)
  assert folders.detect(str(tmp_path)) == "open_clip"
  found = folders.read(str(tmp_path), allow_pickle=pickled)[0]
  expected = preset({"ViT-B-16-quickgelu": "vit_b16", "RN50-quickgelu": "rn50"}[name])
  assert found == expected.replace(text={"long_length": None})
  pixels, ids = images(224, 2), texts(2)
  ours = features(tmp_path, pixels, ids, allow_pickle=pickled)
  for part, mine, other in zip(("image", "text", "scale"), ours, theirs(model, pixels, ids), strict=True):
    print(f"{name} {part}: largest difference {np.abs(mine - other).max() / np.abs(other).max():.1e} of the largest")
    assert_close(mine, other, 1e-4)
  assert jax.default_backend() == "cpu"
