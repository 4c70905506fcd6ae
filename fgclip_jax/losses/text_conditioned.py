"""The contrast of pictures with texts by text-conditioned pooling (FLAIR, arXiv 2412.03561)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fgclip_jax.losses.blockwise import Axis
from fgclip_jax.losses.caption_set import set_mean


def text_conditioned_loss(
  own: Float[Array, "B k"],
  weight: Float[Array, "B k"],
  other: Float[Array, "B n"],
  valid: Bool[Array, "B n"],
  scale: Float[Array, ""],
  bias: Float[Array, ""] | None = None,
  *,
  axis: Axis = None,
) -> Float[Array, ""]:
  """Each of a picture's own captions against the sampled captions of other pictures.

  With s = scale * cosine: -log(exp(s_p) / (exp(s_p) + sum_n exp(s_n))) for own caption p and captions n of others; with
  a bias, which is added to s, SigLIP's -log sigmoid(s_p) - sum_n log sigmoid(-s_n), as in FLAIR. The mean over a
  picture's own captions, by their weights, then over pictures. Own captions do not repel each other.

  Args:
    own, other: cosines of texts with what each finds in the picture.
    weight: of the own captions, 0: there is none. A picture without any does not count.
    valid: which of the others count.
    scale: factor of the cosines.
    bias: of the sigmoid contrast; None: softmax.
    axis: the mesh axes that the pictures are split over; None: all are here.
  """
  positive, negative = scale * own, scale * other
  if bias is None:
    # the lowest number instead of -inf: all may be left out, and -inf everywhere would give NaN gradients
    against = jax.nn.logsumexp(jnp.where(valid, negative, jnp.finfo(negative.dtype).min), axis=1, keepdims=True)
    each = jax.nn.softplus(against - positive)
  else:
    against = jnp.sum(jnp.where(valid, jax.nn.softplus(negative + bias), 0.0), axis=1, keepdims=True)
    each = jax.nn.softplus(-positive - bias) + against
  return set_mean(each, weight, axis)
