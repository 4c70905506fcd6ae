"""The towers equal their definitions, and how they are computed changes nothing but rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgclip_jax.models.config import preset
from fgclip_jax.models.fgclip import unit_length
from fgclip_jax.models.params import abstract_params, build, flatten, init_params, unflatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.models.vit import patchify

TINY = preset("tiny").replace(vision={"depth": 3, "activation": "gelu"}, text={"depth": 3, "vocab_size": 60})


@pytest.fixture(scope="module")
def params():
  """Random parameters of a size at which every one of them matters."""
  rng = np.random.default_rng(0)
  shapes = flatten(abstract_params(TINY))
  return unflatten(
    {
      name: jnp.asarray(rng.normal(size=leaf.shape, scale=0.1) + ("scale" in name), jnp.float32)
      for name, leaf in shapes.items()
    }
  )


@pytest.fixture(scope="module")
def inputs():
  """Images and packed rows: three captions of which one is long, and empty space."""
  rng = np.random.default_rng(1)
  segment = np.array([[1] * 5 + [2] * 4 + [0] * 3, [3] * 12], np.int32)
  position = np.array([[*range(5), *range(4), 0, 0, 0], [*range(77, 89)]], np.int32)
  tokens = rng.integers(0, 60, segment.shape).astype(np.int32) * (segment > 0)
  image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
  return tuple(jnp.asarray(x) for x in (image, tokens, segment, position))


_compile = functools.partial(jax.jit, static_argnames="runtime")


def _outputs(params, inputs, runtime):
  """All outputs of both towers."""
  model = build(TINY, params, runtime)
  pooled, dense, _ = model.vision(inputs[0])
  return {"pooled": pooled, "dense": dense, "hidden": model.text(*inputs[1:])}


@_compile
def _outputs_and_gradients(params, inputs, runtime=Runtime()):
  def total(params):
    outputs = _outputs(params, inputs, runtime)
    weights = {name: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) for name, x in outputs.items()}
    return sum(jnp.sum(weights[name] * x.astype(jnp.float32)) for name, x in outputs.items()), outputs

  (_, outputs), gradients = jax.value_and_grad(total, has_aux=True)(params)
  return outputs, gradients


@pytest.fixture(scope="module")
def plain(params, inputs):
  """The outputs and gradients as the default runtime computes them."""
  return _outputs_and_gradients(params, inputs)


def _close(ours, expected, tolerance):
  # some gradients are zero in exact arithmetic (a key's bias): rounding noise is compared with the largest of all
  floor = 1e-2 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(np.abs(b).max(), floor)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


# ------------------------------------------------------------------------------- the definition


def _norm(x, p):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def _linear(x, p):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _activate(x, name):
  if name == "quick_gelu":
    return x / (1 + np.exp(-1.702 * x))
  return np.asarray(jax.scipy.special.erf(jnp.asarray(x / np.sqrt(2), jnp.float32)), np.float64) * x / 2 + x / 2


def _attention(x, p, heads, may):
  """One sequence [T, W]; `may[t, s]`: t may look at s."""
  query, key, value = (_linear(x, p[name]).reshape(len(x), heads, -1) for name in ("query", "key", "value"))
  mixed = np.zeros_like(value)
  for h in range(heads):
    scores = query[:, h] @ key[:, h].T / np.sqrt(query.shape[-1])
    weights = np.where(may, np.exp(scores - scores.max()), 0.0)
    mixed[:, h] = weights / weights.sum(-1, keepdims=True) @ value[:, h]
  return _linear(mixed.reshape(x.shape), p["out"])


def _mlp(x, p, config):
  return x + _linear(_activate(_linear(_norm(x, p["norm2"]), p["mlp"]["up"]), config.activation), p["mlp"]["down"])


def _block(x, p, config, may):
  return _mlp(x + _attention(_norm(x, p["norm1"]), p["attention"], config.heads, may), p, config)


def _block_without_mixing(x, p, config):
  a = p["attention"]
  return _mlp(x + _linear(_linear(_norm(x, p["norm1"]), a["value"]), a["out"]), p, config)


def _as_numpy(params):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def test_the_image_tower_equals_its_definition(params, inputs, plain):
  p, config, outputs = _as_numpy(params)["vision"], TINY.vision, plain[0]
  for image, pooled, dense in zip(np.asarray(inputs[0]), outputs["pooled"], outputs["dense"], strict=True):
    size = config.patch_size
    patches = [
      image[i : i + size, j : j + size].reshape(-1)
      for i in range(0, config.image_size, size)
      for j in range(0, config.image_size, size)
    ]
    x = np.concatenate([p["class_embedding"][None], np.stack(patches) @ p["patch_embedding"]["kernel"]])
    x = _norm(x + p["positions"], p["pre_norm"])
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], p["transformer"]["blocks"]) for i in range(config.depth)]
    for block in blocks[:-1]:
      x = _block(x, block, config, True)
    expected = _norm(_block_without_mixing(x, blocks[-1], config)[1:], p["post_norm"])
    np.testing.assert_allclose(dense.reshape(expected.shape), expected, rtol=0, atol=2e-4)
    expected = _norm(_block(x, blocks[-1], config, True)[0], p["post_norm"])
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=2e-4)


def test_the_text_tower_equals_its_definition(params, inputs, plain):
  p, config = _as_numpy(params)["text"], TINY.text
  _, tokens, segment, position = (np.asarray(x) for x in inputs)
  table = np.concatenate([p["short_positions"], p["long_positions"]])
  for caption in (1, 2, 3):
    row, slots = np.nonzero(segment == caption)[0][0], np.nonzero(segment == caption)[1]
    x = p["token_embedding"][tokens[row, slots]] + table[position[row, slots]]
    for i in range(config.depth):
      block = jax.tree.map(lambda leaf, i=i: leaf[i], p["transformer"]["blocks"])
      x = _block(x, block, config, np.tri(len(x), dtype=bool))
    ours = plain[0]["hidden"][row, slots]
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-5 * np.abs(x).max())


def test_patches_are_rows_of_the_image():
  image = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
  patches = patchify(image, 2)
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(patches[1, 4], image[1, 2:4, 2:4].reshape(-1))  # row 1, column 1 of the grid


# -------------------------------------------------------------------------------- the runtime


@pytest.mark.parametrize(
  "changes",
  [
    {"unroll": 0, "remat": "full"},
    {"unroll": 2, "remat": "dots"},
    {"remat": "save:qkv,attention,mlp_up,mlp_down"},
  ],
  ids=str,
)
def test_unrolling_and_rematerialisation_change_nothing(changes, params, inputs, plain):
  _close(_outputs_and_gradients(params, inputs, Runtime(**changes)), plain, 1e-5)


def test_bfloat16_is_close_and_keeps_float32_outside(params, inputs, plain):
  outputs, gradients = _outputs_and_gradients(params, inputs, Runtime(dtype=jnp.bfloat16))
  assert outputs["pooled"].dtype == outputs["dense"].dtype == jnp.float32
  assert outputs["hidden"].dtype == jnp.bfloat16
  _close(outputs, plain[0], 0.03)
  for (path, a), b in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(plain[1]), strict=True):
    name = jax.tree_util.keystr(path)
    assert a.dtype == jnp.float32 and np.isfinite(a).all(), name
    if np.linalg.norm(b) > 1e-3:  # a key's bias has a gradient of zero
      assert np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.99, name


def test_float16_is_close(params, inputs, plain):
  outputs = _compile(_outputs)(params, inputs, Runtime(dtype=jnp.float16))
  assert outputs["hidden"].dtype == jnp.float16
  _close(outputs, plain[0], 0.004)


def test_parameters_stored_in_half_precision_compute_in_float32(params, inputs):
  stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  expected = _outputs_and_gradients(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored), inputs)[0]
  _close(_compile(_outputs)(stored, inputs, Runtime()), expected, 1e-5)


@pytest.mark.parametrize("name", ["everything", "save:", "save:qkv,kv", "save:nothing", ""])
def test_an_unknown_rematerialisation_policy(name):
  with pytest.raises(ValueError, match="remat must be 'none', 'dots', 'full' or 'save:'"):
    Runtime(remat=name)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (2, 32, 64, 3), (2, 32, 32, 4)])
def test_images_of_another_size(shape, params):
  given = " x ".join(map(str, shape[1:]))
  with pytest.raises(ValueError, match=f"the model takes images of 32 x 32 x 3, got {given}"):
    build(TINY, params).vision(jnp.zeros(shape))


# ------------------------------------------------------------------------------------- the rest


def test_unit_length():
  x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0], [-1e18, 0.0], [1e-6, 0.0]])
  np.testing.assert_allclose(unit_length(x), [[0.6, 0.8], [0, 0], [0, 0], [-1, 0], [1, 0]], rtol=1e-6)
  assert unit_length(x.astype(jnp.bfloat16)).dtype == jnp.float32
  gradient = jax.grad(lambda x: jnp.sum(unit_length(x) * jnp.asarray([1.0, 2.0])))(x)
  np.testing.assert_array_equal(gradient[1:3], 0.0)
  # only what is across x counts: (1, 2) is -0.4 along (0.8, -0.6), and |x| is 5
  np.testing.assert_allclose(gradient[0], [-0.4 * 0.8 / 5, 0.4 * 0.6 / 5], rtol=1e-5)


def test_initial_parameters_are_float32_repeatable_and_of_clips_spread():
  biased = TINY.replace(logit_bias=-10.0)
  init = _compile(lambda seed, runtime=None: init_params(biased, jax.random.key(seed)))
  first, again, other = (flatten(init(seed)) for seed in (0, 0, 1))
  assert all(leaf.dtype == jnp.float32 for leaf in first.values())
  assert all(np.array_equal(again[name], leaf) for name, leaf in first.items())
  kernel = "vision/transformer/blocks/attention/query/kernel"
  assert not np.array_equal(other[kernel], first[kernel])
  assert not np.array_equal(first[kernel][0], first[kernel][1])  # every layer has its own
  depth, width = TINY.vision.depth, TINY.vision.width
  for name, spread in {
    kernel: width**-0.5,
    "vision/transformer/blocks/attention/out/kernel": width**-0.5 * (2 * depth) ** -0.5,
    "vision/transformer/blocks/mlp/up/kernel": (2 * width) ** -0.5,
    "text/token_embedding": 0.02,
    "text/long_positions": 0.01,
  }.items():
    assert np.std(first[name]) == pytest.approx(spread, rel=0.1), name
  assert float(first["temperature/regional"]) == pytest.approx(np.log(1 / 0.07), abs=1e-4)
  assert float(first["temperature/bias"]) == -10.0


def test_a_plain_clip_lacks_what_fgclip_adds():
  clip = TINY.replace(text={"long_length": None})
  added = flatten(abstract_params(TINY)).keys() - flatten(abstract_params(clip)).keys()
  assert added == {
    "text/long_positions", "long_projection/kernel", "temperature/regional", "temperature/hard_negative",
  }  # fmt: skip
  assert flatten(abstract_params(clip)).keys() < flatten(abstract_params(TINY)).keys()
