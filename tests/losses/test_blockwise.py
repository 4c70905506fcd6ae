"""The four forms of the contrast give one value and one gradient; the last two never hold a block of all columns."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fgclip_jax.losses.blockwise import FORMS, choose_form
from fgclip_jax.losses.contrastive import contrast
from tests.helpers.losses import AXES, elements, over

ROWS, GROUPS, CHUNK, WIDTH = 48, 8, 16, 8
SCALES = {"softmax": 25.0, "sigmoid": 9.0}

pytestmark = pytest.mark.usefixtures("float64")


def unit(rng, rows):
  x = rng.normal(size=(rows, WIDTH))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@functools.cache
def cases():
  """Arguments of the contrast by name: all rows, and regions in groups with empty ones and identical captions.

  Of some chunks no row of another group sees a column. `inside` has groups that no mesh here spreads over devices,
  `across` has some that every mesh does.
  """
  rng = np.random.default_rng(0)
  valid, caption = rng.random(ROWS) < 0.7, rng.integers(0, 4, ROWS).astype(np.int32)
  valid[12:18] = False  # a device without regions, and a group without any
  inside = np.arange(ROWS, dtype=np.int32) // (ROWS // GROUPS)
  across = np.arange(ROWS, dtype=np.int32) // 20
  return {
    "global": ({}, {}),
    "inside": ({"valid": valid, "group": inside, "caption": caption}, {"groups": GROUPS, "local_groups": True}),
    "across": ({"valid": valid, "group": across}, {"groups": 3}),
    "repeats": ({"record": np.arange(ROWS, dtype=np.int32) % 20, "picture": np.arange(ROWS, dtype=np.int32)}, {}),
    "identical captions": ({"valid": valid, "group": across, "caption": caption}, {"groups": 3}),
  }


@functools.cache
def inputs(dtype="float64"):
  """Images, texts near them, the factor and bias by kind, and weights of the results."""
  rng = np.random.default_rng(1)
  image = unit(rng, ROWS)
  text = image + 2.0 * unit(rng, ROWS)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  scales = {kind: np.asarray(scale, dtype) for kind, scale in SCALES.items()}
  return image.astype(dtype), text.astype(dtype), scales, np.asarray(-4.0, dtype)


def losses(image, text, scales, bias, arrays, form, axis):
  """Every case of both kinds."""
  found = {}
  for name, (_, options) in cases().items():
    for kind in SCALES:
      extra = () if kind == "softmax" else (bias,)
      call = functools.partial(contrast, **arrays[name], **options, form=form, chunk=CHUNK, axis=axis)
      found[f"{kind}, {name}"] = call(image, text, scales[kind], *extra)
  return found


@functools.cache
def values_and_gradients(form, shape, dtype="float64"):
  """Every loss, and the gradients of their sum with unlike weights."""
  mesh, everywhere, split = over(shape), PartitionSpec(), PartitionSpec(AXES)
  compute = functools.partial(losses, form=form, axis=AXES if mesh else None)
  if mesh:
    specs = split, split, everywhere, everywhere, split
    compute = jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=everywhere)
  arrays = jax.tree.map(jnp.asarray, {name: arrays for name, (arrays, _) in cases().items()})

  def weighted(*floats):
    found = compute(*floats, arrays)
    unlike = enumerate(sorted(found), start=1)
    return sum(found[name] * np.asarray(number, dtype) for number, name in unlike), found

  compiled = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2, 3), has_aux=True))
  (_, found), gradients = compiled(*inputs(dtype))
  return jax.tree.map(np.asarray, {**found, "gradients": gradients})


def assert_close(ours, expected, tolerance):
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
    scale = max(np.abs(b).max(), 1.0)
    assert np.abs(b).max() > 1e-3, f"nothing to compare at {jax.tree_util.keystr(path)}"
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
  ("form", "shape"),
  [
    *((form, (8, 1, 1)) for form in FORMS),
    *((form, (2, 2, 2)) for form in ("chunked", "ring")),
    *((form, (2, 4, 1)) for form in ("all_gather", "ring")),
    ("ring", (1, 8, 1)),
    *((form, ()) for form in ("all_gather", "chunked", "ring")),
  ],
  ids=str,
)
def test_every_form_on_every_mesh_equals_the_whole_matrix(form, shape):
  assert_close(values_and_gradients(form, shape), values_and_gradients("dense", ()), 1e-12)


@pytest.mark.parametrize("form", ["chunked", "ring"])
def test_single_precision(form):
  ours, expected = values_and_gradients(form, (8, 1, 1), "float32"), values_and_gradients("dense", ())
  chex.assert_type(jax.tree.leaves(ours), np.float32)
  assert_close(ours, expected, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_which_form_holds_a_block_of_all_columns(form):
  """Arrays of the lowered program, and of the compiled one, with a mask for identical captions and without labels."""
  rows, batch, chunk = 64, 512, 32

  def loss(image, text, scale, bias, group, caption):
    call = functools.partial(contrast, image, text, scale, form=form, chunk=chunk, axis=AXES)
    return call() + call(bias, group=group, groups=2, caption=caption)

  split, everywhere = PartitionSpec(AXES), PartitionSpec()
  specs = (split, split, everywhere, everywhere, split, split)
  sharded = jax.shard_map(loss, mesh=over((4, 2, 1)), in_specs=specs, out_specs=everywhere)
  shapes = ((batch, 4), (batch, 4), (), (), (batch,), (batch,))
  dtypes = (jnp.float32,) * 4 + (jnp.int32,) * 2
  arrays = [jax.ShapeDtypeStruct(*array) for array in zip(shapes, dtypes, strict=True)]
  lowered = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1, 2, 3))).lower(*arrays)
  if form in ("dense", "all_gather"):
    assert elements(lowered.as_text()) >= {"dense": batch * batch, "all_gather": rows * batch}[form]
  else:
    assert elements(lowered.as_text()) == batch * 4  # the embeddings, as the caller sees them
    assert elements(lowered.compile().as_text()) == rows * chunk


@pytest.mark.parametrize(
  ("rows", "devices", "form"),
  [(128, 256, "all_gather"), (2048, 1, "all_gather"), (240, 256, "chunked"), (8192, 4, "ring"), (1024, 256, "ring")],
)
def test_auto_goes_by_rows_and_devices(rows, devices, form):
  assert choose_form(rows, devices, 1024) == form


def test_auto_is_the_form_it_chooses(monkeypatch):
  image, text, scales, _ = jax.tree.map(jnp.asarray, inputs())
  monkeypatch.setattr("fgclip_jax.losses.blockwise._ALL_GATHER_MAX_LOGITS", 0)
  for chunk, form in ((ROWS, "ring"), (ROWS + 1, "chunked")):
    programs = [
      jax.make_jaxpr(functools.partial(contrast, form=name, chunk=chunk))(image, text, scales["softmax"])
      for name in ("auto", form)
    ]
    assert str(programs[0]) == str(programs[1])


@pytest.mark.parametrize("form", ["all_gather", "chunked"])
def test_large_logits_do_not_overflow(form):
  """Single precision holds exponentials up to 88 only."""
  image, text, _, _ = inputs("float32")
  extreme = jax.value_and_grad(functools.partial(contrast, form=form, chunk=CHUNK), argnums=2)
  value, slope = jax.jit(extreme)(*map(jnp.asarray, (image, text, np.float32(1e4))))
  cosines = image.astype(np.float64) @ text.T.astype(np.float64)
  best = (cosines.max(axis=0) + cosines.max(axis=1)) / 2 - np.diagonal(cosines)
  np.testing.assert_allclose([value / 1e4, slope], [best.mean()] * 2, rtol=1e-4)
