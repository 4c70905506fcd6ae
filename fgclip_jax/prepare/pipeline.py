"""Turns the records of a source into a data set; all sources but `scenes`, which draws its records, go through here.

1. `job.make_plan` reads every input file once, counts its records and notes the offset of every 256th.
2. `job.cut_shards` cuts the records, in the order of the files, into shards of equal length. This plan depends only on
   the input and the arguments, never on the number of processes.
3. With `--duplicates drop`, processes hash all images and find those that come twice.
4. Processes write shards. A shard is written under a temporary name, renamed, and then described in a JSON file of its
   own; a shard that has both is finished, and the same command run again keeps it.

`OUTPUT/.prepare/SPLIT/` holds the plan, the descriptions and the hashes.
"""

import concurrent.futures.process
import dataclasses
import functools
import importlib.metadata
import itertools
import re
from collections.abc import Iterator
from typing import Any

from fgclip_jax.data import dataset_folder
from fgclip_jax.data.dataset_folder import match_shard, shard_path
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.prepare import conversion, duplicates, ids, report, shard_writer
from fgclip_jax.prepare.job import (
  Job,
  Piece,
  PrepareError,
  compare_arguments,
  cut_shards,
  get_arguments,
  load_json,
  make_plan,
  save_json,
)
from fgclip_jax.prepare.stats import DatasetStats, format_example
from fgclip_jax.storage import locks, paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.workers import Engine, run_tasks, tick

_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class _Task:
  """One shard to write.

  Attributes:
    number: its number.
    path: its file.
    description, ids: the files of what it holds, and of its ids.
    pieces: the parts of input files that it is made of.
  """

  number: int
  path: str
  description: str
  ids: str
  pieces: list[Piece]


@dataclasses.dataclass(frozen=True)
class _Done:
  """A finished shard and what it holds."""

  shard: dataset_folder.Shard
  stats: DatasetStats


def write(job: Job, workers: int | Engine, overwrite: bool = False) -> DatasetStats:
  """Writes a split, or the missing shards of one, and returns what it holds.

  Args:
    job: what to convert, and where to write it.
    workers: the number of processes, or an engine; the result does not depend on it.
    overwrite: discard what an earlier run wrote for this split.

  Raises:
    PrepareError: no record can be used; existing shards were made with other arguments or files; or the job is strict
      and something would be left out.
    OSError: reading or writing fails.
  """
  _check(job)
  state = state_folder(job)
  paths.make_folder(state)
  with locks.hold(f"{state}.lock", f"preparing split {job.split!r} in {job.output}"):
    try:
      return _write(job, state, workers, overwrite)
    except concurrent.futures.process.BrokenProcessPool as error:
      message = "a worker process was killed (too little memory?); run the command again to continue, with fewer"
      raise PrepareError(f"{message} --workers if it happens again") from error


def state_folder(job: Job) -> str:
  """The folder that `prepare` needs to continue a split; its tasks also pass files to each other there."""
  return paths.join(job.output, ".prepare", job.split)


def _write(job: Job, state: str, workers: int | Engine, overwrite: bool) -> DatasetStats:
  plan = _load_plan(job, state, overwrite) or make_plan(job, state, workers)
  _remove_unfinished(job, state)
  broken = [(path, found) for path, found in zip(job.source.files, plan["files"], strict=True) if found["broken"]]
  total = DatasetStats()
  # Results are merged in the order of the input (broken files, then shards), so that the first examples in the report
  # do not depend on which process was quicker.
  for path, found in broken:
    total.add_finding("file", RecordError(*found["broken"]), path, found["records"])
  tasks = _list_tasks(job, state, cut_shards(job, plan))
  search = _make_search(job, state, tasks)
  paths.make_folder(search.folder)
  if job.checks.duplicates == "drop":
    _hash_images(job, search, tasks, workers)
    duplicates.find(search, workers)
  done = {task.number: shard for task in tasks if (shard := _load_finished(task, search))}
  if job.strict:
    _refuse_fault(total, *(shard.stats for shard in done.values()))
  left = [task for task in tasks if task.number not in done]
  if len(left) < len(tasks):
    print(f"{len(tasks) - len(left)} of {len(tasks)} shards are finished already: kept")
  if left and job.checks.duplicates == "keep":
    duplicates.forget(search)  # the shards that are left write new hashes
  count = sum(piece.count for task in left for piece in task.pieces)
  function = functools.partial(_write_shard, job, search)
  done.update(run_tasks(function, left, workers, total=count, label="writing", unit=" records"))
  shards = [done[task.number] for task in tasks]
  for shard in shards:
    total.merge(shard.stats)
  if job.checks.duplicates == "keep":
    duplicates.find(search, workers)
    _count_duplicates(job, search, total)
  count, first = ids.find_twice([task.ids for task in tasks])
  if first:
    file, index = duplicates.get_place(first[0])
    total.add_finding("note", ids.describe(first[1], job.source.files), job.source.files[file], index, count)
  _finish(job, plan, total, [shard.shard for shard in shards])
  return total


