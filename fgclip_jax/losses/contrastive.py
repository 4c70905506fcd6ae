"""The contrastive terms of FG-CLIP as pure functions of unit-length embeddings.

Each works on the whole batch (`axis=None`), or on one device's rows inside `jax.shard_map`
(`axis` names the mesh axes that the rows are split over): local rows are then scored against
gathered columns, so that no device holds an N x N matrix, and every device returns the same value.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Axis = str | tuple[str, ...] | None


def _gather(x: Array, axis: Axis) -> Array:
  return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def _sum(x: Array, axis: Axis) -> Array:
  return x if axis is None else jax.lax.psum(x, axis)


def _logits(rows: Array, columns: Array, scale: Array) -> Array:
  return scale * jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)


def _weight(counts: Array, same: Array, groups: int, dtype: jnp.dtype) -> Array:
  """Each row's share in the mean over groups of each group's mean; `same` marks the rows of its group that count."""
  return jnp.where(counts, 1.0 / (groups * jnp.maximum(same.sum(axis=1), 1).astype(dtype)), 0.0)


def info_nce(
  image: Float[Array, "B D"], text: Float[Array, "B D"], scale: Float[Array, ""], *, axis: Axis = None
) -> Float[Array, ""]:
  """CLIP's loss: each image picks its text among all, each text its image; the mean of both cross entropies.

  Args:
    image, text: matching rows, unit length.
    scale: factor of the cosines (the temperature's exponential).
    axis: see the module's docstring.
  """
  matching = scale * jnp.sum(image * text, axis=-1)
  from_image = jax.nn.logsumexp(_logits(image, _gather(text, axis), scale), axis=-1)
  from_text = jax.nn.logsumexp(_logits(text, _gather(image, axis), scale), axis=-1)
  rows = _sum(jnp.asarray(image.shape[0], image.dtype), axis)
  return _sum(jnp.sum((from_image + from_text) / 2 - matching), axis) / rows


def regional_info_nce(
  image: Float[Array, "N D"],
  text: Float[Array, "N D"],
  valid: Bool[Array, "N"],
  group: Int[Array, "N"],
  scale: Float[Array, ""],
  *,
  groups: int,
  caption: Int[Array, "N"] | None = None,
  local_groups: bool = False,
  axis: Axis = None,
) -> Float[Array, ""]:
  """InfoNCE between regions and their captions, within groups: the mean over groups of each group's mean.

  Args:
    image, text: features of N regions and of their captions, unit length.
    valid: which regions there are; the others are padding.
    group: the contrast group of each region, 0..groups-1; only regions of one group repel each other.
    scale: factor of the cosines.
    groups: the number of groups; one without a region counts as a loss of zero.
    caption: equal numbers for equal captions; given, regions with identical captions do not repel each other.
    local_groups: promises that no group is spread over several devices: nothing is then gathered.
    axis: see the module's docstring.
  """
  columns = None if local_groups else axis
  column_valid, column_group = _gather(valid, columns), _gather(group, columns)
  contrasted = column_valid & (group[:, None] == column_group)
  weight = _weight(valid, contrasted, groups, image.dtype)
  if caption is not None:
    first = 0 if columns is None else jax.lax.axis_index(columns) * len(valid)
    own = jnp.arange(len(valid), dtype=jnp.int32) + first
    itself = own[:, None] == jnp.arange(len(column_valid), dtype=jnp.int32)
    contrasted &= itself | (caption[:, None] != _gather(caption, columns))

  def log_partition(rows, others):
    logits = _logits(rows, _gather(others, columns), scale)
    return jax.nn.logsumexp(jnp.where(contrasted, logits, jnp.finfo(logits.dtype).min), axis=-1)

  matching = scale * jnp.sum(image * text, axis=-1)
  each = (log_partition(image, text) + log_partition(text, image)) / 2 - matching
  return _sum(jnp.sum(weight * jnp.where(valid, each, 0.0)), axis)


def hard_negative_loss(
  image: Float[Array, "H D"],
  text: Float[Array, "H T D"],
  valid: Bool[Array, "H T"],
  group: Int[Array, "H"],
  scale: Float[Array, ""],
  *,
  groups: int,
  axis: Axis = None,
) -> Float[Array, ""]:
  """Each hard box picks its true caption among its own negatives: the mean over groups of each group's mean.

  Args:
    image: features of H boxes, unit length.
    text: their captions, the true one first, then the negatives; unit length.
    valid: which captions there are; a box without its true caption or without any negative does not count.
    group, groups: as in `regional_info_nce`.
    scale: factor of the cosines.
    axis: see the module's docstring.
  """
  counts = valid[:, 0] & valid[:, 1:].any(axis=1)
  same = _gather(counts, axis) & (group[:, None] == _gather(group, axis))
  weight = _weight(counts, same, groups, image.dtype)
  logits = scale * jnp.einsum("hd,htd->ht", image, text, precision=jax.lax.Precision.HIGHEST)
  partition = jax.nn.logsumexp(jnp.where(valid, logits, jnp.finfo(logits.dtype).min), axis=-1)
  return _sum(jnp.sum(weight * jnp.where(counts, partition - logits[:, 0], 0.0)), axis)
