"""What a model is: frozen dataclasses, and the published presets by name. Imports no JAX.

A tower's `type` chooses its config here (`IMAGE_CONFIGS`, `TEXT_CONFIGS`), its module in `models/towers.py`, its names
in other libraries' files in `weights/huggingface_names.py` and `weights/openai_names.py`, and its FLOPs in
`train/flops.py`: a new tower is a config class (CLIP's are in `models/tower_config.py`, SigLIP's in
`models/siglip_config.py`), a module in a file of its own, and a line in each of these tables. All other code asks a
config what the tower can do (`has_patches`, `kinds`, ...) and never for its class.
"""

import dataclasses
import math
from typing import Any

from fgclip_jax.models.pixel_spec import PixelSpec
from fgclip_jax.models.siglip_config import NaflexVisionConfig, SiglipTextConfig, SiglipVisionConfig
from fgclip_jax.models.sizes import check_number, check_sizes
from fgclip_jax.models.tower_config import (
  END_ID,
  TEXT_KINDS,
  ImageTowerConfig,
  ResNetConfig,
  TextConfig,
  TextKind,
  TextTowerConfig,
  TowerConfig,
  VisionConfig,
)

__all__ = [
  "END_ID", "IMAGE_CONFIGS", "PRESETS", "TEXT_CONFIGS", "TEXT_KINDS", "ImageTowerConfig", "ModelConfig",
  "NaflexVisionConfig", "ResNetConfig", "SiglipTextConfig", "SiglipVisionConfig", "TextConfig", "TextKind",
  "TextPoolingConfig", "TextTowerConfig", "TowerConfig", "VisionConfig", "preset",
]  # fmt: skip

IMAGE_CONFIGS: dict[str, type] = {
  config.type: config for config in (VisionConfig, ResNetConfig, SiglipVisionConfig, NaflexVisionConfig)
}
TEXT_CONFIGS: dict[str, type] = {config.type: config for config in (TextConfig, SiglipTextConfig)}


