"""The contrastive losses of FG-CLIP and FG-CLIP 2: first in plain JAX, as one reads them, then as training does it.

`info_nce`, `sigmoid`, `hard_negatives`, `hard_contrast`, `hard_rank` and `text_intra_modal` are the definitions: the
whole batch in one place, every logit in memory. `contrast` and the functions `..._loss` compute the same on one device
(`axis=None`) or on one device's rows inside `jax.shard_map` (`axis` names the mesh axes that the rows are split over;
every device then returns the same value). Tests compare the two. Embeddings are of unit length, so that products are
cosines.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgclip_jax.losses.blockwise import Axis, Form, choose_form, device_count, gather, pair_sums, scan_chunks

# FG-CLIP 2's text intra-modal contrast: the cosine above which two captions say the same, and the number of captions
# that each is kept apart from.
SAME_CAPTION, MOST_ALIKE = 0.95, 10

# ------------------------------------------------------------------------------ in plain JAX


def info_nce(
  image: Float[Array, "N D"],
  text: Float[Array, "N D"],
  scale: Float[Array, ""],
  counts: Bool[Array, "N N"],
  members: Bool[Array, "G N"],
) -> Float[Array, ""]:
  """CLIP's loss (arXiv 2103.00020, figure 3); FG-CLIP's global and regional terms (arXiv 2505.05071, section 3).

  -log(exp(s_ii) / sum_j exp(s_ij)) for each image i over all texts j, and the same for each text over all images, with
  s = scale * cosine; the mean of the two. `counts` and `members` are those of `pair_mask` and `group_members`.
  """
  logits = jnp.where(counts, scale * image @ text.T, -jnp.inf)  # exp(-inf) = 0: the pair is left out of the sums
  of_image = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
  of_text = jax.nn.logsumexp(logits, axis=0) - jnp.diagonal(logits)
  return group_mean((of_image + of_text) / 2, members)


def sigmoid(
  image: Float[Array, "N D"],
  text: Float[Array, "N D"],
  scale: Float[Array, ""],
  bias: Float[Array, ""],
  counts: Bool[Array, "N N"],
  members: Bool[Array, "G N"],
) -> Float[Array, ""]:
  """SigLIP's loss (arXiv 2303.15343, algorithm 1): does this text belong to this image? asked of every pair.

  The sum over texts j of -log sigmoid(z_ij * s_ij), with s = scale * cosine + bias, and z_ij = 1 where i = j, else -1.
  """
  z = 2 * jnp.eye(len(image), dtype=image.dtype) - 1
  each = -jax.nn.log_sigmoid(z * (scale * image @ text.T + bias))
  return group_mean(jnp.sum(jnp.where(counts, each, 0.0), axis=1), members)


def hard_negatives(
  image: Float[Array, "H D"],
  text: Float[Array, "H T D"],
  valid: Bool[Array, "H T"],
  scale: Float[Array, ""],
  members: Bool[Array, "G H"],
) -> Float[Array, ""]:
  """FG-CLIP's hard fine-grained negatives (arXiv 2505.05071, section 3): each box picks text 0 among its own texts.

  -log(exp(s_h0) / sum_t exp(s_ht)) for each box h; there is no direction from text to box.
  """
  logits = jnp.where(valid, scale * jnp.einsum("hd,htd->ht", image, text), -jnp.inf)
  return group_mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0], members)


def hard_contrast(
  image: Float[Array, "H D"],
  text: Float[Array, "H T D"],
  valid: Bool[Array, "H T"],
  scale: Float[Array, ""],
  counts: Bool[Array, "H H"],
  members: Bool[Array, "G H"],
) -> Float[Array, ""]:
  """FG-CLIP 2's contrast of hard boxes (arXiv 2510.10921): `info_nce` in which everyone's negatives are negatives too.

  Each box h picks its caption, text 0, among the captions and negatives of all boxes, and each caption picks its box;
  the mean of the two.
  """
  logits = scale * jnp.einsum("hd,ktd->hkt", image, text)
  logits = jnp.where(counts[:, :, None] & valid, logits, -jnp.inf)
  own = jnp.diagonal(logits[:, :, 0])
  of_image = jax.nn.logsumexp(logits, axis=(1, 2)) - own
  of_text = jax.nn.logsumexp(logits[:, :, 0], axis=0) - own
  return group_mean((of_image + of_text) / 2, members)


def hard_rank(
  image: Float[Array, "H D"],
  text: Float[Array, "H T D"],
  valid: Bool[Array, "H T"],
  scale: Float[Array, ""],
  margin: Float[Array, ""],
  members: Bool[Array, "G H"],
) -> Float[Array, ""]:
  """FG-CLIP 2's cross-modal ranking (CMR, arXiv 2510.10921): the caption is to win by the margin.

  max(0, margin + s_ht - s_h0) for each negative t of each box h, with s = scale * cosine. The margin moves from step to
  step and has no gradient, see `margin.py`.
  """
  logits = scale * jnp.einsum("hd,htd->ht", image, text)
  each = jax.nn.relu(margin + logits[:, 1:] - logits[:, :1])
  pairs = members[:, :, None] & valid[:, 1:]
  return group_mean(each.reshape(-1), pairs.reshape(len(members), -1))


def text_intra_modal(
  text: Float[Array, "N D"], counts: Bool[Array, "N N"], members: Bool[Array, "G N"]
) -> Float[Array, ""]:
  """FG-CLIP 2's text intra-modal contrast (TIC, arXiv 2510.10921): a caption keeps apart from the most alike ones.

  log sum exp(s_ij) over the ten largest cosines s_ij of caption i with those j of its group. Itself, a caption that
  says the same (s_ij > 0.95) and a pair that does not count are there as zeros, as in the published code. Where a
  group has fewer than ten captions, for which that is undefined, zeros fill up the ten: the term then has one range
  whatever the number, and what is not there gives no gradient.
  """
  alike = text @ text.T
  apart = counts & (alike <= SAME_CAPTION) & ~jnp.eye(len(text), dtype=bool)
  of_group = (members[:, :, None] & members[:, None, :]).any(axis=0)
  entries = jnp.where(of_group, jnp.where(apart, alike, 0.0), -jnp.inf)
  entries = jnp.pad(entries, ((0, 0), (0, MOST_ALIKE)), constant_values=-jnp.inf)
  largest = jax.lax.top_k(entries, MOST_ALIKE)[0]
  return group_mean(jax.nn.logsumexp(jnp.where(largest > -jnp.inf, largest, 0.0), axis=1), members)


def pair_mask(
  valid: Bool[Array, "N"],
  group: Int[Array, "N"],
  caption: Int[Array, "N"] | None = None,
  record: Int[Array, "N"] | None = None,
  picture: Int[Array, "N"] | None = None,
) -> Bool[Array, "N N"]:
  """Which pairs a loss sees: those of one group, and not two rows that say the same, nor two pictures of one record."""
  counts = valid[:, None] & valid & (group[:, None] == group)
  if caption is not None:
    counts &= caption[:, None] != caption
  if record is not None and picture is not None:
    counts &= (record[:, None] != record) | (picture[:, None] == picture)
  return counts | jnp.eye(len(valid), dtype=bool)  # a row always sees its own text


def group_members(valid: Bool[Array, "N"], group: Int[Array, "N"], groups: int) -> Bool[Array, "G N"]:
  """The rows of each group that its mean is taken over."""
  return valid & (group == jnp.arange(groups, dtype=group.dtype)[:, None])


def group_mean(each: Float[Array, "N"], members: Bool[Array, "G N"]) -> Float[Array, ""]:
  """The mean over groups of each group's mean over its members; a group without any counts as 0."""
  sums = jnp.sum(jnp.where(members, each, 0.0), axis=1)
  return jnp.mean(sums / jnp.maximum(jnp.sum(members, axis=1, dtype=each.dtype), 1))


