"""The whole model: packed rows give what padded ones give, and a batch's embeddings stand where they belong."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fgclip_jax.data.packing import Caption, Example, Layout, assemble, geometric_row_buckets
from fgclip_jax.data.record import MAX_NEGATIVES
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.config import preset
from fgclip_jax.models.fgclip import unit_length
from fgclip_jax.models.params import abstract_params, build, flatten, unflatten
from fgclip_jax.models.roi_align import roi_align

START, END = 58, 59
TINY = preset("tiny").replace(text={"vocab_size": 60, "short_length": 10, "long_length": 14, "end_id": END})
BOXES, IMAGES = 2, 4


def _layout(packed, shards):
  """A layout with one budget of rows, so that every batch has the same shapes."""
  layout = Layout(boxes=BOXES, row_length=16, short_length=10, long_length=14, packed=packed)
  return Layout(**{**vars(layout), "row_buckets": geometric_row_buckets(layout, IMAGES // shards)[-1:]})


@functools.cache
def make_params():
  """Random parameters of a size at which every one of them matters."""
  rng = np.random.default_rng(0)
  shapes = flatten(abstract_params(TINY))
  return unflatten(
    {
      name: jnp.asarray(rng.normal(size=leaf.shape, scale=0.1) + ("scale" in name), jnp.float32)
      for name, leaf in shapes.items()
    }
  )


@jax.jit
def terms_and_gradients(params, batch):
  """The objective's terms, and the gradients of its total."""

  def total(params):
    terms = objective_terms(build(TINY, params)(batch), params["temperature"], Objective())
    return terms["total"], terms

  (_, terms), gradients = jax.value_and_grad(total, has_aux=True)(params)
  return terms, gradients


def make_examples(box_counts, negative_counts, seed):
  """Random examples; some captions are equal to others."""
  rng = np.random.default_rng(seed)

  def caption(most, long=False):
    words = rng.integers(0, 3 if rng.random() < 0.3 else START, rng.integers(0, most - 1))
    return Caption((START, *(int(word) for word in words), END), long)

  examples = []
  for i, count in enumerate(box_counts):
    regions = tuple(caption(10) for _ in range(count))
    negatives = tuple(
      (region, tuple(caption(10) for _ in range(negative_counts[i * BOXES + k])))
      if negative_counts[i * BOXES + k]
      else None
      for k, region in enumerate(regions)
    )
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    image = rng.normal(size=(32, 32, 3)).astype(np.float32)
    examples.append(Example(image, caption(10), caption(14, long=True), corners, regions, negatives, i))
  return examples


def make_batch(examples, packed, shards):
  """The batch as the model takes it."""
  return {
    key: jnp.asarray(x) for key, x in assemble(examples, shards, _layout(packed, shards)).items() if key != "record"
  }


def assert_close(ours, expected, tolerance):
  # a gradient that is all cancellation (a key's bias is zero in exact arithmetic) is compared with the largest of all
  floor = 0.1 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
    scale = max(np.abs(b).max(), floor)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


@settings(max_examples=8)
@given(
  box_counts=st.lists(st.integers(0, BOXES), min_size=IMAGES, max_size=IMAGES),
  negative_counts=st.lists(st.integers(0, MAX_NEGATIVES), min_size=IMAGES * BOXES, max_size=IMAGES * BOXES),
  seed=st.integers(0, 99),
)
def test_packed_rows_give_what_padded_ones_give(box_counts, negative_counts, seed):
  examples = make_examples(box_counts, negative_counts, seed)
  packed, padded = (terms_and_gradients(make_params(), make_batch(examples, form, 2)) for form in (True, False))
  assert_close(packed[0], padded[0], 1e-6)
  assert_close(packed[1], padded[1], 1e-5)


def test_a_batch_without_regions_has_finite_gradients():
  terms, gradients = terms_and_gradients(make_params(), make_batch(make_examples([0] * 4, [0] * 8, 0), True, 2))
  assert terms["regional"] == terms["hard_negative"] == 0.0
  chex.assert_tree_all_finite(gradients)


