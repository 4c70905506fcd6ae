"""Opens files of tensors: safetensors and PyTorch's own, single files or shards with an index."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors

from fgclip_jax.storage import folders, paths, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights import families, state_dict, torch_pickle

INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Reader:
  """A tensor in a file: its shape, and what reads it."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


class Tensors(Mapping):
  """Tensors by name, each read from disk when asked for.

  Attributes:
    note: what was taken from the file, and what was not; empty where that is all of it.
  """

  def __init__(self, readers: Mapping[str, Reader], note: str = ""):
    self._readers, self.note = dict(readers), note

  def __getitem__(self, name: str) -> np.ndarray:
    return self._readers[name].read()

  def __contains__(self, name: object) -> bool:
    return name in self._readers

  def __iter__(self) -> Iterator[str]:
    return iter(self._readers)

  def __len__(self) -> int:
    return len(self._readers)

  def shape(self, name: str) -> tuple[int, ...]:
    """A tensor's shape, without reading it."""
    return self._readers[name].shape

  def print_note(self) -> None:
    """Prints the note, if there is one."""
    if self.note:
      print(self.note, file=sys.stderr)

  def renamed(self, rename: Callable[[str], str | None]) -> "Tensors":
    """The same tensors under other names; those that are named None are left out."""
    pairs = ((rename(name), reader) for name, reader in self._readers.items())
    return Tensors({name: reader for name, reader in pairs if name is not None}, self.note)

  def replaced(self, values: Mapping[str, np.ndarray]) -> "Tensors":
    """The same tensors, with these in place of some."""
    others = {name: Reader(value.shape, functools.partial(np.copy, value)) for name, value in values.items()}
    return Tensors(self._readers | others, self.note)


def read_json(path: str) -> dict[str, Any]:
  """The JSON object in a file; a ValueError names the file where it holds none."""
  try:
    value = json.loads(text.read(path), parse_int=_parse_int)
  except RecordError as error:
    raise ValueError(f"{path!r} is not JSON: {error.message}") from error
  except RecursionError:
    raise ValueError(f"{path!r} is not JSON of a model: it is nested too deeply") from None
  except ValueError as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path!r} must hold a JSON object, holds a {type(value).__name__}")
  return value


def _parse_int(digits: str) -> int:
  value = int(digits)
  if not -(1 << 63) <= value < 1 << 63:  # arithmetic with floats and arrays would overflow
    raise ValueError(f"it holds a number of {len(digits)} digits, {digits:.20}")
  return value


def index_shards(path: str) -> dict[str, str]:
  """The file that holds each tensor, by the tensor's name, as an index file says: names of files beside it.

  Raises:
    ValueError: names the index, and the entry that is no name of a file beside it.
  """
  weight_map = read_json(path).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{path!r} is no index of shards: it has no weight_map of names and files")
  for name, shard in weight_map.items():
    if not isinstance(shard, str) or shard in ("", ".", "..") or shard != os.path.basename(shard) or "\0" in shard:
      found = printable(repr(shard)[:80])
      raise ValueError(f"{path!r}: weight_map[{printable(repr(name)[:80])}] = {found} is no file beside it")
  return weight_map


def find_file(folder: str, names: Sequence[str]) -> str:
  """The file of a folder that holds its weights: the first of `names` (or its index), or else its only one.

  Raises:
    FileNotFoundError: there is none, or there are several to choose from.
  """
  for name in names:
    for candidate in (name + INDEX_SUFFIX, name):
      if os.path.isfile(os.path.join(folder, candidate)):
        return os.path.join(folder, candidate)
  others = [name for name in folders.list_files(folder) if name.endswith(SUFFIXES)]
  if len(others) == 1:
    return os.path.join(folder, others[0])
  several = f"; it holds {', '.join(others)}: give the path of one" if others else ""
  raise FileNotFoundError(f"no {' or '.join(names)} in {folder!r}{several}")