# ------------------------------------------------------------------------------ over devices


def sum_over(x: Array, axis: Axis) -> Array:
  """The sum over the devices along the mesh axes."""
  return x if axis is None else jax.lax.psum(x, axis)


def varying(x: Any, axis: Axis) -> Any:
  """A copy for each device, so that its derivatives add up over devices."""
  return x if axis is None else jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis, to="varying"), x)


def _row_weights(
  counts: Bool[Array, "N"], group: Int[Array, "N"], groups: int, dtype: jnp.dtype, axis: Axis
) -> Float[Array, "N"]:
  """Each row's weight in `group_mean`: a weighted sum needs no second pass over the devices' losses."""
  members = sum_over(jax.ops.segment_sum(counts.astype(jnp.int32), group, groups), axis)
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
  record: Int[Array, "N"] | None = None,
  picture: Int[Array, "N"] | None = None,
  local_groups: bool = False,
  form: str = "auto",
  chunk: int = 1024,
  axis: Axis = None,
) -> Float[Array, ""]:
  """Contrasts images, or regions, with their captions: `info_nce`, or with a bias `sigmoid`, over devices.

  Args:
    image, text: matching rows, unit length.
    scale: factor of the cosines (the temperature's exponential).
    bias: added to the logits of `sigmoid`; None for `info_nce`.
    valid: which rows there are, the others are padding; None: all.
    group: the contrast group of each row, 0..groups-1: only rows of one group repel each other; None: one group.
    groups: the number of groups; one without a row counts as a loss of zero.
    caption: equal numbers for equal captions; given, rows with identical captions do not repel each other.
    record, picture: of each row, the record and the picture of the batch that it is of; given, rows of one record that
      are of different pictures do not repel each other: the batch holds the record more than once.
    local_groups: promises that no group is spread over several devices: they then compute without each other.
    form: `dense`, `all_gather`, `chunked`, `ring` (see `blockwise`), or `auto`, which goes by the number of rows and
      devices.
    chunk: how many columns the last two take at a time.
    axis: the mesh axes that the rows are split over; None: the rows are the whole batch.
  """
  n, columns = len(image), None if local_groups else axis
  scale, bias = varying((scale, bias), axis)
  if form == "auto":
    form = choose_form(n, device_count(columns), chunk)
  index = jnp.arange(n, dtype=jnp.int32) + (0 if columns is None else jax.lax.axis_index(columns) * n)
  if valid is None and group is None:
    weight, labels = 1.0 / (n * device_count(columns)), {}  # without masks, no comparison of labels is compiled
  else:
    valid = jnp.ones(n, bool) if valid is None else valid
    group = jnp.zeros(n, jnp.int32) if group is None else group
    weight, labels = _row_weights(valid, group, groups, image.dtype, columns), {"group": jnp.where(valid, group, -1)}
  if caption is not None:
    labels["caption"] = caption
  if record is not None and picture is not None:
    labels |= {"record": record, "picture": picture}
  if caption is not None or bias is not None:
    labels["index"] = index
  by_image, by_text = pair_sums(image, text, scale, bias, labels, Form(form, chunk, columns))
  each = by_image
  if by_text is not None:  # cross entropy: logsumexp minus the pair's own logit, s_ii, which both directions share
    each = (by_image + by_text) / 2 - scale * jnp.sum(image * text, axis=-1)
  return sum_over(jnp.sum(weight * each), axis)


