"""What is kept of the objects in a pickle: tensors as views of storages, all else as notes that nothing executes."""

import dataclasses
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES: dict[str, Any] = {
  "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16, "Long": np.int64,
  "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
  "ComplexFloat": np.complex64, "ComplexDouble": np.complex128,
}  # fmt: skip
STORAGES = {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}
STORAGES |= {f"torch{part}.UntypedStorage": np.dtype(np.uint8) for part in ("", ".storage")}
_V3_DTYPES = {f"torch.{name}": np.dtype(name) for name in ("uint16", "uint32", "uint64")}
_SHARED = (
  1 << 20
)  # elements: a tensor that shows its storage's more than once, as `expand` makes, is at most this large


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
  """The dotted name of a class or a function."""

  name: str


class Object:
  """An object of any class but a tensor's, which is never made.

  Attributes:
    kind: the name of its class, or of the function that would make it.
    args: what that would be called with.
    state: what would then be set in it, mostly a dict of its attributes.
    entries, values: what would be put into it as into a dict or a list.
  """

  __slots__ = ("args", "entries", "kind", "state", "values")

  def __init__(self, kind: str, args: tuple = ()):
    self.kind, self.args, self.state = kind, args, None
    self.entries: dict[Any, Any] = {}
    self.values: list[Any] = []


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
  """A tensor's numbers in the file: the name of its class, its dtype (None: one that is not read), and its key."""

  kind: str
  dtype: np.dtype | None
  key: str


@dataclasses.dataclass(frozen=True, slots=True)
class PickledTensor:
  """A view of a storage; offset and strides count elements."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def cut(self, data: bytes) -> np.ndarray:
    """The tensor, from the bytes of its storage; a ValueError where it does not fit in them."""
    size, count = self.dtype.itemsize, math.prod(self.shape)
    if count == 0:
      return np.zeros(self.shape, self.dtype)
    there = len(data) // size
    last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
    if self.offset + last >= there:
      raise ValueError(f"it does not lie within the {there:,} elements of its storage")
    if count > max(there, _SHARED):
      raise ValueError(f"its shape {self.shape} has more elements than the {there:,} of its storage")
    view = np.ndarray(self.shape, self.dtype, data, size * self.offset, [size * stride for stride in self.strides])
    return np.array(view, order="C")


def rebuild(function: Any, args: Any) -> Any:
  """What a pickle's call stands for: a tensor, a dict, what it wraps; or a note of the call."""
  if not isinstance(args, tuple):
    raise pickle.UnpicklingError("a call has no tuple of arguments")
  if not isinstance(function, Global):
    return Object(function.kind if isinstance(function, Object) else "unknown", args)
  return _BUILDERS[function.name](*args) if function.name in _BUILDERS else Object(function.name, args)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
  return _view(storage, getattr(storage, "dtype", None), offset, shape, strides)


def _tensor_v3(
  storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Any:
  return _view(storage, _V3_DTYPES.get(getattr(dtype, "name", "")), offset, shape, strides)


def _view(storage: Any, dtype: np.dtype | None, offset: Any, shape: Any, strides: Any) -> Any:
  if not isinstance(storage, Storage):
    raise pickle.UnpicklingError("a tensor has no storage")
  if dtype is None:
    return Object(f"tensor of {storage.kind}")
  sizes = [offset, *(shape if isinstance(shape, tuple | list) else [None])]
  sizes += strides if isinstance(strides, tuple | list) else [None]
  if any(not isinstance(size, int) or size < 0 for size in sizes) or len(shape) != len(strides):
    raise pickle.UnpicklingError("a tensor's shape, strides or offset are no sizes")
  return PickledTensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
  return value


def _of_type(function: Any, _type: Any, args: Any, *_: Any) -> Any:
  """A tensor of a subclass."""
  return rebuild(function, args)


def _mapping(*args: Any) -> dict[Any, Any]:
  """An ordered dict, which older pickles make of a list of pairs."""
  pairs = args[0] if args and isinstance(args[0], list) else []
  pairs = [pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)]
  return dict(pairs)


_BUILDERS: dict[str, Callable[..., Any]] = {
  "collections.OrderedDict": _mapping,
  "collections.defaultdict": lambda *_: {},
  "builtins.dict": _mapping,
  "torch.Size": _first,
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch._utils._rebuild_tensor_v3": _tensor_v3,
  "torch._utils._rebuild_parameter": _first,
  "torch._utils._rebuild_parameter_with_state": _first,
  "torch._tensor._rebuild_from_type_v2": _of_type,
  "torch.jit._pickle.restore_type_tag": _first,
  **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("int", "tensor", "double", "bool")},
}


def numpy_array(node: Object) -> np.ndarray | None:
  """The array of numbers that an object stands for, if it is one of NumPy's."""
  if not re.fullmatch(r"numpy\.(_?core)\.multiarray\._reconstruct", node.kind) or not isinstance(node.state, tuple):
    return None
  _, shape, kind, fortran, data = node.state if len(node.state) == 5 else (None,) * 5
  if isinstance(data, Object) and data.kind == "_codecs.encode":  # how older pickles keep bytes
    data = data.args[0].encode("latin-1") if data.args and isinstance(data.args[0], str) else None
  name = kind.args[0] if isinstance(kind, Object) and kind.args else None
  big = isinstance(kind, Object) and isinstance(kind.state, tuple) and ">" in kind.state[1:2]
  if name not in _NUMPY or big or not isinstance(data, bytes) or not isinstance(shape, tuple):
    return None
  return np.frombuffer(data, _NUMPY[name]).reshape(shape, order="F" if fortran else "C")


_NUMPY = {code: np.dtype(code) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")}
