"""The presets are the published models, to the last parameter."""

import json

import pytest

from fgclip_jax.models import towers
from fgclip_jax.models.config import (
  IMAGE_CONFIGS,
  PRESETS,
  TEXT_CONFIGS,
  TEXT_KINDS,
  ModelConfig,
  PixelSpec,
  ResNetConfig,
  TextConfig,
  TextKind,
  TowerConfig,
  VisionConfig,
  preset,
)
from fgclip_jax.models.params import abstract_params, count, flatten
from fgclip_jax.train import flops
from fgclip_jax.weights import huggingface_names, openai_names

# of OpenAI's checkpoints, without their BatchNorm statistics
PUBLISHED = {
  "vit_b32": 151_277_313, "vit_b16": 149_620_737, "vit_l14": 427_616_513, "vit_l14_336": 427_944_193,
  "rn50": 102_007_137, "rn101": 119_688_033, "rn50x4": 178_300_601, "rn50x16": 290_979_217, "rn50x64": 623_258_305,
}  # fmt: skip


def blocks(tower: TowerConfig) -> int:
  """The parameters of a transformer's blocks."""
  w, m = tower.width, tower.mlp_width
  attention, mlp, norms = 4 * (w * w + w), (w * m + m) + (m * w + w), 2 * 2 * w
  return tower.depth * (attention + mlp + norms)


def transformer(v: VisionConfig, d: int) -> int:
  """The parameters of a Vision Transformer and its projection to `d` channels."""
  embeddings = v.patch_size**2 * 3 * v.width + v.width + (1 + v.grid**2) * v.width
  return blocks(v) + embeddings + 2 * 2 * v.width + v.width * d


def resnet(v: ResNetConfig, d: int) -> int:
  """The parameters of a ResNet and its attention pooling to `d` channels."""

  def convolution(inputs, outputs, size):  # with the BatchNorm behind it
    return inputs * outputs * size**2 + 2 * outputs

  half, inputs, c = v.width // 2, v.width, 32 * v.width
  total = convolution(3, half, 3) + convolution(half, half, 3) + convolution(half, v.width, 3)
  for stage, depth in enumerate(v.depths):
    middle = v.width * 2**stage
    outputs = 4 * middle
    for block in range(depth):
      given = outputs if block else inputs
      total += convolution(given, middle, 1) + convolution(middle, middle, 3) + convolution(middle, outputs, 1)
    total += convolution(inputs, outputs, 1)  # the first block's shortcut
    inputs = outputs
  return total + (1 + v.grid**2) * c + 3 * (c * c + c) + (c * d + d)


def siglip(config: ModelConfig) -> int:
  """The parameters of a SigLIP or an FG-CLIP 2."""
  v, t, d = config.vision, config.text, config.embedding_width
  head = v.width + 4 * (v.width**2 + v.width) + 2 * v.width + 2 * v.width * v.mlp_width + v.mlp_width + v.width
  total = blocks(v) + (v.patch_size**2 * 3 + 1) * v.width + v.grid**2 * v.width + 2 * v.width
  total += (1 + v.dense_head) * head + blocks(t) + (t.vocab_size + t.short_length) * t.width + 2 * t.width
  heads, temperatures = (3, 4) if config.fine_grained else (1, 2)
  return total + (t.long_length or 0) * t.width + heads * (t.width * d + d) + temperatures


def formula(config: ModelConfig) -> int:
  """The number of parameters, counted from the papers' description."""
  v, t, d = config.vision, config.text, config.embedding_width
  if t.type == "siglip":
    return siglip(config)
  total = (resnet if isinstance(v, ResNetConfig) else transformer)(v, d) + blocks(t)
  total += (t.vocab_size + t.short_length) * t.width + 2 * t.width + t.width * d + 1
  if config.fine_grained:
    total += t.long_length * t.width + t.width * d + 2
  return total


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
  config = preset(name)
  plain = config.replace(text={"long_length": None})
  assert config.fine_grained == ("siglip" not in name and "naflex" not in name) and not plain.fine_grained
  assert count(abstract_params(config)) == formula(config)
  assert count(abstract_params(plain)) == formula(plain) == PUBLISHED.get(name, formula(plain))
  assert all(leaf.dtype == "float32" for leaf in flatten(abstract_params(config)).values())


