"""Pooling that asks the text: what a text finds among the patches of a picture (FLAIR, arXiv 2412.03561).

A text's embedding is the query of one cross-attention; the patches' dense features and an empty token are its keys and
values. So each text gets a picture embedding of its own, made of the patches that it asks for. In training, pictures
are compared with their own captions and with a few sampled ones of other pictures (`losses/text_conditioned.py`),
since comparing all texts with all pictures would take an embedding for every pair.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fgclip_jax.models.config import TextPoolingConfig
from fgclip_jax.models.transformer import Runtime, layer_norm, linear


class TextPooling(nnx.Module):
  """Cross-attention of texts over patches, in the shared embedding space; there is no residual connection.

  FLAIR normalises keys and values each by a LayerNorm of its own. Here they share one: what they would differ in, a
  scale and an offset, the projections behind them can hold. Its empty token has a key and a value of zero, so that a
  text may find nothing: with a score of 0, and without a part in the sum.
  """

  def __init__(self, width: int, config: TextPoolingConfig, runtime: Runtime, *, rngs: nnx.Rngs):
    self.heads, self.runtime = config.heads, runtime
    self.text_norm = layer_norm(width, config.layer_norm_eps, rngs)
    self.patch_norm = layer_norm(width, config.layer_norm_eps, rngs)
    self.query, self.key, self.value, self.out = (
      linear(width, width, width**-0.5, runtime.dtype, rngs) for _ in range(4)
    )

  def weights(
    self, patches: Float[Array, "B P D"], text: Float[Array, "B T D"], valid: Bool[Array, "B P"] | None = None
  ) -> Float[Array, "B H T P"]:
    """How much each head looks at each patch, float32; the empty token has what is missing to 1.

    Arguments as of a call.
    """
    query, key = self._split(self.query(self.text_norm(text))), self._split(self.key(self.patch_norm(patches)))
    scores = jnp.einsum("bthc,bphc->bhtp", query * query.shape[-1] ** -0.5, key, preferred_element_type=jnp.float32)
    if valid is not None:
      scores = jnp.where(valid[:, None, None], scores, jnp.finfo(scores.dtype).min)
    # a softmax over the patches' scores and the 0 of the empty token
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), 0.0))
    parts = jnp.exp(scores - largest)
    return parts / (jnp.sum(parts, axis=-1, keepdims=True) + jnp.exp(-largest))

  def values(self, patches: Float[Array, "*B P D"]) -> Float[Array, "*B P D"]:
    """What the pooling returns for a text that looks at one patch alone; not normalised."""
    return self.out(self.value(self.patch_norm(patches)))

  def __call__(
    self, patches: Float[Array, "B P D"], text: Float[Array, "B T D"], valid: Bool[Array, "B P"] | None = None
  ) -> Float[Array, "B T D"]:
    """The embedding of each picture for each of its texts; not normalised.

    Args:
      patches: unit-length dense features of P patches of each picture.
      text: unit-length embeddings of T texts for each picture.
      valid: which patches there are; None: all.
    """
    weights, value = self.weights(patches, text, valid), self._split(self.value(self.patch_norm(patches)))
    mixed = jnp.einsum("bhtp,bphc->bthc", weights.astype(value.dtype), value)
    return self.out(mixed.reshape(text.shape))

  def _split(self, x: Float[Array, "B N D"]) -> Float[Array, "B N H C"]:
    return x.reshape(*x.shape[:-1], self.heads, -1)


@flax.struct.dataclass
class AskedTexts:
  """The texts that each picture of a batch is compared with: k of its own, then n of other pictures.

  Attributes:
    text: unit-length embeddings.
    weight: of the picture's own; 0: there is none.
    valid: which of the others count.
  """

  text: Float[Array, "B T D"]
  weight: Float[Array, "B k"]
  valid: Bool[Array, "B n"]


def ask_texts(
  own: Float[Array, "B k D"],
  weight: Float[Array, "B k"],
  negatives: int,
  record: Int[Array, "B"] | None = None,
  number: Int[Array, "B k"] | None = None,
) -> AskedTexts:
  """Each picture's own captions, and of `negatives` other pictures one caption each.

  Picture i takes those of the pictures i + o of the batch, o being offsets that divide the batch evenly; the batch
  begins again after its end. It is the same on any mesh, and moves single embeddings between devices, never all. Of
  several captions, the first offset takes a picture's first, the second its second, and so on.

  Args:
    own: unit-length embeddings of each picture's captions.
    weight: theirs; 0: there is none.
    negatives: n, from 1 to B - 1.
    record: of each picture; one of the same record gives no negative. None: all are different.
    number: of each caption; one with the number of an own caption is no negative. None: all are different.

  Raises:
    ValueError: the batch has not so many other pictures.
  """
  pictures = len(weight)
  if not 1 <= negatives < pictures:
    raise ValueError(
      f"objective.conditioned_negatives must be in 1..{pictures - 1}, since the batch has {pictures} pictures, got "
      f"{negatives}"
    )
  there = weight > 0
  count = jnp.sum(there, axis=1)
  first = jnp.argsort(~there, axis=1, stable=True)  # the captions that there are, in order, before the others
  texts, valid = [], []
  for place in range(negatives):
    offset = (place + 1) * pictures // (negatives + 1)
    slot = jnp.take_along_axis(first, (place % jnp.maximum(count, 1))[:, None], axis=1)

    def of_other(x, slot=slot, offset=offset):
      picked = jnp.take_along_axis(x, slot.reshape(slot.shape + (1,) * (x.ndim - 2)), axis=1)[:, 0]
      return jnp.roll(picked, -offset, axis=0)

    counts = of_other(there)
    if record is not None:
      counts &= record != jnp.roll(record, -offset)
    if number is not None:
      counts &= ~jnp.any((number == of_other(number)[:, None]) & there, axis=1)
    texts.append(of_other(own))
    valid.append(counts)
  return AskedTexts(jnp.concatenate([own, jnp.stack(texts, axis=1)], axis=1), weight, jnp.stack(valid, axis=1))
