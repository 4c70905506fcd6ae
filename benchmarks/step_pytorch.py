"""FG-CLIP's stage 2 in PyTorch, as the published code computes it, around transformers' `CLIPModel`: the baseline.

Each kind of text goes through the tower on its own, padded; the empty captions of missing boxes do too.
"""

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from fgclip_jax.models.config import ModelConfig, TowerConfig
from fgclip_jax.weights.huggingface_names import KEPT_POSITIONS


def make_model(config: ModelConfig) -> transformers.CLIPModel:
  """A `CLIPModel` of this size with FG-CLIP's further parameters, under their names in its checkpoints."""

  def tower(part: TowerConfig) -> dict:
    return {
      "hidden_size": part.width,
      "intermediate_size": part.mlp_width,
      "num_hidden_layers": part.depth,
      "num_attention_heads": part.heads,
      "hidden_act": part.activation,
      "layer_norm_eps": part.layer_norm_eps,
    }

  text, vision = config.text, config.vision
  clip_config = transformers.CLIPConfig(
    text_config=tower(text)
    | {
      "vocab_size": text.vocab_size,
      "max_position_embeddings": text.short_length,
      "bos_token_id": text.end_id - 1,
      "eos_token_id": text.end_id,
      "pad_token_id": text.end_id,
    },
    vision_config=tower(vision) | {"image_size": vision.image_size, "patch_size": vision.patch_size},
    projection_dim=config.embedding_width,
  )
  model = transformers.CLIPModel._from_config(clip_config, attn_implementation="sdpa")
  embeddings = model.text_model.embeddings
  embeddings.position_embedding_ori = nn.Embedding(text.long_length, text.width)
  embeddings.position_embedding_res = nn.Embedding(text.long_length, text.width)
  model.text_filip_projection = nn.Linear(text.width, config.embedding_width, bias=False)
  model.logit_scale_finegraind = nn.Parameter(torch.zeros(()))
  model.logit_scale_hardneg = nn.Parameter(torch.zeros(()))
  return model


def losses(model: transformers.CLIPModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """The terms of stage 2 and their weighted sum `total`, by our names; for `batch` see `step_batches.collate`."""
  image, dense = encode_image(model, batch["pixels"])
  embeddings = model.text_model.embeddings
  short_positions = embeddings.position_embedding.weight
  long_positions = torch.cat(
    [
      embeddings.position_embedding_ori.weight[:KEPT_POSITIONS],
      embeddings.position_embedding_res.weight[KEPT_POSITIONS:],
    ]
  )
  short = encode_text(model, batch["short_ids"], short_positions, model.text_projection)
  long = encode_text(model, batch["long_ids"], long_positions, model.text_filip_projection)
  region_text = encode_text(model, batch["region_ids"], short_positions, model.text_projection)
  region = F.normalize(roi_align(dense, batch["boxes"]).flatten(0, 1), dim=-1)
  valid, scale = batch["region_valid"], model.logit_scale.exp()
  terms = {
    "global_long": info_nce(image, long, scale),
    "global_short": info_nce(image, short, scale),
    "regional": info_nce(region[valid], region_text[valid], model.logit_scale_finegraind.exp()),
  }
  if len(batch["hard_box"]):
    hard_text = encode_text(model, batch["hard_ids"], short_positions, model.text_projection)
    hard_text = hard_text.unflatten(0, (len(batch["hard_box"]), -1))
    scores = model.logit_scale_hardneg.exp() * torch.einsum("hd,htd->ht", region[batch["hard_box"]], hard_text)
    terms["hard_negative"] = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
  else:
    terms["hard_negative"] = torch.zeros(())
  total = terms["global_long"] + terms["global_short"] + 0.1 * terms["regional"] + 0.5 * terms["hard_negative"]
  return {"total": total, **terms}


def encode_image(model: transformers.CLIPModel, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """Unit-length image embeddings [B, D], and the dense features [B, h, w, D] of the last block without mixing."""
  tower = model.vision_model
  hidden = tower.pre_layrnorm(tower.embeddings(pixels))
  *layers, last = tower.encoder.layers
  for layer in layers:
    hidden = layer(hidden, None)
  image = model.visual_projection(tower.post_layernorm(last(hidden, None)[:, 0]))
  hidden = hidden + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden)))
  hidden = hidden + last.mlp(last.layer_norm2(hidden))
  dense = model.visual_projection(tower.post_layernorm(hidden[:, 1:]))
  side = int(dense.shape[1] ** 0.5)
  return F.normalize(image, dim=-1), dense.unflatten(1, (side, side))


def encode_text(
  model: transformers.CLIPModel, ids: torch.Tensor, positions: torch.Tensor, projection: nn.Module
) -> torch.Tensor:
  """Unit-length embeddings [N, D] of padded captions [N, L], read at the first end-of-text token."""
  tower = model.text_model
  hidden = tower.embeddings.token_embedding(ids) + positions[: ids.shape[1]]
  hidden = tower.encoder(inputs_embeds=hidden, attention_mask=None, is_causal=True).last_hidden_state
  hidden = tower.final_layer_norm(hidden)
  end = (ids == tower.eos_token_id).int().argmax(-1)
  return F.normalize(projection(hidden[torch.arange(len(ids)), end]), dim=-1)


def roi_align(features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
  """RoIAlign to 1 x 1 (`aligned`, adaptive sampling) of [B, h, w, D] for boxes [B, K, 4] in 0..1: [B, K, D]."""
  height, width = features.shape[1:3]
  rows = _axis_weights(boxes[..., 1] * height, boxes[..., 3] * height, height)
  columns = _axis_weights(boxes[..., 0] * width, boxes[..., 2] * width, width)
  return torch.einsum("bhwd,bkh,bkw->bkd", features, rows, columns)


def _axis_weights(low: torch.Tensor, high: torch.Tensor, size: int) -> torch.Tensor:
  """The mean bilinear weight of each of `size` cells over a box's samples; boxes lie within the map."""
  start = low - 0.5
  extent = (high - 0.5) - start
  count = extent.ceil()[..., None]
  index = torch.arange(size + 1)
  position = start[..., None] + (index + 0.5) * extent[..., None] / count.clamp(min=1)
  tent = (1 - (position.clamp(0, size - 1)[..., None] - torch.arange(size)).abs()).clamp(min=0)
  return (tent * (index < count)[..., None]).sum(-2) / count.clamp(min=1)


def info_nce(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
  """CLIP's loss between matching rows."""
  logits, labels = scale * image @ text.T, torch.arange(len(image))
  return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
  """The batch as tensors that share its memory."""
  return {key: torch.from_numpy(value) for key, value in batch.items()}
