"""Tables that map our parameters' names to another library's; one table serves reading and writing.

A row maps some of our leaves to some of their tensors: mostly one to one, three to one where they keep a fused matrix.
In a row with layers, `{}` in their names is a layer's number, and our leaves stack all layers along their first axis.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.storage.skip_report import printable

Arrays = tuple[np.ndarray, ...]
_SHOWN = 100  # tensors at fault that a message lists
_LARGE = 1 << 28  # elements; below, `Row.shapes` may take memory for them


@dataclasses.dataclass(frozen=True)
class Row:
  """One row: names on both sides and how arrays change between them.

  Attributes:
    ours, theirs: the names; of one layer, if there are layers.
    read: their arrays to ours.
    write: our arrays to theirs, the inverse of `read`.
    layers: the numbers of the layers that our leaves stack; None: they are not stacked.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  read: Callable[..., Arrays]
  write: Callable[..., Arrays]
  layers: range | None = None

  def names(self) -> list[tuple[str, ...]]:
    """Their names, layer by layer."""
    layers = [None] if self.layers is None else self.layers
    return [tuple(name.format(layer) for name in self.theirs) for layer in layers]

  def shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of their tensors (of one layer), from those of our leaves."""
    first = 0 if self.layers is None else 1
    ours = (np.broadcast_to(np.int8(0), tuple(shapes[name])[first:]) for name in self.ours)
    return [value.shape for value in self.write(*ours)]


def same(ours: str, theirs: str, layers: range | None = None) -> Row:
  """A row whose arrays are equal."""
  return Row((ours,), (theirs,), lambda x: (x,), lambda x: (x,), layers)


def transposed(ours: str, theirs: str, layers: range | None = None) -> Row:
  """A row of matrices: ours are [inputs, outputs], theirs [outputs, inputs]."""

  def turn(x):
    return (np.ascontiguousarray(x.T),)

  return Row((ours,), (theirs,), turn, turn, layers)


def convolution(ours: str, theirs: str, layers: range | None = None) -> Row:
  """A row of convolutions' kernels: ours are [height, width, in, out], theirs [out, in, height, width]."""

  def read(x):
    return (np.ascontiguousarray(x.transpose(2, 3, 1, 0)),)

  def write(x):
    return (np.ascontiguousarray(x.transpose(3, 2, 0, 1)),)

  return Row((ours,), (theirs,), read, write, layers)


def patches(ours: str, theirs: str, side: int) -> Row:
  """The row of the patch embedding: ours is [side * side * 3, W], theirs a convolution [W, 3, side, side]."""

  def read(x):
    return (np.ascontiguousarray(x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])),)

  def write(x):
    return (np.ascontiguousarray(x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)),)

  return Row((ours,), (theirs,), read, write)


def norm(ours: str, theirs: str, layers: range | None = None) -> list[Row]:
  """The rows of a LayerNorm."""
  return [same(f"{ours}/scale", f"{theirs}.weight", layers), same(f"{ours}/bias", f"{theirs}.bias", layers)]


def linear(ours: str, theirs: str, layers: range | None = None) -> list[Row]:
  """The rows of a linear layer with a bias."""
  return [transposed(f"{ours}/kernel", f"{theirs}.weight", layers), same(f"{ours}/bias", f"{theirs}.bias", layers)]


def expanded(ours: str, theirs: str, axes: int, layers: range | None = None) -> Row:
  """A row of equal numbers whose array has further first axes of length one on their side."""

  def read(x):
    return (x.reshape(x.shape[axes:]),)

  return Row((ours,), (theirs,), read, lambda x: (x.reshape((1,) * axes + x.shape),), layers)


def fused(ours: str, theirs: str, layers: range | None = None) -> list[Row]:
  """The rows of query, key and value, which theirs keep in one matrix and one bias."""
  names = [f"{ours}/{part}" for part in ("query", "key", "value")]

  def read_kernels(x):
    return tuple(np.ascontiguousarray(part.T) for part in np.split(x, 3))

  def write_kernels(*parts):
    return (np.concatenate([part.T for part in parts]),)

  return [
    Row(tuple(f"{name}/kernel" for name in names), (f"{theirs}_weight",), read_kernels, write_kernels, layers),
    Row(
      tuple(f"{name}/bias" for name in names),
      (f"{theirs}_bias",),
      lambda x: tuple(np.split(x, 3)),
      lambda *parts: (np.concatenate(parts),),
      layers,
    ),
  ]


@functools.cache
def leaf_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
  """The shape of each leaf of a model of this size; cached, since finding them traces the model."""
  return types.MappingProxyType({name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()})


def tensor_shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
  """A tensor's shape; of tensors in a file (`tensor_files.Tensors`) without reading it."""
  found = getattr(tensors, "shape", None)
  return found(name) if found else tensors[name].shape


def read_rows(
  rows: Sequence[Row], tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Their tensors as our flat parameters.

  Args:
    rows: the table.
    tensors: by their names. A mapping that reads on access (`Tensors`) is read one leaf at a time, to save memory.
    shapes: the shape of each of our leaves.

  Raises:
    ValueError: lists the missing, misshapen and extra tensors, at most `_SHOWN` of them.
  """
  faults, flat, used = [], {}, set()
  shape_of = functools.partial(tensor_shape, tensors)
  there = sum(math.prod(shape_of(name)) for name in tensors)
  for row in rows:
    if (size := sum(math.prod(shapes[name]) for name in row.ours)) > max(there, _LARGE):
      raise ValueError(
        f"a model of this size has {size:,} parameters in {row.ours[0]} alone, and all tensors together have {there:,}"
      )
    expected, layers = row.shapes(shapes), []
    for names in row.names():
      used.update(names)
      values = []
      for name, shape in zip(names, expected, strict=True):
        if name not in tensors:
          faults.append(f"missing    {name} {shape}")
        elif (found := shape_of(name)) != shape:
          faults.append(f"misshapen  {name} {found}, expected {shape}")
        else:
          values.append(tensors[name])
      if len(values) == len(names):
        layers.append(row.read(*values))
    if len(layers) == len(row.names()):
      for index, name in enumerate(row.ours):
        parts = [layer[index] for layer in layers]
        flat[name] = parts[0] if row.layers is None else np.stack(parts)
  faults += [f"extra      {printable(name)} {shape_of(name)}" for name in sorted(set(tensors) - used)]
  if faults:
    shown = [*faults[:_SHOWN], *([f"... and {len(faults) - _SHOWN:,} more"] if len(faults) > _SHOWN else [])]
    raise ValueError(f"{len(faults)} tensors do not fit the model that is described:\n  " + "\n  ".join(shown))
  return flat


def write_rows(rows: Sequence[Row], flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Our flat parameters as their tensors: the inverse of `read_rows`."""
  tensors = {}
  for row in rows:
    leaves = [np.asarray(flat[name]) for name in row.ours]
    for index, names in enumerate(row.names()):
      values = leaves if row.layers is None else [leaf[index] for leaf in leaves]
      tensors |= dict(zip(names, row.write(*values), strict=True))
  return tensors
