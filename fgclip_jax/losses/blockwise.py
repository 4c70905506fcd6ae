"""The sums of a contrastive loss over all N x N pairs of images and texts, computed on W devices.

`contrastive.py` shows the same losses in plain JAX. Each device has n = N / W images and their own texts: n rows and n
columns of the matrix of logits. It gets the sums of its rows and of its columns, in one of four forms:

  dense       every device computes the whole N x N matrix: for reading and comparing
  all_gather  its rows against all columns, gathered, and its columns against all rows: two blocks of n x N
  chunked     its rows against `chunk` columns at a time, gathered from all devices; no n x N block is ever held
  ring        the columns travel from device to device; each device takes `chunk` of them at a time against its rows

The last two compute each logit once forward and once more backward, by a derivative of their own. All four give the
same sums up to rounding, since floating-point sums are taken in another order.

Labels say which pairs count. They are a dict with some of these keys, the same for rows and columns:

  index    [n] int: a row's number in the whole batch, which is also that of its own column; without it there is none
  group    [n] int: only pairs within a group count; -1 is padding, which only padding sees
  caption  [n] int: pairs of equal numbers do not count, except a row and its own column
  record   [n] int: pairs of equal numbers do not count, except those of one picture, if `picture` is given
  picture  [n] int: which picture of the batch a row is of; given together with `record`

Without labels every pair counts. There may be more columns than rows, or fewer, as where each box has a caption and
negatives, or each picture a set of captions; the columns then have labels of their own. Where one side are captions and
the other pictures with sets of captions, a pair does not count if the caption is in the picture's set by these labels:

  caption_id   [n] int: of captions
  caption_ids  [n, C] int: of pictures; with it `has_caption` [n, C] bool says which of them there are
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Labels = dict[str, Int[Array, "_"] | Int[Array, "_ C"] | Bool[Array, "_ C"]]
Axis = str | tuple[str, ...] | None

FORMS = ("dense", "all_gather", "chunked", "ring")
# logits of one block of the form `all_gather`, of which a step holds several: 2**22 in float32 are 16 MiB
_ALL_GATHER_MAX_LOGITS = 2**22


@dataclasses.dataclass(frozen=True)
class Form:
  """How to compute: one of `FORMS`, columns at a time, and the mesh axes that the rows are split over."""

  name: str
  chunk: int
  axis: Axis


def choose_form(rows: int, devices: int, chunk: int, columns: int | None = None) -> str:
  """The form for this many rows per device: `all_gather` while its blocks are small, then one that fills a chunk.

  Where a device's own columns, as many as its rows unless given, fill a chunk, `ring` sends them on whole; where not,
  `chunked` gathers some of each.
  """
  columns = rows if columns is None else columns
  if rows * columns * devices <= _ALL_GATHER_MAX_LOGITS:
    return "all_gather"
  return "ring" if columns >= chunk else "chunked"


def gather(x: Any, axis: Axis) -> Any:
  """The rows of all devices, for every array of a tree."""
  return x if axis is None else jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), x)


def device_count(axis: Axis) -> int:
  """Devices along the mesh axes."""
  return 1 if axis is None else jax.lax.axis_size(axis)


def pair_sums(
  image: Float[Array, "n D"],
  text: Float[Array, "m D"],
  scale: Float[Array, ""],
  bias: Float[Array, ""] | None,
  labels: Labels,
  form: Form,
  column_labels: Labels | None = None,
) -> tuple[Float[Array, "n"], Float[Array, "m"] | None]:
  """The sums over all columns for each image's row, and over all rows for each text's column.

  Args:
    image, text: this device's rows and columns; without `column_labels` each row's own column, m = n.
    scale, bias: a logit is `scale * image . text + bias`. None for the bias asks for the sums of `InfoNCE`; a bias for
      those of `Sigmoid`, which has none by column. Inside `jax.shard_map` each device has a copy of its own
      (`jax.lax.pcast`).
    labels: of the rows, and so of the columns; see the module's docstring.
    form: one of the four, and its chunk.
    column_labels: of the columns, where they are not the rows' own.
  """
  loss = _loss(bias)
  columns = labels if column_labels is None else column_labels
  if form.name in ("chunked", "ring"):
    return _blockwise(image, text, scale, bias, labels, columns, form)
  all_image, all_text, all_labels, all_columns = gather((image, text, labels, columns), form.axis)
  if form.name == "dense":
    by_row, by_column = loss.block_sums(_logits(all_image, all_text, scale, bias), all_labels, all_columns)
    device = 0 if form.axis is None else jax.lax.axis_index(form.axis)

    def own(sums, count):
      return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, device * count, count), sums)

    by_row, by_column = own(by_row, len(image)), own(by_column, len(text))
  else:
    by_row, by_column = loss.block_sums(_logits(image, all_text, scale, bias), labels, all_columns)
    if by_column is not None:
      # A second block, texts against all images: sums by column of the first would need every device's rows.
      by_column = loss.block_sums(_logits(text, all_image, scale, bias), columns, all_labels)[0]
  return loss.total(by_row), None if by_column is None else loss.total(by_column)


def _loss(bias) -> Any:  # the class whose functions are called
  return InfoNCE if bias is None else Sigmoid


def _matmul(a, b):
  # TPUs and GPUs multiply float32 in bfloat16 or TF32 by default; times a scale of 100 that error would reach the loss
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _logits(rows, columns, scale, bias):
  logits = scale * _matmul(rows, columns.T)
  return logits if bias is None else logits + bias


# ------------------------------------------------------------------------------ sums of one block of logits


def _is_own(rows: Labels, columns: Labels) -> Bool[Array, "n m"]:
  if "index" not in rows:
    return jnp.zeros((1, 1), bool)
  return rows["index"][:, None] == columns["index"]


def _in_set(captions: Labels, pictures: Labels) -> Bool[Array, "n m"]:
  """Which captions are in which pictures' sets."""
  found = jnp.zeros((), bool)
  for one in range(pictures["caption_ids"].shape[1]):  # so that no block is as many times larger as there are captions
    equal = captions["caption_id"][:, None] == pictures["caption_ids"][:, one]
    found |= equal & pictures["has_caption"][:, one]
  return found


