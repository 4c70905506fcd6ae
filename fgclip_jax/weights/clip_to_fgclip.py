"""FG-CLIP made of plain CLIP, FG-CLIP 2 of SigLIP; and the plain model cut from either."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from fgclip_jax.models.config import END_ID, ModelConfig
from fgclip_jax.weights.huggingface_names import stretch_positions, stretched_length
from fgclip_jax.weights.name_map import leaf_shapes

CLIP_LENGTH = 77
REGION_TEMPERATURE = math.log(100)  # with which FG-CLIP 2's training begins, whatever it starts from

Flat = dict[str, np.ndarray]


def fgclip_config(config: ModelConfig) -> ModelConfig:
  """The size of the FG-CLIP that `to_fgclip` makes of a plain model. Its pictures are squashed, as FG-CLIP's are."""
  length = config.text.short_length
  if config.text.type == "siglip":
    return config.replace(
      vision={"dense_head": True},
      text={"long_length": stretched_length(length), "head": True},
      region_temperature_init=REGION_TEMPERATURE,
    )
  text = {"long_length": stretched_length(length), "end_id": END_ID}
  if length > CLIP_LENGTH:  # Long-CLIP, whose table is the long one already
    text = {"short_length": CLIP_LENGTH, "long_length": length, "end_id": END_ID}
  return config.replace(text=text, vision={"pixels": dataclasses.replace(config.vision.pixels, resize=None)})


def plain_config(config: ModelConfig) -> ModelConfig:
  """The size of the plain model in an FG-CLIP, without its paths for long texts and regions."""
  dense = {"dense_head": False} if config.text.type == "siglip" else {}
  return config.replace(vision=dense, text={"long_length": None}, region_temperature_init=None)


def to_fgclip(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  """Makes FG-CLIP from a plain model, as its training starts.

  From plain CLIP: projection and temperature copied, positions stretched 77 to 248. Of a Long-CLIP the positions become
  the long table as they are, and their first 77 the short one. From SigLIP, FG-CLIP 2: the text head copied for long
  texts and regions, the pooling head for dense features, positions stretched 64 to 196, the new temperatures ln 100.
  """
  if config.text.type == "siglip":
    return _siglip_to_fgclip(config, flat)
  made, positions = fgclip_config(config), flat["text/short_positions"]
  return made, {
    **flat,
    "text/short_positions": positions[: made.text.short_length],
    "text/long_positions": positions if len(positions) > CLIP_LENGTH else stretch_positions(positions),
    "long_projection/kernel": flat["short_projection/kernel"],
    **{f"temperature/{name}": flat["temperature/global"] for name in made.temperatures},
  }


def _siglip_to_fgclip(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  made = fgclip_config(config)
  config, flat = with_text_head(config, flat)
  heads = {
    f"{kind}_projection/{leaf}": flat[f"short_projection/{leaf}"]
    for kind in ("region", "long")
    for leaf in ("kernel", "bias")
  }
  pooling, dense = "vision/pooling_head/", "vision/dense_head/"
  heads |= {dense + name.removeprefix(pooling): leaf for name, leaf in flat.items() if name.startswith(pooling)}
  dtype = flat["temperature/global"].dtype
  return made, {
    **flat,
    **heads,
    "text/long_positions": stretch_positions(flat["text/short_positions"]),
    **{f"temperature/{name}": np.asarray(REGION_TEMPERATURE, dtype) for name in made.temperatures if name != "global"},
  }


def with_text_head(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  """A SigLIP without a text head (`no_head`) with one that changes nothing; others as they are."""
  if config.text.kinds["short"].projection:
    return config, dict(flat)
  width, dtype = config.text.width, flat["text/token_embedding"].dtype
  head = {"kernel": np.eye(width, dtype=dtype), "bias": np.zeros(width, dtype)}
  return config.replace(text={"head": True}), {
    **flat,
    **{f"short_projection/{leaf}": value for leaf, value in head.items()},
  }


def to_clip(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Flat]:
  """Cuts the plain model from an FG-CLIP: its image tower and its path for short texts. A plain one stays as it is.

  Pictures stay squashed, as FG-CLIP's are: cropping, plain CLIP's default, would give other embeddings.
  """
  if config.fine_grained:
    pixels = dataclasses.replace(config.vision.pixels, resize="squash")
    config = plain_config(config).replace(vision={"pixels": pixels})
  kept = leaf_shapes(config)
  return config, {name: leaf for name, leaf in flat.items() if name in kept}