def test_fgclip2_has_the_published_number_of_parameters():
  # theirs count both position tables of the long path in full, of which each gives a part, and no two temperatures
  published = {"fgclip2_b16": 383.8, "fgclip2_l16": 896.6, "fgclip2_so400m16": 1154.0}
  for name, millions in published.items():
    config = preset(name)
    assert round((formula(config) + 196 * config.text.width) / 1e6, 1) == millions


def test_a_model_without_projections_has_towers_as_wide_as_its_embeddings():
  with pytest.raises(ValueError, match="embedding_width 16 must be its width, 32"):
    preset("tiny_siglip").replace(embedding_width=16)
  with pytest.raises(ValueError, match="width 16 must be 32"):
    preset("tiny_siglip").replace(text={"head": False, "width": 16})


def test_an_unknown_preset_lists_those_there_are():
  with pytest.raises(ValueError, match="no model preset 'vit_h14'; there are vit_b32, vit_b16, .*tiny"):
    preset("vit_h14")


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_go_through_json_and_back(name):
  assert ModelConfig.from_dict(json.loads(json.dumps(preset(name).to_dict()))) == preset(name)


@pytest.mark.parametrize("name", ["tiny", "tiny_resnet"])
def test_a_dict_names_its_towers_and_one_of_an_older_version_is_read(name):
  values = preset(name).to_dict()
  assert (values["vision"]["type"], values["text"]["type"]) == ("resnet" if name == "tiny_resnet" else "vit", "causal")
  older = preset(name).identity()
  assert "type" not in older["vision"] | older["text"] and older == values | {
    tower: {key: value for key, value in values[tower].items() if key != "type"} for tower in ("vision", "text")
  }
  assert ModelConfig.from_dict(json.loads(json.dumps(older))) == preset(name)


def test_each_type_of_tower_is_in_every_registry():
  assert towers.IMAGE_TOWERS.keys() == IMAGE_CONFIGS.keys() == flops.IMAGE_FLOPS.keys()
  assert openai_names.IMAGE_ROWS.keys() <= IMAGE_CONFIGS.keys()  # OpenAI's code has no SigLIP
  assert huggingface_names.IMAGE_ROWS.keys() <= IMAGE_CONFIGS.keys()  # transformers has no ResNet
  assert towers.TEXT_TOWERS.keys() == TEXT_CONFIGS.keys() >= openai_names.TEXT_ROWS.keys()
  assert huggingface_names.TEXT_ROWS.keys() <= TEXT_CONFIGS.keys()
  assert all(config.type == name for name, config in (IMAGE_CONFIGS | TEXT_CONFIGS).items())


def test_kinds_of_texts_and_their_paths():
  kinds = preset("vit_b16").text.kinds
  assert kinds == {
    "short": TextKind("short_positions", 0, 77, "short_projection"),
    "long": TextKind("long_positions", 77, 248, "long_projection"),
    "region": TextKind("short_positions", 0, 77, "short_projection"),
  }
  assert tuple(kinds) == TEXT_KINDS
  plain = preset("vit_b16").replace(text={"long_length": None})
  assert set(plain.text.kinds) == {"short", "region"} and plain.temperatures == ("global",)
  shapes = flatten(abstract_params(preset("tiny")))
  for kind in preset("tiny").text.kinds.values():
    assert shapes[f"text/{kind.positions}"].shape == (kind.length, 32)
    assert shapes[f"{kind.projection}/kernel"].shape == (32, 16)


