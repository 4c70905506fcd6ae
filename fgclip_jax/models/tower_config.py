"""The configs of towers: what all have in common, and CLIP's own towers. Imports no JAX."""

import dataclasses
import itertools
from typing import ClassVar

from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.models.sizes import check_number, check_sizes, is_depth, shown

END_ID = 49407  # CLIP's end-of-text token
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")

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
    activation: `quick_gelu` (x * sigmoid(1.702 x), OpenAI's), `gelu` (exact, erf) or `gelu_tanh` (its approximation by
      tanh, SigLIP's).
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
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {shown(self.activation)}")


class ImageTowerConfig:
  """What every image tower's config tells.

  Attributes:
    type: the tower's name in the registries.
    label: what the tower is called in messages.
    has_patches: patches of square pictures can be dropped before the blocks see them.
    supports_layer_decay: its layers form one sequence, along which learning rates can fall.
    pools_by_projection: the projection into the embedding space is the last part of the tower's pooling, with a bias,
      so that the tower alone has no pooled features.
    has_projection: a projection of the model's leads into the embedding space; without one, the tower's width is that
      of the space.
    has_class_token: the table of positions begins with the row of a token that is no patch.
    takes_patches: it reads packed patches of pictures of any shape instead of square pictures.
    image_size: side of the square input, in pixels.
    patch_size: pixels along one side of a cell of the dense map.
    pixels: how pictures become its input.
  """

  type: ClassVar[str]
  label: ClassVar[str]
  has_patches: ClassVar[bool] = False
  supports_layer_decay: ClassVar[bool] = False
  pools_by_projection: ClassVar[bool] = False
  has_projection: ClassVar[bool] = True
  has_class_token: ClassVar[bool] = True
  takes_patches: ClassVar[bool] = False
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


class TextTowerConfig:
  """What every text tower's config tells.

  Attributes:
    type: the tower's name in the registries.
    causal: a token attends to itself and earlier ones only.
    reads_padding: captions are padded to the length of their kind, padding is attended to, and a caption is read at its
      last position; otherwise a caption is read at its end-of-text token, and nothing behind it matters.
    projection_bias: the projections into the embedding space have a bias.
    vocab_size: rows of the token table.
    short_length: rows of the short position table: the longest short or region caption, in tokens.
    long_length: rows of the long position table; None for a model without a long path.
    end_id: the end-of-text token.
    tokenizer: the name of the tokenizer that makes its ids, of `fgclip_jax.data.tokenizers`.
  """

  type: ClassVar[str]
  causal: ClassVar[bool] = False
  reads_padding: ClassVar[bool] = False
  projection_bias: ClassVar[bool] = False
  vocab_size: int
  short_length: int
  long_length: int | None
  end_id: int
  tokenizer: str

  @property
  def position_tables(self) -> dict[str, int]:
    """The rows of each table of positions, in the order in which they are laid end to end."""
    tables = {"short_positions": self.short_length}
    return tables if self.long_length is None else tables | {"long_positions": self.long_length}

  @property
  def paths(self) -> dict[str, tuple[str, str]]:
    """Of each kind of text, the tower's table of positions and the model's projection ("": none) it goes through."""
    return _TEXT_PATHS

  @property
  def kinds(self) -> dict[str, TextKind]:
    """The kinds of texts that this tower reads, and the path that each takes."""
    tables, kinds = self.position_tables, {}
    starts = dict(zip(tables, itertools.accumulate(tables.values(), initial=0), strict=False))
    for kind, (positions, projection) in self.paths.items():
      if positions in tables:
        kinds[kind] = TextKind(positions, starts[positions], tables[positions], projection)
    return kinds


def check_text(config: TextTowerConfig) -> None:
  """A ValueError if the ids or the name of the tokenizer of a text tower's config are none."""
  for name in ("end_id", "pad_id"):
    value = getattr(config, name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
      raise ValueError(f"{name} must be a token's id, got {shown(value)}")
  if not isinstance(config.tokenizer, str):
    raise ValueError(f"tokenizer must be a name, got {shown(config.tokenizer)}")


@dataclasses.dataclass(frozen=True)
class TextConfig(TextTowerConfig, TowerConfig):
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
  causal: ClassVar[bool] = True
  vocab_size: int = 49408
  short_length: int = 77
  long_length: int | None = 248
  end_id: int = END_ID
  tokenizer: str = "clip"

  def __post_init__(self):
    super().__post_init__()
    check_text(self)
