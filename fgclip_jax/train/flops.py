"""What a step computes, by formula: useful and executed floating-point operations.

A multiply-add counts as two. XLA's own count is no substitute: it counts a scan's body once and sees
nothing in custom kernels. `executed` is what the program computes in its static shapes, `useful` what
the batch needs: its captions without empty slots, each attending causally to itself alone. Neither
counts rematerialisation, so that throughput in useful operations can be compared across policies.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fgclip_jax.losses.objective import Objective
from fgclip_jax.losses.terms import LOSS_TERMS
from fgclip_jax.models.config import (
  ModelConfig,
  NaflexVisionConfig,
  ResNetConfig,
  SiglipVisionConfig,
  TowerConfig,
  VisionConfig,
)

# bfloat16 peak of one device in FLOP/s, by the beginning of JAX's `device_kind` (vendors' data sheets)
PEAKS = {
  "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
  "TPU v6 lite": 918e12, "TPU v6e": 918e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
  """A device's bfloat16 peak in FLOP/s; None where it is not known."""
  return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), None)


def _block_per_token(tower: TowerConfig) -> int:
  """Matrix products of one block with its weights, per token."""
  return 2 * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width)


@dataclasses.dataclass(frozen=True)
class ImageTowerFlops:
  """How the operations of an image tower are counted, for one image of a side in pixels; projections aside.

  Attributes:
    forward: of the forward pass, from the config, the image size and the share of patches that the blocks see.
    dense: of what the dense path adds to it, from the config and the image size.
  """

  forward: Callable[[Any, int, float], int]
  dense: Callable[[Any, int], int]