def test_faults_of_a_dict_are_named():
  values = preset("tiny").to_dict()
  with pytest.raises(TypeError, match="lack vision"):
    ModelConfig.from_dict({key: value for key, value in values.items() if key != "vision"})
  with pytest.raises(TypeError, match="wide"):
    ModelConfig.from_dict(values | {"wide": 3})
  with pytest.raises(TypeError, match="colour"):
    ModelConfig.from_dict(values | {"vision": values["vision"] | {"colour": 1}})
  with pytest.raises(TypeError, match="vision.type 'swin' is unknown: there are vit, resnet"):
    ModelConfig.from_dict(values | {"vision": values["vision"] | {"type": "swin"}})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"width": 33}, "width 33 must be divisible by heads 2"),
    ({"activation": "relu"}, "activation must be one of quick_gelu, gelu, gelu_tanh, got 'relu'"),
    ({"patch_size": 5}, "image_size 32 must be a multiple of patch_size 5"),
  ],
)
def test_impossible_sizes(change, message):
  with pytest.raises(ValueError, match=message):
    preset("tiny").replace(vision=change)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"width": 7}, "width 7 of a ResNet must be even"),
    ({"depths": (1, 2, 3)}, r"four positive numbers of blocks, got \(1, 2, 3\)"),
    ({"depths": (1, 2, 0, 3)}, "four positive numbers of blocks"),
    ({"image_size": 100}, "image_size 100 of a ResNet must be a multiple of 32"),
  ],
)
def test_impossible_sizes_of_a_resnet(change, message):
  with pytest.raises(ValueError, match=message):
    preset("tiny_resnet").replace(vision=change)


def test_the_towers_know_their_grid_and_defaults():
  assert preset("vit_b16").vision.grid == 14
  assert preset("vit_l14_336").vision.grid == 24
  assert (preset("rn50x64").vision.grid, preset("rn50x64").vision.heads, preset("rn50x64").vision.depth) == (14, 64, 64)
  assert TextConfig(512, 12, 8, 2048).end_id == 49407
  assert VisionConfig(768, 12, 12, 3072).image_size == 224


PIXELS = PixelSpec((0.5, 0.5, 0.5), (0.25, 0.5, 0.75), "squash", "bilinear", (1, 2, 3))


@pytest.mark.parametrize("name", ["tiny", "tiny_resnet"])
def test_pixels_come_back_from_json(name):
  config = preset(name).replace(vision={"pixels": PIXELS}, text={"tokenizer": "other"})
  values = json.loads(json.dumps(config.to_dict()))
  assert ModelConfig.from_dict(values) == config and hash(ModelConfig.from_dict(values)) == hash(config)


def test_pixels_of_published_models_are_not_written():
  """A model's JSON, and the fingerprint that is made of it, are those of versions before `PixelSpec`."""
  values = preset("tiny").to_dict()
  assert "pixels" not in values["vision"] and "tokenizer" not in values["text"]
  written = preset("tiny").replace(vision={"pixels": PIXELS}).to_dict()["vision"]["pixels"]
  assert set(written) == {"mean", "std", "resize", "interpolation", "fill"}


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"mean": (0.5, 0.5)}, "mean must be three"), ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three finite"),
    ({"std": (1, 1, 0)}, "std must be positive"),
    ({"std": ("a", 1, 1)}, "std must be three"),
    ({"resize": "stretch"}, "resize must be one of squash, center_crop, pad"),
    ({"interpolation": "cubic"}, "interpolation must be one of"), ({"fill": (0, 0, 256)}, "fill must be levels"),
    ({"fill": (0.5, 0, 0)}, "fill must be levels"),
  ],
)  # fmt: skip
def test_pixels_that_cannot_be(values, message):
  with pytest.raises(ValueError, match=message):
    PixelSpec(**values)


def test_how_pictures_become_squares():
  fgclip, clip = preset("tiny"), preset("tiny").replace(text={"long_length": None})
  assert (fgclip.resize, clip.resize) == ("squash", "center_crop")
  assert clip.replace(vision={"pixels": PIXELS}).resize == "squash"
  with pytest.raises(ValueError, match="FG-CLIP's pictures are squashed.*'pad'"):
    fgclip.replace(vision={"pixels": PixelSpec(resize="pad")})
