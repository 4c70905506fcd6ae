"""Self-attention over rows that may hold several sequences: in plain JAX, and by fused kernels on TPUs and NVIDIA GPUs.

The fused kernels never hold the [heads, T, T] scores: splash attention on TPUs takes segments as they are, cuDNN's
kernel on NVIDIA GPUs takes them as a mask. All forms give the same numbers up to rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

IMPLEMENTATIONS = ("auto", "xla", "splash", "cudnn")
NAME = "attention"  # what rematerialisation policies call the result
_TILE = 128  # splash attention works on blocks of a multiple of this many tokens
_LARGEST_BLOCK = 640
_LONG = 512  # tokens from which CPUs go head by head: at 1,024 that took half the time, at 256 as long


def attend(
  query: Float[Array, "B T H C"],
  key: Float[Array, "B T H C"],
  value: Float[Array, "B T H C"],
  *,
  segment: Int[Array, "B T"] | None = None,
  causal: bool = False,
  implementation: str = "auto",
  sharding: NamedSharding | None = None,
) -> Float[Array, "B T H C"]:
  """Scaled dot-product attention, softmax in float32.

  A token attends within its segment, empty space (segment 0) to itself too, so that every number is finite.

  Args:
    query, key, value: H heads of C channels for T tokens; the scale C ** -0.5 is applied here.
    segment: the number of the sequence that a token belongs to, within its row; None: one sequence a row.
    causal: a token attends to itself and earlier ones only.
    implementation: `auto` takes splash attention where the program is compiled for a TPU and T is a multiple of 128,
      cuDNN where it is compiled for an NVIDIA GPU that has a kernel for these arrays, and `xla` otherwise, on a CPU
      head by head where rows are long. `splash` pads T to a multiple of 128; on a CPU it runs in Pallas's interpreter,
      slowly, to be tested.
    sharding: of the arrays over a mesh; B and H may be split. XLA cannot split a TPU kernel by itself: without a
      sharding, JAX refuses to compile splash attention for several TPUs.

  Raises:
    ValueError: the implementation that was asked for cannot take these arrays; the message says why.
  """
  # for every form: without this, XLA gathers activations where it should gather weights
  if sharding is not None and not _undivided(query, sharding):
    query, key, value = jax.lax.with_sharding_constraint((query, key, value), sharding)
  arrays = (query, key, value, segment)
  xla = functools.partial(_xla, causal=causal)
  splash = functools.partial(_splash, causal=causal, sharding=sharding)
  cudnn = functools.partial(_cudnn, causal=causal)
  if implementation == "xla":
    return xla(*arrays)
  if implementation == "splash":
    _require("splash", _splash_refusal(query, sharding))
    # no default: compiling this for another platform is an error
    return jax.lax.platform_dependent(*arrays, tpu=splash, cpu=functools.partial(splash, interpret=True))
  if implementation == "cudnn":
    _require("cudnn", _cudnn_refusal(*arrays, causal=causal))
    return cudnn(*arrays)
  if implementation != "auto":
    raise ValueError(f"attention must be one of {IMPLEMENTATIONS}, got {implementation!r}")
  kernels = {}
  if query.shape[1] % _TILE == 0 and not _splash_refusal(query, sharding):
    kernels["tpu"] = splash
  if not _cudnn_refusal(*arrays, causal=causal):
    kernels["cuda"] = cudnn
  if query.shape[1] >= _LONG and sharding is None:
    kernels["cpu"] = functools.partial(_head_by_head, causal=causal)
  return jax.lax.platform_dependent(*arrays, **kernels, default=xla) if kernels else xla(*arrays)


def _require(implementation: str, refusal: str) -> None:
  if refusal:
    raise ValueError(f"attention={implementation!r} cannot be used: {refusal}; 'auto' takes what fits")


def attention_mask(
  length: int, segment: Int[Array, "B {length}"] | None, causal: bool
) -> Bool[Array, "#B 1 {length} {length}"] | None:
  """True where a token (last axis but one) may attend to another (last axis); None: everywhere."""
  mask = jnp.tri(length, dtype=bool)[None, None] if causal else None
  if segment is None:
    return mask
  same = (segment[:, :, None] == segment[:, None, :])[:, None]
  return same if mask is None else same & mask


def _xla(query, key, value, segment, *, causal):
  by_head = (jnp.swapaxes(x, 1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
  mixed = _attention(*by_head, attention_mask(query.shape[1], segment, causal))
  return checkpoint_name(jnp.swapaxes(mixed, 1, 2), NAME)


def _head_by_head(query, key, value, segment, *, causal):
  """`_xla`, one head after another: its scores stay in a processor's cache."""
  scaled = (query * query.shape[-1] ** -0.5, key, value)
  heads = tuple(jnp.moveaxis(x, 2, 0)[:, :, None] for x in scaled)
  mask = attention_mask(query.shape[1], segment, causal)
  mixed = jax.lax.map(lambda head: _attention(*head, mask), heads)
  return checkpoint_name(jnp.moveaxis(mixed[:, :, 0], 0, 2), NAME)


@jax.custom_vjp
def _attention(
  query: Float[Array, "B H T C"],
  key: Float[Array, "B H T C"],
  value: Float[Array, "B H T C"],
  mask: Bool[Array, "#B 1 T T"] | None,
) -> Float[Array, "B H T C"]:
  """Attention of scaled queries. The backward pass recomputes the [T, T] weights, so that they are not kept."""
  return jnp.einsum("bhts,bhsc->bhtc", _weights(query, key, mask).astype(value.dtype), value)