def has_negatives(valid: Bool[Array, "H T"]) -> Bool[Array, "H"]:
  """Which boxes have their true caption and at least one negative."""
  return valid[:, 0] & valid[:, 1:].any(axis=1)


def own_logits(image: Float[Array, "H D"], text: Float[Array, "H T D"], scale: Float[Array, ""]) -> Float[Array, "H T"]:
  """The logits of each box with its own captions."""
  return scale * jnp.einsum("hd,htd->ht", image, text, precision=jax.lax.Precision.HIGHEST)


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
  """`hard_negatives` over devices: each box picks its true caption among its own negatives.

  Args:
    image: features of H boxes, unit length.
    text: their captions, the true one first, then the negatives; unit length.
    valid: which captions there are; a box without its true caption or without any negative does not count.
    group, groups: as in `contrast`.
    scale: factor of the cosines.
    axis: as in `contrast`.
  """
  counts = has_negatives(valid)
  weight = _row_weights(counts, group, groups, image.dtype, axis)
  logits = own_logits(image, text, scale)
  # the lowest number instead of -inf: a box of padding has no valid text, and -inf everywhere would give NaN gradients
  log_sum = jax.nn.logsumexp(jnp.where(valid, logits, jnp.finfo(logits.dtype).min), axis=-1)
  return sum_over(jnp.sum(weight * jnp.where(counts, log_sum - logits[:, 0], 0.0)), axis)