def test_embeddings_stand_where_the_examples_say():
  params = make_params()
  examples = make_examples([2, 0, 1, 2], [3, 0, 0, 0, 10, 0, 0, 1], seed=1)

  @jax.jit
  def embed(batch, images):
    return build(TINY, params)(batch), build(TINY, params).image_features(images)

  e, (images, dense) = embed(make_batch(examples, True, 2), jnp.stack([x.image for x in examples]))
  np.testing.assert_allclose(e.image, unit_length(images), atol=1e-6)

  @functools.partial(jax.jit, static_argnums=5)
  def encode(tokens, segment, position, row, end, kind):
    return unit_length(build(TINY, params).text_features(tokens, segment, position, row, end, kind))

  def text(captions):
    """Features of captions of one kind, each in a row of its own."""
    long, rows = captions[0].long, 1 + MAX_NEGATIVES
    tokens, ends = np.zeros((rows, 14), np.int32), np.zeros(rows, np.int32)
    for i, caption in enumerate(captions):
      tokens[i, : len(caption.ids)] = caption.ids
      ends[i] = len(caption.ids) - 1
    position = np.tile(np.arange(10, 24) if long else np.minimum(np.arange(14), 9), (rows, 1))
    arrays = (tokens, np.ones_like(tokens), position, np.arange(rows), ends)
    return encode(*(jnp.asarray(x, jnp.int32) for x in arrays), "long" if long else "short")[: len(captions)]

  np.testing.assert_allclose(e.short, text([x.short for x in examples]), atol=1e-5)
  np.testing.assert_allclose(e.long, text([x.long for x in examples]), atol=1e-5)
  valid = np.array([[True, True], [False, False], [True, False], [True, True]])
  np.testing.assert_array_equal(e.region_valid, valid)
  regions = text([caption for x in examples for caption in x.regions])
  np.testing.assert_allclose(np.asarray(e.region_text)[valid], regions, atol=1e-5)
  boxes = jnp.asarray(np.stack([np.resize(np.append(x.boxes, np.zeros(8)), (2, 4)) for x in examples]), jnp.float32)
  np.testing.assert_allclose(e.region_image, unit_length(roi_align(dense, boxes)), atol=1e-5)

  hard = [(i, k) for i, x in enumerate(examples) for k, own in enumerate(x.negatives) if own]
  counts = np.asarray(e.hard_valid).sum(axis=1)
  used = np.flatnonzero(counts)
  assert [counts[row] for row in used] == [4, 11, 2]
  assert [int(e.hard_row[row]) for row in used] == [i * BOXES + k for i, k in hard]
  for row, (i, k) in zip(used, hard, strict=True):
    np.testing.assert_allclose(e.hard_image[row], e.region_image[i, k], atol=1e-7)
    truth, wrong = examples[i].negatives[k]
    np.testing.assert_allclose(e.hard_text[row, : counts[row]], text([truth, *wrong]), atol=1e-5)


def test_a_plain_clip_embeds_image_and_short_text_alone():
  clip = TINY.replace(text={"long_length": None})
  plain = unflatten({name: flatten(make_params())[name] for name in flatten(abstract_params(clip))})
  layout = Layout(boxes=0, row_length=16, short_length=10, long_length=None)
  examples = [Example(x.image, x.short) for x in make_examples([0] * 4, [0] * 8, 0)]
  batch = {key: jnp.asarray(x) for key, x in assemble(examples, 2, layout).items() if key != "record"}
  e = jax.jit(lambda batch: build(clip, plain)(batch))(batch)
  assert e.image.shape == e.short.shape == (4, 16)
  assert e.long is None and e.region_image is None and e.hard_text is None
  terms = objective_terms(e, plain["temperature"], Objective(global_long=0.0, regional=0.0, hard_negative=0.0))
  assert np.isfinite(terms["total"]) and terms.keys() == {"total", "global_short"}


def test_a_set_has_long_and_short_captions_and_changes_nothing_else():
  """The short and the long caption again as a set, and one that is absent."""
  batch = make_batch(make_examples([2, 0, 1, 2], [0] * 8, 2), True, 2)
  absent, shape = jnp.full_like(batch["short_eot"], -1), (*batch["short_eot"].shape, 3)
  sets = {
    "caption_eot": jnp.stack([batch["long_eot"], batch["short_eot"], absent], axis=-1),
    "caption_long": jnp.broadcast_to(jnp.array([True, False, False]), shape),
    "caption_weight": jnp.broadcast_to(jnp.array([2.0, 1.0, 0.0]), shape),
    "caption_id": jnp.arange(IMAGES * 3, dtype=jnp.int32).reshape(shape),
    "short_caption": jnp.arange(IMAGES, dtype=jnp.int32).reshape(2, -1),
  }
  e = jax.jit(lambda batch: build(TINY, make_params())(batch))(batch | sets)
  np.testing.assert_allclose(e.captions[:, 0], e.long, atol=1e-6)
  np.testing.assert_allclose(e.captions[:, 1], e.short, atol=1e-6)
  assert np.isfinite(e.captions[:, 2]).all()
  np.testing.assert_array_equal(e.caption_weight, [[2.0, 1.0, 0.0]] * IMAGES)
  np.testing.assert_array_equal(e.caption_id, np.arange(IMAGES * 3).reshape(IMAGES, 3))
  np.testing.assert_array_equal(e.short_caption, np.arange(IMAGES))
  assert e.long_caption is None
  plain = jax.jit(lambda batch: build(TINY, make_params())(batch))(batch)
  assert plain.captions is plain.caption_weight is plain.caption_id is plain.short_caption is None
  for name in ("image", "short", "long", "region_text", "hard_text"):
    np.testing.assert_array_equal(getattr(e, name), getattr(plain, name), err_msg=name)
