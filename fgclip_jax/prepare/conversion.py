"""Converts one record from its raw form to its bytes in a shard: loads and checks it, stores its image, adds token ids.

A record that cannot be used, for a corrupt JPEG for instance, is left out here and counted by kind.
"""

import dataclasses
from typing import Any

from fgclip_jax.data import record
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.prepare import checks, duplicates, image_storage
from fgclip_jax.prepare.ids import Ids
from fgclip_jax.prepare.job import Job, PrepareError
from fgclip_jax.prepare.stats import DatasetStats
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Report, Scope


class Converter:
  """Converts raw records to serialized ones, counts each in `stats`, and collects the ids of those that are kept."""

  def __init__(self, job: Job, stats: DatasetStats, ids: Ids | None = None):
    self._job, self._stats, self._ids, self._tokenizer = job, stats, ids, get_tokenizer(job.tokenizer)

  def convert(self, raw: Any, file: str, index: int, hashes: duplicates.Hashes | None, number: int) -> bytes | None:
    """Returns a serialized record; None if it cannot be used.

    Args:
      raw: what the source's `scan` yielded.
      file, index: the record's place: its file, and its number in the file.
      hashes: collects the hash of the image as it came; None: no hash is needed.
      number: the record's number in `hashes`.

    Raises:
      PrepareError: the job is strict, and something would be left out.
    """
    findings = []

    def report(scope: Scope, error: RecordError) -> None:
      self._refuse(scope, error, file, index)
      findings.append((scope, error))

    self._stats.read += 1
    try:
      loaded, stored = load(self._job, raw, report)
      made = dataclasses.replace(stored, tokens=record.tokenize(stored, self._tokenizer))
      data = record.encode(made)
    except RecordError as error:
      self._leave_out(error, file, index)  # of a record left out as a whole, only the reason is counted
      return None
    self._stats.add_record(made)
    for scope, error in findings:
      self._stats.add_finding(scope, error, file, index)
    if hashes:
      hashes.add(number, loaded.image)
    if self._ids:
      self._ids.add(number, made.id)
    return data

  def leave_out(self, error: RecordError, file: str, index: int) -> None:
    """Counts a record that is left out without being read."""
    self._stats.read += 1
    self._leave_out(error, file, index)

  def _leave_out(self, error: RecordError, file: str, index: int) -> None:
    self._refuse("record", error, file, index)
    self._stats.add_finding("record", error, file, index)

  def _refuse(self, scope: Scope, error: RecordError, file: str, index: int) -> None:
    if self._job.strict and scope != "note":
      raise PrepareError(f"--strict: {file}, record {index}: {error}")


def load(job: Job, raw: Any, report: Report) -> tuple[record.Record, record.Record]:
  """Returns a record as it came, and the record as it is stored: checked, with its image converted.

  Raises:
    RecordError: the record cannot be used.
  """
  loaded = job.source.load(raw, report)
  if job.language and not loaded.language:
    loaded = dataclasses.replace(loaded, language=job.language)
  stored, size = image_storage.store(loaded, job.storing)
  return loaded, checks.check(stored, size, job.checks, report)
