"""Every form of attention gives the same numbers, the one that fits is chosen, and the TPU form compiles."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fgclip_jax.models.attention import attend
from fgclip_jax.models.config import TextConfig
from fgclip_jax.models.text import TextTower
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train.mesh import make_mesh
from tests.helpers import compiling

LENGTH = 256
HEADS = PartitionSpec(("data", "fsdp"), None, "tensor")
CUDNN_VERSION = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"


def qkv(batch, length, heads=2, channels=16, dtype=jnp.float32, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return tuple(jax.random.normal(key, (batch, length, heads, channels)).astype(dtype) for key in keys)


def segments(*rows, length=LENGTH):
  """Rows of segment ids from the lengths of their segments; the rest is empty."""
  out = np.zeros((len(rows), length), np.int32)
  for row, sizes in zip(out, rows, strict=True):
    start = 0
    for number, size in enumerate(sizes, 1):
      row[start : start + size] = number
      start += size
  return jnp.asarray(out)


SEGMENTS = segments([3, 100, 77], [256])


@functools.partial(jax.jit, static_argnames=("implementation", "causal", "sharding"))
def mixed_and_gradients(q, k, v, segment=None, *, implementation, causal=True, sharding=None):
  """The result, and the gradients of a weighted sum of it."""

  def total(*arrays):
    mixed = attend(*arrays, segment=segment, causal=causal, implementation=implementation, sharding=sharding)
    weight = jnp.cos(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
    return jnp.sum(weight * mixed.astype(jnp.float32)), mixed

  gradients, mixed = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
  return mixed, *gradients


def assert_close(actual, expected, tolerance):
  """Every array equal up to a share of its largest magnitude; a millionth of the largest of all counts as 0."""
  actual, expected = ([np.asarray(x, np.float32) for x in jax.tree.leaves(tree)] for tree in (actual, expected))
  nothing = 1e-6 * max(np.abs(x).max() for x in expected)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=max(tolerance * np.abs(b).max(), nothing))


# ------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("causal", [True, False])
def test_xla_is_softmax_attention_of_every_segment_by_itself(causal):
  q, k, v = (np.asarray(x, np.float64) for x in qkv(1, 40))
  sizes = [5, 1, 20]
  expected = np.zeros_like(v)
  start = 0
  for size in [*sizes, 40 - sum(sizes)]:  # empty space is like a segment
    part = slice(start, start + size)
    scores = np.einsum("thc,shc->hts", q[0, part], k[0, part]) / np.sqrt(q.shape[-1])
    if causal:
      scores = np.where(np.tri(size, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected[0, part] = np.einsum("hts,shc->thc", weights / weights.sum(-1, keepdims=True), v[0, part])
    start += size
  actual = attend(*qkv(1, 40), segment=segments(sizes, length=40), causal=causal, implementation="xla")
  assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize(
  ("length", "dtype", "causal", "tolerance"),
  [
    (256, jnp.float32, True, 2e-6),
    (256, jnp.bfloat16, True, 2e-2),
    (77, jnp.float32, True, 2e-6),  # padded to 128
    (197, jnp.float32, False, 2e-6),  # images: padded to 256, no segments
  ],
)
def test_splash_equals_xla(length, dtype, causal, tolerance):
  arrays = qkv(2, length, dtype=dtype)
  segment = segments([3, 40, 20], [70], length=length) if causal else None
  expected = mixed_and_gradients(*arrays, segment, implementation="xla", causal=causal)
  actual = mixed_and_gradients(*arrays, segment, implementation="splash", causal=causal)
  assert {x.dtype for x in actual} == {jnp.dtype(dtype)}
  assert_close(actual, expected, tolerance)


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(1, 120), max_size=6), min_size=2, max_size=2), st.integers(0, 5))
def test_splash_equals_xla_on_any_segments(rows, seed):
  segment = segments(*([size for i, size in enumerate(row) if sum(row[: i + 1]) <= LENGTH] for row in rows))
  arrays = qkv(2, LENGTH, seed=seed)
  expected = mixed_and_gradients(*arrays, segment, implementation="xla")
  assert_close(mixed_and_gradients(*arrays, segment, implementation="splash"), expected, 2e-6)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_empty_space_is_finite_and_touches_nothing(implementation):
  arrays = qkv(2, LENGTH)
  real = (SEGMENTS > 0)[..., None, None]
  changed = tuple(jnp.where(real, x, 1e3 * x) for x in arrays)
  first, second = (mixed_and_gradients(*x, SEGMENTS, implementation=implementation) for x in (arrays, changed))
  chex.assert_tree_all_finite((first, second))
  assert_close([jnp.where(real, x, 0) for x in second], [jnp.where(real, x, 0) for x in first], 1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_long_rows_go_head_by_head_on_a_cpu(causal):
  rng = np.random.default_rng(0)
  arrays = tuple(jnp.asarray(rng.normal(size=(2, 512, 2, 4)), jnp.float32) for _ in range(3))
  segment = jnp.asarray(np.repeat([[1, 2, 0, 3], [1, 1, 1, 0]], 128, axis=1), jnp.int32)

  def both(implementation):
    def total(*arrays):
      found = attend(*arrays, segment=segment, causal=causal, implementation=implementation)
      return jnp.sum(found * jnp.cos(found)), found

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)

  assert "while" in jax.jit(functools.partial(attend, segment=segment)).lower(*arrays).compile().as_text()
  chex.assert_trees_all_close(both("auto"), both("xla"), atol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_on_a_mesh(implementation):
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  sharding = NamedSharding(mesh, HEADS)
  segment = jnp.concatenate([SEGMENTS, SEGMENTS[::-1]])
  expected = mixed_and_gradients(*qkv(4, LENGTH), segment, implementation="xla")
  arrays = jax.device_put(qkv(4, LENGTH), sharding)
  actual = mixed_and_gradients(*arrays, segment, implementation=implementation, sharding=sharding)
  assert actual[0].sharding.is_equivalent_to(sharding, 4)
  assert_close(actual, expected, 2e-6)


def tower_loss(runtime, config, length=LENGTH):
  """The shapes of a text tower's parameters, and a function of them and of packed rows."""
  graph, params = nnx.split(nnx.eval_shape(lambda: TextTower(config, runtime, rngs=nnx.Rngs(0))))

  def loss(params, tokens, segment):
    position = jnp.broadcast_to(jnp.arange(length) % 32, tokens.shape)
    hidden = nnx.merge(graph, params)(tokens, segment, position)
    return jnp.mean(jnp.where((segment > 0)[..., None], hidden, 0).astype(jnp.float32) ** 2)

  return params, loss


