"""The output of `python -m fgclip_jax.embed`: parts on disk while it runs, and one file of all parts at the end.

While it runs, `OUTPUT.parts/` holds the settings and the finished parts. A part is written completely or not at all,
and the output is made from parts alone, so that a run that was killed and continued ends with the same bytes.
"""

import collections
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from fgclip_jax.storage.skip_report import Skip, SkipReport

SUFFIXES = (".npy", ".parquet")


class Output:
  """A file of embeddings that is written part by part.

  Attributes:
    path: the file.
    state: the folder of its parts, until it is finished.

  Raises:
    ValueError: the path ends in none of `SUFFIXES`.
  """

  def __init__(self, path: str):
    if not path.endswith(SUFFIXES):
      raise ValueError(f"output {path!r} must end in {' or '.join(SUFFIXES)}: its ending decides the format")
    stem = os.path.splitext(path)[0]
    self.path, self.state = path, path + ".parts"
    self._ids, self._left_out, self._report = stem + ".ids.txt", stem + ".left_out.jsonl", stem + ".report.json"

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from writing the same output; raises `ValueError` if one is writing it."""
    os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
    with open(self.path + ".lock", "w") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ValueError(f"another process is writing {self.path}") from error
      try:
        yield
      finally:
        os.remove(lock.name)

  def clear(self) -> None:
    """Removes the output and its parts."""
    shutil.rmtree(self.state, ignore_errors=True)
    for path in (self._report, self.path, self._ids, self._left_out):
      if os.path.exists(path):
        os.remove(path)

  def begin(self, settings: dict[str, Any]) -> bool:
    """Compares settings with those of an earlier run, or saves them if there was none.

    Returns:
      Whether the output is finished already.

    Raises:
      ValueError: the output, or parts of it, were made with other settings; or the file was not made by `embed`.
    """
    noted = os.path.join(self.state, "settings.json")
    finished = os.path.exists(self._report)
    before = _read_json(self._report)["settings"] if finished else _read_json(noted) if os.path.exists(noted) else None
    settings = json.loads(json.dumps(settings))
    if before is None:
      if os.path.exists(self.path):
        raise ValueError(f"{self.path!r} is there already: name another output, or replace it by --overwrite")
      _write_json(noted, settings)
      return False
    different = [key for key in settings | before if settings.get(key) != before.get(key)]
    if different:
      changes = "; ".join(f"{key} was {_short(before.get(key))}, now {_short(settings.get(key))}" for key in different)
      how = "was made" if finished else "was begun"
      raise ValueError(
        f"{self.path!r} {how} with other settings ({changes}): name another output, or start over with --overwrite"
      )
    if finished:
      shutil.rmtree(self.state, ignore_errors=True)
    return finished

  def report(self) -> dict[str, Any]:
    """Returns the report of a finished output: its settings and counts."""
    return _read_json(self._report)

  def part(self, number: int) -> int | None:
    """Returns the number of items that a finished part was made from; None if it is not finished."""
    path = self._part(number, "json")
    return _read_json(path)["items"] if os.path.exists(path) else None

  def write_part(self, number: int, features: np.ndarray, ids: list[str], left_out: list[Skip], **counts: int) -> None:
    """Writes a part: embeddings [N, D] with their ids, what was left out, and counts (`items` among them)."""
    with open(self._part(number, "npy"), "wb") as file:
      np.save(file, features)
    faults = [{"id": skip.place, "kind": skip.kind, "reason": f"{skip.field}: {skip.message}"} for skip in left_out]
    # The JSON file is written last: a part that has one is finished.
    _write_json(self._part(number, "json"), {"ids": ids, "left_out": faults} | counts)

  def finish(self, parts: int, settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Makes the output from its parts and removes them. Returns the paths written, and the report."""
    rows, width = sum(_count_rows(self._part(number, "npy")) for number in range(parts)), settings["width"]
    left_out = SkipReport()
    counts: collections.Counter[str] = collections.Counter()
    written = [self.path] if self.path.endswith(".parquet") else [self.path, self._ids]
    with contextlib.ExitStack() as stack:
      faults = stack.enter_context(open(self._left_out + ".tmp", "w", encoding="utf-8"))
      put = stack.enter_context(self._writer(rows, width))
      for number in range(parts):
        part = _read_json(self._part(number, "json"))
        put(np.load(self._part(number, "npy")), part.pop("ids"))
        for fault in part.pop("left_out"):
          left_out.add(Skip(fault["kind"], fault["reason"], place=fault["id"]))
          faults.write(json.dumps(fault, ensure_ascii=False) + "\n")
        counts.update(part)
    os.replace(self._left_out + ".tmp", self._left_out)
    if left_out:
      written.append(self._left_out)
    else:
      os.remove(self._left_out)
    report = {
      "settings": settings,
      "rows": rows,
      "width": width,
      **counts,
      "left_out": dict(left_out.counts.most_common()),
    }
    _write_json(self._report, report)
    shutil.rmtree(self.state)
    return [*written, self._report], report

  @contextlib.contextmanager
  def _writer(self, rows: int, width: int):
    """Yields a function that appends embeddings and their ids; the files get their final names at the end."""
    if self.path.endswith(".parquet"):
      kind = pyarrow.list_(pyarrow.float32(), width)
      schema = pyarrow.schema([("id", pyarrow.string()), ("embedding", kind)])
      with pyarrow.parquet.ParquetWriter(self.path + ".tmp", schema) as parquet:

        def put(features: np.ndarray, ids: list[str]) -> None:
          flat = pyarrow.array(np.ascontiguousarray(features).reshape(-1))
          vectors = pyarrow.FixedSizeListArray.from_arrays(flat, width)
          parquet.write_table(pyarrow.table([pyarrow.array(ids, pyarrow.string()), vectors], schema=schema))

        yield put
    else:
      with open(self.path + ".tmp", "wb") as array, open(self._ids + ".tmp", "w", encoding="utf-8") as names:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(array, header)

        def put(features: np.ndarray, ids: list[str]) -> None:
          array.write(np.ascontiguousarray(features, "<f4").data)
          names.writelines(name + "\n" for name in ids)

        yield put
      os.replace(self._ids + ".tmp", self._ids)
    os.replace(self.path + ".tmp", self.path)

  def _part(self, number: int, suffix: str) -> str:
    return os.path.join(self.state, f"{number:06d}.{suffix}")


def _count_rows(path: str) -> int:
  with open(path, "rb") as file:
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)[0][0]


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 80 else f"{text[:77]}..."


def _read_json(path: str) -> Any:
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except ValueError as error:
    raise ValueError(f"{path!r} is not JSON ({error}): start over with --overwrite") from error


def _write_json(path: str, value: Any) -> None:
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    json.dump(value, file, indent=2 if path.endswith("report.json") else None, ensure_ascii=False)
    file.write("\n")
  os.replace(path + ".tmp", path)