def _weights(query, key, mask) -> Float[Array, "B H T T"]:
  """The softmax, in float32."""
  scores = jnp.einsum("bhtc,bhsc->bhts", query, key, preferred_element_type=jnp.float32)
  return jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)


def _attention_forward(query, key, value, mask):
  mixed = _attention(query, key, value, mask)
  return mixed, (query, key, value, mask, mixed)


def _attention_backward(kept, gradient):
  # With scores S = Q K^T, weights P = softmax(S) and output O = P V, and dO the gradient of O:
  #   dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),  dQ = dS K,  dK = dS^T Q.
  # A masked score has P = 0 and therefore no gradient.
  query, key, value, mask, mixed = kept
  weights = _weights(query, key, mask)
  value_gradient = jnp.einsum("bhts,bhtc->bhsc", weights.astype(value.dtype), gradient)
  by_weight = jnp.einsum("bhtc,bhsc->bhts", gradient, value, preferred_element_type=jnp.float32)
  # rowsum(P * dP) = rowsum(O * dO), which needs no [T, T] product (FlashAttention, arXiv 2205.14135)
  common = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
  by_score = (weights * (by_weight - common)).astype(query.dtype)
  query_gradient = jnp.einsum("bhts,bhsc->bhtc", by_score, key)
  return query_gradient, jnp.einsum("bhts,bhtc->bhsc", by_score, query), value_gradient, None


_attention.defvjp(_attention_forward, _attention_backward)


def _cudnn(query, key, value, segment, *, causal):
  mask = attention_mask(query.shape[1], segment, causal=False)  # cuDNN skips what a causal mask leaves out
  mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="cudnn")
  return checkpoint_name(mixed, NAME)


def _cudnn_refusal(query, key, value, segment, *, causal) -> str:
  """Why cuDNN cannot take these arrays, forward and backward, in JAX's words; empty if it can."""

  def gradients(query, key, value, segment):
    def total(query, key, value):
      return _cudnn(query, key, value, segment, causal=causal).astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))(query, key, value)

  try:
    jax.eval_shape(gradients, query, key, value, segment)
  except (RuntimeError, ValueError) as error:
    return str(error).rstrip(".")
  # JAX does not look at this, and the kernel would fail when it runs
  old = [device for device in jax.local_devices() if float(getattr(device, "compute_capability", 8.0)) < 8.0]
  return f"it needs compute capability 8.0, and {old[0].device_kind} has {old[0].compute_capability}" if old else ""


def _undivided(query, sharding) -> str:
  """Says so if the mesh does not divide the array evenly; empty if it does."""
  try:
    sharding.shard_shape(query.shape)
  except ValueError:
    return f"the mesh {dict(sharding.mesh.shape)} as {sharding.spec} does not divide [B, T, H, C] = {query.shape}"
  return ""


def _splash_refusal(query, sharding) -> str:
  """Why splash attention cannot take these arrays; empty if it can."""
  platform = jax.default_backend() if sharding is None else sharding.mesh.devices.flat[0].platform
  if platform not in ("tpu", "cpu"):
    return f"it is for TPUs, and this is a {platform}"
  if sharding is None:
    return ""
  if undivided := _undivided(query, sharding):
    return undivided
  shape = sharding.shard_shape(query.shape)
  if shape[1::2] != query.shape[1::2]:
    return f"only batch and heads may be split over a mesh, not tokens or channels as in {sharding.spec}"
  return ""


def load_kernels() -> None:
  """Imports what attention on TPUs is made with; call it before a program is traced, on any platform.

  Importing Pallas adds settings to those that JAX compares before it takes a program from its cache (from 0.12 on). A
  program whose own trace has imported it is therefore traced and compiled again at its second call.
  """
  import jax.experimental.pallas.ops.tpu.splash_attention  # noqa: F401


def _splash(query, key, value, segment, *, causal, sharding, interpret=False):
  local = functools.partial(_splash_local, causal=causal, interpret=interpret)
  if sharding is None:
    return local(query, key, value, segment)
  batch = PartitionSpec(*sharding.spec[:1])
  specs = (sharding.spec,) * 3 + (batch,)
  # a kernel does not say along which axes its results vary, so that cannot be checked
  mapped = jax.shard_map(local, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False)
  return mapped(query, key, value, segment)


def _splash_local(query, key, value, segment, *, causal, interpret):
  """Splash attention on one device's part."""
  # imported late: it takes a while; see `load_kernels`
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  batch, length, heads, channels = query.shape
  missing = -length % _TILE
  if missing:
    query, key, value = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (query, key, value))
    segment = jnp.ones((batch, length), jnp.int32) if segment is None else segment
    segment = jnp.pad(segment, ((0, 0), (0, missing)), constant_values=-1)  # a segment of its own
  padded = length + missing
  block = max(size for size in range(_TILE, _LARGEST_BLOCK + 1, _TILE) if padded % size == 0)
  mask = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
  kernel = splash_attention_kernel.make_splash_mha_single_device(
    splash_attention_mask.MultiHeadMask([mask((padded, padded))] * heads),
    block_sizes=splash_attention_kernel.BlockSizes(
      block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    ),
    residual_checkpoint_name=NAME,
    interpret=interpret,
  )
  query = query * jnp.asarray(channels**-0.5, query.dtype)
  by_head = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  segments = None if segment is None else splash_attention_kernel.SegmentIds(segment, segment)
  mixed: Any = jax.vmap(kernel)(*by_head, segments)
  return jnp.swapaxes(mixed, 1, 2)[:, :length]
