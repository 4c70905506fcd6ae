"""An index on disk: which pictures it holds, their regions, and the graphs of their vectors.

```
index.json                what the index is, and the files that belong to it
pictures-3.parquet        source, name and stamp of each picture, and which regions are its own
regions-3.npy             x1, y1, x2, y2 of each region, float32 [R, 4]; NaN where they are not known
pictures-3.usearch        the graph of the pictures' vectors, by row of the table
regions-3.usearch         the graph of the regions' vectors, by row of the boxes
parts/                    vectors that are in no graph yet
```
A change makes new files, of the next number. `index.json` is replaced when they are whole, and the old ones are removed
then: a process that is killed leaves the index as it was, and one that searches it keeps what it has opened.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Float32, Int64

from fgclip_jax.inference.bulk_outputs import crc32
from fgclip_jax.storage import atomic, paths

VERSION = 1
STATE = "index.json"
PARTS = "parts"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "i8"}
_TABLES = ("pictures.parquet", "regions.npy", "pictures.usearch", "regions.usearch")


@dataclasses.dataclass
class Tables:
  """What an index holds beside vectors. Rows of pictures that are gone stay, so that the others keep their numbers.

  Attributes:
    source: of each picture, the number of its source.
    names: of each picture within its source.
    stamps: of each picture, when it was embedded.
    ends: of each picture, the row of `boxes` behind its last region.
    alive: whether each picture is still there.
    boxes: of all regions, as fractions of their picture's sides.
  """

  source: list[int]
  names: list[str]
  stamps: list[str]
  ends: Int64[np.ndarray, " N"]
  alive: np.ndarray
  boxes: Float32[np.ndarray, "R 4"]

  @classmethod
  def empty(cls) -> "Tables":
    """Of no picture."""
    none = np.zeros(0, np.int64)
    return cls([], [], [], none, none.astype(bool), np.zeros((0, 4), np.float32))

  def regions(self, row: int) -> range:
    """The rows of a picture's regions."""
    return range(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))

  def owners(self, regions: np.ndarray) -> np.ndarray:
    """The rows of the pictures that regions belong to."""
    return np.searchsorted(self.ends, regions, side="right")


def read_state(folder: str) -> dict[str, Any]:
  """What an index says of itself.

  Raises:
    FileNotFoundError, ValueError: there is no index, or it is damaged or of a later version.
  """
  path = os.path.join(folder, STATE)
  try:
    with open(path, encoding="utf-8") as file:
      state = json.load(file)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{folder!r} is no index: make one with `python -m fgclip_jax.index build`") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path!r} is damaged ({error}): build the index again") from error
  wanted = {"version": int, "settings": dict, "number": int, "sources": list, "files": dict}
  if not isinstance(state, dict) or any(not isinstance(state.get(key), kind) for key, kind in wanted.items()):
    raise ValueError(f"{path!r} is damaged (no index wrote this): build the index again")
  if state["version"] > VERSION:
    raise ValueError(f"{path!r} is of version {state['version']}; this package reads up to {VERSION}: update it")
  if any(os.path.basename(name) != name or name in ("", ".", "..") for name in state["files"]):
    raise ValueError(f"{path!r} is damaged (it names files elsewhere): build the index again")
  return state


def file_path(folder: str, state: dict[str, Any], table: str) -> str:
  """The path of one of the files of an index, e.g. `pictures.usearch`."""
  return os.path.join(folder, numbered(table, state["number"]))


def numbered(table: str, number: int) -> str:
  """A file's name with the number of a change."""
  stem, ending = table.split(".")
  return f"{stem}-{number}.{ending}"


def check_files(folder: str, state: dict[str, Any], sums: bool = True) -> None:
  """Compares the files of an index with what `index.json` knows of them.

  `sums`: also by their checksums, which reads all of them.

  Raises:
    ValueError: names a file that is missing or damaged.
  """
  for name, noted in state["files"].items():
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
      raise ValueError(f"{path!r} is missing: build the index again")
    if os.path.getsize(path) != noted["bytes"] or (sums and crc32(path) != noted["crc32"]):
      raise ValueError(f"{path!r} is damaged: it is not as it was written; build the index again")


def read_tables(folder: str, state: dict[str, Any]) -> Tables:
  """Reads the tables of an index; the boxes stay on disk until they are used."""
  table = pyarrow.parquet.read_table(file_path(folder, state, "pictures.parquet"))
  columns = [table.column(name) for name in ("source", "name", "stamp", "end", "alive")]
  source, names, stamps = (column.to_pylist() for column in columns[:3])
  ends, alive = (column.to_numpy() for column in columns[3:])
  boxes = np.load(file_path(folder, state, "regions.npy"), mmap_mode="r", allow_pickle=False)
  return Tables(source, names, stamps, ends, alive.astype(bool), boxes)


def commit(folder: str, state: dict[str, Any], tables: Tables, graphs: dict[str, Any]) -> dict[str, Any]:
  """Writes an index as its next number, and removes the files before it.

  Args:
    folder: of the index.
    state: its settings and sources; the rest is filled in.
    tables: the new tables.
    graphs: usearch's, `pictures` and perhaps `regions`.

  Returns:
    The new state.

  Raises:
    OSError: the index is then as it was.
  """
  number = state["number"] + 1
  names = [numbered(table, number) for table in _TABLES if not table.endswith("usearch")]
  names += [numbered(f"{name}.usearch", number) for name in graphs]
  made = {name: os.path.join(folder, name) for name in names}
  try:
    _write_tables(tables, *(made[numbered(table, number)] for table in _TABLES[:2]))
    for name, graph in graphs.items():
      path = made[numbered(f"{name}.usearch", number)]
      try:
        graph.save(path)
      except RuntimeError as error:  # usearch's for a full disk, too
        raise OSError(f"{path!r} could not be written ({error}): is the disk full?") from error
    files = {name: {"bytes": os.path.getsize(path), "crc32": crc32(path)} for name, path in made.items()}
    state = {
      **state,
      "version": VERSION,
      "number": number,
      "pictures": int(tables.alive.sum()),
      "regions": len(tables.boxes),
      "files": files,
    }
    with atomic.file(os.path.join(folder, STATE)) as temporary, open(temporary, "w", encoding="utf-8") as file:
      json.dump(state, file, indent=2, ensure_ascii=False)
  except BaseException:
    for path in made.values():
      paths.remove(path)
    raise
  clean(folder, state)
  return state


def clean(folder: str, state: dict[str, Any]) -> None:
  """Removes files of other numbers, which a killed process or an earlier change has left."""
  stems = {table.split(".")[0] for table in _TABLES}
  for name in os.listdir(folder):
    stem, _, rest = name.rpartition("-")
    if stem in stems and rest.split(".")[0].isdigit() and name not in state["files"]:
      os.remove(os.path.join(folder, name))


def _write_tables(tables: Tables, pictures: str, regions: str) -> None:
  columns = {
    "source": pyarrow.array(tables.source, pyarrow.int32()),
    "name": pyarrow.array(tables.names, pyarrow.string()),
    "stamp": pyarrow.array(tables.stamps, pyarrow.string()),
    "end": pyarrow.array(tables.ends, pyarrow.int64()),
    "alive": pyarrow.array(tables.alive, pyarrow.bool_()),
  }
  pyarrow.parquet.write_table(pyarrow.table(columns), pictures)
  np.save(regions, tables.boxes, allow_pickle=False)
