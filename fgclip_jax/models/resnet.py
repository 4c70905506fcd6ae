"""The image tower of CLIP's ResNets: a three-convolution stem, blocks that pool before they stride, attention pooling.

As in the published code of CLIP (arXiv 2103.00020, section 2.4), channels last.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fgclip_jax.models.config import ResNetConfig
from fgclip_jax.models.transformer import Dtype, Runtime, linear, remat_policy

Statistics = dict[str, Any]  # nested as the modules are, down to `mean` and `variance`

EPSILON = 1e-5
MOMENTUM = 0.1  # a batch's share in the running averages

_EXPANSION = 4  # a block's output has so many times the channels of its middle
# uniform within 1 / sqrt(inputs): what the published code leaves convolutions at
_CONV_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def convolution(
  inputs: int, outputs: int, size: int, dtype: Dtype, rngs: nnx.Rngs, stride: int = 1, padding: int = 0
) -> nnx.Conv:
  """A square convolution without bias, with a float32 kernel [size, size, inputs, outputs], computing in `dtype`."""
  return nnx.Conv(
    inputs,
    outputs,
    (size, size),
    strides=stride,
    padding=padding,
    use_bias=False,
    dtype=dtype,
    kernel_init=_CONV_INIT,
    rngs=rngs,
  )


def average_pool(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w C"]:
  """Means of squares of `size` by `size`, which must divide the map."""
  if size == 1:
    return x
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // size, size, width // size, size, channels).mean((2, 4))


class BatchNorm(nnx.Module):
  """Normalises each channel over a batch and its positions, in float32; keeps running averages for inference.

  In a jitted step the batch is the global one: on a mesh the statistics are those of all devices' images together.
  """

  def __init__(self, width: int, first_scale: float = 1.0):
    self.scale = nnx.Param(jnp.full((width,), first_scale, jnp.float32))
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
    self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32))
    self.variance = nnx.BatchStat(jnp.ones((width,), jnp.float32))

  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> tuple[Float[Array, "B H W C"], Statistics]:
    """Normalises by the batch's own statistics (`train`), or by the running averages.

    Returns:
      The normalised map, in the input's dtype, and the running averages: moved towards this batch's statistics, or
      as they were.
    """
    running = {"mean": self.mean[...].astype(jnp.float32), "variance": self.variance[...].astype(jnp.float32)}
    wide = x.astype(jnp.float32)
    mean, variance = running["mean"], running["variance"]
    if train:
      # Sums over the global batch: a jitted step sees whole arrays, and XLA adds the devices' shares with an
      # all-reduce. In two passes: E[x^2] - E[x]^2 in float32 loses digits where the mean is large.
      mean = jnp.mean(wide, axis=(0, 1, 2))
      variance = jnp.mean((wide - mean) ** 2, axis=(0, 1, 2))
      # As in PyTorch, this batch is normalised by the biased variance and the running average takes the unbiased one;
      # no gradient flows through the running averages.
      count = x.size // x.shape[-1]
      batch = {"mean": mean, "variance": variance * (count / max(count - 1, 1))}
      move = lambda old, new: old + MOMENTUM * (jax.lax.stop_gradient(new) - old)  # noqa: E731
      running = jax.tree.map(move, running, batch)
    factor = self.scale[...] * jax.lax.rsqrt(variance + EPSILON)
    return ((wide - mean) * factor + self.bias[...]).astype(x.dtype), running


class Stem(nnx.Module):
  """Three convolutions and an average pool: the image to a map of a quarter of its side."""

  def __init__(self, config: ResNetConfig, runtime: Runtime, *, rngs: nnx.Rngs):
    half, dtype = config.width // 2, runtime.dtype
    self.conv1 = convolution(3, half, 3, dtype, rngs, stride=2, padding=1)
    self.norm1 = BatchNorm(half)
    self.conv2 = convolution(half, half, 3, dtype, rngs, padding=1)
    self.norm2 = BatchNorm(half)
    self.conv3 = convolution(half, config.width, 3, dtype, rngs, padding=1)
    self.norm3 = BatchNorm(config.width)

  def __call__(self, x: Float[Array, "B H W 3"], train: bool) -> tuple[Float[Array, "B h w C"], Statistics]:
    """Returns the map, and running averages as `BatchNorm` does."""
    statistics = {}
    x, statistics["norm1"] = self.norm1(self.conv1(x), train)
    x, statistics["norm2"] = self.norm2(self.conv2(jax.nn.relu(x)), train)
    x, statistics["norm3"] = self.norm3(self.conv3(jax.nn.relu(x)), train)
    return average_pool(jax.nn.relu(x), 2), statistics


class Bottleneck(nnx.Module):
  """Three convolutions with a residual connection. Where the map gets smaller, both paths pool; none strides."""

  def __init__(self, inputs: int, middle: int, stride: int, runtime: Runtime, *, rngs: nnx.Rngs):
    outputs, dtype = _EXPANSION * middle, runtime.dtype
    self.stride = stride
    self.conv1 = convolution(inputs, middle, 1, dtype, rngs)
    self.norm1 = BatchNorm(middle)
    self.conv2 = convolution(middle, middle, 3, dtype, rngs, padding=1)
    self.norm2 = BatchNorm(middle)
    self.conv3 = convolution(middle, outputs, 1, dtype, rngs)
    self.norm3 = BatchNorm(outputs, first_scale=0.0)  # a new block is the identity
    self.has_shortcut = stride > 1 or inputs != outputs
    if self.has_shortcut:
      self.shortcut = convolution(inputs, outputs, 1, dtype, rngs)
      self.shortcut_norm = BatchNorm(outputs)

  def __call__(self, x: Float[Array, "B H W I"], train: bool) -> tuple[Float[Array, "B h w O"], Statistics]:
    """Returns the map, and running averages as `BatchNorm` does."""
    statistics = {}
    y, statistics["norm1"] = self.norm1(self.conv1(x), train)
    y, statistics["norm2"] = self.norm2(self.conv2(jax.nn.relu(y)), train)
    y, statistics["norm3"] = self.norm3(self.conv3(average_pool(jax.nn.relu(y), self.stride)), train)
    if self.has_shortcut:
      x, statistics["shortcut_norm"] = self.shortcut_norm(self.shortcut(average_pool(x, self.stride)), train)
    return jax.nn.relu(x + y), statistics


class Stage(nnx.Module):
  """`depth` blocks: the first changes width and size; the rest are alike, stacked and scanned over."""

  def __init__(self, inputs: int, middle: int, depth: int, stride: int, runtime: Runtime, *, rngs: nnx.Rngs):
    # the blocks after the first have parameters of the same shapes: stacked, they are compiled once and scanned over
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def make_blocks(rngs):
      return Bottleneck(_EXPANSION * middle, middle, 1, runtime, rngs=rngs)

    self.first = Bottleneck(inputs, middle, stride, runtime, rngs=rngs)
    if depth > 1:
      self.rest = make_blocks(rngs.split(depth - 1))
    self.depth, self.runtime = depth, runtime

  def __call__(self, x: Float[Array, "B H W I"], train: bool) -> tuple[Float[Array, "B h w O"], Statistics]:
    """Returns the map, and running averages as `BatchNorm` does."""

    def run(x, block):
      return block(x, train)

    if (policy := remat_policy(self.runtime.remat)) is not None:
      run = jax.checkpoint(run, policy=policy, prevent_cse=False)
    x, first = run(x, self.first)
    if self.depth == 1:
      return x, {"first": first}
    x, rest = jax.lax.scan(run, x, self.rest, unroll=self.runtime.unroll or self.depth - 1)
    return x, {"first": first, "rest": rest}


class AttentionPool(nnx.Module):
  """Attention of the first token, the cells' mean, to all tokens; without the projection that follows it."""

  def __init__(self, config: ResNetConfig, runtime: Runtime, *, rngs: nnx.Rngs):
    width = config.output_width
    self.heads = config.heads
    self.query, self.key, self.value = (linear(width, width, width**-0.5, runtime.dtype, rngs) for _ in range(3))

  def __call__(self, tokens: Float[Array, "B T C"]) -> tuple[Float[Array, "B C"], Float[Array, "B T C"]]:
    """Returns the first token's result, a weighted mean of values, and every token's value."""

    def split_heads(y):
      return y.reshape(*y.shape[:-1], self.heads, -1)

    value = self.value(tokens)
    query, key = split_heads(self.query(tokens[:, 0])), split_heads(self.key(tokens))
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bhc,bthc->bht", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    pooled = jnp.einsum("bht,bthc->bhc", weights, split_heads(value))
    return pooled.reshape(pooled.shape[0], -1), value


