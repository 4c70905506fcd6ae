"""Counts what a finished split holds, by reading it, and writes a page of it with samples."""

import dataclasses
import functools
import itertools

from fgclip_jax.data import record
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizers import token_ids
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.prepare import report
from fgclip_jax.prepare.stats import Tally
from fgclip_jax.storage import paths
from fgclip_jax.storage import workers as pool
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.viz import contact_sheet

SAMPLES = 12
_RECORDS_PER_TASK, _MAX_TASKS = 4096, 1000


def survey(records: Records, workers: int) -> Tally:
  """Reads a split and counts what it holds; a record that cannot be read is a finding.

  Args:
    records: the split.
    workers: the number of processes.
  """
  count = min(-(-len(records) // _RECORDS_PER_TASK), _MAX_TASKS)
  tasks = list(itertools.pairwise(len(records) * task // count for task in range(count + 1)))
  tallies = {}
  function = functools.partial(_survey, records)
  for begin, tally in pool.run(function, tasks, workers, total=len(records), label="reading", unit=" records"):
    tallies[begin] = tally
  total = Tally()
  for begin in sorted(tallies):
    total.merge(tallies[begin])
  return total


def _survey(records: Records, task: tuple[int, int]) -> tuple[int, Tally]:
  tally, tokenizer = Tally(), Tokenizer()
  for number in range(*task):
    pool.tick(1)
    tally.read += 1
    try:
      found = record.decode(records[number])
    except RecordError as error:
      file, _, index = records.where(number).rpartition(", record ")
      tally.add_finding("record", error, file, int(index))
      continue
    if found.tokens is None:
      found = dataclasses.replace(found, tokens=token_ids.make(found, tokenizer))
    tally.add_record(found)
  return task[0], tally


def write_page(
  path: str, records: Records, name: str, split: str, tally: Tally, facts: dict[str, object], count: int, seed: int = 0
) -> str:
  """Writes the page, and beside it the contact sheet, whose path is returned.

  Args:
    path: of the page.
    records: the split, for samples.
    name, split: what it is called.
    tally: what it holds.
    facts: what else is said of it.
    count, seed: how many samples, and which.
  """
  samples = contact_sheet.take(records, count, seed)
  paths.write(path, report.format_page(name, split, tally, samples, facts).encode())
  sheet = f"{path.removesuffix('.html')}.jpg"
  paths.write(sheet, report.encode_jpeg(contact_sheet.draw(samples)))
  return sheet
