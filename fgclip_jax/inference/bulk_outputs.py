"""The output of `python -m fgclip_jax.embed`: parts on disk while it runs, and one file of all parts at the end.

While it runs, `OUTPUT.parts/` holds the settings and the finished parts. A part is written completely or not at all,
and the output is made from parts alone, so that a run that was killed and continued ends with the same bytes. An
earlier output stays as it is until the new one is whole.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from fgclip_jax.storage import atomic, locks, paths
from fgclip_jax.storage.skip_report import Skip, SkipReport, printable

SUFFIXES = (".npy", ".parquet")
_SETTINGS = "settings.json"
_CHUNK = 1 << 22  # bytes
# Files beside an output, by what is added to the name without its ending. A report lists those of its output by these.
_BESIDE = _IDS, _LEFT_OUT, _REPORT = ".ids.txt", ".left_out.jsonl", ".report.json"


class Output:
  """A file of embeddings that is written part by part.

  Attributes:
    path: the file.
    state: the folder of its parts, until it is finished.

  Raises:
    ValueError: the path ends in none of `SUFFIXES`, or a folder is there.
  """

  def __init__(self, path: str):
    if not path.endswith(SUFFIXES):
      raise ValueError(f"output {path!r} must end in {' or '.join(SUFFIXES)}: its ending decides the format")
    paths.check(path, "output", write=True)
    if paths.is_folder(path):
      raise IsADirectoryError(f"output {path!r} is a folder: name a file")
    self.path, self.state = path, path + ".parts"

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from writing the same output; raises `ValueError` if one is writing it."""
    paths.make_folder(paths.parent(self.path))
    name = self.path + ".lock"
    if paths.is_remote(name):
      with locks.hold(name, f"writing {self.path}"):
        yield
      return
    # a link is not followed: it could lead to a file of somebody else
    with open(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ValueError(f"another process is writing {self.path}") from error
      try:
        yield
      finally:
        os.remove(name)

  @property
  def begun(self) -> bool:
    """Whether an earlier run was stopped, which can be continued."""
    return paths.exists(paths.join(self.state, _SETTINGS))

  def discard_parts(self) -> None:
    """Removes what a run that was stopped left to continue from."""
    paths.remove(self.state)

  def begin(self, settings: dict[str, Any], overwrite: bool = False) -> bool:
    """Compares settings with those of an earlier run, or saves them if there was none.

    Args:
      settings: what decides the output, as JSON.
      overwrite: whether this run replaces an earlier output when it ends.

    Returns:
      Whether the output is finished already: it is there, whole, and was made with these settings.

    Raises:
      ValueError: the output, or parts of it, were made with other settings; a file in its place, or one of those
        beside it, was not made by `embed`, or was changed since.
    """
    settings = json.loads(json.dumps(settings))
    noted = paths.join(self.state, _SETTINGS)
    if self.begun:
      begun = _read_object(noted)
      overwrite = overwrite or begun.pop("overwrite", False)
      self._compare(settings, begun, "was begun")
    elif not overwrite:
      report = self._find_report()
      if report is None:
        self._refuse_others()
      else:
        self._compare(settings, report["settings"], "was made")
        if self._check(report):
          return True
    _write_json(noted, settings | ({"overwrite": True} if overwrite else {}))
    return False

  def report(self) -> dict[str, Any]:
    """Returns the report of a finished output: its settings and counts."""
    found = self._find_report()
    assert found is not None  # `begin` has found it
    return found

  def part(self, number: int) -> int | None:
    """Returns the number of items that a finished part was made from; None if it is not finished."""
    path = self._part(number, "json")
    return _read_object(path)["items"] if paths.exists(path) else None

  def write_part(self, number: int, features: np.ndarray, ids: list[str], left_out: list[Skip], **counts: int) -> None:
    """Writes a part: embeddings [N, D] with their ids, what was left out, and counts (`items` among them)."""
    with atomic.file(self._part(number, "npy")) as temporary, open(temporary, "wb") as file:
      np.lib.format.write_array_header_1_0(file, _header(*features.shape))
      file.write(np.ascontiguousarray(features, "<f4").data)
    faults = [
      {"id": printable(skip.place), "kind": skip.kind, "reason": printable(f"{skip.field}: {skip.message}")}
      for skip in left_out
    ]
    # The JSON file is written last: a part that has one is finished.
    _write_json(self._part(number, "json"), {"ids": ids, "left_out": faults} | counts)

  def finish(self, parts: int, settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Makes the output from its parts and removes them. Returns the paths written, and the report.

    Raises:
      ValueError: there is no row at all; nothing is written then, and the parts are removed.
    """
    rows, width = sum(_count_rows(self._part(number, "npy")) for number in range(parts)), settings["width"]
    ending = os.path.splitext(self.path)[1]
    left_out, repeated = SkipReport(), _Repeated()
    counts: collections.Counter[str] = collections.Counter()
    final = {ending: self.path} | dict(zip(_BESIDE, self._beside(*_BESIDE), strict=True))
    written = [ending, *([_IDS] if ending == ".npy" else [])]
    # The new files replace the old ones when all are whole, the array first and its report last.
    with contextlib.ExitStack() as stack:
      made = {name: stack.enter_context(atomic.file(final[name])) for name in (_REPORT, _LEFT_OUT, *written[::-1])}
      with (
        open(made[_LEFT_OUT], "w", encoding="utf-8") as faults,
        _writer(made[ending], made.get(_IDS), rows, width) as put,
      ):
        for number in range(parts):
          part = _read_object(self._part(number, "json"))
          ids = part.pop("ids")
          put(_load_array(self._part(number, "npy")), ids)
          repeated.add(ids)
          for fault in part.pop("left_out"):
            left_out.add(Skip(fault["kind"], fault["reason"], place=fault["id"]))
            faults.write(json.dumps(fault, ensure_ascii=False) + "\n")
          counts.update(part)
      if not rows:
        self.discard_parts()
        raise ValueError(_explain_no_rows(settings, counts["items"], left_out))
      if left_out:
        written.append(_LEFT_OUT)
      report = {
        "settings": settings,
        "output": ending,
        "rows": rows,
        "width": width,
        **counts,
        "ids_repeated": repeated.count(),
        "left_out": dict(left_out.counts.most_common()),
        "files": {name: {"bytes": os.path.getsize(made[name]), "crc32": crc32(made[name])} for name in written},
      }
      with open(made[_REPORT], "w", encoding="utf-8", errors="backslashreplace") as file:
        _dump_json(report, file, indent=2)
    if not left_out:
      paths.remove(final[_LEFT_OUT])
    paths.remove(self.state)
    return [final[name] for name in (*written, _REPORT)], report

  def files(self) -> list[str]:
    """The paths of all files that belong to the output."""
    return [self.path, *self._beside(*_BESIDE)]

  def _beside(self, *names: str) -> list[str]:
    """The paths of files beside the output: `x.report.json`; if that is of `x.npy`, `x.parquet.report.json`."""
    stem, ending = os.path.splitext(self.path)
    other = stem + (".parquet" if ending == ".npy" else ".npy")
    if paths.exists(self.path + _REPORT) or (paths.exists(other) and self._owner(stem + _REPORT) == other):
      stem = self.path
    return [stem + name for name in names]

  def _owner(self, path: str) -> str:
    """The output that a report is of; one of an older version does not say it, and is taken for ours if that exists."""
    stem, ending = os.path.splitext(self.path)
    try:
      said = _read_object(path).get("output")
    except (OSError, ValueError):  # --overwrite replaces it
      said = None
    if said is None and paths.exists(path) and not paths.exists(self.path):
      said = ".parquet" if ending == ".npy" else ".npy"
    return stem + str(said or ending)

  def _find_report(self) -> dict[str, Any] | None:
    """The report of this output; None where there is none, or that of another file or of one that is gone."""
    (path,) = self._beside(_REPORT)
    if not paths.exists(self.path) or not paths.exists(path) or self._owner(path) != self.path:
      return None
    report = _read_object(path)
    if not isinstance(report.get("settings"), dict) or not isinstance(report.get("rows"), int):
      raise ValueError(f"{path!r} is no report of embed: start over with --overwrite")
    return report

  def _compare(self, settings: dict[str, Any], before: dict[str, Any], how: str) -> None:
    """Raises `ValueError` where settings differ; those that an older version did not note are not compared."""
    different = [key for key in before if settings.get(key) != before[key]]
    if different:
      changes = "; ".join(f"{key} was {_short(before[key])}, now {_short(settings.get(key))}" for key in different)
      raise ValueError(
        f"{self.path!r} {how} with other settings ({changes}): name another output, or start over with --overwrite"
      )

  def _check(self, report: dict[str, Any]) -> bool:
    """Whether a report's files are all there; raises `ValueError` where one of them is not what the report says."""
    ending = os.path.splitext(self.path)[1]
    files = report.get("files") or {ending: {}, **({_IDS: {}} if ending == ".npy" else {})}
    there = True
    for name, noted in files.items():
      path = self.path if name == ending else self._beside(name)[0]
      if not paths.exists(path):
        there = False
      # the report of an older version has the number of rows alone
      elif not (
        _is_as_noted(path, noted) if noted else _is_whole(path, report["rows"], report["settings"].get("width"))
      ):
        raise ValueError(f"{path!r} is not as embed wrote it: name another output, or replace it by --overwrite")
    return there

  def _refuse_others(self) -> None:
    """Raises `ValueError` where there is a file that embed did not write, and that the output would replace."""
    ending, (report,) = os.path.splitext(self.path)[1], self._beside(_REPORT)
    # of an output that is gone, and whose other files are there
    known = _read_object(report).get("files") if paths.exists(report) and self._owner(report) == self.path else None
    for name, path in ((ending, self.path), (_IDS, *self._beside(_IDS)), (_LEFT_OUT, *self._beside(_LEFT_OUT))):
      noted = known.get(name) if isinstance(known, dict) else None
      if paths.exists(path) and not (noted and _is_as_noted(path, noted)):
        raise ValueError(f"{path!r} is there already: name another output, or replace it by --overwrite")

  def _part(self, number: int, suffix: str) -> str:
    return paths.join(self.state, f"{number:06d}.{suffix}")


class _Repeated:
  """Counts the ids that were there before, by 8 bytes of a digest of each."""

  def __init__(self):
    self._digests: list[np.ndarray] = []

  def add(self, ids: list[str]) -> None:
    data = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    self._digests.append(np.frombuffer(data, np.uint64))

  def count(self) -> int:
    digests = np.concatenate(self._digests) if self._digests else np.zeros(0, np.uint64)
    return len(digests) - len(np.unique(digests))


@contextlib.contextmanager
def _writer(path: str, ids_path: str | None, rows: int, width: int):
  """Yields a function that appends embeddings and their ids: to a Parquet file, or to an array and a file of ids."""
  if ids_path is None:
    kind = pyarrow.list_(pyarrow.float32(), width)
    schema = pyarrow.schema([("id", pyarrow.string()), ("embedding", kind)])
    with pyarrow.parquet.ParquetWriter(path, schema) as parquet:

      def put(features: np.ndarray, ids: list[str]) -> None:
        flat = pyarrow.array(np.ascontiguousarray(features).reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, width)
        parquet.write_table(pyarrow.table([pyarrow.array(ids, pyarrow.string()), vectors], schema=schema))

      yield put
    return
  with open(path, "wb") as array, open(ids_path, "w", encoding="utf-8") as names:
    np.lib.format.write_array_header_1_0(array, _header(rows, width))

    def put(features: np.ndarray, ids: list[str]) -> None:
      array.write(np.ascontiguousarray(features, "<f4").data)
      names.writelines(name + "\n" for name in ids)

    yield put


def _header(rows: int, width: int) -> dict[str, Any]:
  return {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}


def _count_rows(path: str) -> int:
  with paths.open(path) as file:
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)[0][0]


def _load_array(path: str) -> np.ndarray:
  with paths.open(path) as file:
    return np.load(file, allow_pickle=False)


def _is_as_noted(path: str, noted: dict[str, Any]) -> bool:
  return paths.size(path) == noted.get("bytes") and crc32(path) == noted.get("crc32")


def _is_whole(path: str, rows: int, width: int) -> bool:
  """Whether a file of an output has the rows that its report says."""
  try:
    if path.endswith(_IDS):
      with paths.open(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b"")) == rows
    if path.endswith(".npy"):
      return np.load(path, mmap_mode="r", allow_pickle=False).shape == (rows, width)
    return pyarrow.parquet.ParquetFile(path).metadata.num_rows == rows
  except (OSError, ValueError, EOFError, pyarrow.ArrowException):
    return False


def _explain_no_rows(settings: dict[str, Any], items: int, left_out: SkipReport) -> str:
  what = settings["what"]
  unit = {"images": "images", "texts": "records of texts", "regions": "records of boxes"}[what]
  why = left_out.summary(items, unit) or f"none of the {items:,} {unit} holds any of the {what}"
  return f"nothing to write: {why}"


def crc32(path: str) -> int:
  """The checksum of a file."""
  value = 0
  with paths.open(path) as file:
    while data := file.read(_CHUNK):
      value = zlib.crc32(data, value)
  return value


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 80 else f"{text[:77]}..."


def _read_object(path: str) -> dict[str, Any]:
  try:
    with paths.open(path, "r", encoding="utf-8") as file:
      value = json.load(file)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path!r} is not JSON ({error}): start over with --overwrite") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path!r} is not as embed wrote it: start over with --overwrite")
  return value


def _write_json(path: str, value: Any) -> None:
  paths.make_folder(paths.parent(path))
  # A name that is not UTF-8 is kept by escapes, which are JSON's own.
  with atomic.file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
    _dump_json(value, file)


def _dump_json(value: Any, file, indent: int | None = None) -> None:
  json.dump(value, file, indent=indent, ensure_ascii=False)
  file.write("\n")
