"""The name table between our parameters and the PyTorch format of CLIP and FG-CLIP, read in both directions.

A row is (our name, their name, layout). `{}` in their name is a layer: our leaf then stacks all
layers along its first axis. Three tensors of FG-CLIP stand outside the table: the long positions,
which the reference keeps in two tables of which each is read in part.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from fgclip_jax.models.presets import ModelConfig, TowerConfig

KEPT_POSITIONS = 20  # rows of the short table that begin the long one (Long-CLIP's stretch)
_LONG_FIRST = "text_model.embeddings.position_embedding_ori.weight"  # read in rows 0..19
_LONG_REST = "text_model.embeddings.position_embedding_res.weight"  # read in rows 20..247
LONG_POSITIONS = "text/long_positions"


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table: names on both sides and how an array changes between them."""

  ours: str
  theirs: str
  read: Callable[[np.ndarray], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]
  layers: int = 0  # 0: not stacked

  def names(self) -> list[str]:
    """Their names: one, or one per layer."""
    return [self.theirs.format(i) for i in range(self.layers)] if self.layers else [self.theirs]


def _same(x):
  return x


def _transpose(x):
  return np.ascontiguousarray(x.T)


def _tower_rows(ours: str, theirs: str, tower: TowerConfig) -> list[Row]:
  blocks = f"{ours}/transformer/blocks"
  layer = f"{theirs}.encoder.layers.{{}}"
  modules = {
    f"attention/{name}": f"self_attn.{short}_proj"
    for name, short in zip(("query", "key", "value", "out"), ("q", "k", "v", "out"), strict=True)
  }
  modules |= {"mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"}
  rows = []
  for mine, other in modules.items():
    rows.append(Row(f"{blocks}/{mine}/kernel", f"{layer}.{other}.weight", _transpose, _transpose, tower.depth))
    rows.append(Row(f"{blocks}/{mine}/bias", f"{layer}.{other}.bias", _same, _same, tower.depth))
  for mine, other in {"norm1": "layer_norm1", "norm2": "layer_norm2"}.items():
    rows.append(Row(f"{blocks}/{mine}/scale", f"{layer}.{other}.weight", _same, _same, tower.depth))
    rows.append(Row(f"{blocks}/{mine}/bias", f"{layer}.{other}.bias", _same, _same, tower.depth))
  return rows


def table(config: ModelConfig) -> list[Row]:
  """The rows for a model of this size."""
  patch = config.vision.patch_size

  def read_patches(x):  # [W, 3, p, p] -> [p * p * 3, W]
    return np.ascontiguousarray(x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]))

  def write_patches(x):
    return np.ascontiguousarray(x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1))

  rows = [
    Row("vision/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight", read_patches, write_patches),
    *(
      Row(ours, theirs, _same, _same)
      for ours, theirs in {
        "vision/class_embedding": "vision_model.embeddings.class_embedding",
        "vision/positions": "vision_model.embeddings.position_embedding.weight",
        "vision/pre_norm/scale": "vision_model.pre_layrnorm.weight",  # their spelling
        "vision/pre_norm/bias": "vision_model.pre_layrnorm.bias",
        "vision/post_norm/scale": "vision_model.post_layernorm.weight",
        "vision/post_norm/bias": "vision_model.post_layernorm.bias",
        "text/token_embedding": "text_model.embeddings.token_embedding.weight",
        "text/short_positions": "text_model.embeddings.position_embedding.weight",
        "text/final_norm/scale": "text_model.final_layer_norm.weight",
        "text/final_norm/bias": "text_model.final_layer_norm.bias",
        "temperature/global": "logit_scale",
      }.items()
    ),
    Row("vision_projection/kernel", "visual_projection.weight", _transpose, _transpose),
    Row("short_projection/kernel", "text_projection.weight", _transpose, _transpose),
    *_tower_rows("vision", "vision_model", config.vision),
    *_tower_rows("text", "text_model", config.text),
  ]
  if config.fine_grained:
    rows += [
      Row("long_projection/kernel", "text_filip_projection.weight", _transpose, _transpose),
      Row("temperature/regional", "logit_scale_finegraind", _same, _same),  # their spelling
      Row("temperature/hard_negative", "logit_scale_hardneg", _same, _same),
    ]
  return rows