@dataclasses.dataclass(frozen=True)
class TextPoolingConfig:
  """Pooling of the patches that is conditioned on a text, see `models/text_pooling.py`.

  Attributes:
    heads: attention heads; each has `embedding_width // heads` channels. FLAIR has 8.
    layer_norm_eps: added to the variance in its LayerNorms.
  """

  heads: int = 8
  layer_norm_eps: float = 1e-5

  def __post_init__(self):
    check_sizes(self)
    check_number("layer_norm_eps", self.layer_norm_eps, 0.0)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A dual encoder.

  Attributes:
    vision: the image tower.
    text: the text tower. Without a kind `long` (`text.long_length is None`) the model is a plain CLIP: one text
      projection, one position table, one temperature.
    embedding_width: width of the shared embedding space.
    temperature_init: the temperatures' first value, a log scale; ln(1/0.07) in CLIP.
    region_temperature_init: that of `regional` and `hard_negative`; None: the same.
    logit_bias: the first value of a learned bias of the logits, which the sigmoid contrast needs; None: there is none.
    text_pooling: a second pooling of the patches, conditioned on a text; None: there is none.
  """

  vision: ImageTowerConfig
  text: TextConfig | SiglipTextConfig
  embedding_width: int
  temperature_init: float = 2.6592
  logit_bias: float | None = None
  region_temperature_init: float | None = None
  text_pooling: TextPoolingConfig | None = None

  def __post_init__(self):
    check_sizes(self)
    check_number("temperature_init", self.temperature_init)
    for name in ("logit_bias", "region_temperature_init"):
      if getattr(self, name) is not None:
        check_number(name, getattr(self, name))
    if self.text_pooling is not None and self.embedding_width % self.text_pooling.heads:
      raise ValueError(
        f"text_pooling.heads {self.text_pooling.heads} must divide embedding_width {self.embedding_width}"
      )
    if not self.vision.has_projection and self.vision.output_width != self.embedding_width:
      raise ValueError(
        f"a {self.vision.label} has no projection: embedding_width {self.embedding_width} must be its width, "
        f"{self.vision.output_width}"
      )
    if "" in (kind.projection for kind in self.text.kinds.values()) and self.text.width != self.embedding_width:
      raise ValueError(f"without a head, the text tower's width {self.text.width} must be {self.embedding_width}")
    if self.fine_grained and self.vision.pixels.resize not in (None, "squash"):
      raise ValueError(
        f"an FG-CLIP's pictures are squashed, since boxes are fractions of the whole picture: pixels.resize is "
        f"{self.vision.pixels.resize!r}; leave it out"
      )

  @property
  def fine_grained(self) -> bool:
    """True for FG-CLIP, which learns from long texts and regions; False for plain CLIP."""
    return "long" in self.text.kinds

  @property
  def temperatures(self) -> tuple[str, ...]:
    """The names of the learned temperatures."""
    return ("global", "regional", "hard_negative") if self.fine_grained else ("global",)

  @property
  def first_temperatures(self) -> dict[str, float]:
    """What each of the learned temperatures begins with, a log scale."""
    others = self.temperature_init if self.region_temperature_init is None else self.region_temperature_init
    return {name: self.temperature_init if name == "global" else others for name in self.temperatures}

  @property
  def resize(self) -> str:
    """How a whole picture becomes a square: as `vision.pixels` says, else FG-CLIP's squash or plain CLIP's crop."""
    return self.vision.pixels.resize or ("squash" if self.fine_grained else "center_crop")

  def to_dict(self) -> dict[str, Any]:
    """As nested plain values, for JSON.

    Defaults of what earlier versions did not have are left out.
    """
    values = dataclasses.asdict(self)
    if self.region_temperature_init is None:
      del values["region_temperature_init"]
    if self.text_pooling is None:
      del values["text_pooling"]
    if self.vision.pixels == type(self.vision).pixels:
      values["vision"].pop("pixels", None)
    values["text"]["tokenizer"] = self.text.tokenizer.partition(":")[0]  # its file is where the model is read from
    if values["text"]["tokenizer"] == type(self.text).tokenizer:
      values["text"].pop("tokenizer", None)
    for tower in ("vision", "text"):
      values[tower] = {"type": getattr(self, tower).type, **values[tower]}
    return values

  def identity(self) -> dict[str, Any]:
    """`to_dict` as earlier versions wrote it, which knew these towers but not `type`; fingerprints are made of it."""
    values = self.to_dict()
    for tower in ("vision", "text"):
      if values[tower]["type"] in ("vit", "resnet", "causal"):
        del values[tower]["type"]
    return values

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
    """The inverse of `to_dict`; reads dicts without `type` too, as they once were.

    Raises:
      TypeError: an unknown or missing key, or a tower of unknown type; the message names it.
      ValueError: impossible sizes.
    """
    values = dict(values)
    if missing := [key for key in ("vision", "text") if not isinstance(values.get(key), dict)]:
      raise TypeError(f"the model's sizes lack {' and '.join(missing)}")
    vision: dict[str, Any] = dict(values.pop("vision"))
    text = values.pop("text")
    if "pixels" in vision:
      vision["pixels"] = PixelSpec(**vision["pixels"])
    vision = {"type": "resnet" if "depths" in vision else "vit"} | vision  # `depths` told which before there was a type
    if values.get("text_pooling") is not None:
      values["text_pooling"] = TextPoolingConfig(**values["text_pooling"])
    return cls(
      vision=_tower("vision", IMAGE_CONFIGS, vision),
      text=_tower("text", TEXT_CONFIGS, {"type": "causal"} | text),
      **values,
    )

  def replace(
    self, *, vision: dict | None = None, text: dict | None = None, text_pooling: dict | None = None, **changes
  ) -> "ModelConfig":
    """A copy with fields of the towers, of the text pooling or of the model changed.

    Any field of `text_pooling` gives a model without one the pooling.
    """
    tower: Any = self.vision  # of a dataclass, whatever its type
    if text_pooling:
      changes["text_pooling"] = dataclasses.replace(self.text_pooling or TextPoolingConfig(), **text_pooling)
    return dataclasses.replace(
      self,
      vision=dataclasses.replace(tower, **(vision or {})),
      text=dataclasses.replace(self.text, **(text or {})),
      **changes,
    )


def _tower(part: str, configs: dict[str, type], values: dict[str, Any]) -> Any:
  """The config of a tower from its dict; JSON's lists become tuples."""
  values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
  if (name := values.pop("type")) not in configs:
    raise TypeError(f"{part}.type {name!r} is unknown: there are {', '.join(configs)}")
  return configs[name](**values)


