"""The name tables of CLIP, SigLIP and both FG-CLIPs in PyTorch format (transformers' names); stretched positions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fgclip_jax.models.config import (
  ModelConfig,
  NaflexVisionConfig,
  SiglipTextConfig,
  SiglipVisionConfig,
  TextConfig,
  TowerConfig,
  VisionConfig,
)
from fgclip_jax.weights.name_map import (
  Row,
  expanded,
  fused,
  linear,
  norm,
  patches,
  read_rows,
  same,
  transposed,
  write_rows,
)

LONG_FIRST = "text_model.embeddings.position_embedding_ori.weight"  # FG-CLIP's long positions: first 20 rows
LONG_REST = "text_model.embeddings.position_embedding_res.weight"  # the other rows; Long-CLIP's second table
KEPT_POSITIONS = 20  # rows of the short table that begin the long one (Long-CLIP's stretch)


def long_positions(ours: str, first: str, rest: str) -> Row:
  """The row of a long position table, which they store as two tables of full length.

  FG-CLIP's code reads positions 0..19 from the first table and the others from the second.
  """

  def read(head, tail):
    return (np.concatenate([head[:KEPT_POSITIONS], tail[KEPT_POSITIONS:]]),)

  return Row((ours,), (first, rest), read, lambda table: (table, table))


def _blocks(ours: str, theirs: str, tower: TowerConfig) -> list[Row]:
  ours, theirs, layers = f"{ours}/transformer/blocks", f"{theirs}.encoder.layers.{{}}", range(tower.depth)
  modules = {"attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj"}
  modules |= {"attention/value": "self_attn.v_proj", "attention/out": "self_attn.out_proj"}
  modules |= {"mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"}
  rows = [row for mine, other in modules.items() for row in linear(f"{ours}/{mine}", f"{theirs}.{other}", layers)]
  for number in (1, 2):
    rows += norm(f"{ours}/norm{number}", f"{theirs}.layer_norm{number}", layers)
  return rows


def vision_table(config: VisionConfig) -> list[Row]:
  """The rows of a Vision Transformer of this size, without its projection: all that a `CLIPVisionModel` has."""
  embeddings = "vision_model.embeddings"
  return [
    patches("vision/patch_embedding/kernel", f"{embeddings}.patch_embedding.weight", config.patch_size),
    same("vision/class_embedding", f"{embeddings}.class_embedding"),
    same("vision/positions", f"{embeddings}.position_embedding.weight"),
    *norm("vision/pre_norm", "vision_model.pre_layrnorm"),  # their spelling
    *norm("vision/post_norm", "vision_model.post_layernorm"),
    *_blocks("vision", "vision_model", config),
  ]


def _text_rows(config: TextConfig, split_positions: bool) -> list[Row]:
  positions = "text_model.embeddings.position_embedding"
  short = ("text/short_positions", f"{positions}.weight")
  rows = [
    same("text/token_embedding", "text_model.embeddings.token_embedding.weight"),
    long_positions(*short, f"{positions}_res.weight") if split_positions else same(*short),
    *_blocks("text", "text_model", config),
    *norm("text/final_norm", "text_model.final_layer_norm"),
    transposed("short_projection/kernel", "text_projection.weight"),
  ]
  if "long" in config.kinds:
    rows += [
      long_positions("text/long_positions", f"{positions}_ori.weight", f"{positions}_res.weight"),
      transposed("long_projection/kernel", "text_filip_projection.weight"),
    ]
  return rows


def _head(ours: str, theirs: str) -> list[Row]:
  """The rows of an attention pooling head; ours are named by what they do, as everywhere."""
  return [
    expanded(f"{ours}/probe", f"{theirs}.probe", 2),
    *fused(ours, f"{theirs}.attention.in_proj"),
    *linear(f"{ours}/out", f"{theirs}.attention.out_proj"),
    *norm(f"{ours}/norm", f"{theirs}.layernorm"),
    *linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
    *linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
  ]


def _siglip_vision(config: SiglipVisionConfig | NaflexVisionConfig) -> list[Row]:
  """SigLIP's tower. Its patch embedding is a convolution, NaFlex's a linear layer: one array on our side."""
  kernel = ("vision/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight")
  return [
    transposed(*kernel) if config.takes_patches else patches(*kernel, config.patch_size),
    same("vision/patch_embedding/bias", "vision_model.embeddings.patch_embedding.bias"),
    same("vision/positions", "vision_model.embeddings.position_embedding.weight"),
    *_blocks("vision", "vision_model", config),
    *norm("vision/post_norm", "vision_model.post_layernorm"),
    *_head("vision/pooling_head", "vision_model.head"),
    *(_head("vision/dense_head", "dense_feature_head") if config.dense_head else []),
  ]


def _siglip_text(config: SiglipTextConfig, split_positions: bool) -> list[Row]:
  positions = "text_model.embeddings.position_embedding.weight"
  rows = [
    same("text/token_embedding", "text_model.embeddings.token_embedding.weight"),
    same("text/short_positions", positions),
    *_blocks("text", "text_model", config),
    *norm("text/final_norm", "text_model.final_layer_norm"),
  ]
  if config.long_length is not None:
    rows.append(long_positions("text/long_positions", LONG_FIRST, LONG_REST))
  for name in dict.fromkeys(kind.projection for kind in config.kinds.values() if kind.projection):
    rows += linear(name, _SIGLIP_HEADS[name])
  return rows


_SIGLIP_HEADS = {
  "short_projection": "text_model.head",
  "region_projection": "boxtext_head",
  "long_projection": "longtext_head",
}
# the rows of a tower by its type: an image tower's without its projection, a text tower's with its projections
IMAGE_ROWS: dict[str, Callable[..., list[Row]]] = {
  "vit": vision_table,
  "siglip": _siglip_vision,
  "naflex": _siglip_vision,
}
TEXT_ROWS: dict[str, Callable[..., list[Row]]] = {"causal": _text_rows, "siglip": _siglip_text}
REGION_TEMPERATURES = {
  "regional": "logit_scale_finegraind",  # their spelling
  "hard_negative": "logit_scale_hardneg",
}


def _temperatures(config: ModelConfig) -> list[Row]:
  rows = [same(f"temperature/{name}", REGION_TEMPERATURES[name]) for name in config.temperatures if name != "global"]
  if config.logit_bias is None:
    return [same("temperature/global", "logit_scale"), *rows]
  # SigLIP keeps them as arrays of one number
  both = {"global": "logit_scale", "bias": "logit_bias"}
  return [*(expanded(f"temperature/{name}", theirs, 1) for name, theirs in both.items()), *rows]


def table(config: ModelConfig, split_positions: bool = False) -> list[Row]:
  """The rows for a model of this size; its image tower must be one of `IMAGE_ROWS`.

  `split_positions`: the positions of a plain CLIP are in Long-CLIP's two tables.
  """
  return [
    *IMAGE_ROWS[config.vision.type](config.vision),
    *([transposed("vision_projection/kernel", "visual_projection.weight")] if config.vision.has_projection else []),
    *TEXT_ROWS[config.text.type](config.text, split_positions),
    *_temperatures(config),
  ]


def from_theirs(
  tensors: Mapping[str, Any], config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Their tensors as our flat parameters; see `table.read_rows`."""
  return read_rows(table(config, not config.fine_grained and LONG_REST in tensors), tensors, shapes)


