"""The contrast of images with sets of captions, of which all captions of an image are positives.

`set_info_nce` and `set_sigmoid` are the definitions in plain JAX; `caption_set_loss` computes the same over devices, in
the forms of `blockwise.py`: captions are the rows of the matrix of logits and images its columns. A batch has N images
with up to C captions each; a weight of 0 says that a caption is absent.

Each positive has a term of its own, as in SupCon (arXiv 2004.11362, equation 2), but is contrasted with the negatives
alone: an image's own captions do not compete with each other. Weights are those of the positives: an image's terms are
averaged by them, and images count alike whatever their number of captions. A negative counts once whatever its weight.
An image without captions is still a negative of the others' captions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgclip_jax.losses.blockwise import Axis, Form, choose_form, device_count, pair_sums
from fgclip_jax.losses.contrastive import own_logits, sum_over, varying

# ------------------------------------------------------------------------------ in plain JAX


def set_info_nce(
  image: Float[Array, "N D"],
  captions: Float[Array, "N C D"],
  weight: Float[Array, "N C"],
  scale: Float[Array, ""],
  negative: Bool[Array, "N N C"],
) -> Float[Array, ""]:
  """`contrastive.info_nce` with several positives for an image.

  For caption c of image i, whose logit is s = scale * cosine: -log(exp(s) / (exp(s) + sum of exp over the captions that
  are negatives of image i)), and the same over the images of which the caption is a negative; the mean of the two.
  `negative[i, j, c]` says whether caption c of image j is a negative of image i, see `negative_mask`.
  """
  logits = scale * jnp.einsum("id,jcd->ijc", image, captions)
  own = jnp.einsum("iic->ic", logits)
  logits = jnp.where(negative, logits, -jnp.inf)

  def cross_entropy(others):  # [N C, any number]
    return jax.nn.logsumexp(jnp.concatenate([own[..., None], others], axis=-1), axis=-1) - own

  n, size = own.shape
  of_image = cross_entropy(jnp.broadcast_to(logits.reshape(n, 1, n * size), (n, size, n * size)))
  of_caption = cross_entropy(jnp.moveaxis(logits, 0, -1))
  return set_mean((of_image + of_caption) / 2, weight)


def set_sigmoid(
  image: Float[Array, "N D"],
  captions: Float[Array, "N C D"],
  weight: Float[Array, "N C"],
  scale: Float[Array, ""],
  bias: Float[Array, ""],
  negative: Bool[Array, "N N C"],
) -> Float[Array, ""]:
  """`contrastive.sigmoid` with several positives for an image.

  For each caption -log sigmoid(s) with its own image, plus the sum of -log sigmoid(-s) over the images of which it is a
  negative, where s = scale * cosine + bias. `negative` is as in `set_info_nce`.
  """
  logits = scale * jnp.einsum("id,jcd->ijc", image, captions) + bias
  against = jnp.sum(jnp.where(negative, -jax.nn.log_sigmoid(-logits), 0.0), axis=0)
  return set_mean(against - jax.nn.log_sigmoid(jnp.einsum("iic->ic", logits)), weight)


def negative_mask(
  weight: Float[Array, "N C"], record: Int[Array, "N"] | None = None, caption: Int[Array, "N C"] | None = None
) -> Bool[Array, "N N C"]:
  """Whether caption c of image j is a negative of image i: it is there, and of another image, or of another record.

  Given `caption`, equal numbers for equal captions, a caption that is in the set of image i too is none.
  """
  present = weight > 0
  record = jnp.arange(len(weight)) if record is None else record
  negative = (record[:, None] != record)[..., None] & present
  if caption is not None:
    equal = caption[:, None, None, :] == caption[None, :, :, None]  # [i, j, c, one of image i]
    negative &= ~jnp.any(equal & present[:, None, None, :], axis=-1)
  return negative


def set_mean(each: Float[Array, "N C"], weight: Float[Array, "N C"], axis: Axis = None) -> Float[Array, ""]:
  """The mean over the images that have captions of each one's mean over its captions by weight; 0 without any.

  `axis` names the mesh axes that the images are split over.
  """
  total = jnp.sum(weight, axis=1)
  of_image = jnp.sum(jnp.where(weight > 0, weight * each, 0.0), axis=1) / jnp.where(total > 0, total, 1.0)
  images = sum_over(jnp.sum(total > 0, dtype=each.dtype), axis)
  return sum_over(jnp.sum(of_image), axis) / jnp.maximum(images, 1)


# ------------------------------------------------------------------------------ over devices


def caption_set_loss(
  image: Float[Array, "N D"],
  captions: Float[Array, "N C D"],
  weight: Float[Array, "N C"],
  scale: Float[Array, ""],
  bias: Float[Array, ""] | None = None,
  *,
  record: Int[Array, "N"] | None = None,
  caption: Int[Array, "N C"] | None = None,
  form: str = "auto",
  chunk: int = 1024,
  axis: Axis = None,
) -> Float[Array, ""]:
  """Contrasts images with the captions of their sets: `set_info_nce`, or with a bias `set_sigmoid`, over devices.

  Args:
    image: unit length.
    captions: the sets of the same images, unit length.
    weight: of each caption, not negative; 0: absent.
    scale, bias, form, axis: as in `contrastive.contrast`.
    record: of each image; given, captions of one record's other images are neither positives nor negatives.
    caption: equal numbers for equal captions; given, a caption does not repel an image whose set has it too.
    chunk: how many logits for each image the forms `chunked` and `ring` hold at a time.
  """
  n, size = weight.shape
  scale, bias = varying((scale, bias), axis)
  chunk = max(chunk // size, 1)  # images at a time, against C captions of each image here
  if form == "auto":
    form = choose_form(n * size, device_count(axis), chunk, n)
  weight = weight.astype(image.dtype)
  present = weight > 0
  number = jnp.arange(n, dtype=jnp.int32) + (0 if axis is None else jax.lax.axis_index(axis) * n)
  record = number if record is None else record
  of_images = {"record": record, "group": varying(jnp.zeros(n, jnp.int32), axis)}
  of_captions = {"record": jnp.repeat(record, size), "group": jnp.where(present, 0, -1).reshape(-1)}
  if caption is not None:
    of_captions["caption_id"] = caption.reshape(-1)
    of_images |= {"caption_ids": caption, "has_caption": present}
  rows, how = captions.reshape(n * size, -1), Form(form, chunk, axis)
  by_caption, by_image = pair_sums(rows, image, scale, bias, of_captions, how, of_images)
  # These are sums over negatives; each positive is added where it counts, as an image's row has more than one.
  by_caption, own = by_caption.reshape(n, size), own_logits(image, captions, scale)
  if bias is not None:
    each = by_caption + jax.nn.softplus(-own - bias)
  else:  # log(exp(own) + exp(sum)) - own
    assert by_image is not None  # without a bias there are sums by column
    each = (jax.nn.softplus(by_caption - own) + jax.nn.softplus(by_image[:, None] - own)) / 2
  return set_mean(each, weight, axis)
