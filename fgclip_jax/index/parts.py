"""Vectors that are embedded and in no graph yet: files in the index's folder, each whole or not there."""

import dataclasses
import os
import zipfile
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int64

from fgclip_jax.index.folder import PARTS
from fgclip_jax.storage import atomic, paths


@dataclasses.dataclass(frozen=True)
class Part:
  """Some pictures with their vectors.

  Attributes:
    names: of the pictures within their source.
    stamps: of the pictures.
    vectors: of the pictures, of unit length.
    counts: how many regions each picture has.
    boxes: of all their regions.
    regions: the vectors of all their regions.
    faults: what was left out: name, kind, reason and stamp.
  """

  names: list[str]
  stamps: list[str]
  vectors: Float32[np.ndarray, "N D"]
  counts: Int64[np.ndarray, " N"]
  boxes: Float32[np.ndarray, "R 4"]
  regions: Float32[np.ndarray, "R D"]
  faults: list[tuple[str, str, str, str]]


def write(folder: str, number: int, source: int, part: Part) -> None:
  """Writes a part of a source as the next file."""
  paths.make_folder(os.path.join(folder, PARTS))
  with atomic.file(os.path.join(folder, PARTS, f"{number:06d}-{source}.npz")) as made, open(made, "wb") as file:
    texts = {name: np.asarray(getattr(part, name), np.str_).reshape(-1) for name in ("names", "stamps")} | {
      "faults": np.asarray(part.faults, np.str_).reshape(-1, 4)
    }
    arrays = {name: getattr(part, name) for name in ("vectors", "counts", "boxes", "regions")}
    np.savez(file, allow_pickle=False, **texts, **arrays)


def read_all(folder: str, source: int) -> Iterator[tuple[int, Part]]:
  """The parts of a source with their numbers, in order.

  Raises:
    ValueError: names a part that is damaged.
  """
  place = os.path.join(folder, PARTS)
  for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
    stem, ending = os.path.splitext(name)
    number, _, owner = stem.partition("-")
    if ending != ".npz" or owner != str(source):
      continue
    path = os.path.join(place, name)
    try:
      with np.load(path, allow_pickle=False) as arrays:
        found = {key: arrays[key] for key in arrays.files}
        texts = {key: found.pop(key).tolist() for key in ("names", "stamps")}
        faults = [tuple(fault) for fault in found.pop("faults").tolist()]
        yield int(number), Part(**texts, **found, faults=faults)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
      raise ValueError(f"{path!r} is damaged ({error}): remove it, and give the same command again") from error


def discard(folder: str) -> None:
  """Removes all parts."""
  paths.remove(os.path.join(folder, PARTS))