def from_theirs(tensors: Mapping[str, np.ndarray], config: ModelConfig, shapes: Mapping[str, tuple]) -> dict:
  """Their tensors as our flat parameters.

  Args:
    tensors: by their names; a mapping that reads on access is read one leaf at a time.
    config: the model's size.
    shapes: the shape of each of our leaves.

  Raises:
    ValueError: lists every missing, extra and misshapen tensor.
  """
  rows = table(config)
  faults, flat, used = [], {}, set()

  def fetch(name, write, shape):
    used.add(name)
    if name not in tensors:
      faults.append(f"missing    {name} {_their_shape(write, shape)}")
      return None
    return tensors[name]

  for row in rows:
    shape = tuple(shapes[row.ours])[1 if row.layers else 0 :]
    parts = []
    for name in row.names():
      value = fetch(name, row.write, shape)
      if value is None:
        continue
      if value.shape != (expected := _their_shape(row.write, shape)):
        faults.append(f"misshapen  {name} {value.shape}, expected {expected}")
      else:
        parts.append(row.read(value))
    if len(parts) == len(row.names()):
      flat[row.ours] = np.stack(parts) if row.layers else parts[0]
  if config.fine_grained:
    shape = tuple(shapes[LONG_POSITIONS])
    first, rest = (fetch(name, _same, shape) for name in (_LONG_FIRST, _LONG_REST))
    for name, value in ((_LONG_FIRST, first), (_LONG_REST, rest)):
      if value is not None and value.shape != shape:
        faults.append(f"misshapen  {name} {value.shape}, expected {shape}")
        first = None
    if first is not None and rest is not None:
      flat[LONG_POSITIONS] = np.concatenate([first[:KEPT_POSITIONS], rest[KEPT_POSITIONS:]])
  faults += [f"extra      {name} {tensors[name].shape}" for name in sorted(set(tensors) - used)]
  if faults:
    raise ValueError(
      f"{len(faults)} tensors do not fit the model that config.json describes:\n  " + "\n  ".join(faults)
    )
  return flat


def _their_shape(write: Callable, shape: tuple) -> tuple:
  return write(np.broadcast_to(np.int8(0), shape)).shape


def to_theirs(flat: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
  """Our flat parameters as their tensors: the inverse of `from_theirs`."""
  tensors = {}
  for row in table(config):
    leaf = np.asarray(flat[row.ours])
    for name, part in zip(row.names(), leaf if row.layers else [leaf], strict=True):
      tensors[name] = row.write(part)
  if config.fine_grained:
    tensors[_LONG_FIRST] = tensors[_LONG_REST] = np.asarray(flat[LONG_POSITIONS])
  return tensors


def stretched_length(length: int) -> int:
  """Rows of the long table that `stretch_positions` makes of a short one: 248 of 77."""
  return 4 * length - 3 * KEPT_POSITIONS


def stretch_positions(short: np.ndarray) -> np.ndarray:
  """77 positions stretched to 248 as Long-CLIP and FG-CLIP do: 20 kept, the others interpolated four-fold.

  Between two old rows stand three new ones at quarter steps; past the last row the last step is carried on.
  `short` is [L, W] with L > 21; the result is [4 L - 60, W], in the same dtype. ValueError for fewer rows.
  """
  if len(short) < KEPT_POSITIONS + 2:
    raise ValueError(f"{len(short)} positions cannot be stretched: {KEPT_POSITIONS} are kept, two more are needed")
  kept, rest = short[:KEPT_POSITIONS], short[KEPT_POSITIONS:].astype(np.float32)
  following = np.concatenate([rest[1:], (2 * rest[-1] - rest[-2])[None]])
  quarters = np.arange(4, dtype=np.float32)[None, :, None]
  stretched = (4 - quarters) * rest[:, None] / 4 + quarters * following[:, None] / 4
  return np.concatenate([kept, stretched.reshape(-1, short.shape[1]).astype(short.dtype)])