@pytest.mark.slow
def test_text_tower_with_splash_equals_xla():
  config = TextConfig(32, 2, 2, 64, vocab_size=50)
  tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 50)

  params = jax.jit(lambda: nnx.state(TextTower(config, rngs=nnx.Rngs(0))))()

  def value_and_gradients(**runtime):
    _, loss = tower_loss(Runtime(**runtime), config)
    return jax.jit(jax.value_and_grad(loss))(params, tokens, SEGMENTS)

  expected = value_and_gradients(attention="xla")
  actual = value_and_gradients(attention="splash", remat="save:qkv,attention")
  assert_close(actual, expected, 2e-5)


# ------------------------------------------------------------------------------------ the choice


def kernels(platform, length=LENGTH, **kwargs):
  """How many TPU kernels and cuDNN calls the program for a platform has, forward and backward."""
  arrays = [jax.ShapeDtypeStruct((2, length, 2, 64), jnp.bfloat16)] * 3
  segment = jax.ShapeDtypeStruct((2, length), jnp.int32)
  fresh = functools.partial(mixed_and_gradients.__wrapped__, **kwargs)  # what was traced before may not count
  traced = jax.jit(lambda *x: fresh(*x)).trace(*arrays, segment)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return text.count("tpu_custom_call"), text.count("custom_call @__cudnn$fmha")


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_auto_goes_by_the_platform_compiled_for(platform, monkeypatch):
  monkeypatch.setattr(CUDNN_VERSION, lambda: 91000)  # as on a machine with cuDNN
  expected = {"cpu": (0, 0), "tpu": (2, 0), "cuda": (0, 2)}[platform]
  assert kernels(platform, implementation="auto") == expected


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_auto_takes_xla_for_rows_of_another_length(platform):
  assert kernels(platform, length=77, implementation="auto") == (0, 0)