def _mask(x: Float[Array, "n m"], rows: Labels, columns: Labels) -> Float[Array, "n m"]:
  """`x` with the lowest number where a pair does not count."""
  # Finite, not -inf: a block may hold no pair of some row, and -inf minus -inf would be NaN. Such a row's sum of
  # exp(lowest - lowest) = 1 each disappears when a block with a real logit is merged: exp(lowest - max) is 0.
  counts = jnp.ones((), bool)
  if "group" in rows:
    counts = rows["group"][:, None] == columns["group"]
  if "caption" in rows:
    counts &= _is_own(rows, columns) | (rows["caption"][:, None] != columns["caption"])
  if "record" in rows:
    other_record = rows["record"][:, None] != columns["record"]
    counts &= other_record | (rows["picture"][:, None] == columns["picture"]) if "picture" in rows else other_record
  if "caption_ids" in columns:
    counts &= ~_in_set(rows, columns)
  elif "caption_ids" in rows:
    counts &= ~_in_set(columns, rows).T
  return x if counts.ndim == 0 else jnp.where(counts, x, jnp.finfo(x.dtype).min)


class ScaledSum(NamedTuple):
  """A sum of exponentials, `sum * exp(max)`: `max` is the largest exponent, so that nothing overflows."""

  max: Float[Array, "n"]
  sum: Float[Array, "n"]


