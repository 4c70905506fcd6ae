"""Turns the records of a source into a data set: the one mechanism behind every converter.

1. Every input file is read once, to count its records and to note the offset of every 256th.
2. The records, in the order of the files, are cut into shards of equal length. This plan depends on the input
   and the arguments only, never on the number of processes.
3. Processes write shards. A shard is written under a temporary name, renamed, and then described in a JSON file
   of its own; one that has both is finished, and kept when the same command is typed again.

The plan and the descriptions lie in `OUTPUT/.prepare/SPLIT/`.
"""

import concurrent.futures.process
import dataclasses
import fcntl
import importlib.metadata
import itertools
import json
import os
import re
import shutil
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from fgclip_jax.data import fields, image, plans, pool, record
from fgclip_jax.data.record import RecordError
from fgclip_jax.data.tally import Tally

_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class _Shard:
  """One shard to write: its `path`, the records it is made of, and the path of its description."""

  job: plans.Job
  number: int
  path: str
  description: str
  pieces: list[plans.Piece]


def write(job: plans.Job, workers: int, overwrite: bool = False) -> Tally:
  """Writes a split, or what is missing of it, and returns what it holds.

  Args:
    job: what to convert and where to.
    workers: the number of processes; the result does not depend on it.
    overwrite: discard what an earlier run wrote for this split.

  Raises:
    PrepareError: nothing usable, other arguments or files than those of the shards already there, or, where the
      job is strict, the first fault.
    OSError: reading or writing fails.
  """
  _check(job)
  state = os.path.join(job.output, ".prepare", job.split)
  os.makedirs(state, exist_ok=True)
  with open(os.path.join(job.output, ".prepare", f"{job.split}.lock"), "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise plans.PrepareError(f"another process is preparing split {job.split!r} in {job.output}") from error
    try:
      return _write(job, state, workers, overwrite)
    except concurrent.futures.process.BrokenProcessPool as error:
      message = "a worker process was killed (too little memory?); type the command again to continue, with fewer"
      raise plans.PrepareError(f"{message} --workers if it happens again") from error


def _write(job: plans.Job, state: str, workers: int, overwrite: bool) -> Tally:
  plan = _load_plan(job, state, overwrite) or plans.make(job, state, workers)
  broken = [(path, found) for path, found in zip(job.source.files, plan["files"], strict=True) if found["broken"]]
  total = Tally()
  for path, found in broken:
    total.add_finding("file", RecordError(*found["broken"]), path, found["records"])
  shards = _list_shards(job, state, plans.cut(job, plan))
  tallies = [_load_finished(shard) for shard in shards]
  if job.strict:
    _refuse_fault(total, *(tally for tally in tallies if tally))
  left = [shard for shard, tally in zip(shards, tallies, strict=True) if tally is None]
  if len(left) < len(shards):
    print(f"{len(shards) - len(left)} of {len(shards)} shards are finished already: kept")
  count = sum(piece.count for shard in left for piece in shard.pieces)
  for number, tally in pool.run(_write_shard, left, workers, total=count, label="writing", unit=" records"):
    tallies[number] = tally
  for tally in tallies:
    total.merge(tally)
  _finish(job, plan, total, [tally.records for tally in tallies])
  return total


def _check(job: plans.Job) -> None:
  for option, value in (("name", job.name), ("split", job.split)):
    if not _NAME.fullmatch(value):
      raise plans.PrepareError(f"--{option} must be made of letters, digits and underscores, got {value!r}")
  if job.shards is not None and not 1 <= job.shards <= 99999:
    raise plans.PrepareError(f"--shards must lie in 1..99999, got {job.shards}")
  name = record.read_info(job.output).get("name", job.name)
  if name != job.name:
    raise plans.PrepareError(f"{job.output} holds the data set {name!r}, not {job.name!r}: give another --output")


def _load_plan(job: plans.Job, state: str, overwrite: bool) -> dict | None:
  """The plan of an earlier run of the same command; None where there is nothing to continue."""
  path = os.path.join(state, "plan.json")
  entries = os.listdir(job.output)
  shards = [entry for entry in entries if re.search(rf"-{job.split}\.array_record-\d{{5}}-of-\d{{5}}$", entry)]
  plan = None
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      plan = json.load(file)
  if plan and not overwrite:
    changes = plans.compare(plan["arguments"], plans.get_arguments(job))
    if not changes:
      return plan
    if shards:
      raise plans.PrepareError(
        f"{job.output} holds {len(shards)} shards of split {job.split!r} made of something else: "
        f"{'; '.join(changes)}. Add --overwrite to discard them, or give another --output"
      )
  elif shards and not overwrite:
    raise plans.PrepareError(
      f"{job.output} holds shards of split {job.split!r} that cannot be continued ({shards[0]}, ...). "
      "Add --overwrite to discard them, or give another --output"
    )
  _clear(job, state)
  return None


def _clear(job: plans.Job, state: str) -> None:
  """Removes all that earlier runs wrote for this split."""
  for entry in os.listdir(job.output):
    if re.search(rf"-{job.split}\.array_record-\d{{5}}-of-\d{{5}}(\.tmp)?$", entry):
      os.remove(os.path.join(job.output, entry))
  shutil.rmtree(state)
  os.makedirs(state)


def _list_shards(job: plans.Job, state: str, cuts: list[list[plans.Piece]]) -> list[_Shard]:
  return [
    _Shard(
      job=job,
      number=number,
      path=record.shard_path(job.output, job.name, job.split, number, len(cuts)),
      description=os.path.join(state, f"{number:05d}.json"),
      pieces=pieces,
    )
    for number, pieces in enumerate(cuts)
  ]


def _write_shard(shard: _Shard) -> tuple[int, Tally]:
  """Writes one shard, then its description."""
  temporary = f"{shard.path}.tmp"
  tally = Tally()
  try:
    writer = ArrayRecordWriter(temporary, "group_size:1")
    try:
      _convert_pieces(shard, writer, tally)
    finally:
      writer.close()
  except RuntimeError as error:  # what ArrayRecord raises, for a full disk too
    raise OSError(f"cannot write {temporary}: {error}") from error
  _check_shard(shard, temporary, tally)
  os.replace(temporary, shard.path)
  plans.save_json(shard.description, {"bytes": os.path.getsize(shard.path), "tally": tally.to_json()})
  return shard.number, tally


def _convert_pieces(shard: _Shard, writer: ArrayRecordWriter, tally: Tally) -> None:
  for piece in shard.pieces:
    found = itertools.islice(shard.job.source.scan(piece.file, piece.offset), piece.skip, piece.skip + piece.count)
    for index, (_, raw) in enumerate(found, piece.index):
      pool.tick(1)
      data = _convert(shard.job, raw, tally, piece.file, index)
      if data is not None:
        writer.write(data)


def _check_shard(shard: _Shard, path: str, tally: Tally) -> None:
  """Raises `PrepareError` unless all of the shard's records were read, and `path` holds those that were kept."""
  expected = sum(piece.count for piece in shard.pieces)
  if tally.read != expected:
    files = sorted({piece.file for piece in shard.pieces})
    raise plans.PrepareError(f"read {tally.read} of {expected} records: did {', '.join(files)} change meanwhile?")
  reader = ArrayRecordReader(path)
  held = reader.num_records()
  reader.close()
  if held != tally.records:
    raise plans.PrepareError(f"{path} holds {held} of {tally.records} records: is the disk full?")


def _convert(job: plans.Job, raw: Any, tally: Tally, file: str, index: int) -> bytes | None:
  """Serializes one record, image included; None if it cannot be used. Counts either in `tally`."""
  findings = []

  def tell(loss: fields.Loss, error: RecordError) -> None:
    if job.strict and loss != "note":
      raise plans.PrepareError(f"--strict: {file}, record {index}: {error}")
    findings.append((loss, error))

  tally.read += 1
  try:
    loaded = job.source.load(raw, tell)
    _check_image(job, loaded)
    data = record.encode(loaded)
  except RecordError as error:
    findings.clear()  # the record is left out whole: its smaller findings no longer matter
    tell("record", error)
    data = None
  else:
    tally.add_record(loaded)
  for loss, error in findings:
    tally.add_finding(loss, error, file, index)
  return data


def _check_image(job: plans.Job, loaded: record.Record) -> None:
  if job.check_images:
    try:
      image.open_image(loaded.image)
    except RecordError as error:
      raise RecordError(error.kind, error.field, f"{loaded.id!r} {error.message}") from error
  elif not loaded.image:
    raise RecordError("image_empty", "image", f"{loaded.id!r} is an empty file")


def _load_finished(shard: _Shard) -> Tally | None:
  """What a finished shard holds; None for one that was never written, or removed, or cut off."""
  try:
    with open(shard.description, encoding="utf-8") as file:
      description = json.load(file)
    complete = os.path.getsize(shard.path) == description["bytes"]
  except (FileNotFoundError, json.JSONDecodeError):
    return None
  return Tally.from_json(description["tally"]) if complete else None


def _refuse_fault(*tallies: Tally) -> None:
  for tally in tallies:
    if fault := tally.first_fault:
      raise plans.PrepareError(f"--strict: {fault.example}")


def _finish(job: plans.Job, plan: dict, total: Tally, shards: list[int]) -> None:
  """Writes `report-SPLIT.json`, `features.json` and `info.json`."""
  if not total.records:
    _clear(job, os.path.join(job.output, ".prepare", job.split))
    raise plans.PrepareError(f"none of {total.read:,} records can be used:\n{total.format_table()}")
  packages = ("array_record", "pillow", "tensorflow-datasets")
  report = {
    "arguments": plan["arguments"],
    "created_with": {package: importlib.metadata.version(package) for package in packages},
    **total.to_json(),
  }
  plans.save_json(os.path.join(job.output, f"report-{job.split}.json"), report)
  info = record.read_info(job.output)
  info.setdefault("name", job.name)
  info.setdefault("splits", {})[job.split] = total.records
  info.setdefault("shards", {})[job.split] = shards
  info.setdefault("sources", {})[job.split] = {
    "form": job.source.form,
    **job.source.arguments(),
    "files": len(job.source.files),
    "created_with": report["created_with"],
    "counts": total.counts,
    "findings": {kind: {"left_out": found.loss, "count": found.count} for kind, found in total.findings.items()},
  }
  record.write_info(job.output, info)