def _make_search(job: Job, state: str, tasks: list[_Task]) -> duplicates.Search:
  starts = [duplicates.get_number(task.pieces[0].file_number, task.pieces[0].index) for task in tasks]
  return duplicates.Search(
    folder=paths.join(state, "duplicates"),
    records=sum(piece.count for task in tasks for piece in task.pieces),
    starts=(*starts, duplicates.get_number(len(job.source.files), 0)),
    near=job.checks.near_duplicates,
  )


def _hash_images(job: Job, search: duplicates.Search, tasks: list[_Task], workers: int | Engine) -> None:
  """Hashes the images of all usable records, which must be compared before the first shard is written."""
  left = [task for task in tasks if not paths.exists(search.hashes_path(task.number))]
  if left:
    duplicates.forget(search)
  count = sum(piece.count for task in left for piece in task.pieces)
  function = functools.partial(_hash_shard, job, search)
  for _ in run_tasks(function, left, workers, total=count, label="hashing images", unit=" records"):
    pass


def _hash_shard(job: Job, search: duplicates.Search, task: _Task) -> None:
  hashes = duplicates.Hashes(search)
  for piece, index, raw in _scan(job, task):
    try:
      loaded, _ = conversion.load(job, raw, lambda *_: None)
    except RecordError:
      continue  # its fault is counted when its shard is written
    hashes.add(duplicates.get_number(piece.file_number, index), loaded.image)
  hashes.save(task.number)


def _count_duplicates(job: Job, search: duplicates.Search, total: DatasetStats) -> None:
  """Counts the images that come twice and were kept."""
  for shard in range(len(search.starts) - 1):
    found = duplicates.load(search, shard)
    for kind, rows in ((duplicates.EXACT, found.exact), (duplicates.NEAR, found.near)):
      if len(rows):
        number, first = map(int, rows[0])
        file, index = duplicates.get_place(number)
        error = duplicates.describe(kind, first, job.source.files)
        total.add_duplicates(len(rows), error, job.source.files[file], index)


def _check(job: Job) -> None:
  for option, value in (("name", job.name), ("split", job.split)):
    if not _NAME.fullmatch(value):
      raise PrepareError(f"--{option} must be made of letters, digits and underscores, got {value!r}")
  if job.shards is not None and not 1 <= job.shards <= 99999:
    raise PrepareError(f"--shards must lie in 1..99999, got {job.shards}")
  name = dataset_folder.read_name(job.output) or job.name
  if name != job.name:
    raise PrepareError(f"{job.output} holds the data set {name!r}, not {job.name!r}: give another --output")


def _load_plan(job: Job, state: str, overwrite: bool) -> dict | None:
  """Loads the plan of an earlier run of the same command; returns None where there is nothing to continue.

  Raises:
    PrepareError: there are shards that this command would not have written.
  """
  matches = map(match_shard, paths.list_folder(job.output))
  shards = [match[0] for match in matches if match and match["split"] == job.split and not match["rest"]]
  plan = load_json(paths.join(state, "plan.json"))
  if plan and not (isinstance(plan.get("arguments"), dict) and isinstance(plan.get("files"), list)):
    plan = None
  if plan and not overwrite:
    changes = compare_arguments(plan["arguments"], get_arguments(job))
    if not changes:
      return plan
    if shards:
      raise PrepareError(
        f"{job.output} holds {len(shards)} shards of split {job.split!r} made of something else: "
        f"{'; '.join(changes)}. Add --overwrite to discard them, or give another --output"
      )
  elif shards and not overwrite:
    raise PrepareError(
      f"{job.output} holds shards of split {job.split!r} that cannot be continued ({shards[0]}, ...). "
      "Add --overwrite to discard them, or give another --output"
    )
  _clear(job, state)
  return None


def _clear(job: Job, state: str) -> None:
  """Removes everything that earlier runs wrote for this split."""
  dataset_folder.remove_split(job.output, job.split)
  paths.remove(state)
  paths.make_folder(state)


def _remove_unfinished(job: Job, state: str) -> None:
  """Removes the unfinished files of a run that was killed."""
  for entry in paths.list_folder(job.output):
    match = match_shard(entry)
    if match and match["split"] == job.split and match["rest"]:
      paths.remove(paths.join(job.output, entry))
  for entry in paths.list_folder(state):
    if entry.startswith("beam-"):
      paths.remove(paths.join(state, entry))


def _list_tasks(job: Job, state: str, cuts: list[list[Piece]]) -> list[_Task]:
  return [
    _Task(
      number=number,
      path=shard_path(job.output, job.name, job.split, number, len(cuts)),
      description=paths.join(state, f"{number:05d}.json"),
      ids=paths.join(state, f"ids-{number:05d}.npy"),
      pieces=pieces,
    )
    for number, pieces in enumerate(cuts)
  ]


