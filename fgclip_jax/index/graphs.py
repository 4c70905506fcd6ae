"""The graphs of vectors: usearch's, an HNSW (Malkov and Yashunin, arXiv 1603.09320) with exact search beside it."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from fgclip_jax.index.folder import PRECISIONS


def new_graph(width: int, precision: str) -> Any:
  """An empty graph of vectors of unit length, kept in a precision of `PRECISIONS`."""
  return import_usearch().Index(ndim=width, metric="cos", dtype=PRECISIONS[precision])


def open_graph(path: str, view: bool = False) -> Any:
  """Reads a graph; with `view`, it stays on disk, and cannot be changed.

  Raises:
    ValueError: the file is damaged.
  """
  try:
    found = import_usearch().Index.restore(path, view=view)
  except (ValueError, RuntimeError, MemoryError) as error:
    raise ValueError(f"{path!r} is damaged ({error}): build the index again") from error
  if found is None:
    raise ValueError(f"{path!r} is damaged (it is no graph): build the index again")
  return found


def add_vectors(graph: Any, keys: Int64[np.ndarray, " N"], vectors: Float32[np.ndarray, "N D"]) -> None:
  """Adds vectors by their keys."""
  if len(keys):
    graph.add(keys.astype(np.uint64), np.ascontiguousarray(vectors, np.float32))


def nearest(
  graph: Any, vector: Float32[np.ndarray, " D"], count: int, exact: bool = False
) -> tuple[Int64[np.ndarray, " N"], Float32[np.ndarray, " N"]]:
  """The keys of the `count` nearest vectors, at most, and their cosines, nearest first."""
  count = min(count, len(graph))
  if not count:
    return np.zeros(0, np.int64), np.zeros(0, np.float32)
  found = graph.search(np.ascontiguousarray(vector, np.float32), count, exact=exact)
  keys, cosines = found.keys.astype(np.int64), (1.0 - found.distances).astype(np.float32)
  order = np.lexsort((keys, -cosines))
  return keys[order], cosines[order]


def import_usearch() -> Any:
  """The library; raises `ModuleNotFoundError` with how to get it where it is not installed."""
  try:
    from usearch import index
  except ImportError as error:
    raise ModuleNotFoundError("an index needs usearch: pip install -r requirements-serve.txt") from error
  return index
