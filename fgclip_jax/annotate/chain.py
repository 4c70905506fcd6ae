"""Runs the stages over the parts of the items.

There are two passes. The first goes up to the regions and their captions; the second makes negatives, whose words are
drawn as often as they stand in the captions of all regions, so that no word gives a wrong caption away.
"""

import collections
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

from fgclip_jax.annotate import items
from fgclip_jax.annotate.draft import FORMS, PENDING, Draft
from fgclip_jax.annotate.items import Item
from fgclip_jax.annotate.journal import Journal, Outcome
from fgclip_jax.annotate.rules.negative_checks import RULES
from fgclip_jax.annotate.stage import Stage, Tally, digest
from fgclip_jax.annotate.stages.negatives import Frequencies, Negatives
from fgclip_jax.prepare.stats import DatasetStats, Histogram
from fgclip_jax.storage import atomic, paths
from fgclip_jax.storage.errors import RecordError, first_line
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.workers import Engine, run_tasks, tick

STATE = ".annotate"  # the folder, in the output, of what is needed to go on
ANNOTATIONS = "annotations"
PROVENANCE = "provenance"  # which model has said what; the report has the settings behind each signature
VERSION = 1  # raised when drafts change, so that those of an earlier program are not continued


@dataclasses.dataclass(frozen=True)
class Job:
  """What to do.

  Attributes:
    output: the folder of the annotations.
    first: the stages up to the captions of regions, in their order.
    second: the stages after those.
    language: the code of the captions' language where an item names none; empty: English.
    form: of the annotations, a key of `FORMS`.
    retry: the classes of failures that are tried again; `all` is every class.
  """

  output: str
  first: tuple[Stage, ...]
  second: tuple[Stage, ...]
  language: str = ""
  form: str = "pairs"
  retry: tuple[str, ...] = ()

  def folder(self, *parts: str) -> str:
    """A folder of the state."""
    return paths.join(self.output, STATE, *parts)


@dataclasses.dataclass
class Done:
  """What a task has done, counted.

  Attributes:
    number: of the part.
    tally: counts by `STAGE.WHAT`.
    stats: what is written, and what is left out.
    scores: of the boxes that are written.
    differences: of the cosines of negatives with their regions and those of the positives, where a model compared them.
    values: how often each value of an attribute stands in the captions of regions.
  """

  number: int
  tally: Tally = dataclasses.field(default_factory=collections.Counter)
  stats: DatasetStats = dataclasses.field(default_factory=lambda: DatasetStats(findings=SkipReport(limit=3)))
  scores: Histogram = dataclasses.field(default_factory=lambda: Histogram(tuple(step / 20 for step in range(22))))
  differences: Histogram = dataclasses.field(
    default_factory=lambda: Histogram((-2, -1, -0.5, -0.3, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 2))
  )
  values: Frequencies = dataclasses.field(default_factory=Frequencies)

  def merge(self, later: "Done") -> None:
    """Adds another part's."""
    self.tally.update(later.tally)
    self.stats.merge(later.stats)
    self.scores.merge(later.scores)
    self.differences.merge(later.differences)
    self.values.merge(later.values)


def run(job: Job, counts: list[int], workers: int | Engine) -> Done:
  """Runs both passes over all parts, and writes the annotations.

  Args:
    job: what to do.
    counts: the items of each part, as `items.write_parts` returns them.
    workers: the number of processes, or an engine.

  Raises:
    ValueError: the counts do not add up, which is a fault of this program.
  """
  total = sum(counts)
  for folder in ("drafts", "finished"):
    paths.make_folder(job.folder(folder))
  paths.make_folder(paths.join(job.output, ANNOTATIONS))
  first = functools.partial(_draft_part, job)
  parts = _order(job.folder("drafts"), len(counts))
  found = _merge(run_tasks(first, parts, workers, total=total, label="regions", unit=" pictures"))
  second = functools.partial(_finish_part, job, found.values, len(counts))
  parts = _order(job.folder("finished"), len(counts))
  finished = _merge(run_tasks(second, parts, workers, total=total, label="negatives", unit=" pictures"))
  found.merge(finished)
  check_identities(found.tally)
  return found


def _order(folder: str, parts: int) -> list[int]:
  """The numbers of the parts, those first of which there is no file yet: a run that goes on soon asks for more."""
  there = set(paths.list_folder(folder)) if paths.is_folder(folder) else set()
  return sorted(range(parts), key=lambda number: paths.base_name(items.part_path(folder, number)) in there)


def _merge(results: Iterator[Done]) -> Done:
  """Adds up what tasks have done in the order of the parts, for the same examples and sums whichever was quicker."""
  total, early = Done(-1), {}
  for done in results:
    early[done.number] = done
    while following := early.pop(total.number + 1, None):
      total.merge(following)
      total.number += 1
  return total


def _draft_part(job: Job, number: int) -> Done:
  """The first pass over a part: its drafts go into a file."""
  done = Done(number)
  drafts = list(_open(items.read_part(job.folder("items"), number), job.language, done))
  for stage in job.first:
    _run_stage(job, stage, number, drafts, done.tally)
  for draft in drafts:
    done.values.add((region.short for region in draft.regions), draft.language or "en")
  _write_lines(items.part_path(job.folder("drafts"), number), [draft.to_json() for draft in drafts])
  return done


def _open(found: list[Item], language: str, done: Done) -> Iterator[Draft]:
  for item in found:
    tick(1)
    done.tally["items.read"] += 1
    try:
      yield Draft.open(item, language)
    except RecordError as error:
      done.tally["items.failed"] += 1
      done.stats.findings.add(Skip.of(error, item.id))


