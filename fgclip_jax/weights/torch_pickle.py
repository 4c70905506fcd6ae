"""Reads PyTorch's own files without PyTorch. Pickles are parsed and never executed.

There are three kinds: TorchScript archives (`torch.jit.save`), zip files with a pickled tree of modules beside their
code; zip files with a pickled object (`torch.save`); and the bare pickles that `torch.save` wrote before PyTorch 1.6.
A pickle names the functions that rebuild its objects, which is how it could run any code. The unpickler here resolves
no name: the few that build tensors stand for functions of its own, and an object of any other class becomes a note of
what it would have been made of, in which tensors can be found. NumPy cuts the tensors from the bytes.
"""

import functools
import io
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights.pickled import STORAGES, Global, Object, PickledTensor, Storage, rebuild

ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a file from before PyTorch 1.6
_MAX_TREE = 1 << 30  # bytes of a file's pickled object, without its tensors
_MAX_RATIO, _SMALL = 200, 64 << 20  # an entry that unpacks to more than this many times its size, and bytes, is a bomb

Fetch = Callable[[Storage], bytes]


class _Bounded:
  """A file that is asked for no more bytes than it has: a pickle may say that a text is of any length."""

  def __init__(self, file: Any):
    self._file, start = file, file.tell()
    self._end = file.seek(0, io.SEEK_END)
    file.seek(start)
    self.readline = file.readline

  def read(self, size: int) -> bytes:
    if size > self._end - self._file.tell():
      raise EOFError("it breaks off")
    return self._file.read(size)

  def readinto(self, buffer: bytearray) -> int:
    buffer[:] = self.read(len(buffer))
    return len(buffer)


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
  """Python's own parser of pickles, in which names stay names and nothing is called but `pickled.rebuild`.

  The one written in C cannot be used: it reserves memory for whatever place a pickle names in its memo, and it sets
  attributes of objects, classes included, as the pickle says.
  """

  dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)  # pyright: ignore[reportAttributeAccessIssue]
  stack: list[Any]
  append: Callable[[Any], None]
  pop_mark: Callable[[], list[Any]]
  readline: Callable[[], bytes]

  def __init__(self, file: Any):
    super().__init__(_Bounded(file), encoding="latin-1")
    self.storages: dict[str, Storage] = {}

  def find_class(self, module: str, name: str) -> Global:
    return Global(f"{module}.{name}")

  def get_extension(self, code: int) -> Global:
    return Global(f"extension {code}")

  def persistent_load(self, pid: Any) -> Storage | Global:
    if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module" and isinstance(pid[1], Global):
      return pid[1]  # a class, with its source beside it, in files from before PyTorch 1.6
    if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage" or not isinstance(pid[1], Global):
      raise pickle.UnpicklingError("a persistent id is not that of a tensor's storage")
    if not isinstance(pid[2], str | int):
      raise pickle.UnpicklingError("the key of a tensor's storage is no text")
    storage = Storage(pid[1].name, STORAGES.get(pid[1].name), str(pid[2]))
    return self.storages.setdefault(storage.key, storage)

  def _reduce(self):
    args = self.stack.pop()
    self.stack[-1] = rebuild(self.stack[-1], args)

  def _new_with_keywords(self):
    self.stack.pop()
    self._reduce()

  def _instance(self):
    module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
    args = tuple(self.pop_mark())
    self.append(rebuild(self.find_class(module, name), args))

  def _object(self):
    kind, *args = self.pop_mark()
    self.append(rebuild(kind, tuple(args)))

  def _build(self):
    state = self.stack.pop()
    if isinstance(self.stack[-1], Object):
      self.stack[-1].state = state

  def _set(self, pairs: list[Any]):
    target = self.stack[-1]
    entries = target.entries if isinstance(target, Object) else target
    if type(entries) is not dict:
      raise pickle.UnpicklingError("entries are set in something that is no dict")
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
      # other keys, such as tuples, name no weights, and hashing them may take any time
      entries[key if isinstance(key, str | int | float | bytes | None) else Object("key")] = value

  def _set_one(self):
    value, key = self.stack.pop(), self.stack.pop()
    self._set([key, value])

  def _extend(self, values: list[Any]):
    target = self.stack[-1]
    found = target.values if isinstance(target, Object) else target
    if type(found) is not list:
      raise pickle.UnpicklingError("values are added to something that is no list")
    found.extend(values)

  def _append_one(self):
    value = self.stack.pop()
    self._extend([value])

  def _set_of_values(self):
    self.append(Object("set"))

  def _frozen_set(self):
    self.append(Object("frozenset", tuple(self.pop_mark())))

  dispatch |= {
    pickle.REDUCE[0]: _reduce,
    pickle.NEWOBJ[0]: _reduce,
    pickle.NEWOBJ_EX[0]: _new_with_keywords,
    pickle.INST[0]: _instance,
    pickle.OBJ[0]: _object,
    pickle.BUILD[0]: _build,
    pickle.SETITEM[0]: _set_one,
    pickle.SETITEMS[0]: lambda self: self._set(self.pop_mark()),
    pickle.DICT[0]: lambda self: self._dict(self.pop_mark()),
    pickle.APPEND[0]: _append_one,
    pickle.APPENDS[0]: lambda self: self._extend(self.pop_mark()),
    pickle.ADDITEMS[0]: lambda self: self._extend(self.pop_mark()),
    pickle.EMPTY_SET[0]: _set_of_values,
    pickle.FROZENSET[0]: _frozen_set,
  }

  def _dict(self, pairs: list[Any]):
    self.append({})
    self._set(pairs)


