"""The image tower: CLIP's Vision Transformer with FG-CLIP's dense feature path."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fgclip_jax.models.config import VisionConfig
from fgclip_jax.models.transformer import Runtime, Transformer, layer_norm, linear


def patchify(image: Float[Array, "B H W C"], patch: int) -> Float[Array, "B P X"]:
  """Cuts an image into rows of patches: [B, (H/patch)*(W/patch), patch*patch*C]."""
  batch, height, width, channels = image.shape
  image = image.reshape(batch, height // patch, patch, width // patch, patch, channels)
  return image.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class VisionTower(nnx.Module):
  """Image to one pooled vector and a map of dense vectors, both of the tower's width."""

  def __init__(self, config: VisionConfig, runtime: Runtime = Runtime(), *, rngs: nnx.Rngs):
    width, normal = config.width, nnx.initializers.normal
    self.config, self.runtime = config, runtime
    self.patch_embedding = linear(config.patch_size**2 * 3, width, 0.02, runtime.dtype, rngs, use_bias=False)
    self.class_embedding = nnx.Param(normal(width**-0.5)(rngs.params(), (width,), jnp.float32))
    self.positions = nnx.Param(normal(width**-0.5)(rngs.params(), (1 + config.grid**2, width), jnp.float32))
    self.pre_norm = layer_norm(width, config.layer_norm_eps, rngs)
    self.transformer = Transformer(config, runtime, rngs=rngs)
    self.post_norm = layer_norm(width, config.layer_norm_eps, rngs)

  def __call__(
    self, image: Float[Array, "B S S 3"], keep: Int[Array, "B N"] | None = None, train: bool = False
  ) -> tuple[Float[Array, "B W"], Float[Array, "B h w W"] | None, dict]:
    """Encodes normalised images.

    Args:
      image: normalised pixels.
      keep: the numbers of the patches that the blocks see; the others are dropped (FLIP, arXiv 2212.00794), and there
        are no dense features.
      train: changes nothing here; a tower with BatchNorm goes by the batch's own statistics.

    Returns:
      The class token after the last block, and the patches after the last block *without
      attention mixing* (FG-CLIP's dense features); both after the final LayerNorm, in float32. And no statistics.

    Raises:
      ValueError: the images have another size than the model's.
    """
    batch, size = image.shape[0], self.config.image_size
    if image.shape[1:] != (size, size, 3):
      given = " x ".join(map(str, image.shape[1:]))
      raise ValueError(f"the model takes images of {size} x {size} x 3, got {given} (height, width, channels)")
    dtype = self.runtime.dtype
    patches = self.patch_embedding(patchify(image.astype(dtype), self.config.patch_size))
    class_token = jnp.broadcast_to(self.class_embedding[...].astype(dtype), (batch, 1, self.config.width))
    tokens = jnp.concatenate([class_token, patches], axis=1) + self.positions[...].astype(dtype)
    if keep is not None:
      kept = jnp.take_along_axis(tokens[:, 1:], keep[..., None], axis=1)
      tokens = jnp.concatenate([tokens[:, :1], kept], axis=1)
    tokens = self.pre_norm(tokens).astype(dtype)
    tokens, penultimate = self.transformer(tokens)
    if keep is not None:
      return self.post_norm(tokens[:, 0]), None, {}
    # FG-CLIP's dense features: the last block once more, without attention mixing, so that a patch's feature describes
    # that patch; the class token keeps the block with attention
    dense = self.transformer.last_block().without_mixing(penultimate[:, 1:])
    grid = self.config.grid
    return self.post_norm(tokens[:, 0]), self.post_norm(dense).reshape(batch, grid, grid, -1), {}