def _write_shard(job: Job, search: duplicates.Search, task: _Task) -> tuple[int, _Done]:
  """Writes one shard, and then its description, which marks it as finished."""
  stats = DatasetStats()
  shard = shard_writer.write(task.path, _convert_pieces(job, search, task, stats))
  save_json(task.description, {**dataclasses.asdict(shard), "tally": stats.to_json()})
  return task.number, _Done(shard, stats)


def _convert_pieces(job: Job, search: duplicates.Search, task: _Task, stats: DatasetStats) -> Iterator[bytes]:
  found_ids = ids.Ids()
  converter = conversion.Converter(job, stats, found_ids)
  drop = job.checks.duplicates == "drop"
  found = duplicates.load(search, task.number).by_number() if drop else {}
  hashes = None if drop else duplicates.Hashes(search)
  for piece, index, raw in _scan(job, task):
    number = duplicates.get_number(piece.file_number, index)
    if number in found:
      converter.leave_out(duplicates.describe(*found[number], job.source.files), piece.file, index)
      continue
    data = converter.convert(raw, piece.file, index, hashes, number)
    if data is not None:
      yield data
  if hashes:
    hashes.save(task.number)
  found_ids.save(task.ids)


def _scan(job: Job, task: _Task) -> Iterator[tuple[Piece, int, Any]]:
  """Yields a shard's records in raw form, with the piece and their number in its file.

  Raises:
    PrepareError: there are fewer than planned.
  """
  for piece in task.pieces:
    found = itertools.islice(job.source.scan(piece.file, piece.offset), piece.skip, piece.skip + piece.count)
    index = piece.index
    for index, (_, raw) in enumerate(found, piece.index + 1):
      tick(1)
      yield piece, index - 1, raw
    if index - piece.index != piece.count:
      read = f"read {index - piece.index} of {piece.count} records"
      raise PrepareError(f"{read}: did {piece.file} change meanwhile?")


def _load_finished(task: _Task, search: duplicates.Search) -> _Done | None:
  """Loads what a finished shard holds; None for one that was not finished, was removed, or is not whole."""
  try:
    description = load_json(task.description)
    if not description or not paths.is_file(task.path) or not paths.exists(search.hashes_path(task.number)):
      return None
    stats = DatasetStats.from_json(description.pop("tally"))
    shard = dataset_folder.Shard(**description)
    whole = paths.size(task.path) == shard.size and shard_writer.count(task.path) == shard.records
  except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError):
    return None
  return _Done(shard, stats) if whole else None


def _refuse_fault(*parts: DatasetStats) -> None:
  for stats in parts:
    if fault := stats.first_fault:
      raise PrepareError(f"--strict: {format_example(fault)}")


def _finish(job: Job, plan: dict, total: DatasetStats, shards: list[dataset_folder.Shard]) -> None:
  """Writes the reports, and describes the split in the data set's folder."""
  if not total.records:
    _clear(job, state_folder(job))
    raise PrepareError(f"none of {total.read:,} records can be used:\n{total.format_table()}")
  packages = ("array_record", "pillow", "tokenizers", "ftfy")
  summary = {
    "arguments": plan["arguments"],
    "created_with": {package: importlib.metadata.version(package) for package in packages},
    **total.to_json(),
  }
  save_json(paths.join(job.output, f"report-{job.split}.json"), summary)
  with locks.hold(paths.join(job.output, ".prepare", "folder.lock"), f"describing {job.output}", wait=True):
    info = dataset_folder.read_info(job.output)
    tokenizer = get_tokenizer(job.tokenizer).name
    sources = info.setdefault("sources", {})
    if (before := info.get("tokenizer")) and before != tokenizer:
      for other in sources.values():  # of the other splits, which it named until now
        other.setdefault("tokenizer", before)
    info["tokenizer"] = tokenizer
    if total.has_sets:
      info["record_version"] = dataset_folder.RECORD_VERSION
    sources[job.split] = {
      "form": job.source.form,
      **({"languages": total.all_languages} if total.languages else {}),
      **({"caption_sources": total.sources} if total.sources else {}),
      **job.source.arguments(),
      "files": len(job.source.files),
      "created_with": summary["created_with"],
      "counts": total.counts,
      "findings": {skip.kind: {"left_out": skip.scope, "count": count} for skip, count in total.findings.firsts()},
    }
    dataset_folder.write_info(job.output, info)
    dataset_folder.add_splits(job.output, job.name, {job.split: shards})
  facts = {**job.source.arguments(), **summary["created_with"], "files": len(job.source.files)}
  page = paths.join(job.output, f"report-{job.split}.html")
  report.write_page(page, Records(job.output, job.split), job.name, job.split, total, facts)
