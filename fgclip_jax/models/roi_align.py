"""RoIAlign with a 1x1 output, as two small matrices.

Averaging bilinear samples over a regular grid separates into a weight per row and a weight per
column, so a box's feature is `sum_hw rows[h] * columns[w] * features[h, w]`. Exactly
torchvision's `roi_align(features, boxes, output_size=(1, 1), spatial_scale=1,
sampling_ratio=-1, aligned=True)`: as many samples per side as the box covers cells, rounded up;
samples more than one cell outside the map count as zero; an empty box gives zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_FAR = 1e6  # cells
_NEAR = 7  # samples


def axis_weights(
  low: Float[Array, "*B"],
  high: Float[Array, "*B"],
  size: Float[Array, "*#B"] | int,
  cell: Float[Array, "*#B C"] | None = None,
) -> Float[Array, "*B C"]:
  """The weights of cells in the average over [low, high], along one axis.

  Args:
    low, high: the box's extent in cells (0 is the first cell's outer edge).
    size: the number of cells along the axis.
    cell: the numbers of the cells whose weights are asked for, 0 to size - 1; None: all of them.
  """
  cell = jnp.arange(size, dtype=low.dtype) if cell is None else cell
  # The clamp, far outside any map, keeps the compiler from fusing the scaling of the box into these
  # differences: a fused multiply-add rounds once less, and the number of samples would differ from
  # torchvision's. An optimization barrier does not help: XLA removes it before it chooses instructions.
  low, high = jnp.clip(low, -_FAR, _FAR), jnp.clip(high, -_FAR, _FAR)
  # aligned=True: a cell's value belongs to its centre, so coordinates move by half a cell
  start, extent = low - 0.5, (high - 0.5) - (low - 0.5)
  count = jnp.maximum(jnp.ceil(extent), 0.0)
  spacing = extent / jnp.maximum(count, 1.0)
  # Only the samples within a cell of this one have a part of it. Two samples are at least half a cell apart, since
  # their number is the extent rounded up (a single one has itself alone): five can be that near, and one at each end
  # is for rounding.
  start, spacing, count = start[..., None], spacing[..., None], count[..., None]
  first = jnp.maximum(jnp.floor((cell - 1.0 - start) / jnp.where(spacing > 0, spacing, 1.0) - 0.5), 0.0)
  index = first[..., None] + jnp.arange(_NEAR, dtype=low.dtype)
  position = start[..., None] + (index + 0.5) * spacing[..., None]
  limit = jnp.asarray(size, low.dtype)[..., None, None]
  counted = (index < count[..., None]) & (position >= -1.0) & (position <= limit)
  position = jnp.clip(position, 0.0, limit - 1.0)  # outside the centres of the border cells: their value
  # bilinear interpolation: a sample gives the two cells around it weights that fall linearly with the distance
  tent = jnp.maximum(1.0 - jnp.abs(position - cell[..., None]), 0.0)
  return jnp.where(counted, tent, 0.0).sum(-1) / jnp.maximum(count, 1.0)


def roi_align(features: Float[Array, "B h w D"], boxes: Float[Array, "B K 4"]) -> Float[Array, "B K D"]:
  """The feature of each box.

  Args:
    features: the feature map; pooled in float32.
    boxes: xyxy, normalised to 0..1 of width and height.

  Returns:
    float32 features; zero for a box of no size. No gradient flows to the boxes.
  """
  height, width = features.shape[1:3]
  x1, y1, x2, y2 = jnp.moveaxis(jax.lax.stop_gradient(boxes).astype(jnp.float32), -1, 0)
  rows = axis_weights(y1 * height, y2 * height, height)
  columns = axis_weights(x1 * width, x2 * width, width)
  return jnp.einsum(
    "bhwd,bkh,bkw->bkd", features.astype(jnp.float32), rows, columns, precision=jax.lax.Precision.HIGHEST
  )


def roi_align_patches(
  features: Float[Array, "B P D"], grid: Int[Array, "B 2"], boxes: Float[Array, "B K 4"]
) -> Float[Array, "B K D"]:
  """`roi_align` on maps of different shapes: the feature of each box.

  Args:
    features: the patches of each picture, row by row over its grid; what lies beyond its grid does not matter.
    grid: rows and columns of each picture's map.
    boxes: xyxy, normalised to 0..1 of width and height.

  Returns:
    float32 features, as `roi_align` has them.
  """
  x1, y1, x2, y2 = jnp.moveaxis(jax.lax.stop_gradient(boxes).astype(jnp.float32), -1, 0)
  height, width = (grid[:, axis, None].astype(jnp.float32) for axis in (0, 1))
  patch = jnp.arange(features.shape[1], dtype=grid.dtype)
  row, column = (x[:, None].astype(jnp.float32) for x in (patch // grid[:, 1:], patch % grid[:, 1:]))
  weights = axis_weights(y1 * height, y2 * height, height, row) * axis_weights(x1 * width, x2 * width, width, column)
  weights = jnp.where(row < height[..., None], weights, 0.0)
  features = jnp.where((row < height[..., None])[:, 0, :, None], features.astype(jnp.float32), 0.0)
  return jnp.einsum("bpd,bkp->bkd", features, weights, precision=jax.lax.Precision.HIGHEST)