def is_script(path: str) -> bool:
  """Whether a file is a TorchScript archive; False for any other kind of file, and for a damaged one."""
  try:
    with paths.open(path) as file, zipfile.ZipFile(file) as archive:
      return any(name.endswith("/constants.pkl") for name in archive.namelist())
  except DAMAGE:
    return False


def open_pickle(path: str) -> tuple[Any, Fetch]:
  """What a file holds, with `pickled.PickledTensor` for its tensors, and a function that reads a storage's bytes.

  Raises:
    ValueError: the file is damaged; names it.
  """
  try:
    with paths.open(path) as file:
      zipped = file.read(len(ZIP_START)) == ZIP_START
    return (_open_zip if zipped else _open_legacy)(path)
  except DAMAGE as error:
    raise ValueError(f"{path!r} cannot be read as PyTorch weights: {_reason(error)}") from error


# what the parsers of pickles and zip files raise for damaged ones; of OSError only those of an unpacker, without errno
DAMAGE = (
  pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, LookupError,
  TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AssertionError,
)  # fmt: skip


def _reason(error: BaseException) -> str:
  lines = printable(str(error)).splitlines()
  return (lines[0] if lines else type(error).__name__)[:300]


def read_tensor(path: str, name: str, tensor: PickledTensor, fetch: Fetch) -> Any:
  """The tensor as an array; a ValueError names the file and the tensor."""
  try:
    return tensor.cut(fetch(tensor.storage))
  except DAMAGE as error:
    raise ValueError(f"{path!r}: tensor {printable(name)} cannot be read: {_reason(error)}") from error


def _open_zip(path: str) -> tuple[Any, Fetch]:
  archive = zipfile.ZipFile(path)
  names = set(archive.namelist())
  trees = sorted((name for name in names if name.split("/")[1:] == ["data.pkl"] or name == "data.pkl"), key=len)
  if not trees:
    raise ValueError("it is a zip file, but none of torch.save's: it holds no data.pkl")
  root = trees[0].removesuffix("data.pkl")
  read = functools.partial(_read_entry, archive)
  if f"{root}byteorder" in names and read(f"{root}byteorder") != b"little":
    raise ValueError("its numbers are big-endian")
  with io.BytesIO(read(trees[0])) as file:
    tree = _Unpickler(file).load()
  return tree, lambda storage: read(f"{root}data/{storage.key}")


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
  entry = archive.getinfo(name)
  packed = entry.compress_type != zipfile.ZIP_STORED
  if packed and entry.file_size > max(_SMALL, _MAX_RATIO * entry.compress_size):
    raise ValueError(f"entry {name} says that it unpacks to {entry.file_size:,} bytes of {entry.compress_size:,}")
  if name.endswith("data.pkl") and entry.file_size > _MAX_TREE:
    raise ValueError(f"entry {name} of {entry.file_size:,} bytes is too large")
  try:
    return archive.read(name)
  except OSError as error:
    if error.errno is None:  # bz2's
      raise ValueError(f"entry {name}: {error}") from error
    raise


def _open_legacy(path: str) -> tuple[Any, Fetch]:
  with paths.open(path) as file:
    if _Unpickler(file).load() != _LEGACY_MAGIC:
      raise ValueError("it is a pickle, but not one of torch.save's")
    for _ in ("protocol version", "system information"):
      _Unpickler(file).load()
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    keys = _Unpickler(file).load()
    if not isinstance(keys, list):
      raise ValueError("it has no list of storages")
    places = {}
    for key in keys:
      count = int.from_bytes(file.read(8), "little")
      if not isinstance(key, str) or (storage := unpickler.storages.get(key)) is None or storage.dtype is None:
        raise ValueError("a storage is of an unknown kind, so that those after it cannot be found")
      size = count * storage.dtype.itemsize
      places[key] = (file.tell(), size)
      file.seek(size, 1)

  def fetch(storage):
    offset, size = places[storage.key]
    with paths.open(path) as file:
      file.seek(offset)
      return file.read(size)

  return tree, fetch
