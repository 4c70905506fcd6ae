"""The margin of FG-CLIP 2's ranking term (`contrastive.hard_rank`), which moves with what the model can tell apart."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgclip_jax.losses.contrastive import has_negatives, own_logits
from fgclip_jax.losses.groups import as_published, make_groups
from fgclip_jax.losses.terms import Options
from fgclip_jax.models.fgclip import Embeddings

MAX_MARGIN = 10.0


def next_margin(
  embeddings: Embeddings, scale: Float[Array, ""], options: Options, margin: Float[Array, ""]
) -> Float[Array, ""]:
  """The margin of the next step: how far true captions are above hard negatives now, 0 to 10.

  Each contrast group offers the mean logit of its hard boxes' captions minus that of their negatives; the next margin
  is the mean over the groups that have a hard box, and stays where none has. There is no gradient. It is plain JAX
  over the whole batch, which on a mesh XLA splits.

  Args:
    embeddings: of the whole batch.
    scale: factor of the cosines, as for `hard_rank`.
    options: `regional_group` and `quirks`.
    margin: of this step.
  """
  groups = make_groups(embeddings, options)
  if groups is None:
    return margin
  e = jax.lax.stop_gradient(as_published(embeddings, groups, options.quirks))
  assert e.hard_image is not None and e.hard_text is not None and e.hard_valid is not None  # else no groups
  logits = own_logits(e.hard_image, e.hard_text, jax.lax.stop_gradient(scale))
  boxes = has_negatives(e.hard_valid)[:, None]

  def by_group(valid):
    """The sum of the logits that are valid, and their number."""
    each = jnp.where(valid, logits, 0.0).sum(axis=1), valid.sum(axis=1).astype(logits.dtype)
    return jax.ops.segment_sum(jnp.stack(each, axis=1), groups.hard, groups.count).T

  is_caption = jnp.arange(logits.shape[1]) == 0
  captions, has_box = by_group(e.hard_valid & boxes & is_caption)
  negatives, count = by_group(e.hard_valid & boxes & ~is_caption)
  offered = captions / jnp.maximum(has_box, 1.0) - negatives / jnp.maximum(count, 1.0)
  counts = has_box > 0
  if "empty_groups" in options.quirks:
    offered, counts = jnp.where(counts, offered, margin), jnp.ones_like(counts)
  total, number = jnp.sum(jnp.where(counts, offered, 0.0)), jnp.sum(counts.astype(offered.dtype))
  mean = jnp.where(number > 0, total / jnp.maximum(number, 1.0), margin)
  return jnp.clip(mean, 0.0, MAX_MARGIN)
