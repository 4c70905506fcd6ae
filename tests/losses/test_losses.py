"""The objective equals a slow reference written from its definition, on one device and over several."""

import dataclasses
import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.losses.margin import next_margin
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.fgclip import Embeddings

BOXES, NEGATIVES, WIDTH = 3, 10, 8
TEMPERATURE = {"global": 2.0, "regional": 1.5, "hard_negative": 2.5}
BIAS = -3.0  # of the sigmoid contrast
MARGIN = 1.5

pytestmark = pytest.mark.usefixtures("float64")


def make(box_counts, negative_counts, seed=0, captions=100):
  """Random embeddings in float64: `negative_counts` has one number per box, 0 for a box without hard negatives.

  Padding holds random numbers too, which must not matter. Few different `captions` make identical ones.
  """
  rng = np.random.default_rng(seed)

  def unit(*shape):
    x = rng.normal(size=(*shape, WIDTH))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  images = len(box_counts)
  region_image = unit(images, BOXES)
  valid = np.arange(BOXES) < np.asarray(box_counts)[:, None]
  boxes = images * BOXES
  hard_valid, hard_row = np.zeros((boxes, 1 + NEGATIVES), bool), np.zeros(boxes, np.int32)
  counts = iter(negative_counts)
  at = 0
  for row in np.flatnonzero(valid):
    if negatives := next(counts):
      hard_valid[at, : 1 + negatives], hard_row[at] = True, row
      at += 1
  arrays = {
    "image": unit(images),
    "short": unit(images),
    "long": unit(images),
    "region_image": region_image,
    "region_text": unit(images, BOXES),
    "region_valid": valid,
    "region_caption": rng.integers(0, captions, (images, BOXES)).astype(np.int32),
    "hard_image": region_image.reshape(boxes, WIDTH)[hard_row],
    "hard_text": unit(boxes, 1 + NEGATIVES),
    "hard_valid": hard_valid,
    "hard_row": hard_row,
  }
  return Embeddings(**{name: jnp.asarray(value) for name, value in arrays.items()})


def as_numpy(embeddings):
  """The same fields, as NumPy arrays; of the model's own statistics, which no loss reads, there are none."""
  names = [field.name for field in dataclasses.fields(embeddings) if field.name != "statistics"]
  return types.SimpleNamespace(**{name: np.asarray(getattr(embeddings, name)) for name in names})


