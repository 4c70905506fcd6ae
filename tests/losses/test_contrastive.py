"""The losses as training computes them equal their definitions in plain JAX, values and gradients, on random input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgclip_jax.losses import contrastive

ROWS, TEXTS, GROUPS, WIDTH = 12, 4, 3, 6

pytestmark = pytest.mark.usefixtures("float64")


def unit(rng, *shape):
  x = rng.normal(size=(*shape, WIDTH))
  return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def values_and_gradients(ours, plain, floats, arrays):
  """The value of each loss, and its gradients by every float."""
  return [jax.value_and_grad(lambda floats, loss=loss: loss(*floats, *arrays))(floats) for loss in (ours, plain)]


def assert_equal(ours, plain, floats, arrays=()):
  """The same value and the same gradients by every float; compiled once for each pair of functions."""
  gradients = values_and_gradients(ours, plain, tuple(floats), tuple(arrays))
  for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1.0))


masks = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)
groups = st.lists(st.integers(0, GROUPS - 1), min_size=ROWS, max_size=ROWS)
records = st.none() | st.lists(st.integers(0, ROWS - 1), min_size=ROWS // 2, max_size=ROWS // 2)
captions = st.none() | st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS)


@functools.cache
def contrasts(kind, form):
  """The contrast at scale and in plain JAX, as functions of floats and masks."""

  def ours(*inputs):
    *floats, valid, group, caption, record, picture = inputs
    options = {"groups": GROUPS, "form": form, "chunk": 4}
    masks = {"valid": valid, "group": group, "caption": caption, "record": record, "picture": picture}
    return contrastive.contrast(*floats, **masks, **options)

  def plain(*inputs):
    *floats, valid, group, caption, record, picture = inputs
    counts = contrastive.pair_mask(valid, group, caption, record, picture)
    return getattr(contrastive, kind)(*floats, counts, contrastive.group_members(valid, group, GROUPS))

  return ours, plain


@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("form", ["all_gather", "chunked"])
@settings(max_examples=30, deadline=None)
@given(valid=masks, group=groups, caption=captions, record=records, seed=st.integers(0, 9))
def test_contrast_equals_its_definition(kind, form, valid, group, caption, record, seed):
  rng = np.random.default_rng(seed)
  image, text, scale, bias = unit(rng, ROWS), unit(rng, ROWS), jnp.asarray(7.0), jnp.asarray(-2.0)
  valid, group = jnp.asarray(valid), jnp.asarray(group, jnp.int32)
  caption = None if caption is None else jnp.asarray(caption, jnp.int32)
  picture = None
  if record is not None:  # two rows of each picture, as regions are
    record = jnp.repeat(jnp.asarray(record, jnp.int32), 2)
    picture = jnp.repeat(jnp.arange(ROWS // 2, dtype=jnp.int32), 2)
  floats = [image, text, scale, *([bias] if kind == "sigmoid" else [])]
  assert_equal(*contrasts(kind, form), floats, (valid, group, caption, record, picture))


@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
def test_contrast_without_masks_equals_its_definition(kind):
  rng = np.random.default_rng(0)
  floats = [unit(rng, ROWS), unit(rng, ROWS), jnp.asarray(7.0), jnp.asarray(-2.0)][: 4 if kind == "sigmoid" else 3]
  everything = {"counts": jnp.ones((ROWS, ROWS), bool), "members": jnp.ones((1, ROWS), bool)}
  assert_equal(contrastive.contrast, functools.partial(getattr(contrastive, kind), **everything), floats)


def hard_negatives_over_devices(image, text, scale, valid, counted, group):
  given = valid & counted[:, None]  # padding has no caption at all
  return contrastive.hard_negative_loss(image, text, given, group, scale, groups=GROUPS)


def plain_hard_negatives(image, text, scale, valid, counted, group):
  members = contrastive.group_members(counted, group, GROUPS)
  return contrastive.hard_negatives(image, text, valid, scale, members)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.integers(2, TEXTS), min_size=ROWS, max_size=ROWS), counted=masks, group=groups)
def test_hard_negatives_equal_their_definition(texts, counted, group):
  rng = np.random.default_rng(sum(texts))
  valid = jnp.arange(TEXTS) < jnp.asarray(texts)[:, None]
  counted, group = jnp.asarray(counted), jnp.asarray(group, jnp.int32)
  floats = unit(rng, ROWS), unit(rng, ROWS, TEXTS), jnp.asarray(5.0)
  assert_equal(hard_negatives_over_devices, plain_hard_negatives, floats, (valid, counted, group))


@functools.cache
def hard_contrasts(form):
  """The contrast of hard boxes at scale and in plain JAX."""

  def ours(image, text, scale, valid, group, record, picture):
    options = {"groups": GROUPS, "form": form, "chunk": 4}
    return contrastive.hard_contrast_loss(image, text, valid, group, scale, record=record, picture=picture, **options)

  def plain(image, text, scale, valid, group, record, picture):
    has = contrastive.has_negatives(valid)
    counts = contrastive.pair_mask(has, group, None, record, picture)
    return contrastive.hard_contrast(image, text, valid, scale, counts, contrastive.group_members(has, group, GROUPS))

  return ours, plain


@pytest.mark.parametrize("form", ["all_gather", "chunked"])
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.integers(1, TEXTS), min_size=ROWS, max_size=ROWS), group=groups, record=records)
def test_hard_contrast_equals_its_definition(form, texts, group, record):
  rng = np.random.default_rng(sum(texts))
  # a box with its caption alone does not count, but in the definition each row needs one that it sees
  valid, group = jnp.arange(TEXTS) < jnp.asarray(texts)[:, None], jnp.asarray(group, jnp.int32)
  picture = None if record is None else jnp.repeat(jnp.arange(ROWS // 2, dtype=jnp.int32), 2)
  record = None if record is None else jnp.repeat(jnp.asarray(record, jnp.int32), 2)
  floats = unit(rng, ROWS), unit(rng, ROWS, TEXTS), jnp.asarray(5.0)
  assert_equal(*hard_contrasts(form), floats, (valid, group, record, picture))


def hard_rank_over_devices(image, text, scale, margin, valid, group):
  return contrastive.hard_rank_loss(image, text, valid, group, scale, margin, groups=GROUPS)


def plain_hard_rank(image, text, scale, margin, valid, group):
  members = contrastive.group_members(contrastive.has_negatives(valid), group, GROUPS)
  return contrastive.hard_rank(image, text, valid, scale, margin, members)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.integers(0, TEXTS), min_size=ROWS, max_size=ROWS), group=groups)
def test_hard_rank_equals_its_definition(texts, group):
  rng = np.random.default_rng(sum(texts))
  valid, group = jnp.arange(TEXTS) < jnp.asarray(texts)[:, None], jnp.asarray(group, jnp.int32)
  floats = unit(rng, ROWS), unit(rng, ROWS, TEXTS), jnp.asarray(5.0), jnp.asarray(1.5)
  assert_equal(hard_rank_over_devices, plain_hard_rank, floats, (valid, group))


def text_intra_modal_over_devices(text, valid, group, record, picture):
  return contrastive.text_intra_modal_loss(text, valid, group, groups=2, record=record, picture=picture, chunk=5)


def plain_text_intra_modal(text, valid, group, record, picture):
  counts = contrastive.pair_mask(valid, group, None, record, picture)
  return contrastive.text_intra_modal(text, counts, contrastive.group_members(valid, group, 2))


@settings(max_examples=20, deadline=None)
@given(valid=st.lists(st.booleans(), min_size=30, max_size=30), repeats=st.booleans(), seed=st.integers(0, 9))
def test_text_intra_modal_equals_its_definition(valid, repeats, seed):
  rng = np.random.default_rng(seed)
  text = unit(rng, 30)
  text = text.at[1].set(text[0] + 0.01 * text[1])  # nearly the same words
  text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
  group = jnp.asarray(np.arange(30) >= 22, jnp.int32)  # more than ten, and fewer
  picture = jnp.arange(30, dtype=jnp.int32) if repeats else None
  record = jnp.asarray(rng.integers(0, 20, 30), jnp.int32) if repeats else None
  arrays = jnp.asarray(valid), group, record, picture
  assert_equal(text_intra_modal_over_devices, plain_text_intra_modal, [text], arrays)


def test_text_intra_modal_keeps_one_range_however_few_captions_there_are():
  """One caption has nothing to keep apart from: ten zeros. A second that says the same adds nothing, another does."""
  text = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
  values = [
    text_intra_modal_over_devices(text[:n], jnp.ones(n, bool), jnp.zeros(n, jnp.int32), None, None) for n in (1, 2, 3)
  ]
  two, three = math.log(9 + math.exp(0.6)), math.log(8 + 2 * math.exp(0.6))
  np.testing.assert_allclose(2 * jnp.stack(values), [math.log(10), math.log(10), (2 * two + three) / 3], rtol=1e-12)


def test_a_group_without_members_counts_as_zero():
  members = jnp.asarray([[True, True, False], [False, False, False]])
  assert contrastive.group_mean(jnp.asarray([1.0, 2.0, 9.0]), members) == 0.75
