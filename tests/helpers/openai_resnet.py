"""A ResNet CLIP of OpenAI's names as parameters of ours, written out by hand: independent of `fgclip_jax.weights`."""

import numpy as np

from fgclip_jax.models.config import ModelConfig, ResNetConfig, TextConfig


def _kernel(x: np.ndarray) -> np.ndarray:
  return np.transpose(x, (2, 3, 1, 0)) if x.ndim == 4 else x.T


def _norm(tensors: dict, theirs: str) -> dict:
  names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
  return {ours: tensors[f"{theirs}.{name}"] for ours, name in names.items()}


def _layer(tensors: dict, theirs: str) -> dict:
  return {"kernel": _kernel(tensors[f"{theirs}.weight"]), "bias": tensors[f"{theirs}.bias"]}


def _convolutions(tensors: dict, theirs: str) -> dict:
  tree = {}
  for i in (1, 2, 3):
    tree[f"conv{i}"] = {"kernel": _kernel(tensors[f"{theirs}conv{i}.weight"])}
    tree[f"norm{i}"] = _norm(tensors, f"{theirs}bn{i}")
  if f"{theirs}downsample.0.weight" in tensors:
    tree["shortcut"] = {"kernel": _kernel(tensors[f"{theirs}downsample.0.weight"])}
    tree["shortcut_norm"] = _norm(tensors, f"{theirs}downsample.1")
  return tree


def resnet_tower(tensors: dict[str, np.ndarray]) -> tuple[ResNetConfig, dict]:
  """The tower `visual.*` of a state dict: its size and parameters, the projection with them."""
  depths = [len({k.split(".")[2] for k in tensors if k.startswith(f"visual.layer{i}.")}) for i in (1, 2, 3, 4)]
  positions = tensors["visual.attnpool.positional_embedding"]
  side = round((len(positions) - 1) ** 0.5)
  config = ResNetConfig(tensors["visual.conv3.weight"].shape[0], tuple(depths), 32 * side)
  tower = {"stem": _convolutions(tensors, "visual."), "positions": positions}
  for stage, depth in enumerate(depths, 1):
    blocks = [_convolutions(tensors, f"visual.layer{stage}.{block}.") for block in range(depth)]
    tower[f"stage{stage}"] = {"first": blocks[0]}
    if depth > 1:
      tower[f"stage{stage}"]["rest"] = _stack(blocks[1:])
  names = {"query": "q", "key": "k", "value": "v"}
  tower["pool"] = {ours: _layer(tensors, f"visual.attnpool.{name}_proj") for ours, name in names.items()}
  return config, {"vision": tower, "vision_projection": _layer(tensors, "visual.attnpool.c_proj")}


def clip_resnet(tensors: dict[str, np.ndarray], heads: int) -> tuple[ModelConfig, dict]:
  """A whole CLIP with a ResNet, of so many heads in its text tower: its size and parameters."""
  vision, params = resnet_tower(tensors)
  width, embedding_width = tensors["text_projection"].shape
  depth = len({k.split(".")[2] for k in tensors if k.startswith("transformer.resblocks.")})
  text = TextConfig(width, depth, heads, 4 * width, long_length=None)
  blocks = []
  for i in range(depth):
    layer = f"transformer.resblocks.{i}"
    weights, biases = (np.split(tensors[f"{layer}.attn.in_proj_{kind}"], 3) for kind in ("weight", "bias"))
    attention = {
      name: {"kernel": w.T, "bias": b} for name, w, b in zip(("query", "key", "value"), weights, biases, strict=True)
    }
    attention["out"] = _layer(tensors, f"{layer}.attn.out_proj")
    norms = {f"norm{n}": _layer_norm(tensors, f"{layer}.ln_{n}") for n in (1, 2)}
    mlp = {"up": _layer(tensors, f"{layer}.mlp.c_fc"), "down": _layer(tensors, f"{layer}.mlp.c_proj")}
    blocks.append({"attention": attention, "mlp": mlp, **norms})
  params["text"] = {
    "token_embedding": tensors["token_embedding.weight"],
    "short_positions": tensors["positional_embedding"],
    "final_norm": _layer_norm(tensors, "ln_final"),
    "transformer": {"blocks": _stack(blocks)},
  }
  params["short_projection"] = {"kernel": tensors["text_projection"]}
  params["temperature"] = {"global": tensors["logit_scale"]}
  return ModelConfig(vision, text, embedding_width), params


def _layer_norm(tensors: dict, theirs: str) -> dict:
  return {"scale": tensors[f"{theirs}.weight"], "bias": tensors[f"{theirs}.bias"]}


def _stack(trees: list):
  if not isinstance(trees[0], dict):
    return np.stack(trees)
  return {key: _stack([tree[key] for tree in trees]) for key in trees[0]}
