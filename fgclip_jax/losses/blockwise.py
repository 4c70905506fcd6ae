"""The forms of a contrast: how the sums over all pairs of N rows and N columns are computed on W devices.

Each device has n = N / W rows and their own columns, and gets the sums of those:

  dense    every device computes the whole N x N matrix: for reading and comparing
  rows     its rows against all columns, gathered, and its columns against all rows: two blocks of n x N
  chunked  its rows against `chunk` columns at a time, gathered from all devices; nothing of n x N is ever held
  ring     the columns travel round the devices, `chunk` at a time against the rows they meet

The last two compute each logit once forward and once more backward, by a derivative of their own. All four compute the
same, but for the order of sums.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgclip_jax.losses.pairs import Axis, Labels, Sigmoid, Softmax

FORMS = ("dense", "rows", "chunked", "ring")
_ROWS_AT_MOST = 2**22  # logits of one block of the form `rows`, of which there are some: 16 MiB


@dataclasses.dataclass(frozen=True)
class Form:
  """How to compute: one of `FORMS`, columns at a time, and the mesh axes that the rows are split over."""

  name: str
  chunk: int
  axis: Axis


def choose_form(rows: int, devices: int, chunk: int) -> str:
  """The form for so many rows per device: `rows` while its blocks are small, and then what fills a chunk.

  Where a device's own columns fill a chunk, they go round (`ring`); where not, chunks of all devices are gathered.
  """
  if rows * rows * devices <= _ROWS_AT_MOST:
    return "rows"
  return "ring" if rows >= chunk else "chunked"


def gather(x: Any, axis: Axis) -> Any:
  """The rows of all devices, for every array of a tree."""
  return x if axis is None else jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), x)


def device_count(axis: Axis) -> int:
  """Devices along the mesh axes."""
  return 1 if axis is None else jax.lax.axis_size(axis)


def pair_sums(
  image: Float[Array, "n D"],
  text: Float[Array, "n D"],
  scale: Float[Array, ""],
  bias: Float[Array, ""] | None,
  labels: Labels,
  form: Form,
) -> tuple[Float[Array, "n"], Float[Array, "n"] | None]:
  """The sums over all columns for each image's row, and over all rows for each text's column.

  Args:
    image, text: this device's rows and their own columns.
    scale, bias: a logit is `scale * image . text + bias`. A bias asks for the sums of `Sigmoid`, which has none by
      column; None for those of `Softmax`. Inside `jax.shard_map` each device has a copy of its own (`jax.lax.pcast`).
    labels: of the rows, and so of the columns; see `pairs`.
    form: see there.
  """
  kind = _kind(bias)
  if form.name in ("chunked", "ring"):
    return _blockwise(image, text, scale, bias, labels, form)
  all_image, all_text, all_labels = gather((image, text, labels), form.axis)
  if form.name == "dense":
    by_row, by_column = kind.tally(_logits(all_image, all_text, scale, bias), all_labels, all_labels)
    first = 0 if form.axis is None else jax.lax.axis_index(form.axis) * len(image)
    by_row, by_column = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, len(image)), (by_row, by_column))
  else:
    by_row, by_column = kind.tally(_logits(image, all_text, scale, bias), labels, all_labels)
    if by_column is not None:
      by_column = kind.tally(_logits(text, all_image, scale, bias), labels, all_labels)[0]
  return kind.total(by_row), None if by_column is None else kind.total(by_column)


def _kind(bias):
  return Softmax if bias is None else Sigmoid


def _matmul(a, b):
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _logits(rows, columns, scale, bias):
  logits = scale * _matmul(rows, columns.T)
  return logits if bias is None else logits + bias


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blockwise(image, text, scale, bias, labels, form):
  return _forward(image, text, scale, bias, labels, form)[0]


def _forward(image, text, scale, bias, labels, form):
  kind = _kind(bias)

  def visit(by_row, columns):
    text, column_labels = columns
    row, column = kind.tally(_logits(image, text, scale, bias), labels, column_labels)
    return kind.merge(by_row, row), column

  by_row, by_column = kind.none(image[:, 0])
  by_row, by_column = _visit_columns(visit, by_row, (text, labels), by_column, kind.merge, kind.collect, form)
  totals = kind.total(by_row), None if by_column is None else kind.total(by_column)
  return totals, (image, text, scale, bias, labels, totals)


def _backward(form, residuals, cotangents):
  image, text, scale, bias, labels, totals = residuals
  kind = _kind(bias)
  by_row, by_column = zip(totals, cotangents, strict=True)

  def visit(gradients, columns):
    text, column_labels, by_column = columns
    d_image, d_bias = gradients
    slope = kind.slope(_logits(image, text, scale, bias), labels, column_labels, by_row, by_column)
    d_bias = None if bias is None else d_bias + jnp.sum(slope)
    return (d_image + _matmul(slope, text), d_bias), _matmul(slope.T, image)

  nothing = jnp.zeros_like(image)
  gradients = nothing, None if bias is None else jnp.zeros_like(bias)
  columns = text, labels, by_column
  (d_image, d_bias), d_text = _visit_columns(visit, gradients, columns, nothing, jnp.add, _add_up, form)
  return scale * d_image, scale * d_text, jnp.sum(image * d_image), d_bias, None  # labels have no derivative


_blockwise.defvjp(_forward, _backward)


def _add_up(sums, axis):
  return jax.lax.psum_scatter(sums, axis, tiled=True)


def _visit_columns(
  visit: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  columns: Any,
  sums: Any,
  merge: Callable[[Any, Any], Any],
  collect: Callable[[Any, Axis], Any],
  form: Form,
) -> tuple[Any, Any]:
  """Lets this device's rows meet the columns of all devices, some at a time.

  Args:
    visit: a function of the carry and some columns, which gives the carry and what the rows add to those columns' sums.
    carry: what the rows keep.
    columns: this device's own, a tree of [n, ...].
    sums: its columns' sums before any row, a tree of [n, ...].
    merge: adds two trees of sums.
    collect: adds up what every device adds to a chunk of all devices' columns; gives each its own part.
    form: `chunked` or `ring`.

  Returns:
    The last carry; the sums of this device's own columns over the rows of all devices.
  """
  devices = device_count(form.axis)

  def through(body, carry, xs, chunk):
    """Scans over parts of the leading axis of at most `chunk`."""
    n = jax.tree.leaves(xs)[0].shape[0]
    size = next(size for size in range(min(chunk, n), 0, -1) if n % size == 0)
    carry, ys = jax.lax.scan(body, carry, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), xs))
    return carry, jax.tree.map(lambda y: y.reshape(n, *y.shape[2:]), ys)

  def meet(carry, part):
    part, sums = part
    carry, added = visit(carry, part)
    return carry, merge(sums, added)

  def meet_gathered(carry, part):
    carry, added = visit(carry, gather(part, form.axis))
    return carry, collect(added, form.axis)

  if devices == 1:
    return through(meet, carry, (columns, sums), form.chunk)
  if form.name == "chunked":
    return through(meet_gathered, carry, columns, max(form.chunk // devices, 1))

  def hop(state, _):
    carry, columns, sums = state
    carry, sums = through(meet, carry, (columns, sums), form.chunk)
    following = [(device, (device + 1) % devices) for device in range(devices)]
    columns, sums = jax.tree.map(lambda x: jax.lax.ppermute(x, form.axis, following), (columns, sums))
    return (carry, columns, sums), None

  (carry, _, sums), _ = jax.lax.scan(hop, (carry, columns, sums), None, length=devices)  # after all hops back at home
  return carry, sums
