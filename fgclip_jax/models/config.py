"""What a model is: frozen dataclasses, and the published presets by name. Imports no JAX.

A tower's `type` chooses its config here (`IMAGE_CONFIGS`, `TEXT_CONFIGS`), its module in `models/towers.py`, its names
in other libraries' files in `weights/huggingface_names.py` and `weights/openai_names.py`, and its FLOPs in
`train/flops.py`: a new tower is a config class here, a module in a file of its own, and a line in each of these tables.
All other code asks a config what the tower can do (`has_patches`, `kinds`, ...) and never for its class.
"""

import dataclasses
import itertools
from typing import Any, ClassVar

from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.models.sizes import check_number, check_sizes, is_depth, shown

END_ID = 49407  # CLIP's end-of-text token

# Each kind of text: the text tower's table of positions and the model's projection that it goes through.
_TEXT_PATHS = {
  "short": ("short_positions", "short_projection"),
  "long": ("long_positions", "long_projection"),
  "region": ("short_positions", "short_projection"),
}
TEXT_KINDS = tuple(_TEXT_PATHS)


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
    check_sizes(self)
    check_number("layer_norm_eps", self.layer_norm_eps, 0.0)
    if self.width % self.heads:
      raise ValueError(f"width {self.width} must be divisible by heads {self.heads}")
    if self.activation not in ("quick_gelu", "gelu"):
      raise ValueError(f"activation must be 'quick_gelu' or 'gelu', got {self.activation!r}")


class ImageTowerConfig:
  """What every image tower's config tells.

  Attributes:
    type: the tower's name in the registries.
    label: what the tower is called in messages.
    has_patches: patches can be dropped before the blocks see them.
    supports_layer_decay: its layers form one sequence, along which learning rates can fall.
    pools_by_projection: the projection into the embedding space is the last part of the tower's pooling, with a bias,
      so that the tower alone has no pooled features.
    image_size: side of the square input, in pixels.
    patch_size: pixels along one side of a cell of the dense map.
    pixels: how pictures become its input.
  """

  type: ClassVar[str]
  label: ClassVar[str]
  has_patches: ClassVar[bool] = False
  supports_layer_decay: ClassVar[bool] = False
  pools_by_projection: ClassVar[bool] = False
  image_size: int
  patch_size: int
  width: int
  depth: int
  pixels: PixelSpec = CLIP_PIXELS

  @property
  def grid(self) -> int:
    """Cells along one side of the dense map."""
    return self.image_size // self.patch_size

  @property
  def output_width(self) -> int:
    """Channels of the tower's pooled and dense features, which are projected into the embedding space."""
    return self.width


@dataclasses.dataclass(frozen=True)
class VisionConfig(ImageTowerConfig, TowerConfig):
  """CLIP's Vision Transformer (arXiv 2103.00020).

  Attributes:
    image_size: side of the square input, in pixels.
    patch_size: side of a patch, in pixels; must divide `image_size`.
    pixels: how pictures become its input.
  """

  type: ClassVar[str] = "vit"
  label: ClassVar[str] = "Vision Transformer"
  has_patches: ClassVar[bool] = True
  supports_layer_decay: ClassVar[bool] = True
  image_size: int = 224
  patch_size: int = 16
  pixels: PixelSpec = CLIP_PIXELS

  def __post_init__(self):
    super().__post_init__()
    if self.image_size % self.patch_size:
      raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ImageTowerConfig):
  """CLIP's ResNet (arXiv 2103.00020, section 2.4).

  Attributes:
    width: channels of the stem; the last stage has 32 times as many.
    depths: blocks of each of the four stages.
    image_size: side of the square input, in pixels; a multiple of 32.
    pixels: how pictures become its input.
  """

  type: ClassVar[str] = "resnet"
  label: ClassVar[str] = "ResNet"
  pools_by_projection: ClassVar[bool] = True
  patch_size: ClassVar[int] = 32
  width: int = 64
  depths: tuple[int, ...] = (3, 4, 6, 3)
  image_size: int = 224
  pixels: PixelSpec = CLIP_PIXELS

  def __post_init__(self):
    if not isinstance(self.depths, tuple) or len(self.depths) != 4 or not all(is_depth(each) for each in self.depths):
      raise ValueError(f"depths of a ResNet must be four positive numbers of blocks, got {self.depths}")
    check_sizes(self)
    if self.width < 2 or self.width % 2:
      raise ValueError(f"width {self.width} of a ResNet must be even: its stem begins with half of it")
    if self.image_size % self.patch_size:
      raise ValueError(f"image_size {self.image_size} of a ResNet must be a multiple of {self.patch_size}")

  @property
  def depth(self) -> int:
    """Blocks of all stages."""
    return sum(self.depths)

  @property
  def output_width(self) -> int:
    """Channels of the last stage's map."""
    return 32 * self.width

  @property
  def heads(self) -> int:
    """Heads of the attention pooling, of 64 channels each."""
    return self.output_width // 64


