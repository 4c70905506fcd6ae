"""Searches an index: pictures by a vector, each with the region of it that fits best."""

import dataclasses
import fnmatch
import os
from typing import Any

import numpy as np
from jaxtyping import Float32

from fgclip_jax.index import folder as folders
from fgclip_jax.index.graphs import nearest, open_graph
from fgclip_jax.index.sources import Box
from fgclip_jax.storage import paths

_MORE = 4  # times as many are looked at where too few pictures are among the nearest


@dataclasses.dataclass(frozen=True)
class Match:
  """A picture that was found.

  Attributes:
    source: the folder, tar file or record folder it is from.
    name: of the picture within it.
    score: the cosine with what was searched.
    box: x1 y1 x2 y2 of its best region in 0..1; None where pictures were searched, or the box is not known.
  """

  source: str
  name: str
  score: float
  box: Box | None = None

  @property
  def path(self) -> str:
    """The picture's file, or its name within a tar file or record folder, behind that."""
    return paths.join(self.source, self.name)


class Index:
  """An index, opened for searches. Its vectors stay on disk.

  Args:
    folder: where it is.
    check: compare its files with their checksums, which reads all of them.

  Attributes:
    settings: what it was built with.
    state: all that `index.json` says.

  Raises:
    FileNotFoundError, ValueError: there is none, or a file of it is damaged, which the message names.
    ModuleNotFoundError: usearch is not installed.
  """

  def __init__(self, folder: str, check: bool = True):
    self.folder = folder
    self.state = folders.read_state(folder)
    self.settings: dict[str, Any] = self.state["settings"]
    folders.check_files(folder, self.state, sums=check)
    self.tables = folders.read_tables(folder, self.state)
    self._graphs = {
      kind: open_graph(path, view=True)
      for kind in ("pictures", "regions")
      if os.path.exists(path := folders.file_path(folder, self.state, f"{kind}.usearch"))
    }

  def __len__(self) -> int:
    """The number of pictures."""
    return int(self.tables.alive.sum())

  @property
  def has_regions(self) -> bool:
    return len(self._graphs.get("regions", ())) > 0

  def search(
    self,
    vector: Float32[np.ndarray, " D"],
    count: int = 10,
    *,
    regions: bool | None = None,
    exact: bool = False,
    only: str = "",
  ) -> list[Match]:
    """The pictures that fit a vector best, best first.

    Args:
      vector: of a text or a picture, by the index's model; for regions, of a `region` text or of a region.
      count: how many, at most.
      regions: compare with the regions of pictures, each of which counts by its best one; None: where there are any.
      exact: compare with every vector.
      only: a pattern that names must match, such as `2024/*.jpg`.

    Raises:
      ValueError: the vector has another width, or there are no regions.
    """
    if vector.shape != (self.settings["width"],):
      raise ValueError(f"the vector must be [{self.settings['width']}], got {list(vector.shape)}")
    regions = self.has_regions if regions is None else regions
    if regions and not self.has_regions:
      raise ValueError(f"{self.folder!r} has no regions: build it with --regions windows")
    graph = self._graphs.get("regions" if regions else "pictures")
    if graph is None:
      return []
    looked = count * (_MORE if regions or only else 1)
    while True:
      keys, cosines = nearest(graph, vector, looked, exact)
      found = self._group(keys, cosines, regions, only)
      if len(found) >= count or len(keys) < looked or looked >= len(graph):
        return found[:count]
      looked *= _MORE

  def _group(self, keys: np.ndarray, cosines: np.ndarray, regions: bool, only: str) -> list[Match]:
    """The best match of each picture, in the order of the keys."""
    rows = self.tables.owners(keys) if regions else keys
    found: dict[int, Match] = {}
    for row, key, cosine in zip(rows.tolist(), keys.tolist(), cosines.tolist(), strict=True):
      name = self.tables.names[row]
      if row in found or (only and not fnmatch.fnmatchcase(name, only)):
        continue
      box = None
      if regions and np.isfinite(self.tables.boxes[key]).all():
        x1, y1, x2, y2 = map(float, self.tables.boxes[key])
        box = (x1, y1, x2, y2)
      found[row] = Match(self.state["sources"][self.tables.source[row]], name, cosine, box)
    return list(found.values())

  def recall(self, queries: int = 100, count: int = 10, seed: int = 0) -> float:
    """The share of the exact nearest vectors that the graph finds, for vectors of its own as queries."""
    graph = self._graphs["regions" if self.has_regions else "pictures"]
    keys = np.asarray(graph.keys[: len(graph)]) if len(graph) else np.zeros(0, np.uint64)
    if not len(keys):
      raise ValueError(f"{self.folder!r} is empty")
    drawn = np.random.default_rng(seed).choice(keys, min(queries, len(keys)), replace=False)
    hits = total = 0
    for key in drawn.tolist():
      vector = np.asarray(graph.get(key, np.float32)).reshape(-1)
      wanted = set(nearest(graph, vector, count, exact=True)[0].tolist())
      hits += len(wanted & set(nearest(graph, vector, count)[0].tolist()))
      total += len(wanted)
    return hits / total
