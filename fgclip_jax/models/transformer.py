"""The pre-norm transformer block of both towers, stacked and scanned over depth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from fgclip_jax.models import attention
from fgclip_jax.models.config import TowerConfig

Dtype = Any


@dataclasses.dataclass(frozen=True)
class Runtime:
  """How a model computes, as opposed to what it is. Changes no result beyond rounding.

  Attributes:
    dtype: of activations and matrix products; softmax and LayerNorm are always float32.
    remat: what the backward pass keeps of a block: `none` (everything), `dots` (matrix products
      without a batch axis), `full` (nothing but the block's input), or `save:NAME,...` with the
      names `qkv`, `attention`, `mlp_up`, `mlp_down`.
    unroll: how many blocks of the scan over depth are unrolled; 0 unrolls all.
    attention: `xla`, `splash` (TPU), `cudnn` (NVIDIA GPU), or `auto`: what fits the machine, see `attention.attend`.
    micro_batches: into how many parts a shard's images and its rows of text are divided; the towers go through them
      one after another and recompute each in the backward pass, so that only one part's activations are held. The
      losses see the embeddings of all parts: gradients are those of the whole batch.
    sharding: of activations, [B, T, heads, channels], over a mesh of devices; None on a single device.
  """

  dtype: Dtype = jnp.float32
  remat: str = "none"
  unroll: int = 1
  attention: str = "auto"
  micro_batches: int = 1
  sharding: NamedSharding | None = None

  def __post_init__(self):
    remat_policy(self.remat)
    if self.attention not in attention.IMPLEMENTATIONS:
      raise ValueError(f"attention must be one of {attention.IMPLEMENTATIONS}, got {self.attention!r}")


_SAVE_NAMES = ("qkv", attention.NAME, "mlp_up", "mlp_down")


def remat_policy(name: str) -> Callable | None:
  """The `jax.checkpoint` policy of that name (see `Runtime.remat`); None where nothing is recomputed."""
  policies = jax.checkpoint_policies
  if name == "none":
    return None
  if name == "dots":
    return policies.dots_with_no_batch_dims_saveable
  if name == "full":
    return policies.nothing_saveable
  names = name.removeprefix("save:").split(",")
  if name.startswith("save:") and set(names) <= set(_SAVE_NAMES):
    return policies.save_only_these_names(*names)
  raise ValueError(f"remat must be 'none', 'dots', 'full' or 'save:' with names of {_SAVE_NAMES}, got {name!r}")


def gradient_cached_map(function: Callable[..., Any], parts: int, shards: int, *arrays: Any) -> Any:
  """`function` of arrays [shards * n, ...], on n / parts rows of every shard at a time.

  A part is computed anew in the backward pass: what is held are its inputs and outputs. This is the gradient cache of
  arXiv 2101.06983, which JAX's own differentiation makes of a map over recomputed parts.

  Raises:
    ValueError: `parts` does not divide n.
  """
  if parts == 1:
    return function(*arrays)

  def split(x):
    rows = x.shape[0] // shards
    if rows % parts:
      raise ValueError(f"runtime.micro_batches {parts} must divide the {rows} images of a data shard")
    x = jnp.moveaxis(x.reshape(shards, parts, rows // parts, *x.shape[1:]), 1, 0)
    return x.reshape(parts, shards * (rows // parts), *x.shape[3:])

  def join(y):
    y = jnp.moveaxis(y.reshape(parts, shards, y.shape[1] // shards, *y.shape[2:]), 0, 1)
    return y.reshape(shards * y.shape[1] * y.shape[2], *y.shape[3:])

  recomputed = jax.checkpoint(lambda part: function(*part), prevent_cse=False)
  return jax.tree.map(join, jax.lax.map(recomputed, jax.tree.map(split, arrays)))


def activation(name: str) -> Callable[[Array], Array]:
  """`quick_gelu`, the exact `gelu`, or `gelu_tanh`."""
  if name in ("gelu", "gelu_tanh"):
    return lambda x: jax.nn.gelu(x, approximate=name == "gelu_tanh")
  return lambda x: x * jax.nn.sigmoid(jnp.asarray(1.702, x.dtype) * x)


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """LayerNorm in float32 whatever the input's dtype; the two-pass variance is the accurate one."""
  return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


@jax.custom_vjp
def matmul(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
  """The matrix product, with a backward pass of its own.

  JAX's gradient of the kernel is a transposed product, for which XLA copies the operands on CPUs; contracting the rows
  gives the same sums in the kernel's own layout.
  """
  return jnp.matmul(x, kernel)


def _matmul_forward(x, kernel):
  return jnp.matmul(x, kernel), (x, kernel)


def _matmul_backward(kept, gradient):
  x, kernel = kept
  rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  by_x = jax.lax.dot_general(gradients, kernel, (((1,), (1,)), ((), ())))
  return by_x.reshape(x.shape), jax.lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def linear(inputs: int, outputs: int, std: float, dtype: Dtype, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
  """A linear layer with float32 parameters, computing in `dtype`."""
  init = nnx.initializers.normal(std)

  def dot_general(x, kernel, *_, **__):
    return matmul(x, kernel)

  return nnx.Linear(
    inputs, outputs, use_bias=use_bias, dtype=dtype, kernel_init=init, dot_general=dot_general, rngs=rngs
  )


class Attention(nnx.Module):
  """Multi-head self-attention."""

  def __init__(self, config: TowerConfig, runtime: Runtime, *, causal: bool, rngs: nnx.Rngs):
    width, std = config.width, config.width**-0.5
    self.heads, self.causal, self.runtime = config.heads, causal, runtime
    self.query = linear(width, width, std, runtime.dtype, rngs)
    self.key = linear(width, width, std, runtime.dtype, rngs)
    self.value = linear(width, width, std, runtime.dtype, rngs)
    self.out = linear(width, width, std * (2 * config.depth) ** -0.5, runtime.dtype, rngs)

  def __call__(self, x: Float[Array, "B T W"], segment: Int[Array, "B T"] | None = None) -> Float[Array, "B T W"]:
    """Attends within segments, or everywhere without them; backwards only if causal."""

    def split_heads(y):
      return checkpoint_name(y, "qkv").reshape(*y.shape[:-1], self.heads, -1)

    mixed = attention.attend(
      *(split_heads(project(x)) for project in (self.query, self.key, self.value)),
      segment=segment,
      causal=self.causal,
      implementation=self.runtime.attention,
      sharding=self.runtime.sharding,
    )
    return self.out(mixed.reshape(x.shape))

  def without_mixing(self, x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
    """Each token attends to itself alone: the value and output projections."""
    return self.out(self.value(x))


class MLP(nnx.Module):
  """Two linear layers with the tower's activation between."""

  def __init__(self, config: TowerConfig, runtime: Runtime, *, rngs: nnx.Rngs):
    width = config.width
    self.up = linear(width, config.mlp_width, (2 * width) ** -0.5, runtime.dtype, rngs)
    self.down = linear(config.mlp_width, width, width**-0.5 * (2 * config.depth) ** -0.5, runtime.dtype, rngs)
    self.activation = activation(config.activation)

  def __call__(self, x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
    return checkpoint_name(self.down(self.activation(checkpoint_name(self.up(x), "mlp_up"))), "mlp_down")


class Block(nnx.Module):
  """Pre-norm attention and MLP, each with a residual connection."""

  def __init__(self, config: TowerConfig, runtime: Runtime, *, causal: bool, rngs: nnx.Rngs):
    self.norm1 = layer_norm(config.width, config.layer_norm_eps, rngs)
    self.attention = Attention(config, runtime, causal=causal, rngs=rngs)
    self.norm2 = layer_norm(config.width, config.layer_norm_eps, rngs)
    self.mlp = MLP(config, runtime, rngs=rngs)

  def __call__(self, x: Float[Array, "B T W"], segment: Int[Array, "B T"] | None = None) -> Float[Array, "B T W"]:
    x = x + self.attention(self.norm1(x), segment)
    return x + self.mlp(self.norm2(x))

  def without_mixing(self, x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
    """The block with every token attending to itself alone (FG-CLIP's dense feature path)."""
    x = x + self.attention.without_mixing(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class Transformer(nnx.Module):
  """`depth` blocks whose parameters are stacked along a leading axis and scanned over."""

  def __init__(self, config: TowerConfig, runtime: Runtime, *, causal: bool = False, rngs: nnx.Rngs):
    # One block is built for each of `depth` keys, and their parameters are stacked: [depth, ...] leaves. The scan below
    # then compiles one block, however many there are.
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def make_blocks(rngs):
      return Block(config, runtime, causal=causal, rngs=rngs)

    self.blocks = make_blocks(rngs.split(config.depth))
    self.depth, self.runtime = config.depth, runtime

  def __call__(
    self, x: Float[Array, "B T W"], segment: Int[Array, "B T"] | None = None
  ) -> tuple[Float[Array, "B T W"], Float[Array, "B T W"]]:
    """Returns the last block's output and its input (which the dense path starts from)."""

    def run(block, x):
      return block(x, segment)

    if (policy := remat_policy(self.runtime.remat)) is not None:
      run = jax.checkpoint(
        run, policy=policy, prevent_cse=False
      )  # a scan's body cannot be merged with its recomputation

    # the carry holds each block's input beside its output, so that the last block's input is at hand in the end
    def step(carry, block):
      x, _ = carry
      return (run(block, x), x), None

    (x, penultimate), _ = jax.lax.scan(step, (x, x), self.blocks, unroll=self.runtime.unroll or self.depth)
    return x, penultimate

  def last_block(self) -> Block:
    """The last block, cut from the stack."""
    return jax.tree.map(lambda leaf: leaf[-1], self.blocks)