def open_tensors(path: str, allow_pickle: bool = False) -> Tensors:
  """Opens a file of tensors, or the shards that an index file names.

  Args:
    path: a file: safetensors, TorchScript, a PyTorch pickle, or an index (`*.index.json`) of such files.
    allow_pickle: a pickle may be opened. It is parsed and never executed (see `torch_pickle`). TorchScript, parsed in
      the same way, needs no permission.

  Raises:
    FileNotFoundError: there is no such file, or the index names one that is not there.
    ValueError: a file is of none of these kinds, damaged, or a pickle without permission; or it lacks a tensor that
      the index promises. Names the file.
  """
  if not path.endswith(INDEX_SUFFIX):
    found, entries = _open(path, allow_pickle)
    if not found:
      there = f", only {', '.join(entries[:20])}" if entries else ""
      raise ValueError(f"{path!r} holds no state dict: there is no tensor in it{there}")
    return _select(path, found)
  folder, weight_map, found = os.path.dirname(path), index_shards(path), []
  for name in sorted(set(weight_map.values())):
    shard = os.path.join(folder, name)
    if not os.path.exists(shard):
      raise FileNotFoundError(f"{os.path.basename(path)} names {printable(repr(name))}, which is not in {folder!r}")
    found += _open(shard, allow_pickle)[0]
  lacking = sorted(set(weight_map) - {leaf.name for leaf in found})
  if lacking:
    names = printable(", ".join(lacking[:10]))
    raise ValueError(f"{path!r} promises tensors that its files lack: {names}{', ...' if len(lacking) > 10 else ''}")
  return _select(path, list({leaf.name: leaf for leaf in found}.values()))


def _select(path: str, found: list[state_dict.Leaf]) -> Tensors:
  try:
    chosen = state_dict.select(found)
  except ValueError as error:
    raise ValueError(f"{path!r}: {error}") from None
  families.check_names(path, chosen.around)
  note = chosen.note()
  return Tensors(chosen.tensors, note and f"{path!r}: {note}")


def _open(path: str, allow_pickle: bool) -> tuple[list[state_dict.Leaf], list[str]]:
  """The tensors of a file, as `Reader`s, and what else lies in it at the top."""
  with paths.open(path) as file:
    start = file.read(16)
  # safetensors begins with a number, which can look like anything, and then a JSON object
  if start[8:9] != b"{" and start.startswith((torch_pickle.ZIP_START, torch_pickle.PICKLE_START)):
    if not allow_pickle and not torch_pickle.is_script(path):
      raise ValueError(
        f"{path!r} is a pickle, a format that can carry code. Pickles are parsed and never executed, but only when "
        "asked for: --allow_pickle (allow_pickle=True)"
      )
    return _open_pickle(path)
  try:
    file = safetensors.safe_open(path, framework="numpy")
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
  except Exception as error:  # the library raises Python's own errors for some headers
    reason = printable(str(error))
    raise ValueError(f"{path!r} is not a readable safetensors file: {reason}") from error
  read = functools.partial(_read_tensor, path, file)
  return [state_dict.Leaf(name, "", Reader(shape, functools.partial(read, name))) for name, shape in shapes.items()], []


def _read_tensor(path: str, file: Any, name: str) -> np.ndarray:
  try:
    return file.get_tensor(name)
  except Exception as error:  # dtypes that NumPy lacks raise whatever comes
    kind = file.get_slice(name).get_dtype()
    raise ValueError(
      f"{path!r}: tensor {printable(name)} cannot be read: it is of dtype {kind} ({printable(str(error))})"
    ) from error


def _open_pickle(path: str) -> tuple[list[state_dict.Leaf], list[str]]:
  tree, fetch = torch_pickle.open_pickle(path)
  try:
    found, entries = state_dict.leaves(tree)
  except torch_pickle.DAMAGE as error:
    raise ValueError(f"{path!r} cannot be read as PyTorch weights: {printable(str(error))}") from error

  def reader(leaf):
    if isinstance(leaf.tensor, np.ndarray):
      return Reader(leaf.tensor.shape, functools.partial(np.array, leaf.tensor, order="C"))
    return Reader(leaf.tensor.shape, functools.partial(torch_pickle.read_tensor, path, leaf.name, leaf.tensor, fetch))

  return [dataclasses.replace(leaf, tensor=reader(leaf)) for leaf in found], entries