def _finish_part(job: Job, values: Frequencies, parts: int, number: int) -> Done:
  """The second pass over a part: its annotations go into a file."""
  done = Done(number)
  drafts = list(read_drafts(items.part_path(job.folder("drafts"), number)))
  for stage in job.second:
    if isinstance(stage, Negatives):
      stage = stage.with_frequencies(values)
    _run_stage(job, stage, number, drafts, done.tally)
  written = []
  for draft in drafts:
    tick(1)
    if draft.rejected:
      done.tally["items.pending" if draft.rejected == PENDING else "items.rejected"] += 1
      done.stats.findings.add(Skip(draft.rejected, "is not written", place=draft.item.id))
      continue
    written.append(json.dumps(FORMS[job.form](draft), ensure_ascii=False))
    done.tally["items.written"] += 1
    done.stats.add_record(draft.to_record())
    for region in draft.regions:
      if region.score is not None:
        done.scores.add(region.score)
      for difference in region.differences:
        done.differences.add(difference)
  _write_lines(items.part_path(job.folder("finished"), number), [draft.to_json() for draft in drafts])
  name = f"part-{number:05d}-of-{parts:05d}.jsonl"
  _write_lines(paths.join(job.output, ANNOTATIONS, name), written)
  origins = [json.dumps({"image": one.item.id} | one.made_by, ensure_ascii=False) for one in drafts if one.made_by]
  if origins:
    paths.make_folder(paths.join(job.output, PROVENANCE))
    _write_lines(paths.join(job.output, PROVENANCE, name), origins)
  return done


def read_drafts(path: str) -> Iterator[Draft]:
  """The drafts in a file of a part.

  Raises:
    ValueError: a line is no draft; names it.
  """
  # As bytes, for a caption may hold U+2028, at which text has an end of a line and JSON has none.
  for number, line in enumerate(paths.read(path).splitlines(), 1):
    try:
      yield Draft.from_json(line.decode())
    except (ValueError, LookupError, TypeError, RecursionError) as error:
      raise ValueError(f"{path}, line {number}: is damaged ({first_line(error)}); run the command again") from error


def _write_lines(path: str, lines: list[str]) -> None:
  with atomic.file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
    file.writelines(line + "\n" for line in lines)


def _run_stage(job: Job, stage: Stage, number: int, drafts: list[Draft], tally: Tally) -> None:
  """Asks what is not answered yet, and applies all answers."""
  signature = digest(stage.signature())[:16]
  wanted = {draft.item.id: list(stage.tasks(draft)) for draft in drafts if not draft.rejected}
  tasks = {task.key: task for task in itertools.chain.from_iterable(wanted.values())}
  path = items.part_path(job.folder(f"{stage.name}-{signature}"), number)
  with Journal(path) as journal:
    outcomes = journal.read() if tasks else {}
    left = [task for key, task in tasks.items() if key not in outcomes or _again(outcomes[key], job.retry)]
    for outcome in stage.run(left, number) if left else ():
      journal.add(outcome)
      outcomes[outcome.key] = outcome
      tally[f"{stage.name}.attempts"] += outcome.attempts
  for draft in drafts:
    if not draft.rejected:
      found = {task.key: outcomes[task.key] for task in wanted[draft.item.id] if task.key in outcomes}
      try:
        stage.apply(draft, found, tally)
      except (LookupError, TypeError, ValueError, AttributeError) as error:  # a line that this program did not write
        raise ValueError(
          f"{path}: an answer for {draft.item.id!r} is none of the stage {stage.name} ({first_line(error)}); "
          "delete the file to have its answers made again"
        ) from error
      if models := sorted({outcome.model for outcome in found.values() if outcome.model}):
        draft.made_by[stage.name] = f"{', '.join(models)}; {signature}"


def _again(outcome: Outcome, retry: tuple[str, ...]) -> bool:
  return bool(outcome.failure) and ("all" in retry or outcome.failure in retry)


def check_identities(tally: Tally) -> None:
  """Raises a ValueError where what came in is not what went out: every loss has a name."""
  for total, parts in IDENTITIES.items():
    found = sum(tally[part] for part in parts)
    if tally[total] != found:
      raise ValueError(f"the counts do not add up: {total} is {tally[total]}, {' + '.join(parts)} is {found}")


IDENTITIES: dict[str, tuple[str, ...]] = {
  "items.read": ("items.written", "items.rejected", "items.failed", "items.pending"),
  "phrases.found": (
    *(f"phrases.{kind}" for kind in ("stop_head", "pronoun", "too_long", "contained", "twice", "over_limit")),
    "phrases.kept",
  ),
  "boxes.phrases": (
    *(f"boxes.{kind}" for kind in ("failed_phrases", "pending_phrases", "no_box", "low_score", "invalid")),
    *(f"boxes.{kind}" for kind in ("suppressed", "over_limit", "regions")),
  ),
  "negatives.regions": ("negatives.ten_or_more", "negatives.fewer", "negatives.none"),
  "negatives.answers": ("negatives.kept", *(f"negatives.broken.{rule}" for rule in (*RULES, "over_limit"))),
  "check.negatives": (
    *(f"check.{kind}" for kind in ("not_higher", "noted", "rejected", "failed_negatives", "pending_negatives")),
  ),
}


def describe(job: Job) -> dict[str, Any]:
  """What decides the annotations, as JSON, for the report."""
  stages = {
    stage.name: stage.signature() | {"signature": digest(stage.signature())[:16]} for stage in (*job.first, *job.second)
  }
  return {"version": VERSION, "form": job.form, "language": job.language or "en", "stages": stages}
