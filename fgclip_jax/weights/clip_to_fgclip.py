"""FG-CLIP made of plain CLIP, and plain CLIP cut from FG-CLIP."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fgclip_jax.models.config import END_ID, ModelConfig
from fgclip_jax.weights.huggingface_names import stretch_positions, stretched_length
from fgclip_jax.weights.name_map import leaf_shapes

CLIP_LENGTH = 77

Flat = dict[str, np.ndarray]


def fgclip_config(config: ModelConfig) -> ModelConfig:
  """The size of the FG-CLIP that `to_fgclip` makes of a plain CLIP. Its pictures are squashed, as FG-CLIP's are."""
  length = config.text.short_length
  text = {"long_length": stretched_length(length), "end_id": END_ID}
  if length > CLIP_LENGTH:  # Long-CLIP, whose table is the long one already
    text = {"short_length": CLIP_LENGTH, "long_length": length, "end_id": END_ID}
  return config.replace(text=text, vision={"pixels": dataclasses.replace(config.vision.pixels, resize=None)})


def to_fgclip(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  """Makes FG-CLIP from plain CLIP: projection and temperature copied, positions stretched 77 to 248.

  Of a Long-CLIP the positions become the long table as they are, and their first 77 the short one.
  """
  made, positions = fgclip_config(config), flat["text/short_positions"]
  return made, {
    **flat,
    "text/short_positions": positions[: made.text.short_length],
    "text/long_positions": positions if len(positions) > CLIP_LENGTH else stretch_positions(positions),
    "long_projection/kernel": flat["short_projection/kernel"],
    **{f"temperature/{name}": flat["temperature/global"] for name in made.temperatures},
  }


def to_clip(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  """Cuts a plain CLIP from FG-CLIP: its image tower and its path for short texts. A plain CLIP stays as it is.

  Pictures stay squashed, as FG-CLIP's are: cropping, plain CLIP's default, would give other embeddings.
  """
  if config.fine_grained:
    pixels = dataclasses.replace(config.vision.pixels, resize="squash")
    config = config.replace(vision={"pixels": pixels}, text={"long_length": None})
  kept = leaf_shapes(config)
  return config, {name: leaf for name, leaf in flat.items() if name in kept}