def to_theirs(flat: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
  """Our flat parameters as their tensors: the inverse of `from_theirs`."""
  return write_rows(table(config), flat)


def unused_positions(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The rows of both long tables that no model reads, by the tables' names; empty where they follow from the others.

  FG-CLIPs begin with two equal tables, and training leaves these rows behind.
  """
  first, rest = tensors[LONG_FIRST], tensors[LONG_REST]
  if first.tobytes() == rest.tobytes():
    return {}
  return {LONG_FIRST: first[KEPT_POSITIONS:], LONG_REST: rest[:KEPT_POSITIONS]}


def restore_unused(tensors: dict[str, np.ndarray], unused: Mapping[str, np.ndarray]) -> None:
  """Puts back what `unused_positions` found, where it fits the tables."""
  for name, rows in ((LONG_FIRST, slice(KEPT_POSITIONS, None)), (LONG_REST, slice(KEPT_POSITIONS))):
    table, kept = tensors.get(name), unused.get(name)
    if table is not None and kept is not None and kept.dtype == table.dtype and kept.shape == table[rows].shape:
      tensors[name] = table.copy()
      tensors[name][rows] = kept


def stretched_length(length: int) -> int:
  """Rows of the long table that `stretch_positions` makes of a short one: 248 of 77."""
  return 4 * length - 3 * KEPT_POSITIONS


def stretch_positions(short: np.ndarray) -> np.ndarray:
  """77 positions stretched to 248 as Long-CLIP and FG-CLIP do: 20 kept, the others interpolated four-fold.

  Three new rows at quarter steps go between two old ones; past the last row the last step continues.
  `short` is [L, W] with L > 21; the result is [4 L - 60, W], in the same dtype. ValueError for fewer rows.
  """
  if len(short) < KEPT_POSITIONS + 2:
    raise ValueError(f"{len(short)} positions cannot be stretched: {KEPT_POSITIONS} are kept, two more are needed")
  kept, rest = short[:KEPT_POSITIONS], short[KEPT_POSITIONS:].astype(np.float32)
  following = np.concatenate([rest[1:], (2 * rest[-1] - rest[-2])[None]])
  quarters = np.arange(4, dtype=np.float32)[None, :, None]
  stretched = (4 - quarters) * rest[:, None] / 4 + quarters * following[:, None] / 4
  return np.concatenate([kept, stretched.reshape(-1, short.shape[1]).astype(short.dtype)])