def spread(embeddings, shards):
  """The same with each shard's hard boxes among its own rows, as a batch has them."""
  e = as_numpy(embeddings)
  rows, per_shard = len(e.hard_row), len(e.hard_row) // shards
  order = [[] for _ in range(shards)]
  for at in np.flatnonzero(e.hard_valid[:, 0]):
    order[e.hard_row[at] // per_shard].append(at)
  spare = iter(np.flatnonzero(~e.hard_valid[:, 0]))
  order = list(itertools.chain(*([*own, *itertools.islice(spare, per_shard - len(own))] for own in order)))
  assert sorted(order) == list(range(rows))
  # an unused row stands at its shard's first box, as `hard_box` -1 gives
  hard_row = np.where(e.hard_valid[order, 0], e.hard_row[order], np.arange(rows) // per_shard * per_shard)
  changes = {name: jnp.asarray(getattr(e, name)[order]) for name in ("hard_text", "hard_valid")}
  images = e.region_image.reshape(rows, WIDTH)[hard_row]
  return embeddings.replace(hard_row=jnp.asarray(hard_row, jnp.int32), hard_image=jnp.asarray(images), **changes)


# ------------------------------------------------------------------------------ the slow reference


def cross_entropy(logits, target):
  shifted = logits - logits.max()
  return np.log(np.exp(shifted).sum()) - shifted[target]


def slow_info_nce(image, text, scale):
  logits = scale * image @ text.T
  each = [(cross_entropy(logits[i], i) + cross_entropy(logits[:, i], i)) / 2 for i in range(len(image))]
  return np.mean(each) if each else 0.0


def slow_sigmoid(image, text, scale):
  """SigLIP's loss, arXiv 2303.15343, algorithm 1."""
  labels = 2 * np.eye(len(image)) - 1
  each = np.log1p(np.exp(-labels * (scale * image @ text.T + BIAS)))
  return each.sum() / len(image) if len(image) else 0.0


def slow_text_intra_modal(text):
  """The ten entries of each caption one by one: zeros for itself and for the same words, and where there are no ten."""
  each = []
  for i in range(len(text)):
    entries = [0.0 if j == i or text[i] @ text[j] > 0.95 else text[i] @ text[j] for j in range(len(text))]
    largest = sorted(entries, reverse=True)[:10]
    each.append(np.log(np.exp(largest + [0.0] * (10 - len(largest))).sum()))
  return np.mean(each) if each else 0.0


def slow_hard_contrast(boxes, texts, scale):
  """Box by box, against the captions and then the negatives of all boxes; caption by caption against all boxes."""
  captions = np.stack([own[0] for own in texts])
  everything = np.concatenate([captions, *(own[1:] for own in texts)])
  of_box = [cross_entropy(scale * everything @ box, at) for at, box in enumerate(boxes)]
  of_caption = [cross_entropy(scale * np.stack(boxes) @ caption, at) for at, caption in enumerate(captions)]
  return (np.mean(of_box) + np.mean(of_caption)) / 2


def slow_terms(e, objective):
  """Every term from its definition, one box and one contrast group at a time."""
  e = as_numpy(e)
  scales = {name: np.exp(value) for name, value in TEMPERATURE.items()}
  slow = slow_sigmoid if objective.contrast == "sigmoid" else slow_info_nce
  terms = {
    "global_long": slow(e.image, e.long, scales["global"]),
    "global_short": slow(e.image, e.short, scales["global"]),
  }
  per_group = objective.regional_group or len(e.image)
  regional, hard, apart, contrast, rank, offered = [], [], [], [], [], []
  slow_regional = slow if objective.regional_contrast is None else slow_info_nce
  for first in range(0, len(e.image), per_group):
    rows = slice(first, first + per_group)
    keep = e.region_valid[rows]
    image, text, caption = (getattr(e, name)[rows][keep] for name in ("region_image", "region_text", "region_caption"))
    if not objective.regional_mask_identical:
      regional.append(slow_regional(image, text, scales["regional"]))
    else:
      each = []
      for i in range(len(image)):
        others = [j for j in range(len(image)) if j == i or caption[j] != caption[i]]
        at = others.index(i)
        from_image = cross_entropy(scales["regional"] * text[others] @ image[i], at)
        from_text = cross_entropy(scales["regional"] * image[others] @ text[i], at)
        each.append((from_image + from_text) / 2)
      regional.append(np.mean(each) if each else 0.0)
    apart.append(slow_text_intra_modal(text))
    boxes, texts = [], []
    for at, row in enumerate(e.hard_row):
      if first <= row // BOXES < first + per_group and e.hard_valid[at].sum() > 1:
        boxes.append(e.region_image.reshape(-1, WIDTH)[row])
        texts.append(e.hard_text[at][e.hard_valid[at]])
    logits = [scales["hard_negative"] * own @ box for own, box in zip(texts, boxes, strict=True)]
    hard.append(np.mean([cross_entropy(own, 0) for own in logits]) if boxes else 0.0)
    contrast.append(slow_hard_contrast(boxes, texts, scales["hard_negative"]) if boxes else 0.0)
    steps = [MARGIN + wrong - own[0] for own in logits for wrong in own[1:]]
    rank.append(np.mean(np.maximum(steps, 0.0)) if boxes else 0.0)
    if boxes:
      offered.append(np.mean([own[0] for own in logits]) - np.mean(np.concatenate([own[1:] for own in logits])))
  margin = np.clip(np.mean(offered), 0.0, 10.0) if offered else MARGIN
  terms |= {"regional": np.mean(regional), "hard_negative": np.mean(hard)}
  if objective.needs_margin:
    terms |= {"text_intra_modal": np.mean(apart), "hard_contrast": np.mean(contrast), "hard_rank": np.mean(rank)}
    terms |= {"margin": margin}
  return terms | {"total": sum(objective.weights.get(name, 0.0) * value for name, value in terms.items())}


@functools.partial(jax.jit, static_argnames=("objective", "mesh"))
def _compute(floats, e, temperature, objective, mesh):
  def total(floats, temperature):
    given = e.replace(**floats)
    if not objective.needs_margin:
      terms = objective_terms(given, temperature, objective, mesh)
      return terms["total"], terms
    margin = jnp.asarray(MARGIN, jnp.float64)
    terms = objective_terms(given, temperature, objective, mesh, margin=margin)
    after = next_margin(given, jnp.exp(temperature["hard_negative"]), objective, margin)
    return terms["total"] + after, {**terms, "margin": after}  # which must add nothing to the gradient

  (_, terms), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(floats, temperature)
  return terms, gradients


def terms_and_gradients(e, objective, mesh=None):
  """The terms, and the gradients of their total for every float array and temperature."""
  floats = {f.name: getattr(e, f.name) for f in dataclasses.fields(e)}
  floats = {name: x for name, x in floats.items() if x is not None and jnp.issubdtype(x.dtype, jnp.floating)}
  given = TEMPERATURE | ({"bias": BIAS} if objective.contrast == "sigmoid" else {})
  temperature = {name: jnp.asarray(value, jnp.float64) for name, value in given.items()}
  if mesh is not None:
    floats, e = jax.device_put((floats, e), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    temperature = jax.device_put(temperature, NamedSharding(mesh, PartitionSpec()))
  return jax.tree.map(np.asarray, _compute(floats, e, temperature, objective, mesh))


def assert_close(ours, expected, tolerance=1e-12):
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
    scale = max(np.abs(b).max(initial=0.0), 1.0)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


# ---------------------------------------------------------------------------------------- the tests

COUNTS = [3, 0, 1, 2, 3, 3, 0, 2, 1, 1, 0, 3, 2, 2, 3, 1]  # boxes of 16 images
NEGATIVE_COUNTS = [10, 0, 1, 3, 0, 0, 7, 10, 2, 0, 5, 10, 0, 0, 1, 4, 10, 0, 9, 0, 0, 0, 10, 3, 1, 0, 2]
FGCLIP2 = Objective(
  contrast="sigmoid", regional_contrast="softmax",
  regional=0.2, text_intra_modal=0.1, hard_contrast=0.3, hard_negative=1.5, hard_rank=0.2,
)  # fmt: skip
_VARIANTS = {
  "whole batch": Objective(),
  "a device's images": Objective(regional_group=2),
  "less than a device's": Objective(regional_group=1),
  "more than a device's": Objective(regional_group=8),
  "identical captions do not repel": Objective(regional_mask_identical=True),
  "identical captions, groups": Objective(regional_mask_identical=True, regional_group=4),
  "sigmoid": Objective(contrast="sigmoid"),
  "sigmoid, groups": Objective(contrast="sigmoid", regional_group=4),
  "FG-CLIP 2": FGCLIP2,
  "FG-CLIP 2, groups": dataclasses.replace(FGCLIP2, regional_group=4),
  "FG-CLIP 2, a device's images": dataclasses.replace(FGCLIP2, regional_group=2),
}


@functools.cache
def dense(objective, shards):
  """A batch that is split over so many devices, and the dense form's results for it."""
  e = spread(make(COUNTS, NEGATIVE_COUNTS, captions=4), shards)
  return e, terms_and_gradients(e, dataclasses.replace(objective, form="dense"))


@pytest.mark.parametrize("objective", _VARIANTS.values(), ids=_VARIANTS)
def test_terms_equal_their_definitions(objective):
  e, (terms, gradients) = dense(objective, 8)
  assert_close(terms, slow_terms(e, objective))
  assert all(np.abs(value).max() > 1e-3 for value in jax.tree.leaves(gradients))


def over(shape):
  """A mesh of the simulated devices."""
  return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


@pytest.mark.parametrize(
  ("shape", "variant", "form"),
  [
    ((8, 1, 1), "whole batch", "ring"),
    ((8, 1, 1), "a device's images", "chunked"),  # which no device then gathers
    ((8, 1, 1), "less than a device's", "auto"),
    ((8, 1, 1), "identical captions, groups", "auto"),
    ((2, 4, 1), "identical captions do not repel", "chunked"),
    ((2, 2, 2), "more than a device's", "ring"),
    ((2, 2, 2), "sigmoid, groups", "auto"),
    ((8, 1, 1), "FG-CLIP 2", "ring"),
    ((2, 2, 2), "FG-CLIP 2, groups", "ring"),
    ((2, 4, 1), "FG-CLIP 2, groups", "chunked"),
    ((8, 1, 1), "FG-CLIP 2, a device's images", "chunked"),
  ],
  ids=str,
)
def test_over_devices_equals_dense(shape, variant, form):
  objective = _VARIANTS[variant]
  e, expected = dense(objective, 8)
  assert_close(terms_and_gradients(e, dataclasses.replace(objective, form=form, chunk=8), over(shape)), expected)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([None, 1, 2]), st.booleans(), st.booleans())
def test_any_number_of_boxes_and_negatives(data, group, mask_identical, second):
  counts = data.draw(st.lists(st.integers(0, BOXES), min_size=4, max_size=4))
  negatives = data.draw(st.lists(st.integers(0, NEGATIVES), min_size=sum(counts), max_size=sum(counts)))
  base = FGCLIP2 if second else Objective(regional_mask_identical=mask_identical)
  objective = dataclasses.replace(base, regional_group=group)
  e = make(counts, negatives, seed=data.draw(st.integers(0, 9)), captions=data.draw(st.sampled_from([1, 2, 50])))
  terms, gradients = terms_and_gradients(e, objective)
  assert_close(terms, slow_terms(e, objective))
  chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("group", [None, 1, 2])
def test_an_all_empty_batch_has_zero_region_terms_and_finite_gradients(group):
  terms, gradients = terms_and_gradients(make([0] * 4, []), Objective(regional_group=group))
  assert terms["regional"] == terms["hard_negative"] == 0.0
  chex.assert_tree_all_finite(gradients)
  for name in ("region_image", "region_text", "hard_image", "hard_text"):
    assert not gradients[0][name].any()
  assert gradients[1]["regional"] == gradients[1]["hard_negative"] == 0.0


def test_an_all_empty_batch_over_devices():
  e = spread(make([0] * 8, []), 8)
  assert_close(terms_and_gradients(e, Objective(form="ring"), over((4, 2, 1))), terms_and_gradients(e, Objective()))


def test_a_box_without_negatives_or_with_one_region_alone():
  terms, _ = terms_and_gradients(make([1, 0, 0, 0], [0]), Objective())
  np.testing.assert_allclose([terms["regional"], terms["hard_negative"]], 0.0, atol=1e-15)  # nothing else to pick


def test_padding_gets_no_gradient():
  e = make([2, 0, 1, 3], [4, 0, 0, 10, 0, 1])
  _, (gradients, _) = terms_and_gradients(e, Objective())
  for name, valid in (("region_image", e.region_valid), ("region_text", e.region_valid), ("hard_text", e.hard_valid)):
    valid = np.asarray(valid)
    assert not gradients[name][~valid].any(), name
    assert (np.abs(gradients[name][valid]).max(axis=-1) > 0).all(), name


def test_regions_with_identical_captions_do_not_repel_each_other():
  e = make([3, 3, 3, 3], [0] * 12, captions=1)
  assert abs(terms_and_gradients(e, Objective(regional_mask_identical=True))[0]["regional"]) < 1e-15
  assert terms_and_gradients(e, Objective())[0]["regional"] > 0.1
  different = e.replace(region_caption=jnp.arange(12, dtype=jnp.int32).reshape(4, 3))
  masked = terms_and_gradients(different, Objective(regional_mask_identical=True))
  assert_close(masked, terms_and_gradients(different, Objective()))


def test_a_term_of_weight_zero_is_not_computed():
  e = make([2, 0, 1, 3], [4, 0, 0, 10, 0, 1])
  temperature = {name: jnp.asarray(value) for name, value in TEMPERATURE.items()}
  stage1 = Objective(regional=0.0, hard_negative=0.0)
  terms = objective_terms(e, temperature, stage1)
  assert terms.keys() == {"total", "global_long", "global_short"}
  assert not stage1.needs_regions and Objective().needs_regions and Objective(hard_negative=0.0).needs_regions
  plain = Embeddings(image=e.image, short=e.short)
  terms = objective_terms(plain, {"global": temperature["global"]}, Objective())
  assert terms.keys() == {"total", "global_short"}
  assert terms["total"] == terms["global_short"]
  nothing = objective_terms(plain, {"global": temperature["global"]}, Objective(global_short=0.0))
  assert nothing["total"] == 0.0 and nothing["total"].dtype == jnp.float64


def test_weights_scale_the_terms():
  e = make([2, 0, 1, 3], [4, 0, 0, 10, 0, 1])
  weights = {"global_long": 0.3, "global_short": 2.0, "regional": 0.7, "hard_negative": 1.1}
  terms, _ = terms_and_gradients(e, Objective(**weights))
  np.testing.assert_allclose(terms["total"], sum(weights[name] * terms[name] for name in weights), rtol=1e-14)


def test_a_group_that_does_not_divide_the_batch():
  with pytest.raises(ValueError, match="regional_group 3 must divide the batch of 4 images"):
    objective_terms(make([1] * 4, [0] * 4), {"global": jnp.asarray(1.0)}, Objective(regional_group=3))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"form": "rows!"}, "objective.form must be one of .*'chunked', 'ring'.*, got 'rows!'"),
    ({"contrast": "hinge"}, "objective.contrast must be one of .*, got 'hinge'"),
    ({"chunk": 0}, "objective.chunk must be at least 1, got 0"),
  ],
)
def test_an_impossible_objective(changes, message):
  with pytest.raises(ValueError, match=message):
    Objective(**changes)


def test_the_sigmoid_contrast_needs_a_bias():
  e = make([0] * 4, [])
  with pytest.raises(ValueError, match="needs temperature/bias: give the model a logit_bias"):
    objective_terms(e, {"global": jnp.asarray(1.0)}, Objective(contrast="sigmoid"))
