"""SigLIP's image towers: for square pictures, and NaFlex for pictures of any shape; FG-CLIP 2's dense head.

Shapes: R rows of N slots for patches, a row holding the patches of one picture or of several; X numbers in a patch;
W channels. Sources: SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786), and FG-CLIP 2's published code.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fgclip_jax.models import attention
from fgclip_jax.models.config import NaflexVisionConfig, SiglipVisionConfig
from fgclip_jax.models.transformer import MLP, Runtime, Transformer, layer_norm, linear
from fgclip_jax.models.vit import patchify

_HIGHEST = jax.lax.Precision.HIGHEST


def grid_weights(index: Int[Array, "*B"], count: Int[Array, "*B"], side: int) -> Float[Array, "*B {side}"]:
  """How much of each of `side` entries is in entry `index` of `count`, to which they are resized along one axis.

  As PyTorch resizes (`mode="bilinear", align_corners=False, antialias=True`), which SigLIP 2 does with its positions: a
  tent over the entries around the new one's centre, as wide as the step between new entries where these are fewer.
  """
  step = side / jnp.maximum(count, 1).astype(jnp.float32)  # empty rows of a batch have a count of 0
  centre = (index.astype(jnp.float32) + 0.5) * step
  distance = jnp.abs(jnp.arange(side, dtype=jnp.float32) + 0.5 - centre[..., None])
  tent = jnp.maximum(1.0 - distance / jnp.maximum(step, 1.0)[..., None], 0.0)
  return tent / jnp.sum(tent, axis=-1, keepdims=True)


@flax.struct.dataclass
class PatchRows:
  """Rows of packed patches, each picture's within one row.

  Attributes:
    patches: the values that the tower reads, 0 in empty slots; inside a patch by row, column and channel.
    segment: which picture a patch is of, any number but 0, which is an empty slot.
    place: row and column of the patch, height and width of its picture's grid; (0, 0, 1, 1) in empty slots.
  """

  patches: Float[Array, "R N X"]
  segment: Int[Array, "R N"]
  place: Int[Array, "R N 4"]


class AttentionHead(nnx.Module):
  """SigLIP's attention pooling ("MAP head"); with patches as its queries, FG-CLIP 2's dense features."""

  def __init__(self, config: SiglipVisionConfig | NaflexVisionConfig, runtime: Runtime, *, rngs: nnx.Rngs):
    width, std = config.width, config.width**-0.5
    self.heads, self.runtime = config.heads, runtime
    self.probe = nnx.Param(nnx.initializers.normal(std)(rngs.params(), (width,), jnp.float32))
    self.query = linear(width, width, std, runtime.dtype, rngs)
    self.key = linear(width, width, std, runtime.dtype, rngs)
    self.value = linear(width, width, std, runtime.dtype, rngs)
    self.out = linear(width, width, std, runtime.dtype, rngs)
    self.norm = layer_norm(width, config.layer_norm_eps, rngs)
    self.mlp = MLP(config, runtime, rngs=rngs)

  def _finish(self, mixed: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
    y = self.out(mixed)
    return y + self.mlp(self.norm(y))

  def pool(self, x: Float[Array, "B P W"], valid: Bool[Array, "B P"] | None = None) -> Float[Array, "B W"]:
    """One vector for each picture: what the learned probe finds among its valid patches.

    The one query is the same for all patches, so that no keys and values are made: q (K x) = (q K) x, and the weighted
    mean of the values is the value of the weighted mean. The keys' bias shifts all scores alike and changes nothing.
    """
    dtype, width = self.runtime.dtype, x.shape[-1]
    by_head = (width, self.heads, width // self.heads)
    probe = self.query(self.probe[...][None])[0].astype(jnp.float32) * by_head[2] ** -0.5
    asks = jnp.einsum("whc,hc->wh", self.key.kernel[...].reshape(by_head), probe.reshape(by_head[1:]))
    scores = jnp.einsum("bpw,wh->bhp", x.astype(jnp.float32), asks.astype(jnp.float32))
    if valid is not None:
      scores = jnp.where(valid[:, None], scores, jnp.finfo(scores.dtype).min)
    means = jnp.einsum("bhp,bpw->bhw", jax.nn.softmax(scores, axis=-1).astype(dtype), x.astype(dtype))
    values = jnp.einsum("bhw,whc->bhc", means, self.value.kernel[...].reshape(by_head).astype(dtype))
    bias: Any = self.value.bias
    return self._finish(values.reshape(x.shape[0], width) + bias[...].astype(dtype))

  def dense(self, x: Float[Array, "R N W"], segment: Int[Array, "R N"] | None = None) -> Float[Array, "R N W"]:
    """A vector for each patch: what it finds among the patches of its picture. The probe is not used."""

    def split_heads(y):
      return y.reshape(*y.shape[:-1], self.heads, -1)

    mixed = attention.attend(
      *(split_heads(project(x)) for project in (self.query, self.key, self.value)),
      segment=segment,
      implementation=self.runtime.attention,
      sharding=self.runtime.sharding,
    )
    return self._finish(mixed.reshape(x.shape))


class _SiglipTower(nnx.Module):
  """What both towers have: a patch embedding with a bias, a table of positions, blocks and heads."""

  def __init__(
    self, config: SiglipVisionConfig | NaflexVisionConfig, positions: int, runtime: Runtime, *, rngs: nnx.Rngs
  ):
    width = config.width
    self.config, self.runtime = config, runtime
    self.patch_embedding = linear(config.patch_size**2 * 3, width, 0.02, runtime.dtype, rngs)
    self.positions = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (positions, width), jnp.float32))
    self.transformer = Transformer(config, runtime, rngs=rngs)
    self.post_norm = layer_norm(width, config.layer_norm_eps, rngs)
    self.pooling_head = AttentionHead(config, runtime, rngs=rngs)
    if config.dense_head:
      self.dense_head = AttentionHead(config, runtime, rngs=rngs)

  def dense_features(
    self, hidden: Float[Array, "R N W"], segment: Int[Array, "R N"] | None = None
  ) -> Float[Array, "R N W"]:
    """The patches' own features, by the dense head; a model without one has those that its pooling head makes."""
    head = self.dense_head if self.config.dense_head else self.pooling_head
    return head.dense(hidden, segment)


