"""One record from its raw form to the bytes of a shard: loaded, checked, its image stored, its captions numbered."""

import dataclasses
from typing import Any

from fgclip_jax.data import annotation_fields, record
from fgclip_jax.data.tokenizers import token_ids
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.prepare import checks, duplicates, image_storage
from fgclip_jax.prepare import job as plans
from fgclip_jax.prepare.stats import Tally
from fgclip_jax.storage.errors import RecordError


class Converter:
  """Raw records to serialized ones; counts each in the tally."""

  def __init__(self, job: plans.Job, tally: Tally):
    self._job, self._tally, self._tokenizer = job, tally, Tokenizer()

  def convert(self, raw: Any, file: str, index: int, hashes: duplicates.Hashes | None, number: int) -> bytes | None:
    """A serialized record; None if it cannot be used.

    Args:
      raw: what the source's `scan` yielded.
      file, index: the record's place.
      hashes: where the hash of the image that came goes, if that is wanted.
      number: the record's number there.
    """
    findings = []

    def tell(loss: annotation_fields.Loss, error: RecordError) -> None:
      self._refuse(loss, error, file, index)
      findings.append((loss, error))

    self._tally.read += 1
    try:
      loaded, stored = load(self._job, raw, tell)
      made = dataclasses.replace(stored, tokens=token_ids.make(stored, self._tokenizer))
      data = record.encode(made)
    except RecordError as error:
      self._leave_out(error, file, index)  # whole: the smaller findings no longer matter
      return None
    self._tally.add_record(made)
    for loss, error in findings:
      self._tally.add_finding(loss, error, file, index)
    if hashes:
      hashes.add(number, loaded.image)
    return data

  def leave_out(self, error: RecordError, file: str, index: int) -> None:
    """Counts a record that is left out without being read."""
    self._tally.read += 1
    self._leave_out(error, file, index)

  def _leave_out(self, error: RecordError, file: str, index: int) -> None:
    self._refuse("record", error, file, index)
    self._tally.add_finding("record", error, file, index)

  def _refuse(self, loss: annotation_fields.Loss, error: RecordError, file: str, index: int) -> None:
    if self._job.strict and loss != "note":
      raise plans.PrepareError(f"--strict: {file}, record {index}: {error}")


def load(job: plans.Job, raw: Any, tell: annotation_fields.Tell) -> tuple[record.Record, record.Record]:
  """A record as it came, and with all that can be used of it and its image as it is stored.

  Raises:
    RecordError: the record cannot be used.
  """
  loaded = job.source.load(raw, tell)
  stored, size = image_storage.store(loaded, job.storing)
  return loaded, checks.check(stored, size, job.checks, tell)
