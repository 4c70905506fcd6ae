"""Reads PyTorch's own files without PyTorch. Pickles are parsed and never executed.

There are three kinds: TorchScript archives (`torch.jit.save`), zip files with a pickled tree of modules beside their
code; zip files with a pickled state dict (`torch.save`); and the bare pickles that `torch.save` wrote before PyTorch
1.6. A pickle names the functions that rebuild its objects, which is how it could run any code. The unpickler here maps
the few names that build tensors to functions of its own and refuses all others; NumPy cuts the tensors from the bytes.
"""

import dataclasses
import functools
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a file from before PyTorch 1.6
_STORAGES = {
  "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
  "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip

Reader = Callable[[], np.ndarray]


class _Module:
  """Any TorchScript module: its parameters and submodules become attributes, its code is never read."""


@dataclasses.dataclass(frozen=True)
class _Storage:
  dtype: np.dtype
  key: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage; offset and strides count elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def cut(self, data: bytes) -> np.ndarray:
    """The tensor, from the bytes of its storage; NumPy checks that it fits in them."""
    size = self.storage.dtype.itemsize
    strides = [size * stride for stride in self.strides]
    if math.prod(self.shape) == 0:
      return np.zeros(self.shape, self.storage.dtype)
    view = np.ndarray(self.shape, self.storage.dtype, data, size * self.offset, strides)
    return np.array(view, order="C")


def _rebuild_tensor(storage, offset, shape, strides, *_):
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError(f"a tensor's storage is a {type(storage).__name__}")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _first(value, *_):
  return value


_KNOWN = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): _first,
  ("torch.jit._pickle", "restore_type_tag"): _first,
  **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "tensor", "double", "bool")},
  **{("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
  """Builds tensors, ordered dicts and, in TorchScript, modules, and nothing else. Keeps storages by their keys."""

  def __init__(self, file: IO[bytes], script: bool = False):
    super().__init__(file, encoding="utf-8")
    self._script, self.storages = script, {}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in _KNOWN:
      return _KNOWN[module, name]
    if self._script and module.split(".")[0] == "__torch__":
      return _Module
    raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no part of weights")

  def persistent_load(self, key: Any) -> _Storage:
    kind, dtype, name = key[:3]
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise pickle.UnpicklingError(f"{key!r} is not a tensor's storage")
    self.storages[str(name)] = storage = _Storage(dtype, str(name))
    return storage


def is_script(path: str) -> bool:
  """Whether a file is a TorchScript archive; False for any other kind of file."""
  if not zipfile.is_zipfile(path):
    return False
  with zipfile.ZipFile(path) as archive:
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def open_pickle(path: str) -> dict[str, Reader]:
  """The tensors of a file by name, each as a function that reads it.

  A training checkpoint's `state_dict` is taken, and the `module.` before its names is dropped.

  Raises:
    ValueError: the file is damaged, holds something that is no tensor, or no tensors at all; names it.
  """
  try:
    with open(path, "rb") as file:
      zipped = file.read(len(ZIP_START)) == ZIP_START
    tree, fetch = (_open_zip if zipped else _open_legacy)(path)
    named = _named_tensors(tree)
    # every tensor is found here, so that a damaged file fails by its name and not when a tensor is read
    return {name: functools.partial(_cut, path, name, tensor, fetch) for name, tensor in named.items()}
  except _DAMAGE as error:
    raise ValueError(f"{path!r} cannot be read as PyTorch weights: {error}") from error


_DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError, TypeError, AttributeError,
           ValueError, OverflowError, NotImplementedError)  # fmt: skip


def _cut(path: str, name: str, tensor: _Tensor, fetch: Callable[[str], bytes]) -> np.ndarray:
  try:
    return tensor.cut(fetch(tensor.storage.key))
  except _DAMAGE as error:
    raise ValueError(f"{path!r}: tensor {name} cannot be read: {error}") from error


def _open_zip(path: str) -> tuple[Any, Callable[[str], bytes]]:
  archive = zipfile.ZipFile(path)
  names = set(archive.namelist())
  (root,) = {name.split("/")[0] for name in names}
  if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
    raise ValueError("its numbers are big-endian")
  with archive.open(f"{root}/data.pkl") as file:
    tree = _Unpickler(file, script=f"{root}/constants.pkl" in names).load()
  return tree, lambda key: archive.read(f"{root}/data/{key}")


def _open_legacy(path: str) -> tuple[Any, Callable[[str], bytes]]:
  with open(path, "rb") as file:
    if _Unpickler(file).load() != _LEGACY_MAGIC:
      raise ValueError("it is a pickle, but not one of torch.save's")
    for _ in ("protocol version", "system information"):
      _Unpickler(file).load()
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    places = {}
    for key in _Unpickler(file).load():
      count = int.from_bytes(file.read(8), "little")
      size = count * unpickler.storages[key].dtype.itemsize
      places[key] = (file.tell(), size)
      file.seek(size, 1)

  def fetch(key):
    offset, size = places[key]
    with open(path, "rb") as file:
      file.seek(offset)
      return file.read(size)

  return tree, fetch


def _named_tensors(tree: Any) -> dict[str, _Tensor]:
  """The tensors of a state dict or of a tree of modules, by their dotted names."""
  if isinstance(tree, _Module):
    return dict(_walk(tree, ""))
  if isinstance(tree, Mapping) and "state_dict" in tree:
    tree = tree["state_dict"]
  if not isinstance(tree, Mapping) or not tree:
    raise ValueError("it holds no state dict")
  for name, value in tree.items():
    if not isinstance(value, _Tensor):
      raise ValueError(f"its entry {name!r} is a {type(value).__name__}, not a tensor")
  return {str(name).removeprefix("module."): tensor for name, tensor in tree.items()}


def _walk(module: _Module, prefix: str):
  for name, value in vars(module).items():
    if isinstance(value, _Tensor):
      yield prefix + name, value
    elif isinstance(value, _Module):
      yield from _walk(value, f"{prefix}{name}.")
