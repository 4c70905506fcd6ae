"""Sizes of the models: frozen dataclasses, and the published presets by name. Imports no JAX."""

import dataclasses
from typing import Any

END_ID = 49407  # CLIP's end-of-text token


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """What the two towers have in common.

  Attributes:
    width: channels of the residual stream.
    depth: number of blocks.
    heads: attention heads; each has `width // heads` channels.
    mlp_width: hidden channels of the blocks' MLP.
    activation: `quick_gelu` (x * sigmoid(1.702 x), OpenAI's) or `gelu` (exact, erf).
    layer_norm_eps: added to the variance in every LayerNorm.
  """

  width: int
  depth: int
  heads: int
  mlp_width: int
  activation: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(f"width {self.width} must be divisible by heads {self.heads}")
    if self.activation not in ("quick_gelu", "gelu"):
      raise ValueError(f"activation must be 'quick_gelu' or 'gelu', got {self.activation!r}")


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
  """The image tower, a Vision Transformer.

  Attributes:
    image_size: side of the square input, in pixels.
    patch_size: side of a patch, in pixels; must divide `image_size`.
  """

  image_size: int = 224
  patch_size: int = 16

  def __post_init__(self):
    super().__post_init__()
    if self.image_size % self.patch_size:
      raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")

  @property
  def grid(self) -> int:
    """Patches along one side."""
    return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
  """The causal text tower.

  Attributes:
    vocab_size: rows of the token table.
    short_length: rows of the short position table: the longest short or region caption, in tokens.
    long_length: rows of the long position table; None for a plain CLIP, which has no long path.
    end_id: the end-of-text token; a caption is read at its first one. 2 stands for the rule of
      CLIP's first checkpoints: read at the largest id (the end-of-text token has the largest).
  """

  vocab_size: int = 49408
  short_length: int = 77
  long_length: int | None = 248
  end_id: int = END_ID


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A dual encoder.

  Attributes:
    vision: the image tower.
    text: the text tower. `text.long_length is None` makes the model a plain CLIP: one text
      projection, one position table, one temperature.
    embedding_width: width of the shared embedding space.
    temperature_init: the temperatures' first value, a log scale; ln(1/0.07) in CLIP.
    logit_bias: the first value of a learned bias of the logits, which the sigmoid contrast needs; None: there is none.
  """

  vision: VisionConfig
  text: TextConfig
  embedding_width: int
  temperature_init: float = 2.6592
  logit_bias: float | None = None

  @property
  def fine_grained(self) -> bool:
    """True for FG-CLIP, False for plain CLIP."""
    return self.text.long_length is not None

  def to_dict(self) -> dict[str, Any]:
    """As nested plain values, for JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
    """The inverse of `to_dict`; an unknown or missing key is a TypeError that names it."""
    values = dict(values)
    if missing := [key for key in ("vision", "text") if key not in values]:
      raise TypeError(f"the model's sizes lack {' and '.join(missing)}")
    return cls(vision=VisionConfig(**values.pop("vision")), text=TextConfig(**values.pop("text")), **values)

  def replace(self, *, vision: dict | None = None, text: dict | None = None, **changes) -> "ModelConfig":
    """A copy with fields of the towers or of the model changed."""
    return dataclasses.replace(
      self,
      vision=dataclasses.replace(self.vision, **(vision or {})),
      text=dataclasses.replace(self.text, **(text or {})),
      **changes,
    )


def _clip_vit(width, depth, patch_size, image_size, text_width, embedding_width) -> ModelConfig:
  return ModelConfig(
    vision=VisionConfig(width, depth, width // 64, 4 * width, image_size=image_size, patch_size=patch_size),
    text=TextConfig(text_width, 12, text_width // 64, 4 * text_width),
    embedding_width=embedding_width,
  )


PRESETS: dict[str, ModelConfig] = {
  "vit_b32": _clip_vit(768, 12, 32, 224, 512, 512),
  "vit_b16": _clip_vit(768, 12, 16, 224, 512, 512),
  "vit_l14": _clip_vit(1024, 24, 14, 224, 768, 768),
  "vit_l14_336": _clip_vit(1024, 24, 14, 336, 768, 768),
  # the quickstart's: learns the rendered scenes in minutes on a CPU
  "scenes": ModelConfig(
    vision=VisionConfig(128, 4, 4, 512, image_size=64, patch_size=8),
    text=TextConfig(128, 3, 4, 512),
    embedding_width=128,
  ),
  # for tests: compiles in a moment
  "tiny": ModelConfig(
    vision=VisionConfig(32, 2, 2, 64, image_size=32, patch_size=8),
    text=TextConfig(32, 2, 2, 64),
    embedding_width=16,
  ),
}


def preset(name: str) -> ModelConfig:
  """The preset of that name; a ValueError lists the names there are."""
  if name not in PRESETS:
    raise ValueError(f"no model preset {name!r}; there are {', '.join(PRESETS)}")
  return PRESETS[name]