def hard_contrast_loss(
  image: Float[Array, "H D"],
  text: Float[Array, "H T D"],
  valid: Bool[Array, "H T"],
  group: Int[Array, "H"],
  scale: Float[Array, ""],
  *,
  groups: int,
  record: Int[Array, "H"] | None = None,
  picture: Int[Array, "H"] | None = None,
  local_groups: bool = False,
  form: str = "auto",
  chunk: int = 1024,
  axis: Axis = None,
) -> Float[Array, ""]:
  """`hard_contrast` over devices: each box picks its caption among the captions and negatives of its group.

  Args:
    image, text, valid, scale: as in `hard_negative_loss`.
    group, groups, record, picture, local_groups, form, chunk, axis: as in `contrast`, for the H boxes.
  """
  boxes, texts = valid.shape
  columns = None if local_groups else axis
  scale = varying(scale, axis)
  if form == "auto":
    form = choose_form(boxes, device_count(columns), chunk, boxes * texts)
  counts = has_negatives(valid)
  labels = {"group": jnp.where(counts, group, -1)}
  if record is not None and picture is not None:
    labels |= {"record": record, "picture": picture}
  column_labels = {name: jnp.repeat(label, texts) for name, label in labels.items()}
  column_labels["group"] = jnp.where(valid.reshape(-1), column_labels["group"], -1)
  flat = text.reshape(boxes * texts, -1)
  by_image, by_text = pair_sums(image, flat, scale, None, labels, Form(form, chunk, columns), column_labels)
  assert by_text is not None  # without a bias there are sums by column
  each = (by_image + by_text.reshape(boxes, texts)[:, 0]) / 2 - own_logits(image, text[:, :1], scale)[:, 0]
  weight = _row_weights(counts, group, groups, image.dtype, columns)
  return sum_over(jnp.sum(weight * jnp.where(counts, each, 0.0)), axis)


def hard_rank_loss(
  image: Float[Array, "H D"],
  text: Float[Array, "H T D"],
  valid: Bool[Array, "H T"],
  group: Int[Array, "H"],
  scale: Float[Array, ""],
  margin: Float[Array, ""] | float,
  *,
  groups: int,
  axis: Axis = None,
) -> Float[Array, ""]:
  """`hard_rank` over devices: each box prefers its caption to each of its negatives by the margin.

  Args:
    image, text, valid, group, scale, groups, axis: as in `hard_negative_loss`.
    margin: in units of the logits.
  """
  pairs = (valid[:, :1] & valid[:, 1:]).reshape(-1)
  weight = _row_weights(pairs, jnp.repeat(group, valid.shape[1] - 1), groups, image.dtype, axis)
  logits = own_logits(image, text, scale)
  each = jax.nn.relu(margin + logits[:, 1:] - logits[:, :1]).reshape(-1)
  return sum_over(jnp.sum(weight * jnp.where(pairs, each, 0.0)), axis)


def text_intra_modal_loss(
  text: Float[Array, "N D"],
  valid: Bool[Array, "N"],
  group: Int[Array, "N"],
  *,
  groups: int,
  record: Int[Array, "N"] | None = None,
  picture: Int[Array, "N"] | None = None,
  local_groups: bool = False,
  chunk: int = 1024,
  axis: Axis = None,
) -> Float[Array, ""]:
  """`text_intra_modal` over devices: each caption keeps apart from the ten of its group that are most like it.

  Each device takes its rows through the columns of all, `chunk` at a time, and keeps the ten largest so far.

  Args:
    text: captions of regions, unit length.
    valid, group, groups, record, picture, local_groups, chunk, axis: as in `contrast`.
  """
  columns = None if local_groups else axis
  first = 0 if columns is None else jax.lax.axis_index(columns) * len(text)
  labels = {"index": first + jnp.arange(len(text), dtype=jnp.int32), "group": jnp.where(valid, group, -1)}
  if record is not None and picture is not None:
    labels |= {"record": record, "picture": picture}

  @jax.checkpoint  # else the backward pass would keep every block of cosines
  def visit(largest, part):
    texts, of_column = part
    alike = jnp.matmul(text, texts.T, precision=jax.lax.Precision.HIGHEST)
    apart = (alike <= SAME_CAPTION) & (labels["index"][:, None] != of_column["index"])
    if "record" in labels:
      apart &= (labels["record"][:, None] != of_column["record"]) | (labels["picture"][:, None] == of_column["picture"])
    entries = jnp.where(apart, alike, 0.0)
    entries = jnp.where(labels["group"][:, None] == of_column["group"], entries, -jnp.inf)
    return jax.lax.top_k(jnp.concatenate([largest, entries], axis=1), MOST_ALIKE)[0], None

  nothing = jnp.repeat(jnp.full_like(text[:, :1], -jnp.inf), MOST_ALIKE, axis=1)
  largest, _ = scan_chunks(visit, nothing, gather((text, labels), columns), chunk)
  each = jax.nn.logsumexp(jnp.where(largest > -jnp.inf, largest, 0.0), axis=1)
  weight = _row_weights(valid, group, groups, text.dtype, columns)
  return sum_over(jnp.sum(weight * jnp.where(valid, each, 0.0)), axis)