class ResNetTower(nnx.Module):
  """Image to one pooled vector and a map of dense vectors, both of the tower's output width."""

  def __init__(self, config: ResNetConfig, runtime: Runtime = Runtime(), *, rngs: nnx.Rngs):
    self.config, self.runtime = config, runtime
    self.stem = Stem(config, runtime, rngs=rngs)
    inputs = config.width
    for number, depth in enumerate(config.depths):
      middle = config.width * 2**number
      setattr(self, f"stage{number + 1}", Stage(inputs, middle, depth, 2 if number else 1, runtime, rngs=rngs))
      inputs = _EXPANSION * middle
    shape = (1 + config.grid**2, config.output_width)
    normal = nnx.initializers.normal(config.output_width**-0.5)
    self.positions = nnx.Param(normal(rngs.params(), shape, jnp.float32))
    self.pool = AttentionPool(config, runtime, rngs=rngs)

  def __call__(
    self, image: Float[Array, "B S S 3"], keep: Int[Array, "B N"] | None = None, train: bool = False
  ) -> tuple[Float[Array, "B C"], Float[Array, "B h w C"], Statistics]:
    """Encodes normalised images.

    Args:
      image: normalised pixels.
      keep: None: a ResNet has no patches that could be dropped.
      train: normalises by the batch's own statistics instead of the running averages.

    Returns:
      The attention pooling's result; the cells' values in it (the dense features: what a cell would give if the
      pooling saw it alone); and BatchNorm's running averages, moved towards this batch's if `train`.

    Raises:
      ValueError: the images have another size than the model's, or there is a `keep`.
    """
    if keep is not None:
      raise ValueError("patches are dropped for Vision Transformers only: this model's image tower is a ResNet")
    size = self.config.image_size
    if image.shape[1:] != (size, size, 3):
      given = " x ".join(map(str, image.shape[1:]))
      raise ValueError(f"the model takes images of {size} x {size} x 3, got {given} (height, width, channels)")
    statistics: Statistics = {}
    x, statistics["stem"] = self.stem(image.astype(self.runtime.dtype), train)
    for number in range(1, len(self.config.depths) + 1):
      stage = f"stage{number}"
      x, statistics[stage] = getattr(self, stage)(x, train)
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height * width, channels)
    tokens = jnp.concatenate([cells.mean(1, keepdims=True), cells], axis=1) + self.positions[...].astype(x.dtype)
    pooled, values = self.pool(tokens)
    return pooled, values[:, 1:].reshape(x.shape), statistics