class InfoNCE:
  """For each row, and for each column, the logarithm of the sum of the exponentials of its logits.

  A block's sums can be merged in any order, over blocks as over devices; so a form alone decides which block is
  computed where.
  """

  @staticmethod
  def block_sums(logits, rows, columns) -> tuple[ScaledSum, ScaledSum]:
    """A block's partial sums by row and by column."""
    logits = _mask(logits, rows, columns)

    def along(axis):
      largest = jax.lax.stop_gradient(jnp.max(logits, axis))  # it cancels, so it needs no derivative
      return ScaledSum(largest, jnp.sum(jnp.exp(logits - jnp.expand_dims(largest, axis)), axis))

    return along(1), along(0)

  @staticmethod
  def init(like: Float[Array, "n"]) -> tuple[ScaledSum, ScaledSum]:
    """The sums of no pairs for n rows, and for n columns."""
    nothing = ScaledSum(jnp.full_like(like, jnp.finfo(like.dtype).min), jnp.zeros_like(like))
    return nothing, nothing

  @staticmethod
  def merge(a: ScaledSum, b: ScaledSum) -> ScaledSum:
    """The sum of two partial sums."""
    largest = jnp.maximum(a.max, b.max)
    return ScaledSum(largest, a.sum * jnp.exp(a.max - largest) + b.sum * jnp.exp(b.max - largest))

  @staticmethod
  def reduce_scatter(sums: ScaledSum, axis: Axis) -> ScaledSum:
    """Merges the partial sums that all devices hold for the same columns; each device gets its own columns."""
    largest = jax.lax.pmax(sums.max, axis)
    own_sum = jax.lax.psum_scatter(sums.sum * jnp.exp(sums.max - largest), axis, tiled=True)
    first = jax.lax.axis_index(axis) * own_sum.shape[0]
    return ScaledSum(jax.lax.dynamic_slice_in_dim(largest, first, own_sum.shape[0]), own_sum)

  @staticmethod
  def total(sums: ScaledSum) -> Float[Array, "n"]:
    """The logarithm of the whole sum."""
    return sums.max + jnp.log(sums.sum)

  @staticmethod
  def grad_logits(logits, rows, columns, by_row, by_column) -> Float[Array, "n m"]:
    """The derivative by a block's logits; `by_row`, `by_column` are pairs of a total and its cotangent."""
    # d logsumexp(x) / dx_j = exp(x_j - logsumexp(x)), once for the logit's row and once for its column
    logits = _mask(logits, rows, columns)
    (row_total, row_cotangent), (column_total, column_cotangent) = by_row, by_column
    from_rows = row_cotangent[:, None] * jnp.exp(logits - row_total[:, None])
    return from_rows + column_cotangent * jnp.exp(logits - column_total)


class Sigmoid:
  """SigLIP: for each row the sum of -log sigmoid(± logit), plus for its own column; there are no sums by column."""

  @staticmethod
  def _against(logits, rows, columns):
    # -log sigmoid(x) = softplus(-x), and softplus of the lowest number, where a pair does not count, is 0
    own = _is_own(rows, columns)
    return own, _mask(jnp.where(own, -logits, logits), rows, columns)

  @staticmethod
  def block_sums(logits, rows, columns) -> tuple[Float[Array, "n"], None]:
    """As `InfoNCE.block_sums`."""
    return jnp.sum(jax.nn.softplus(Sigmoid._against(logits, rows, columns)[1]), axis=1), None

  @staticmethod
  def init(like: Float[Array, "n"]) -> tuple[Float[Array, "n"], None]:
    """As `InfoNCE.init`."""
    return jnp.zeros_like(like), None

  @staticmethod
  def merge(a, b):
    """As `InfoNCE.merge`."""
    return None if a is None else a + b

  @staticmethod
  def reduce_scatter(sums: None, axis: Axis) -> None:
    """As `InfoNCE.reduce_scatter`: without sums by column there is nothing to do."""

  @staticmethod
  def total(sums):
    """As `InfoNCE.total`."""
    return sums

  @staticmethod
  def grad_logits(logits, rows, columns, by_row, by_column) -> Float[Array, "n m"]:
    """As `InfoNCE.grad_logits`."""
    own, against = Sigmoid._against(logits, rows, columns)
    gradient = by_row[1][:, None] * jax.nn.sigmoid(against)  # softplus' = sigmoid
    return jnp.where(own, -gradient, gradient)


# ------------------------------------------------------------------------------ block by block, with a derivative


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _blockwise(image, text, scale, bias, labels, column_labels, form):
  # JAX's own derivative of the scan would keep every block of logits: all of n x N, which is what this avoids
  return _forward(image, text, scale, bias, labels, column_labels, form)[0]


def _forward(image, text, scale, bias, labels, column_labels, form):
  loss = _loss(bias)

  def visit(by_row, columns):
    text, labels_of_part = columns
    row, column = loss.block_sums(_logits(image, text, scale, bias), labels, labels_of_part)
    return loss.merge(by_row, row), column

  by_row, by_column = loss.init(image[:, 0])[0], loss.init(text[:, 0])[1]
  columns = text, column_labels
  by_row, by_column = _visit_columns(visit, by_row, columns, by_column, loss.merge, loss.reduce_scatter, form)
  totals = loss.total(by_row), None if by_column is None else loss.total(by_column)
  return totals, (image, text, scale, bias, labels, column_labels, totals)