def _vit_forward(vision: VisionConfig, image_size: int, keep: float) -> int:
  patches = (image_size // vision.patch_size) ** 2
  tokens = 1 + round(patches * keep)
  attention = 4 * vision.width * tokens  # scores and mixing, per token
  embedding = 2 * patches * vision.patch_size**2 * 3 * vision.width
  return embedding + vision.depth * tokens * (_block_per_token(vision) + attention)


def _vit_dense(vision: VisionConfig, image_size: int) -> int:
  """The last block without attention mixing: two of the four attention projections, and the MLP."""
  return (image_size // vision.patch_size) ** 2 * 2 * (2 * vision.width**2 + 2 * vision.width * vision.mlp_width)


def _siglip_forward(vision: SiglipVisionConfig, image_size: int, keep: float) -> int:
  patches = (image_size // vision.patch_size) ** 2
  return patches_forward(vision, round(patches * keep), round(patches * keep) ** 2)


def _siglip_dense(vision: SiglipVisionConfig, image_size: int) -> int:
  """An attention block, with patches as its queries."""
  patches = (image_size // vision.patch_size) ** 2
  return patches_dense(vision, patches, patches**2)


def patches_forward(vision: SiglipVisionConfig | NaflexVisionConfig, patches: int, attended: int) -> int:
  """The forward pass of SigLIP's tower.

  Args:
    vision: the tower.
    patches: patches that go through it.
    attended: (query, key) pairs whose score is computed.
  """
  embedding = 2 * patches * vision.patch_size**2 * 3 * vision.width
  if vision.takes_patches:  # the positions of each patch, from the whole table
    embedding += 2 * patches * vision.grid**2 * vision.width
  pooling = 4 * patches * vision.heads * vision.width  # scores and mixing, with one query for all
  return embedding + vision.depth * (patches * _block_per_token(vision) + 4 * vision.width * attended) + pooling


def patches_dense(vision: SiglipVisionConfig | NaflexVisionConfig, patches: int, attended: int) -> int:
  """What dense features add to `patches_forward`."""
  return patches * _block_per_token(vision) + 4 * vision.width * attended


def _resnet_forward(vision: ResNetConfig, image_size: int, keep: float) -> int:
  """Convolutions and attention pooling; `keep` is 1, since there are no patches to drop."""
  half, side, inputs = vision.width // 2, image_size // 4, vision.width
  total = (2 * side) ** 2 * 9 * (3 * half + half * half + half * vision.width)
  for stage, depth in enumerate(vision.depths):
    middle, before = vision.width * 2**stage, side**2  # cells where the stage begins
    side = side // 2 if stage else side
    outputs, cells = 4 * middle, side**2
    total += before * (inputs * middle + 9 * middle**2) + cells * (middle + inputs) * outputs  # pooled in between
    total += (depth - 1) * cells * (2 * outputs * middle + 9 * middle**2)
    inputs = outputs
  tokens = 1 + side**2
  return 2 * (total + (1 + 2 * tokens) * inputs**2 + 2 * tokens * inputs)  # query, keys, values; scores and mixing


IMAGE_FLOPS: dict[str, ImageTowerFlops] = {
  "vit": ImageTowerFlops(_vit_forward, _vit_dense),
  "resnet": ImageTowerFlops(_resnet_forward, lambda vision, image_size: 0),  # its pooling has made the cells' values
  "siglip": ImageTowerFlops(_siglip_forward, _siglip_dense),
  "naflex": ImageTowerFlops(_siglip_forward, _siglip_dense),  # of a square picture
}


def _projection(config: ModelConfig) -> int:
  """One vector's projection into the embedding space."""
  return 2 * config.vision.output_width * config.embedding_width if config.vision.has_projection else 0


def image_forward(config: ModelConfig, image_size: int | None = None, keep: float = 1.0) -> int:
  """The image tower's forward pass for one image, dense path aside.

  Args:
    config: the model.
    image_size: pixels along a side; the config's by default.
    keep: the share of patches that the blocks see (patch dropout).
  """
  vision = config.vision
  tower = IMAGE_FLOPS[vision.type].forward(vision, image_size or vision.image_size, keep)
  return tower + _projection(config)


def dense_forward(config: ModelConfig, image_size: int | None = None) -> int:
  """What the dense path adds for one image: the tower's part, and the projection of every patch."""
  vision, size = config.vision, image_size or config.vision.image_size
  cells = (size // vision.patch_size) ** 2
  return IMAGE_FLOPS[vision.type].dense(vision, size) + cells * _projection(config)


def text_forward(config: ModelConfig, tokens: int, attended: int) -> int:
  """The text tower's forward pass.

  Args:
    config: the model.
    tokens: tokens that go through it.
    attended: (query, key) pairs whose score is computed.
  """
  text = config.text
  return text.depth * (tokens * _block_per_token(text) + 4 * text.width * attended)


def pooling_forward(width: int, texts: int, patches: int, compared: int) -> int:
  """Text-conditioned pooling: two projections of each text and each patch, scores and mixing of each pair.

  Args:
    width: of the embedding space.
    texts, patches: of all pictures together.
    compared: pairs of a text and a patch of its picture.
  """
  return 4 * width**2 * (texts + patches) + 4 * width * compared


@dataclasses.dataclass(frozen=True)
class StepFlops:
  """One step's forward and backward operations, and how full its text rows are."""

  useful: int = 0
  executed: int = 0
  tokens: int = 0
  slots: int = 0

  def __add__(self, other: "StepFlops") -> "StepFlops":
    pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
    return StepFlops(*(a + b for a, b in pairs))


def _squares(segment: np.ndarray) -> int:
  """(query, key) pairs where every slot attends to all of its segment: the sum of squares of the segments' lengths."""
  total = 0
  for row in segment.reshape(-1, segment.shape[-1]):
    total += int(np.sum(np.unique(row[row > 0], return_counts=True)[1].astype(np.int64) ** 2))
  return total


def _patch_flops(config: ModelConfig, batch: dict[str, Any], dense: bool) -> tuple[int, int]:
  """The forward pass of a batch's packed patches and boxes: useful and executed; `dense`: with dense features."""
  vision: Any = config.vision  # of a dataclass, whatever its type
  segment, boxes = batch["patch_segment"], batch["boxes"].shape[2]
  slots, patches = segment.size, int((segment > 0).sum())
  counts = (patches, _squares(segment)), (slots, slots * segment.shape[-1])
  found = []
  for count, attended in counts:
    image = patches_forward(vision, count, attended)
    if dense:
      image += patches_dense(vision, count, attended)
    found.append(image)
  slot = batch["patch_slot"]  # RoIAlign's product with the patches
  useful, executed = (2 * boxes * config.embedding_width * int(count) for count in ((slot >= 0).sum(), slot.size))
  return found[0] + useful, found[1] + executed


def _pooling_flops(
  config: ModelConfig, negatives: int, batch: dict[str, Any], image_size: int | None
) -> tuple[int, int]:
  """Text-conditioned pooling of a batch: useful and executed."""
  ends = batch.get("caption_eot", batch["short_eot"][..., None])
  own = (ends >= 0).sum(axis=-1)
  if config.vision.takes_patches:
    here, slots = (batch["patch_slot"] >= 0).sum(axis=-1), batch["patch_slot"].shape[-1]
  else:
    slots = ((image_size or config.vision.image_size) // config.vision.patch_size) ** 2
    here = np.full(own.shape, slots)
  width, texts, all_texts = config.embedding_width, own + negatives, ends.shape[-1] + negatives
  useful = pooling_forward(width, int(texts.sum()), int(here.sum()), int((texts * here).sum()))
  return useful, pooling_forward(width, own.size * all_texts, own.size * slots, own.size * all_texts * slots)


def count_flops(
  config: ModelConfig,
  objective: Objective,
  batch: dict[str, Any],
  *,
  image_size: int | None = None,
  patch_dropout: float = 0.0,
  frozen_image_tower: bool = False,
) -> StepFlops:
  """Counts a batch of host arrays (this process's part of it).

  The backward pass costs twice the forward one; a frozen image tower has none. Similarities are counted
  in full for the images of this part alone, which is exact in a run of one process.
  """
  shards, per_shard = batch["boxes"].shape[:2]
  images, boxes = shards * per_shard, batch["boxes"].shape[2]
  conditioned = config.text_pooling is not None and objective.text_conditioned != 0
  if config.vision.takes_patches:
    image, executed_image = _patch_flops(config, batch, dense=boxes > 0 or conditioned)
  else:
    image = images * image_forward(config, image_size, 1.0 - patch_dropout)
    if boxes or conditioned:
      image += images * dense_forward(config, image_size)
    if boxes:
      grid = (image_size or config.vision.image_size) // config.vision.patch_size
      image += 2 * images * boxes * config.embedding_width * grid**2  # RoIAlign's product with the map
    executed_image = image

  segment, position = batch["segment"], batch["position"]
  rows, length = segment.shape[0] * segment.shape[1], segment.shape[2]
  real = segment > 0
  tokens = int(real.sum())
  local = np.where(position >= config.text.short_length, position - config.text.short_length, position)
  if config.text.causal:
    attended = int(np.sum((local + 1) * real, dtype=np.int64))
  else:
    attended = _squares(segment)
  ends = [batch[f"{name}_eot"] for name in ("short", "long", "region", "hard", "caption") if f"{name}_eot" in batch]
  read, slots_read = sum(int((end >= 0).sum()) for end in ends), sum(end.size for end in ends)
  project = 2 * config.text.width * config.embedding_width

  width = config.embedding_width
  useful_losses = executed_losses = 0
  for name, term in LOSS_TERMS.items():
    if objective.weights[name] and (config.fine_grained or not term.needs_fgclip):
      ends = batch[term.captions]
      useful_losses += 2 * width * term.count_logits(int((ends >= 0).sum()), images)
      executed_losses += 2 * width * term.count_logits(ends.size, images)
  if conditioned:
    useful, executed = _pooling_flops(config, objective.conditioned_negatives, batch, image_size)
    useful_losses, executed_losses = useful_losses + useful, executed_losses + executed
  passes = 1 if frozen_image_tower else 3
  return StepFlops(
    useful=passes * image + 3 * (text_forward(config, tokens, attended) + read * project + useful_losses),
    executed=passes * executed_image
    + 3 * (text_forward(config, rows * length, rows * length**2) + slots_read * project + executed_losses),
    tokens=tokens,
    slots=rows * length,
  )
