"""Checkpoints as plain files, for storage that Orbax cannot write and for disks that no other machine sees.

Each process writes a part of its own: `part-I.bin` holds pieces of arrays, raw, one after another, and `part-I.json`
says which, with a CRC-32 of each. Nothing but these files is needed to read a part, so that a process needs no shared
disk. In durable storage a marker, written last, says that all parts of a save are there.
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgclip_jax.models.params import named_leaves
from fgclip_jax.storage import paths

FORMAT = 1
MARKER = "complete.json"
_THREADS = 8  # that read pieces: storage answers many requests at once faster than one after another

Start = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class HostArray:
  """What one process holds of an array, on the host: pieces by where they begin."""

  shape: tuple[int, ...]
  pieces: dict[Start, np.ndarray]
  dtype: str


def to_host(tree: Any, every_replica: bool) -> dict[str, HostArray]:
  """Copies this process's pieces of a tree's arrays to the host, by the arrays' names.

  Args:
    tree: of `jax.Array`s.
    every_replica: takes all that this process's devices hold, for a disk that no other process sees; else of what
      several processes hold, one takes it.
  """
  leaves = named_leaves(tree)
  chosen = {name: _own_shards(leaf, every_replica) for name, leaf in leaves.items()}
  for shards in chosen.values():
    for data in shards.values():
      data.copy_to_host_async()
  return {
    # a copy: on CPUs the array is the device's memory, which the next step overwrites
    name: HostArray(
      leaves[name].shape,
      {start: np.array(jax.device_get(data), copy=True) for start, data in shards.items()},
      leaves[name].dtype.name,
    )
    for name, shards in chosen.items()
  }


def _own_shards(leaf: jax.Array, every_replica: bool) -> dict[Start, jax.Array]:
  shards = [shard for shard in leaf.addressable_shards if every_replica or shard.replica_id == 0]
  return {tuple(part.start or 0 for part in shard.index): shard.data for shard in shards}


def write_part(folder: str, number: int, arrays: Mapping[str, HostArray], note: Mapping[str, Any]) -> tuple[str, str]:
  """Writes a process's part into a folder of this machine, its description last; returns the two paths.

  Args:
    folder: is made if need be.
    number: the process's.
    arrays: from `to_host`.
    note: what the description says beside the pieces; JSON.
  """
  os.makedirs(folder, exist_ok=True)
  data, description = (os.path.join(folder, f"part-{number}.{ending}") for ending in ("bin", "json"))
  described: dict[str, Any] = {}
  offset = 0
  with open(data, "wb") as file:
    for name, array in arrays.items():
      pieces = []
      for start, piece in array.pieces.items():
        content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        file.write(content)
        entry = {"start": start, "shape": piece.shape, "offset": offset, "crc32": zlib.crc32(content)}
        pieces.append(entry)
        offset += len(content)
      described[name] = {"shape": array.shape, "dtype": array.dtype, "pieces": pieces}
    file.flush()
    os.fsync(file.fileno())
  content = json.dumps({"format": FORMAT, **note, "size": offset, "arrays": described}).encode()
  paths.write(description, content)
  return data, description


def read_description(folder: str, number: int) -> dict[str, Any]:
  """What `part-I.json` says.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of another version.
  """
  path = paths.join(folder, f"part-{number}.json")
  found = json.loads(paths.read(path))
  if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("arrays"), dict):
    raise ValueError(f"{path!r} does not describe a part of a checkpoint of format {FORMAT}")
  return found


def part_numbers(folder: str) -> list[int]:
  """The numbers of the parts that are whole."""
  names = (name.removeprefix("part-").removesuffix(".json") for name in paths.list_folder(folder))
  return sorted(int(name) for name in names if name.isdecimal())


@dataclasses.dataclass(frozen=True)
class _Piece:
  path: str
  start: Start
  shape: tuple[int, ...]
  offset: int
  crc: int


class Parts:
  """The arrays of a checkpoint, as far as the given parts hold them.

  Args:
    folder: the checkpoint's, here or in storage.
    numbers: of the parts.
    save: what `note["save"]` has to be, where several saves may have written here.

  Attributes:
    shapes: shape and dtype of each array, by name.
    notes: what the parts' descriptions say.

  Raises:
    FileNotFoundError: a part is not there.
    ValueError: a description is damaged, or of another save.
  """

  def __init__(self, folder: str, numbers: Iterable[int], save: str | None = None):
    self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
    self.notes: list[dict[str, Any]] = []
    self._pieces: dict[str, dict[tuple[Start, tuple[int, ...]], _Piece]] = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      found = list(pool.map(lambda number: (number, read_description(folder, number)), numbers))
    for number, part in found:
      arrays = part.pop("arrays")
      if save is not None and part.get("save") != save:
        raise ValueError(f"part {number} of {folder!r} is of another save")
      self.notes.append(part)
      self._add(folder, number, arrays)

  def _add(self, folder: str, number: int, arrays: Mapping[str, Any]) -> None:
    path = paths.join(folder, f"part-{number}.bin")
    try:
      for name, array in arrays.items():
        self.shapes[name] = jax.ShapeDtypeStruct(tuple(array["shape"]), jnp.dtype(array["dtype"]))
        pieces = self._pieces.setdefault(name, {})
        for each in array["pieces"]:
          start, shape = tuple(map(int, each["start"])), tuple(map(int, each["shape"]))
          pieces[start, shape] = _Piece(path, start, shape, int(each["offset"]), int(each["crc32"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ValueError(f"{path!r} is described wrongly: {error}") from error

  def read(self, wanted: Any, prefix: str = "") -> Any:
    """Reads a tree of arrays, onto the devices that it names.

    Args:
      wanted: a tree of `jax.ShapeDtypeStruct`s with shardings; another dtype is cast to.
      prefix: of the names in the parts.

    Raises:
      OSError: a piece cannot be read, is not what was saved, or is in none of the parts.
    """
    names = [f"{prefix}{name}" for name in named_leaves(wanted)]
    leaves, structure = jax.tree.flatten(wanted)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      pieces = dict(pool.map(self._read_piece, self._needed(names, leaves)))
    arrays = [self._make(name, leaf, pieces) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)

  def _needed(self, names: list[str], leaves: list[jax.ShapeDtypeStruct]) -> list[tuple[str, _Piece]]:
    needed = {}
    for name, leaf in zip(names, leaves, strict=True):
      assert leaf.sharding is not None
      for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
        assert index is not None
        for piece in self._pieces.get(name, {}).values():
          if _overlap(piece, index, leaf.shape):
            needed[name, piece.start, piece.shape] = (name, piece)
    return list(needed.values())

  def _read_piece(self, entry: tuple[str, _Piece]) -> tuple[tuple[str, Start, tuple[int, ...]], np.ndarray]:
    name, piece = entry
    dtype = self.shapes[name].dtype
    content = paths.read(piece.path, piece.offset, math.prod(piece.shape) * dtype.itemsize)
    if len(content) != math.prod(piece.shape) * dtype.itemsize or zlib.crc32(content) != piece.crc:
      raise OSError(f"{name} in {piece.path!r} is not what was saved: the storage has changed it, or lost its end")
    return (name, piece.start, piece.shape), np.frombuffer(content, dtype).reshape(piece.shape)

  def _make(self, name: str, leaf: jax.ShapeDtypeStruct, pieces: Mapping[Any, np.ndarray]) -> jax.Array:
    own = [pieces[name, start, shape] for start, shape in self._pieces.get(name, {}) if (name, start, shape) in pieces]
    places = [key for key in self._pieces.get(name, {}) if (name, *key) in pieces]
    made: dict[Any, np.ndarray] = {}  # several devices may hold the same

    def cut(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
      if bounds in made:
        return made[bounds]
      whole = np.empty([stop - start for start, stop in bounds], leaf.dtype)
      filled = 0
      for (start, shape), piece in zip(places, own, strict=True):
        both = [
          (max(a, s), min(b, s + n)) for (a, b), s, n in zip(bounds, start, shape, strict=True)
        ]  # in the whole array's coordinates
        if all(first < last for first, last in both):
          target = tuple(slice(f - a, t - a) for (f, t), (a, _) in zip(both, bounds, strict=True))
          source = tuple(slice(f - s, t - s) for (f, t), s in zip(both, start, strict=True))
          whole[target] = piece[source].astype(leaf.dtype)
          filled += math.prod(t - f for f, t in both)
      if filled != whole.size:
        raise OSError(f"a part of {name} is not here: another machine or another number of devices wrote it")
      made[bounds] = whole
      return whole

    assert leaf.sharding is not None
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, cut) if is_here(leaf) else empty_array(leaf)


def is_here(leaf: jax.ShapeDtypeStruct) -> bool:
  """Whether a device of this process is to hold a part of an array."""
  assert leaf.sharding is not None
  return bool(leaf.sharding.addressable_devices)


def empty_array(leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """An array that is on devices of other processes only."""
  assert leaf.sharding is not None
  return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, [], dtype=leaf.dtype)


def _overlap(piece: _Piece, index: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
  bounds = (part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
  return len(piece.start) == len(shape) and all(
    first < start + size and start < last
    for (first, last), start, size in zip(bounds, piece.start, piece.shape, strict=True)
  )


def read_marker(folder: str) -> dict[str, Any] | None:
  """What the marker of a checkpoint says, its `save`, number of `parts` and so on; None: it is not complete.

  Raises:
    OSError: the storage cannot be read.
  """
  try:
    found = json.loads(paths.read(paths.join(folder, MARKER)))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def complete_steps(folder: str, damaged: str) -> list[int]:
  """The steps of the complete checkpoints in a folder, ascending, without those that are marked.

  Args:
    folder: that holds a folder for each step; need not be there.
    damaged: what stands before a step in the name of the mark of a damaged one.
  """
  try:
    names = paths.list_folder(folder)
  except FileNotFoundError:
    return []
  steps = sorted(int(name) for name in names if name.isdecimal() and f"{damaged}{name}" not in names)
  return [step for step in steps if read_marker(paths.join(folder, str(step)))]


def open_parts(folder: str) -> tuple[dict[str, Any], Parts]:
  """A complete checkpoint's marker and parts; errors as for `Parts`."""
  marker = read_marker(folder)
  if marker is None:
    raise FileNotFoundError(f"{folder!r} is no complete checkpoint: {MARKER} is missing or damaged")
  return marker, Parts(folder, range(int(marker["parts"])), str(marker["save"]))
