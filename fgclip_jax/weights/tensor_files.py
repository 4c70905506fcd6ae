"""Opens files of tensors: safetensors and PyTorch's own, single files or shards with an index."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors

from fgclip_jax.weights import torch_pickle

INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


class Tensors(Mapping):
  """Tensors by name, each read from disk when asked for."""

  def __init__(self, readers: Mapping[str, torch_pickle.Reader]):
    self._readers = dict(readers)

  def __getitem__(self, name: str) -> np.ndarray:
    return self._readers[name]()

  def __contains__(self, name: object) -> bool:
    return name in self._readers

  def __iter__(self) -> Iterator[str]:
    return iter(self._readers)

  def __len__(self) -> int:
    return len(self._readers)

  def renamed(self, rename: Callable[[str], str | None]) -> "Tensors":
    """The same tensors under other names; those that are named None are left out."""
    pairs = ((rename(name), reader) for name, reader in self._readers.items())
    return Tensors({name: reader for name, reader in pairs if name is not None})

  def replaced(self, values: Mapping[str, np.ndarray]) -> "Tensors":
    """The same tensors, with these in place of some."""
    return Tensors(self._readers | {name: functools.partial(np.copy, value) for name, value in values.items()})


def read_json(path: str) -> dict[str, Any]:
  """The JSON object in a file; a ValueError names the file where it holds none."""
  try:
    with open(path, encoding="utf-8") as file:
      value = json.load(file)
  except ValueError as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path!r} must hold a JSON object, holds a {type(value).__name__}")
  return value


def find_file(folder: str, names: Sequence[str]) -> str:
  """The file of a folder that holds its weights: the first of `names` (or its index), or else its only one.

  Raises:
    FileNotFoundError: there is none, or there are several to choose from.
  """
  for name in names:
    for candidate in (name + INDEX_SUFFIX, name):
      if os.path.isfile(os.path.join(folder, candidate)):
        return os.path.join(folder, candidate)
  others = [name for name in sorted(os.listdir(folder)) if name.endswith(SUFFIXES)]
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
    return Tensors(_open(path, allow_pickle))
  weight_map = read_json(path).get("weight_map", {})
  readers: dict[str, torch_pickle.Reader] = {}
  for name in sorted(set(weight_map.values())):
    shard = os.path.join(os.path.dirname(path), name)
    if not os.path.exists(shard):
      raise FileNotFoundError(f"{os.path.basename(path)} names {name!r}, which is not in {os.path.dirname(path)!r}")
    readers |= _open(shard, allow_pickle)
  lacking = sorted(set(weight_map) - set(readers))
  if lacking:
    raise ValueError(f"{path!r} promises tensors that its files lack: {', '.join(lacking)}")
  return Tensors(readers)


def _open(path: str, allow_pickle: bool) -> dict[str, torch_pickle.Reader]:
  with open(path, "rb") as file:
    start = file.read(16)
  # safetensors begins with a number, which can look like anything, and then a JSON object
  if start[8:9] != b"{" and start.startswith((torch_pickle.ZIP_START, torch_pickle.PICKLE_START)):
    if not allow_pickle and not torch_pickle.is_script(path):
      raise ValueError(
        f"{path!r} is a pickle, a format that can carry code. Pickles are parsed and never executed, but only when "
        "asked for: --allow_pickle (allow_pickle=True)"
      )
    return torch_pickle.open_pickle(path)
  try:
    file = safetensors.safe_open(path, framework="numpy")
    return {name: functools.partial(file.get_tensor, name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path!r} is not a readable safetensors file: {error}") from error
