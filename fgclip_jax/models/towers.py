"""The towers' modules by the `type` of their configs, and what a model asks of them.

A new tower is a module in a file of its own, a line here, and what `models/config.py` lists.
"""

from typing import Protocol

from jaxtyping import Array, Float, Int

from fgclip_jax.models.resnet import ResNetTower, Statistics
from fgclip_jax.models.siglip import NaflexTower, SiglipTower
from fgclip_jax.models.text import TextTower
from fgclip_jax.models.vit import VisionTower


class ImageTower(Protocol):
  """An image tower: made of its config, a `Runtime` and `rngs`, and called with images.

  Returns the pooled features; the dense ones, None where patches were dropped; and the tower's own statistics, moved
  towards this batch's if `train` (empty for a tower that keeps none). W is the config's `output_width`, h and w its
  `grid`.
  """

  def __call__(
    self, image: Float[Array, "B S S 3"], keep: Int[Array, "B N"] | None = None, train: bool = False
  ) -> tuple[Float[Array, "B W"], Float[Array, "B h w W"] | None, Statistics]: ...


IMAGE_TOWERS: dict[str, type] = {
  "vit": VisionTower, "resnet": ResNetTower, "siglip": SiglipTower,
  "naflex": NaflexTower,  # takes patches, and is called by `DualEncoder` in its own way
}  # fmt: skip
TEXT_TOWERS: dict[str, type] = {"causal": TextTower, "siglip": TextTower}