def test_auto_takes_xla_where_a_mesh_does_not_divide_the_heads():
  mesh = jax.make_mesh((1, 1, 8), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  sharding = NamedSharding(mesh, HEADS)
  actual = mixed_and_gradients(*qkv(2, LENGTH), SEGMENTS, implementation="auto", sharding=sharding)
  assert_close(actual, mixed_and_gradients(*qkv(2, LENGTH), SEGMENTS, implementation="xla"), 2e-6)
  with pytest.raises(ValueError, match=r"attention='splash' cannot be used: the mesh .*'tensor': 8.* does not divide"):
    attend(*qkv(2, LENGTH), implementation="splash", sharding=sharding)


def test_auto_takes_xla_on_an_old_gpu(monkeypatch):
  monkeypatch.setattr(CUDNN_VERSION, lambda: 91000)
  monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability="7.5", device_kind="T4")])
  assert kernels("cuda", implementation="auto") == (0, 0)
  with pytest.raises(ValueError, match="compute capability 8.0, and T4 has 7.5"):
    attend(*qkv(2, LENGTH, dtype=jnp.bfloat16), implementation="cudnn")


def test_a_choice_that_cannot_work_says_why(monkeypatch):
  with pytest.raises(ValueError, match="attention must be one of .*'splash'.*, got 'flash'"):
    Runtime(attention="flash")
  with pytest.raises(ValueError, match="attention must be one of .*'splash'.*, got 'flash'"):
    attend(*qkv(2, LENGTH), implementation="flash")
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  with pytest.raises(ValueError, match="only batch and heads may be split"):
    attend(*qkv(2, LENGTH), implementation="splash", sharding=NamedSharding(mesh, PartitionSpec(None, "data")))
  with pytest.raises(ValueError, match="attention='cudnn' cannot be used: .*cuDNN"):
    attend(*qkv(2, LENGTH, dtype=jnp.bfloat16), implementation="cudnn")
  monkeypatch.setattr(CUDNN_VERSION, lambda: 91000)
  with pytest.raises(ValueError, match="attention='cudnn' cannot be used: .*float32"):
    attend(*qkv(2, LENGTH), implementation="cudnn")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(ValueError, match="attention='splash' cannot be used: it is for TPUs, and this is a gpu"):
    attend(*qkv(2, LENGTH), implementation="splash")


# ------------------------------------------------------------------------------------ compiled for a TPU


REMATS = {"full": 3, "save:qkv,attention": 2}  # kernels: forward, forward again, backward; and without the second
BETWEEN = "\n---- the next program\n"


def print_text_towers():
  """Prints the programs of a text tower and its gradients for four TPUs, one for each of `REMATS`."""
  mesh = make_mesh({"data": 2, "fsdp": 2}, compiling.tpus("v5e:2x2"))
  whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  programs = []
  for remat in REMATS:
    runtime = Runtime(jnp.bfloat16, remat, sharding=NamedSharding(mesh, HEADS))
    params, loss = tower_loss(runtime, TextConfig(128, 2, 2, 256, vocab_size=512))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params)
    rows = jax.ShapeDtypeStruct((16, LENGTH), jnp.int32, sharding=split)
    programs.append(jax.jit(jax.value_and_grad(loss)).lower(params, rows, rows).compile().as_text())
  print(BETWEEN.join(programs))


@pytest.mark.slow
def test_text_tower_compiles_for_a_tpu():
  programs = compiling.printed(print_text_towers).split(BETWEEN)
  assert [text.count('custom_call_target="tpu_custom_call"') for text in programs] == list(REMATS.values())
  for text in programs:
    assert "all-gather" not in text  # the weights are whole on every device, so it could only be of activations