class SiglipTower(_SiglipTower):
  """SigLIP's tower for square pictures. See `ImageTower` for its call."""

  config: SiglipVisionConfig

  def __init__(self, config: SiglipVisionConfig, runtime: Runtime = Runtime(), *, rngs: nnx.Rngs):
    super().__init__(config, config.grid**2, runtime, rngs=rngs)

  def __call__(
    self, image: Float[Array, "B S S 3"], keep: Int[Array, "B N"] | None = None, train: bool = False
  ) -> tuple[Float[Array, "B W"], Float[Array, "B h w W"] | None, dict]:
    """Encodes normalised images; see `VisionTower` for arguments and errors.

    Returns:
      The pooling head's vector, and the dense features of the patches (None where patches were dropped).
    """
    batch, size, grid = image.shape[0], self.config.image_size, self.config.grid
    if image.shape[1:] != (size, size, 3):
      given = " x ".join(map(str, image.shape[1:]))
      raise ValueError(f"the model takes images of {size} x {size} x 3, got {given} (height, width, channels)")
    seen = grid * self.config.patch_size  # what is left over is not seen, as by a convolution without padding
    patches = patchify(image[:, :seen, :seen].astype(self.runtime.dtype), self.config.patch_size)
    tokens = self.patch_embedding(patches) + self.positions[...].astype(self.runtime.dtype)
    if keep is not None:
      tokens = jnp.take_along_axis(tokens, keep[..., None], axis=1)
    hidden = self.post_norm(self.transformer(tokens)[0])
    pooled = self.pooling_head.pool(hidden)
    if keep is not None:
      return pooled, None, {}
    return pooled, self.dense_features(hidden).reshape(batch, grid, grid, -1), {}


class NaflexTower(_SiglipTower):
  """SigLIP 2's tower for pictures of any shape, over rows of packed patches."""

  config: NaflexVisionConfig

  def __init__(self, config: NaflexVisionConfig, runtime: Runtime = Runtime(), *, rngs: nnx.Rngs):
    super().__init__(config, config.position_grid**2, runtime, rngs=rngs)

  def embed(self, rows: PatchRows) -> Float[Array, "R N W"]:
    """The patches' embeddings with their positions: the table, resized for each picture, at each patch's place.

    Resizing is bilinear and antialiased, which separates into a weight for each row and one for each column of the
    table; at a patch, their products are the weights of the table's entries.
    """
    side = self.config.position_grid
    row, column, height, width = jnp.moveaxis(rows.place, -1, 0)
    weights = grid_weights(row, height, side)[..., :, None] * grid_weights(column, width, side)[..., None, :]
    positions = jnp.matmul(
      weights.reshape(*weights.shape[:-2], side * side), self.positions[...].astype(jnp.float32), precision=_HIGHEST
    )
    dtype = self.runtime.dtype
    return self.patch_embedding(rows.patches.astype(dtype)) + positions.astype(dtype)

  def __call__(self, rows: PatchRows) -> Float[Array, "R N W"]:
    """The patches after the last block and the final LayerNorm, float32; empty slots hold something finite."""
    return self.post_norm(self.transformer(self.embed(rows), rows.segment)[0])

  def pool(self, hidden: Float[Array, "R N W"], slot: Int[Array, "B P"]) -> Float[Array, "B W"]:
    """The pooling head's vector of each picture.

    Args:
      hidden: what a call returned.
      slot: where among the R * N slots the patches of each picture lie; -1: it has fewer.
    """
    return self.pooling_head.pool(take_slots(hidden, slot), slot >= 0)


def take_slots(rows: Float[Array, "R N W"], slot: Int[Array, "B P"]) -> Float[Array, "B P W"]:
  """The vectors in these slots of all rows; for a slot of -1 those of some other."""
  return rows.reshape(-1, rows.shape[-1])[jnp.maximum(slot, 0)]
