"""The contrastive terms of FG-CLIP as pure functions of unit-length embeddings.

Each works on the whole batch (`axis=None`), or on one device's rows inside `jax.shard_map`
(`axis` names the mesh axes that the rows are split over); every device then returns the same value.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgclip_jax.losses.blockwise import Form, choose_form, device_count, pair_sums
from fgclip_jax.losses.pairs import Axis


def _sum(x: Array, axis: Axis) -> Array:
  return x if axis is None else jax.lax.psum(x, axis)


def _shares(
  counts: Bool[Array, "N"], group: Int[Array, "N"], groups: int, dtype: jnp.dtype, axis: Axis
) -> Float[Array, "N"]:
  """Each row's share in the mean over groups of each group's mean over the rows that count."""
  members = _sum(jax.ops.segment_sum(counts.astype(jnp.int32), group, groups), axis)
  return jnp.where(counts, 1.0 / (groups * jnp.maximum(members[group], 1).astype(dtype)), 0.0)


def contrast(
  image: Float[Array, "N D"],
  text: Float[Array, "N D"],
  scale: Float[Array, ""],
  bias: Float[Array, ""] | None = None,
  *,
  valid: Bool[Array, "N"] | None = None,
  group: Int[Array, "N"] | None = None,
  groups: int = 1,
  caption: Int[Array, "N"] | None = None,
  local_groups: bool = False,
  form: str = "auto",
  chunk: int = 1024,
  axis: Axis = None,
) -> Float[Array, ""]:
  """Contrasts images, or regions, with their captions: the mean over groups of each group's mean over its pairs.

  Without a bias InfoNCE, CLIP's loss: each image picks its text among all, each text its image; the mean of both
  cross entropies. With a bias SigLIP's (arXiv 2303.15343): for every image and text, whether they belong together; the
  sum over texts of -log sigmoid(±(scale * image . text + bias)), plus for an image's own text.

  Args:
    image, text: matching rows, unit length.
    scale: factor of the cosines (the temperature's exponential).
    bias: see above.
    valid: which rows there are, the others are padding; None: all.
    group: the contrast group of each row, 0..groups-1, only rows of one group repel each other; None: one group.
    groups: the number of groups; one without a row counts as a loss of zero.
    caption: equal numbers for equal captions; given, rows with identical captions do not repel each other.
    local_groups: promises that no group is spread over several devices: they then compute without each other.
    form: `dense`, `rows`, `chunked`, `ring` (see `forms`), or `auto`, which goes by the number of rows and devices.
    chunk: how many columns the last two take at a time.
    axis: see the module's docstring.
  """
  n, columns = len(image), None if local_groups else axis
  if axis is not None:  # a copy for each device, so that its derivatives add up over devices
    scale, bias = jax.tree.map(lambda x: jax.lax.pcast(x, axis, to="varying"), (scale, bias))
  if form == "auto":
    form = choose_form(n, device_count(columns), chunk)
  place = jnp.arange(n, dtype=jnp.int32) + (0 if columns is None else jax.lax.axis_index(columns) * n)
  if valid is None and group is None:
    share, labels = 1.0 / (n * device_count(columns)), {}
  else:
    valid = jnp.ones(n, bool) if valid is None else valid
    group = jnp.zeros(n, jnp.int32) if group is None else group
    share, labels = _shares(valid, group, groups, image.dtype, columns), {"group": jnp.where(valid, group, -1)}
  if caption is not None:
    labels["caption"] = caption
  if caption is not None or bias is not None:
    labels["place"] = place
  by_image, by_text = pair_sums(image, text, scale, bias, labels, Form(form, chunk, columns))
  each = by_image
  if by_text is not None:
    each = (by_image + by_text) / 2 - scale * jnp.sum(image * text, axis=-1)
  return _sum(jnp.sum(share * each), axis)


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
    group, groups: as in `contrast`.
    scale: factor of the cosines.
    axis: see the module's docstring.
  """
  counts = valid[:, 0] & valid[:, 1:].any(axis=1)
  share = _shares(counts, group, groups, image.dtype, axis)
  logits = scale * jnp.einsum("hd,htd->ht", image, text, precision=jax.lax.Precision.HIGHEST)
  partition = jax.nn.logsumexp(jnp.where(valid, logits, jnp.finfo(logits.dtype).min), axis=-1)
  return _sum(jnp.sum(share * jnp.where(counts, partition - logits[:, 0], 0.0)), axis)