def _clip_vit(width, depth, patch_size, image_size, text_width, embedding_width) -> ModelConfig:
  return ModelConfig(
    vision=VisionConfig(width, depth, width // 64, 4 * width, image_size=image_size, patch_size=patch_size),
    text=TextConfig(text_width, 12, text_width // 64, 4 * text_width),
    embedding_width=embedding_width,
  )


def _clip_resnet(width, depths, image_size, text_width, embedding_width) -> ModelConfig:
  return ModelConfig(
    vision=ResNetConfig(width, depths, image_size),
    text=TextConfig(text_width, 12, text_width // 64, 4 * text_width),
    embedding_width=embedding_width,
  )


# of SigLIP's sizes: width, depth, heads and MLP width of the image tower, and of the text tower
_SIGLIP_SIZES = {
  "base": ((768, 12, 12, 3072), (768, 12, 12, 3072)),
  "large": ((1024, 24, 16, 4096), (1024, 24, 16, 4096)),
  "so400m": ((1152, 27, 16, 4304), (1152, 27, 16, 4304)),
  "giant": ((1536, 40, 16, 6144), (1152, 27, 16, 4304)),
}


def _siglip(size: str, image_size: int | None = None, patch_size: int = 16, vocab_size: int = 256000) -> ModelConfig:
  """SigLIP 2, or with its vocabulary of 32,000 SigLIP; without an image size for pictures of any shape."""
  image, text = _SIGLIP_SIZES[size]
  if image_size is None:
    vision: ImageTowerConfig = NaflexVisionConfig(*image, patch_size=patch_size)
  else:
    vision = SiglipVisionConfig(*image, image_size=image_size, patch_size=patch_size)
  first = {"end_id": 1, "pad_id": 1, "tokenizer": "siglip"} if vocab_size == 32000 else {}
  return ModelConfig(
    vision=vision,
    text=SiglipTextConfig(*text, vocab_size=vocab_size, **first),
    embedding_width=image[0],
    temperature_init=math.log(10),
    logit_bias=-10.0,
  )


def _fgclip2(size: str) -> ModelConfig:
  """FG-CLIP 2; its temperatures for regions begin with ln 100."""
  return _siglip(size).replace(
    vision={"dense_head": True}, text={"long_length": 196}, region_temperature_init=math.log(100)
  )


def _tiny(vision: ImageTowerConfig, long_length: int | None = None) -> ModelConfig:
  """SigLIP and FG-CLIP 2 for tests, with CLIP's vocabulary, whose tokenizer is always there."""
  text = SiglipTextConfig(
    32, 2, 2, 64, vocab_size=49408, short_length=16, long_length=long_length, end_id=END_ID, tokenizer="clip_padded"
  )
  return ModelConfig(vision=vision, text=text, embedding_width=32, temperature_init=math.log(10), logit_bias=-10.0)


PRESETS: dict[str, ModelConfig] = {
  "vit_b32": _clip_vit(768, 12, 32, 224, 512, 512),
  "vit_b16": _clip_vit(768, 12, 16, 224, 512, 512),
  "vit_l14": _clip_vit(1024, 24, 14, 224, 768, 768),
  "vit_l14_336": _clip_vit(1024, 24, 14, 336, 768, 768),
  "rn50": _clip_resnet(64, (3, 4, 6, 3), 224, 512, 1024),
  "rn101": _clip_resnet(64, (3, 4, 23, 3), 224, 512, 512),
  "rn50x4": _clip_resnet(80, (4, 6, 10, 6), 288, 640, 640),
  "rn50x16": _clip_resnet(96, (6, 8, 18, 8), 384, 768, 768),
  "rn50x64": _clip_resnet(128, (3, 15, 36, 10), 448, 1024, 1024),
  # SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786), at fixed sizes
  "siglip_b16": _siglip("base", 224, vocab_size=32000),
  "siglip_l16": _siglip("large", 256, vocab_size=32000),
  "siglip_so400m14": _siglip("so400m", 384, 14, vocab_size=32000),
  "siglip2_b16": _siglip("base", 224),
  "siglip2_l16": _siglip("large", 256),
  "siglip2_so400m14": _siglip("so400m", 224, 14),
  "siglip2_so400m16": _siglip("so400m", 256),
  "siglip2_giant16": _siglip("giant", 256),
  # SigLIP 2 for pictures of any shape, and FG-CLIP 2, which starts from it
  "siglip2_naflex_b16": _siglip("base"),
  "siglip2_naflex_l16": _siglip("large"),
  "siglip2_naflex_so400m16": _siglip("so400m"),
  "siglip2_naflex_giant16": _siglip("giant"),
  "fgclip2_b16": _fgclip2("base"),
  "fgclip2_l16": _fgclip2("large"),
  "fgclip2_so400m16": _fgclip2("so400m"),
  # the quickstart's: learns the rendered scenes in minutes on a CPU
  "scenes": ModelConfig(
    vision=VisionConfig(128, 4, 4, 512, image_size=64, patch_size=8),
    text=TextConfig(128, 3, 4, 512),
    embedding_width=128,
  ),
  "scenes2": ModelConfig(
    vision=NaflexVisionConfig(128, 4, 4, 512, patch_size=8, position_grid=8, max_patches=64, dense_head=True),
    text=SiglipTextConfig(
      128, 3, 4, 512, vocab_size=49408, short_length=16, long_length=32, end_id=END_ID, tokenizer="clip_padded"
    ),
    embedding_width=128,
    temperature_init=math.log(20),
    logit_bias=-math.log(64),  # one pair in 64 of its batch is true
  ),
  # for tests: these compile in a moment
  "tiny": ModelConfig(
    vision=VisionConfig(32, 2, 2, 64, image_size=32, patch_size=8),
    text=TextConfig(32, 2, 2, 64),
    embedding_width=16,
  ),
  "tiny_resnet": ModelConfig(
    vision=ResNetConfig(4, (1, 2, 1, 3), 64), text=TextConfig(32, 2, 2, 64), embedding_width=16
  ),
  "tiny_siglip": _tiny(SiglipVisionConfig(32, 2, 2, 64, image_size=32, patch_size=8)),
  "tiny_naflex": _tiny(NaflexVisionConfig(32, 2, 2, 64, patch_size=8, position_grid=4, max_patches=16)),
  "tiny_fgclip2": _tiny(
    NaflexVisionConfig(32, 2, 2, 64, patch_size=8, position_grid=4, max_patches=16, dense_head=True), long_length=48
  ),
}


def preset(name: str) -> ModelConfig:
  """The preset of that name; a ValueError lists the names there are."""
  if name not in PRESETS:
    raise ValueError(f"no model preset {name!r}; there are {', '.join(PRESETS)}")
  return PRESETS[name]
