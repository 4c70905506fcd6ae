"""Builds an index and brings it up to date."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from fgclip_jax.embed import fingerprint
from fgclip_jax.index import folder as folders
from fgclip_jax.index import parts, sources
from fgclip_jax.index.folder import Tables
from fgclip_jax.index.graphs import add_vectors, import_usearch, new_graph, open_graph
from fgclip_jax.index.parts import Part
from fgclip_jax.index.sources import Box, Picture
from fgclip_jax.inference.bulk_inputs import Reading
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import locks, paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.threads import in_threads

PART = 512  # pictures that are embedded and written at a time
REGIONS = ("windows", "given", "none")


@dataclasses.dataclass
class Report:
  """What a build has done.

  Attributes:
    added, changed, removed, kept: pictures.
    left_out: what could not be used.
    regions: the regions of all pictures in the index.
    pictures: all pictures in the index.
  """

  added: int = 0
  changed: int = 0
  removed: int = 0
  kept: int = 0
  left_out: SkipReport = dataclasses.field(default_factory=SkipReport)
  regions: int = 0
  pictures: int = 0


def windows(scales: Sequence[int]) -> list[Box]:
  """The windows of a picture: for a scale n, of 1/n of its sides, each overlapping the next by half.

  A scale of 1 is the whole picture as a region, which differs from the picture's own vector.
  """
  return [
    (x / (2 * n), y / (2 * n), (x + 2) / (2 * n), (y + 2) / (2 * n))
    for n in scales
    for y in range(2 * n - 1)
    for x in range(2 * n - 1)
  ]


def build(
  model: FGCLIP,
  model_path: str,
  given: Sequence[str],
  output: str,
  *,
  regions: str = "windows",
  scales: Sequence[int] = (2, 3),
  precision: str = "bfloat16",
  split: str = "train",
  progress: bool = False,
) -> Report:
  """Builds an index of some sources, goes on where an earlier call was stopped, or brings the index up to date.

  Args:
    model: embeds the pictures.
    model_path: where it is, noted for searches.
    given: the sources, see `sources.find`.
    output: the index's folder.
    regions: `windows` of every picture, those that a record folder has (`given`), or `none`.
    scales: of `windows`.
    precision: of the vectors in the graphs, one of `folder.PRECISIONS`.
    split: of record folders.
    progress: shows a progress bar.

  Raises:
    FileNotFoundError, ValueError: there is no such source; the index was made with other settings, or is damaged.
    OSError: it cannot be written, and is then as it was.
  """
  import_usearch()  # where it is missing, that is said before gigabytes are embedded
  settings = {
    "model": paths.absolute(model_path) if paths.exists(model_path) else model_path,
    "fingerprint": fingerprint(model),
    "width": model.config.embedding_width,
    "regions": regions,
    "scales": list(scales) if regions == "windows" else [],
    "precision": precision,
    "split": split,
  }
  paths.make_folder(output)
  with locks.hold(os.path.join(output, "index.lock"), f"building {output}"):
    state = _begin(output, settings)
    return _update(state, output, given, functools.partial(_embed, model, settings), progress)


def add(model: FGCLIP, given: Sequence[str], output: str, progress: bool = False) -> Report:
  """Adds sources to an index, or brings it up to date where none are given; errors as for `build`."""
  with locks.hold(os.path.join(output, "index.lock"), f"building {output}"):
    state = folders.read_state(output)
    settings = state["settings"]
    check_model(model, settings, output)
    embed = functools.partial(_embed, model, settings)
    return _update(state, output, given or state["sources"], embed, progress)


def check_model(model: FGCLIP, settings: dict[str, Any], output: str) -> None:
  """Raises `ValueError` where an index was built with other weights."""
  if settings["fingerprint"] != fingerprint(model):
    raise ValueError(f"{output!r} was built with another model ({settings['model']}): its vectors fit no other")


def _begin(output: str, settings: dict[str, Any]) -> dict[str, Any]:
  """The state of an index, new or of an earlier call with the same settings."""
  path = os.path.join(output, folders.STATE)
  if not os.path.exists(path):
    others = [name for name in os.listdir(output) if name != "index.lock"]
    if others:
      raise ValueError(f"{output!r} holds other files (such as {sorted(others)[0]!r}): give a new or empty folder")
    none = folders.Tables.empty()
    state = {"version": folders.VERSION, "settings": settings, "number": 0, "sources": [], "files": {}}
    state["live_regions"] = 0
    return folders.commit(output, state, none, {})
  state = folders.read_state(output)
  different = [
    f"{key} was {state['settings'].get(key)!r}, now {value!r}"
    for key, value in settings.items()
    if state["settings"].get(key) != value and key != "model"  # the same weights may be in another folder
  ]
  if different:
    raise ValueError(f"{output!r} was built with other settings ({'; '.join(different)}): name another folder")
  return state


def _update(
  state: dict[str, Any],
  output: str,
  given: Iterable[str],
  embed: Callable[[list[Picture]], Part],
  progress: bool,
) -> Report:
  folders.check_files(output, state)
  folders.clean(output, state)
  report = Report()
  for each in dict.fromkeys(map(paths.absolute, given)):
    if each not in state["sources"]:
      state["sources"].append(each)
    state = _update_source(state, output, state["sources"].index(each), embed, report, progress)
  report.pictures, report.regions = state["pictures"], state["live_regions"]
  return report


def _update_source(
  state: dict[str, Any],
  output: str,
  source: int,
  embed: Callable[[list[Picture]], Part],
  report: Report,
  progress: bool,
) -> dict[str, Any]:
  """Compares a source with what the index has of it, embeds what is new, and takes that in."""
  tables = folders.read_tables(output, state)
  rows = [row for row in np.flatnonzero(tables.alive).tolist() if tables.source[row] == source]
  known = {tables.names[row]: row for row in rows}
  there: dict[str, str] = {}
  wanted = []
  given = state["sources"][source]
  if (made_by := sources.embedded_by(given)) not in (None, state["settings"]["fingerprint"]):
    raise ValueError(f"{given!r} was embedded with another model than the index's ({made_by})")
  for picture in sources.find(given, state["settings"]["split"], report.left_out.add):
    if picture.name in there:
      report.left_out.add(Skip("name_twice", "another picture has this name", place=picture.name))
      continue
    there[picture.name] = picture.stamp
    row = known.get(picture.name)
    if row is None or tables.stamps[row] != picture.stamp:
      wanted.append(picture)
  if not there and not known:
    raise ValueError(f"{given!r} holds no picture: name a folder, a list, a tar file or a record folder with some")
  gone = [row for name, row in known.items() if name not in there]
  changed = [known[picture.name] for picture in wanted if picture.name in known]
  report.removed, report.changed = report.removed + len(gone), report.changed + len(changed)
  report.kept += len(rows) - len(gone) - len(changed)
  number, done = _finished(output, source, there)
  todo = [picture for picture in wanted if picture.name not in done]
  with tqdm.tqdm(
    total=len(wanted), initial=len(wanted) - len(todo), desc="pictures", disable=not progress or not wanted
  ) as bar:
    for chunk in (todo[begin : begin + PART] for begin in range(0, len(todo), PART)):
      number += 1
      parts.write(output, number, source, embed(chunk))
      bar.update(len(chunk))
  if wanted or gone:
    state = _take_in(state, output, source, tables, {*gone, *changed}, there, report)
  parts.discard(output)
  return state


def _finished(output: str, source: int, there: dict[str, str]) -> tuple[int, set[str]]:
  """The last number of the parts of a source, and the pictures in them that are still as they were."""
  last, done = 0, set()
  for number, part in parts.read_all(output, source):
    last = number
    seen = [*zip(part.names, part.stamps, strict=True), *((fault[0], fault[3]) for fault in part.faults)]
    done.update(name for name, stamp in seen if there.get(name) == stamp)
  return last, done


def _take_in(
  state: dict[str, Any],
  output: str,
  source: int,
  tables: Tables,
  dead: set[int],
  there: dict[str, str],
  report: Report,
) -> dict[str, Any]:
  """Adds the parts of a source to tables and graphs, and writes the index."""
  settings = state["settings"]
  kinds = ("pictures", "regions") if settings["regions"] != "none" else ("pictures",)
  graphs = {
    kind: open_graph(folders.file_path(output, state, f"{kind}.usearch"))
    if folders.numbered(f"{kind}.usearch", state["number"]) in state["files"]
    else new_graph(settings["width"], settings["precision"])
    for kind in kinds
  }
  alive = tables.alive.copy()
  for row in sorted(dead):
    alive[row] = False
    graphs["pictures"].remove(row)
    if "regions" in graphs:
      graphs["regions"].remove(np.asarray(tables.regions(row), np.uint64))
  ends, boxes = [tables.ends], [np.asarray(tables.boxes)]
  pictures, regions = len(tables.names), len(tables.boxes)
  before = {name for name, of in zip(tables.names, tables.source, strict=True) if of == source}
  flags = [alive]
  for _, part in parts.read_all(output, source):
    for name, kind, message, stamp in part.faults:
      if there.get(name) == stamp:
        report.left_out.add(Skip(kind, message, place=name))
    # a picture that was embedded, and changed before the next start, is in two parts
    keep = np.asarray([there.get(n) == s for n, s in zip(part.names, part.stamps, strict=True)], bool)
    counts = part.counts
    add_vectors(graphs["pictures"], pictures + np.flatnonzero(keep), part.vectors[keep])
    if "regions" in graphs:
      of_kept = np.repeat(keep, counts)
      add_vectors(graphs["regions"], regions + np.flatnonzero(of_kept), part.regions[of_kept])
    tables.source += [source] * len(counts)
    tables.names += part.names
    tables.stamps += part.stamps
    ends.append(regions + np.cumsum(counts))
    boxes.append(part.boxes)
    flags.append(keep)
    pictures, regions = pictures + len(counts), regions + int(counts.sum())
    report.added += sum(name not in before for name in itertools.compress(part.names, keep))
  tables = Tables(
    tables.source, tables.names, tables.stamps, np.concatenate(ends), np.concatenate(flags), np.concatenate(boxes)
  )
  live = np.diff(tables.ends, prepend=0)[tables.alive].sum()
  return folders.commit(output, {**state, "live_regions": int(live)}, tables, graphs)


def _embed(model: FGCLIP, settings: dict[str, Any], pictures: list[Picture]) -> Part:
  """Embeds pictures and their regions; those that cannot be used are named among the faults."""
  regions, width = settings["regions"], settings["width"]
  ready = [picture.vector for picture in pictures if picture.vector is not None]
  if ready:
    none = np.zeros(len(ready), np.int64)
    names, stamps = [picture.name for picture in pictures], [picture.stamp for picture in pictures]
    nothing = np.zeros((0, 4), np.float32), np.zeros((0, width), np.float32)
    return Part(names, stamps, np.stack(ready), none, *nothing, [])
  fixed = windows(settings["scales"])
  reading = Reading(model.reader("squash" if regions != "none" else None), "images", "short", "", "")
  faults: list[tuple[str, str, str, str]] = []
  names, stamps, boxes = [], [], []

  def read(picture: Picture) -> Any:
    try:
      pixels = reading.image(picture.read(), picture.name)
      own = picture.boxes() if regions == "given" and picture.boxes else fixed if regions == "windows" else []
      return pixels, np.asarray(own, np.float32).reshape(-1, 4)
    except RecordError as error:
      return error

  def usable() -> Iterator[Any]:
    for picture, found in zip(pictures, in_threads(read, pictures), strict=True):
      if isinstance(found, RecordError):
        faults.append((picture.name, found.kind, f"{found.field}: {found.message}", picture.stamp))
        continue
      names.append(picture.name)
      stamps.append(picture.stamp)
      boxes.append(found[1])
      yield found

  vectors, of_regions = np.zeros((0, width), np.float32), np.zeros((0, width), np.float32)
  stream = usable()
  first = next(stream, None)
  if first is not None:
    stream = itertools.chain([first], stream)
    if regions == "none":
      vectors = model.encode_image(pixels for pixels, _ in stream)
    else:
      one, two = itertools.tee(stream)  # the model reads both in step
      vectors, found = model.encode_image_and_regions((pixels for pixels, _ in one), (each for _, each in two))
      of_regions = np.concatenate(list(found))
  counts = np.asarray([len(each) for each in boxes], np.int64)
  together = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
  return Part(names, stamps, vectors, counts, together, of_regions, faults)
