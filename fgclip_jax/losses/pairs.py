"""What a contrast sums over pairs of rows and columns, one block of logits at a time.

A block's partial sums can be merged in any order, over blocks as over devices, so that a form (see `forms`) decides
alone which block is computed where. Labels tell which pairs count: a dict of some of

  place    [n] int: a row's number in the whole batch, which is also that of its own column
  group    [n] int: only pairs of one group count; -1 is padding, which only padding sees
  caption  [n] int: pairs of equal numbers do not count, but a row and its own column

with the same keys for rows and columns. Without labels every pair counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Labels = dict[str, Int[Array, "_"]]
Axis = str | tuple[str, ...] | None


def _own(rows: Labels, columns: Labels) -> Bool[Array, "n m"]:
  return rows["place"][:, None] == columns["place"]


def _counted(x: Float[Array, "n m"], rows: Labels, columns: Labels) -> Float[Array, "n m"]:
  """`x` with the lowest number where a pair does not count."""
  counts = jnp.ones((), bool)
  if "group" in rows:
    counts = rows["group"][:, None] == columns["group"]
  if "caption" in rows:
    counts &= _own(rows, columns) | (rows["caption"][:, None] != columns["caption"])
  return x if counts.ndim == 0 else jnp.where(counts, x, jnp.finfo(x.dtype).min)


class Partition(NamedTuple):
  """A sum of exponentials, `rest * exp(top)`: `top` is the largest exponent, so that nothing overflows."""

  top: Float[Array, "n"]
  rest: Float[Array, "n"]


class Softmax:
  """InfoNCE: for each row, and for each column, the logarithm of the sum of the exponentials of its logits."""

  @staticmethod
  def tally(logits, rows, columns) -> tuple[Partition, Partition]:
    """A block's partial sums by row and by column."""
    logits = _counted(logits, rows, columns)

    def along(axis):
      top = jax.lax.stop_gradient(jnp.max(logits, axis))
      return Partition(top, jnp.sum(jnp.exp(logits - jnp.expand_dims(top, axis)), axis))

    return along(1), along(0)

  @staticmethod
  def none(like: Float[Array, "n"]) -> tuple[Partition, Partition]:
    """The sums of no pairs for n rows, and for n columns."""
    nothing = Partition(jnp.full_like(like, jnp.finfo(like.dtype).min), jnp.zeros_like(like))
    return nothing, nothing

  @staticmethod
  def merge(a: Partition, b: Partition) -> Partition:
    """The sum of two partial sums."""
    top = jnp.maximum(a.top, b.top)
    return Partition(top, a.rest * jnp.exp(a.top - top) + b.rest * jnp.exp(b.top - top))

  @staticmethod
  def collect(sums: Partition, axis: Axis) -> Partition:
    """Merges what the devices hold for the columns of all; each gets its own columns."""
    top = jax.lax.pmax(sums.top, axis)
    rest = jax.lax.psum_scatter(sums.rest * jnp.exp(sums.top - top), axis, tiled=True)
    own = jax.lax.axis_index(axis) * rest.shape[0]
    return Partition(jax.lax.dynamic_slice_in_dim(top, own, rest.shape[0]), rest)

  @staticmethod
  def total(sums: Partition) -> Float[Array, "n"]:
    """What the partial sums come to."""
    return sums.top + jnp.log(sums.rest)

  @staticmethod
  def slope(logits, rows, columns, by_row, by_column) -> Float[Array, "n m"]:
    """The derivative by a block's logits; `by_row`, `by_column` are pairs of a total and its cotangent."""
    logits = _counted(logits, rows, columns)
    (row_total, row_cotangent), (column_total, column_cotangent) = by_row, by_column
    from_rows = row_cotangent[:, None] * jnp.exp(logits - row_total[:, None])
    return from_rows + column_cotangent * jnp.exp(logits - column_total)


class Sigmoid:
  """SigLIP: for each row the sum of -log sigmoid(± logit), plus for its own column; by column there is nothing."""

  @staticmethod
  def _against(logits, rows, columns):
    own = _own(rows, columns)
    return own, _counted(jnp.where(own, -logits, logits), rows, columns)

  @staticmethod
  def tally(logits, rows, columns) -> tuple[Float[Array, "n"], None]:
    """As `Softmax.tally`."""
    return jnp.sum(jax.nn.softplus(Sigmoid._against(logits, rows, columns)[1]), axis=1), None

  @staticmethod
  def none(like: Float[Array, "n"]) -> tuple[Float[Array, "n"], None]:
    """As `Softmax.none`."""
    return jnp.zeros_like(like), None

  @staticmethod
  def merge(a, b):
    """As `Softmax.merge`."""
    return None if a is None else a + b

  @staticmethod
  def collect(sums: None, axis: Axis) -> None:
    """As `Softmax.collect`: there is nothing."""

  @staticmethod
  def total(sums):
    """As `Softmax.total`."""
    return sums

  @staticmethod
  def slope(logits, rows, columns, by_row, by_column) -> Float[Array, "n m"]:
    """As `Softmax.slope`."""
    own, against = Sigmoid._against(logits, rows, columns)
    slope = by_row[1][:, None] * jax.nn.sigmoid(against)
    return jnp.where(own, -slope, slope)