def _backward(form, residuals, cotangents):
  image, text, scale, bias, labels, column_labels, totals = residuals
  loss = _loss(bias)
  by_row, by_column = zip(totals, cotangents, strict=True)

  # With G the derivative by the logits, which are scale * image @ text.T + bias:
  #   d image = scale * G @ text,  d text = scale * G.T @ image,  d bias = sum(G),
  #   d scale = sum(G * (image @ text.T)) = sum(image * (G @ text))
  def visit(gradients, columns):
    text, labels_of_part, by_column = columns
    d_image, d_bias = gradients
    gradient = loss.grad_logits(_logits(image, text, scale, bias), labels, labels_of_part, by_row, by_column)
    d_bias = None if bias is None else d_bias + jnp.sum(gradient)
    return (d_image + _matmul(gradient, text), d_bias), _matmul(gradient.T, image)

  gradients = jnp.zeros_like(image), None if bias is None else jnp.zeros_like(bias)
  columns = text, column_labels, by_column
  (d_image, d_bias), d_text = _visit_columns(visit, gradients, columns, jnp.zeros_like(text), jnp.add, _add_up, form)
  return scale * d_image, scale * d_text, jnp.sum(image * d_image), d_bias, None, None  # labels have no derivative


_blockwise.defvjp(_forward, _backward)


def _add_up(sums, axis):
  return jax.lax.psum_scatter(sums, axis, tiled=True)


def scan_chunks(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, chunk: int) -> tuple[Any, Any]:
  """`jax.lax.scan` over parts of the leading axis of at most `chunk` rows; what the body returns is joined again."""
  n = jax.tree.leaves(xs)[0].shape[0]
  size = next(size for size in range(min(chunk, n), 0, -1) if n % size == 0)  # a scan's parts are of one size
  carry, ys = jax.lax.scan(body, carry, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), xs))
  return carry, jax.tree.map(lambda y: y.reshape(n, *y.shape[2:]), ys)


def _visit_columns(
  visit: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  columns: Any,
  sums: Any,
  merge: Callable[[Any, Any], Any],
  reduce_scatter: Callable[[Any, Axis], Any],
  form: Form,
) -> tuple[Any, Any]:
  """Takes this device's rows through the columns of all devices, some at a time.

  Args:
    visit: a function of the carry and some columns, which returns the carry and the rows' part of those columns' sums.
    carry: what the rows keep.
    columns: this device's own, a tree of [n, ...].
    sums: its columns' sums before any row, a tree of [n, ...].
    merge: adds two trees of sums.
    reduce_scatter: adds up every device's part of the sums of gathered columns; returns to each device its own.
    form: `chunked` or `ring`.

  Returns:
    The last carry; the sums of this device's own columns over the rows of all devices.
  """
  devices = device_count(form.axis)

  def visit_local(carry, part):
    part, sums = part
    carry, added = visit(carry, part)
    return carry, merge(sums, added)

  def visit_gathered(carry, part):
    carry, added = visit(carry, gather(part, form.axis))
    return carry, reduce_scatter(added, form.axis)

  if devices == 1:
    return scan_chunks(visit_local, carry, (columns, sums), form.chunk)
  if form.name == "chunked":
    return scan_chunks(visit_gathered, carry, columns, max(form.chunk // devices, 1))

  def ring_step(state, _):
    carry, columns, sums = state
    carry, sums = scan_chunks(visit_local, carry, (columns, sums), form.chunk)
    next_device = [(device, (device + 1) % devices) for device in range(devices)]
    # columns travel with their sums, so that each device adds its rows; after all steps both are home again
    columns, sums = jax.tree.map(lambda x: jax.lax.ppermute(x, form.axis, next_device), (columns, sums))
    return (carry, columns, sums), None

  (carry, _, sums), _ = jax.lax.scan(ring_step, (carry, columns, sums), None, length=devices)
  return carry, sums
