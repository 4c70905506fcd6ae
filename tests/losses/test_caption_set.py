"""The contrast with sets of captions equals a plain loop, values and gradients, in every form, on any mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.losses import caption_set
from fgclip_jax.losses.blockwise import FORMS
from fgclip_jax.losses.caption_set import caption_set_loss
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.fgclip import Embeddings
from tests.helpers.losses import AXES, elements, over

IMAGES, SIZE, WIDTH = 16, 3, 6
SCALE, BIAS = 7.0, -2.0

pytestmark = pytest.mark.usefixtures("float64")


def unit(rng, *shape):
  x = rng.normal(size=(*shape, WIDTH))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def batch():
  """Images, sets of captions near them with weights, records of which some are there twice, and numbers of captions.

  Of some images all captions are absent, of two of these a whole device's; what is absent has an embedding and a number
  all the same, which must not matter.
  """
  rng = np.random.default_rng(0)
  image = unit(rng, IMAGES)
  captions = image[:, None] + 2.0 * unit(rng, IMAGES, SIZE)
  captions /= np.linalg.norm(captions, axis=-1, keepdims=True)
  weight = np.where(rng.random((IMAGES, SIZE)) < 0.7, rng.uniform(0.2, 3.0, (IMAGES, SIZE)), 0.0)
  weight[[3, 6, 7]] = 0.0
  record = np.asarray([7, 7, 1, 2, 3, 4, 5, 1, 6, 8, 9, 1, 10, 11, 2, 12], np.int32)
  return image, captions, weight, record, rng.integers(0, 9, (IMAGES, SIZE)).astype(np.int32)


def loop(image, captions, weight, record=None, caption=None, sigmoid=False):
  """The loss pair by pair, and its gradients by image, captions, scale and bias."""
  n, size = weight.shape
  cosine = np.einsum("id,jcd->ijc", image, captions)
  logit = SCALE * cosine + (BIAS if sigmoid else 0.0)
  slope, total = np.zeros_like(logit), 0.0
  images = [i for i in range(n) if weight[i].sum() > 0]

  def negative(i, j, c):
    if weight[j, c] == 0 or (i == j if record is None else record[i] == record[j]):
      return False
    return caption is None or not any(weight[i, d] > 0 and caption[i, d] == caption[j, c] for d in range(size))

  def cross_entropy(own, others, factor):
    """Adds the term of the pair `own` among those of `others`."""
    nonlocal total
    exponentials = {pair: math.exp(logit[pair]) for pair in (own, *others)}
    everything = math.fsum(exponentials.values())
    total += factor * (math.log(everything) - logit[own])
    slope[own] -= factor
    for pair, each in exponentials.items():
      slope[pair] += factor * each / everything

  for i in images:
    of_image = [(i, j, c) for j in range(n) for c in range(size) if negative(i, j, c)]
    for c in np.flatnonzero(weight[i]):
      share, own = weight[i, c] / weight[i].sum() / len(images), (i, i, c)
      of_caption = [(j, i, c) for j in range(n) if negative(j, i, c)]
      if sigmoid:
        for pair, sign in ((own, 1), *((pair, -1) for pair in of_caption)):
          total += share * math.log1p(math.exp(-sign * logit[pair]))
          slope[pair] -= share * sign / (1 + math.exp(sign * logit[pair]))
      else:
        cross_entropy(own, of_image, share / 2)
        cross_entropy(own, of_caption, share / 2)
  by_image = SCALE * np.einsum("ijc,jcd->id", slope, captions)
  by_captions = SCALE * np.einsum("ijc,id->jcd", slope, image)
  return total, (by_image, by_captions, (slope * cosine).sum(), slope.sum())


CASES = {"none": (), "records": ("record",), "identical": ("caption",), "both": ("record", "caption")}


def of_case(case):
  _, _, _, record, caption = batch()
  return {name: value for name, value in (("record", record), ("caption", caption)) if name in CASES[case]}


@functools.cache
def ours(case, sigmoid, form, shape):
  """The loss over devices and its gradients, as those of `loop`; without a bias its gradient is 0."""
  image, captions, weight, *_ = batch()
  masks = of_case(case)
  mesh, split, everywhere = over(shape), PartitionSpec(AXES), PartitionSpec()

  def compute(image, captions, scale, bias, weight, masks):
    options = {"form": form, "chunk": 6, "axis": AXES if mesh else None}
    return caption_set_loss(image, captions, weight, scale, bias if sigmoid else None, **masks, **options)

  if mesh:
    specs = split, split, everywhere, everywhere, split, split
    compute = jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=everywhere)
  floats = [jnp.asarray(x, jnp.float64) for x in (image, captions, SCALE, BIAS)]
  rest = jax.tree.map(jnp.asarray, (weight, masks))
  return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(compute, argnums=(0, 1, 2, 3)))(*floats, *rest))


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(
  ("form", "shape", "case"),
  [
    *((form, (), "both") for form in ("all_gather", "ring")),
    *((form, (2, 4, 1), "both") for form in FORMS),
    ("ring", (8, 1, 1), "records"),
    ("chunked", (2, 2, 2), "identical"),
    ("auto", (), "none"),
  ],
  ids=str,
)
def test_every_form_equals_a_loop(form, shape, case, sigmoid):
  image, captions, weight, *_ = batch()
  expected = loop(image, captions, weight, sigmoid=sigmoid, **of_case(case))
  for a, b in zip(*map(jax.tree.leaves, (ours(case, sigmoid, form, shape), expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("case", CASES)
def test_the_definition_equals_a_loop(case, sigmoid):
  image, captions, weight, *_ = batch()
  negative = caption_set.negative_mask(jnp.asarray(weight), **jax.tree.map(jnp.asarray, of_case(case)))

  def define(image, captions, scale, bias):
    if sigmoid:
      return caption_set.set_sigmoid(image, captions, jnp.asarray(weight), scale, bias, negative)
    return caption_set.set_info_nce(image, captions, jnp.asarray(weight), scale, negative)

  floats = [jnp.asarray(x, jnp.float64) for x in (image, captions, SCALE, BIAS)]
  found = jax.jit(jax.value_and_grad(define, argnums=(0, 1, 2, 3)))(*floats)
  expected = loop(image, captions, weight, sigmoid=sigmoid, **of_case(case))
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@functools.cache
def compiled(objective, shape):
  """The terms, and the gradients of their sum by images and by the captions."""
  temperature = {"global": jnp.asarray(math.log(SCALE), jnp.float64), "bias": jnp.asarray(BIAS, jnp.float64)}

  def total(floats, rest):
    given = {**rest, **floats}
    record = given.pop("record", None)
    found = objective_terms(Embeddings(**given), temperature, objective, over(shape), record=record)
    return found["total"], found

  return jax.jit(jax.value_and_grad(total, has_aux=True))


def terms(objective, shape=(), **fields):
  """The terms and gradients of a batch without regions."""
  arrays = {name: jnp.asarray(value) for name, value in fields.items()}
  if mesh := over(shape):
    arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(AXES)))
  floats = {name: arrays.pop(name) for name in ("image", "short", "long", "captions") if name in arrays}
  (_, found), gradients = compiled(objective, shape)(floats, arrays)
  return jax.tree.map(np.asarray, (found, gradients))


def weights(**changes):
  return Objective(regional=0.0, hard_negative=0.0, caption_set=1.0, **changes)


def pictures(size=1):
  """Fields with one short caption for each picture, and sets that repeat it."""
  rng = np.random.default_rng(3)
  short = unit(rng, IMAGES)
  sets = {"captions": np.repeat(short[:, None], size, 1), "caption_weight": np.ones((IMAGES, size), np.float32)}
  number = rng.integers(0, 6, IMAGES).astype(np.int32)
  ids = {"short_caption": number, "caption_id": np.repeat(number[:, None], size, 1)}
  return {"image": unit(rng, IMAGES), "short": short, **sets, **ids, "record": batch()[3]}


@pytest.mark.parametrize(
  ("contrast", "options", "shape"),
  [("softmax", {}, ()), ("softmax", {"mask_identical": True}, (2, 4, 1)), ("sigmoid", {"mask_identical": True}, ())],
  ids=str,
)
def test_a_set_of_one_is_the_short_caption(contrast, options, shape):
  """With weights of 1, and with any other as there is none to weigh it against; repeated captions change nothing."""
  objective = weights(contrast=contrast, form="ring", chunk=4, **options)
  fields = pictures()
  found, gradients = terms(objective, shape, **fields)
  np.testing.assert_allclose(found["caption_set"], found["global_short"], rtol=1e-14)
  np.testing.assert_allclose(gradients["captions"][:, 0], gradients["short"], rtol=0, atol=1e-15)
  heavy, _ = terms(objective, shape, **fields | {"caption_weight": np.full((IMAGES, 1), 2.5, np.float32)})
  np.testing.assert_allclose(heavy["caption_set"], found["global_short"], rtol=1e-14)


@pytest.mark.parametrize(("contrast", "shape"), [("softmax", (8, 1, 1)), ("sigmoid", ())], ids=str)
def test_equal_captions_of_different_pictures_do_not_repel_each_other(contrast, shape):
  """In the global terms; `loop` with one caption for each picture is what they compute."""
  fields = pictures(2)
  fields["long"], fields["long_caption"] = fields["short"][::-1].copy(), fields["short_caption"][::-1].copy()
  found, _ = terms(weights(contrast=contrast, mask_identical=True, form="chunked", chunk=4), shape, **fields)
  for name in ("short", "long"):
    one = fields[name][:, None], np.ones((IMAGES, 1)), fields["record"]
    masked, plain = (
      loop(fields["image"], *one, caption, contrast == "sigmoid")[0]
      for caption in (fields[f"{name}_caption"][:, None], None)
    )
    np.testing.assert_allclose(found[f"global_{name}"], masked, rtol=1e-13)
    assert masked < plain - 1e-3


@pytest.mark.parametrize("name", ["short_caption", "long_caption"])
def test_masking_equal_captions_needs_their_numbers(name):
  fields = pictures() | {"long": pictures()["short"], "long_caption": pictures()["short_caption"]}
  del fields[name]
  with pytest.raises(ValueError, match=f"objective.mask_identical needs {name} in the batch"):
    terms(weights(mask_identical=True), **fields)


@pytest.mark.parametrize(
  ("contrast", "form", "shape"),
  [("softmax", "ring", (8, 1, 1)), ("softmax", "all_gather", ()), ("sigmoid", "chunked", ())],
  ids=str,
)
def test_a_batch_without_captions_in_its_sets_is_zero(contrast, form, shape):
  fields = pictures(2) | {"caption_weight": np.zeros((IMAGES, 2), np.float32)}
  found, gradients = terms(weights(contrast=contrast, form=form, global_short=0.0), shape, **fields)
  assert found["caption_set"] == found["total"] == 0.0
  assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(gradients))


def test_a_batch_of_one_record_has_nothing_to_contrast():
  found, gradients = terms(weights(), **pictures(2) | {"record": np.zeros(IMAGES, np.int32)})
  np.testing.assert_allclose(found["caption_set"], 0.0, atol=1e-12)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@settings(max_examples=20)
@given(
  weight=st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=12, max_size=12),
  order=st.permutations(range(3)),
  images=st.permutations(range(4)),
)
def test_the_order_of_captions_and_of_images_does_not_matter(weight, order, images):
  image, captions, _, record, caption = (x[:4] for x in batch())
  fields = image, captions, np.asarray(weight).reshape(4, 3), record, caption
  value = one_device(*map(jnp.asarray, fields))
  moved = [x if x.ndim == 1 or x is image else x[:, list(order)] for x in fields]
  np.testing.assert_allclose(one_device(*(jnp.asarray(x[list(images)]) for x in moved)), value, rtol=1e-13, atol=1e-13)


@jax.jit
def one_device(image, captions, weight, record, caption):
  scale = jnp.asarray(SCALE, image.dtype)
  return caption_set_loss(image, captions, weight, scale, record=record, caption=caption)


@pytest.mark.parametrize("form", ["chunked", "ring"])
def test_no_block_of_all_images_is_held(form):
  """A block of logits is as large as that of one caption for each image, and no array is larger than the captions."""
  rows, size, total, chunk = 64, 4, 512, 32

  def loss(image, captions, weight, caption, scale):
    call = functools.partial(caption_set_loss, image, captions, weight, scale, form=form, chunk=chunk, axis=AXES)
    return call(caption=caption) + call(scale)

  split, everywhere = PartitionSpec(AXES), PartitionSpec()
  specs = (split, split, split, split, everywhere)
  sharded = jax.shard_map(loss, mesh=over((4, 2, 1)), in_specs=specs, out_specs=everywhere)
  shapes = (total, 4), (total, size, 4), (total, size), (total, size), ()
  kinds = (jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.float32)
  arrays = [jax.ShapeDtypeStruct(*array) for array in zip(shapes, kinds, strict=True)]
  lowered = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1, 4))).lower(*arrays)
  assert elements(lowered.as_text()) == total * size * 4
  assert elements(lowered.compile().as_text()) == rows * chunk
