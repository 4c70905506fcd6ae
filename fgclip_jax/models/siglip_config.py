"""The configs of SigLIP's towers, which SigLIP 2 and FG-CLIP 2 share. Imports no JAX."""

import dataclasses
from typing import ClassVar

from fgclip_jax.models.pixel_spec import SIGLIP_PIXELS, PixelSpec
from fgclip_jax.models.tower_config import ImageTowerConfig, TextTowerConfig, TowerConfig, check_text


@dataclasses.dataclass(frozen=True)
class _SiglipTowerConfig(TowerConfig):
  """A `TowerConfig` with SigLIP's activation and epsilon."""

  activation: str = "gelu_tanh"
  layer_norm_eps: float = 1e-6


class _SiglipImageConfig(ImageTowerConfig):
  """What both image towers can do: no class token, and pooling into the embedding space itself."""

  supports_layer_decay: ClassVar[bool] = True
  has_projection: ClassVar[bool] = False
  has_class_token: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(_SiglipImageConfig, _SiglipTowerConfig):
  """SigLIP's Vision Transformer (arXiv 2303.15343), for square pictures: no class token, pooled by attention.

  Attributes:
    image_size: side of the square input, in pixels. What is left over beside whole patches is not seen (so400m has
      patches of 14 on 384 pixels).
    patch_size: side of a patch, in pixels.
    pixels: how pictures become its input.
    dense_head: it has FG-CLIP 2's second attention head, for dense features, which the pooling head makes otherwise.
  """

  type: ClassVar[str] = "siglip"
  label: ClassVar[str] = "SigLIP Vision Transformer"
  has_patches: ClassVar[bool] = True
  image_size: int = 224
  patch_size: int = 16
  pixels: PixelSpec = SIGLIP_PIXELS
  dense_head: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.image_size < self.patch_size:
      raise ValueError(f"image_size {self.image_size} must be at least patch_size {self.patch_size}")


@dataclasses.dataclass(frozen=True)
class NaflexVisionConfig(_SiglipImageConfig, _SiglipTowerConfig):
  """SigLIP 2's NaFlex Vision Transformer (arXiv 2502.14786), for pictures of any shape.

  A picture is scaled to the largest size, in whole patches and about its own shape, that its patch budget allows.

  Attributes:
    patch_size: side of a patch, in pixels.
    position_grid: side of the learned square table of positions, which is resized for each picture.
    max_patches: the patch budget of a picture where none is asked for.
    pixels: how pictures become its input; `resize` is of no consequence, since nothing is made square.
    dense_head: it has FG-CLIP 2's second attention head, for dense features, which the pooling head makes otherwise.
  """

  type: ClassVar[str] = "naflex"
  label: ClassVar[str] = "NaFlex Vision Transformer"
  takes_patches: ClassVar[bool] = True
  patch_size: int = 16
  position_grid: int = 16
  max_patches: int = 256
  pixels: PixelSpec = SIGLIP_PIXELS
  dense_head: bool = False

  @property
  def image_size(self) -> int:
    """Side of a square picture that the table of positions fits as it is, in pixels."""
    return self.position_grid * self.patch_size


@dataclasses.dataclass(frozen=True)
class SiglipTextConfig(TextTowerConfig, _SiglipTowerConfig):
  """SigLIP's text tower, with FG-CLIP 2's paths for long texts and regions.

  Every token attends to every other, padding included, and a caption is read at the last position of its padded row.

  Attributes:
    vocab_size: rows of the token table.
    short_length: rows of the short position table: the length of short and region captions, padding included.
    long_length: rows of the long position table; None for a plain SigLIP, which has no long path.
    end_id, pad_id: the tokens that end a text and fill its row.
    tokenizer: the name of the tokenizer that makes its ids, of `fgclip_jax.data.tokenizers`.
    head: there is a linear layer behind the tower; without one its width is that of the embedding space.
  """

  type: ClassVar[str] = "siglip"
  reads_padding: ClassVar[bool] = True
  projection_bias: ClassVar[bool] = True
  vocab_size: int = 256000
  short_length: int = 64
  long_length: int | None = None
  end_id: int = 1
  pad_id: int = 0
  tokenizer: str = "gemma"
  head: bool = True

  def __post_init__(self):
    super().__post_init__()
    check_text(self)

  @property
  def paths(self) -> dict[str, tuple[str, str]]:
    """As in every text tower; FG-CLIP 2 has a head for each kind, which plain SigLIP's only one stands for."""
    short = "short_projection" if self.head else ""
    return {
      "short": ("short_positions", short),
      "long": ("long_positions", "long_projection"),
      "region": ("short_positions", short if self.long_length is None else "region_projection"),
    }