@dataclasses.dataclass(frozen=True)
class TextKind:
  """How texts of one kind go through a model; equal for kinds that share a path.

  Attributes:
    positions: the text tower's table of positions.
    first_position: its first row among all tables of the tower, laid end to end.
    length: the longest text, in tokens.
    projection: the model's projection into the embedding space.
  """

  positions: str
  first_position: int
  length: int
  projection: str


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
  """CLIP's causal text tower, with FG-CLIP's second path for long texts.

  Attributes:
    vocab_size: rows of the token table.
    short_length: rows of the short position table: the longest short or region caption, in tokens.
    long_length: rows of the long position table; None for a plain CLIP, which has no long path.
    end_id: the end-of-text token; a caption is read at its first one. 2 stands for the rule of
      CLIP's first checkpoints: read at the largest id (the end-of-text token has the largest).
    tokenizer: the name of the tokenizer that makes its ids, of `fgclip_jax.data.tokenizers`.
  """

  type: ClassVar[str] = "causal"
  vocab_size: int = 49408
  short_length: int = 77
  long_length: int | None = 248
  end_id: int = END_ID
  tokenizer: str = "clip"

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.end_id, int) or isinstance(self.end_id, bool) or not 0 <= self.end_id < 1 << 31:
      raise ValueError(f"end_id must be a token's id, got {shown(self.end_id)}")
    if not isinstance(self.tokenizer, str):
      raise ValueError(f"tokenizer must be a name, got {shown(self.tokenizer)}")

  @property
  def position_tables(self) -> dict[str, int]:
    """The rows of each table of positions, in the order in which they are laid end to end."""
    tables = {"short_positions": self.short_length}
    return tables if self.long_length is None else tables | {"long_positions": self.long_length}

  @property
  def kinds(self) -> dict[str, TextKind]:
    """The kinds of texts that this tower reads, and the path that each takes."""
    tables, kinds = self.position_tables, {}
    starts = dict(zip(tables, itertools.accumulate(tables.values(), initial=0), strict=False))
    for kind, (positions, projection) in _TEXT_PATHS.items():
      if positions in tables:
        kinds[kind] = TextKind(positions, starts[positions], tables[positions], projection)
    return kinds


IMAGE_CONFIGS: dict[str, type] = {config.type: config for config in (VisionConfig, ResNetConfig)}
TEXT_CONFIGS: dict[str, type] = {config.type: config for config in (TextConfig,)}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A dual encoder.

  Attributes:
    vision: the image tower.
    text: the text tower. Without a kind `long` (`text.long_length is None`) the model is a plain CLIP: one text
      projection, one position table, one temperature.
    embedding_width: width of the shared embedding space.
    temperature_init: the temperatures' first value, a log scale; ln(1/0.07) in CLIP.
    logit_bias: the first value of a learned bias of the logits, which the sigmoid contrast needs; None: there is none.
  """

  vision: ImageTowerConfig
  text: TextConfig
  embedding_width: int
  temperature_init: float = 2.6592
  logit_bias: float | None = None

  def __post_init__(self):
    check_sizes(self)
    check_number("temperature_init", self.temperature_init)
    if self.logit_bias is not None:
      check_number("logit_bias", self.logit_bias)
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
  def resize(self) -> str:
    """How a whole picture becomes a square: as `vision.pixels` says, else FG-CLIP's squash or plain CLIP's crop."""
    return self.vision.pixels.resize or ("squash" if self.fine_grained else "center_crop")

  def to_dict(self) -> dict[str, Any]:
    """As nested plain values, for JSON.

    Defaults of `vision.pixels` and `text.tokenizer` are left out: earlier versions did not have them.
    """
    values = dataclasses.asdict(self)
    if self.vision.pixels == CLIP_PIXELS:
      values["vision"].pop("pixels", None)
    if self.text.tokenizer == TextConfig.tokenizer:
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
    return cls(
      vision=_tower("vision", IMAGE_CONFIGS, vision),
      text=_tower("text", TEXT_CONFIGS, {"type": "causal"} | text),
      **values,
    )

  def replace(self, *, vision: dict | None = None, text: dict | None = None, **changes) -> "ModelConfig":
    """A copy with fields of the towers or of the model changed."""
    tower: Any = self.vision  # of a dataclass, whatever its type
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
  # the quickstart's: learns the rendered scenes in minutes on a CPU
  "scenes": ModelConfig(
    vision=VisionConfig(128, 4, 4, 512, image_size=64, patch_size=8),
    text=TextConfig(128, 3, 4, 512),
    embedding_width=128,
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
}


def preset(name: str) -> ModelConfig:
  """The preset of that name; a ValueError lists the names there are."""
  if name not in PRESETS:
    raise ValueError(f"no model preset {name!r}; there are {', '.join(PRESETS)}")
  return PRESETS[name]
