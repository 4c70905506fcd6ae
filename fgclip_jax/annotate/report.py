"""The report of a run: `report-annotate.json` and a page with samples, and the table that is printed."""

import dataclasses
import heapq
import json
from collections.abc import Iterator
from typing import Any

from fgclip_jax.annotate import items
from fgclip_jax.annotate.chain import Done, Job, describe, read_drafts
from fgclip_jax.annotate.draft import Draft
from fgclip_jax.annotate.rules import negatives, probe
from fgclip_jax.annotate.rules.negative_checks import find_giveaways
from fgclip_jax.data import image as images
from fgclip_jax.prepare import report as pages
from fgclip_jax.storage import atomic, paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.viz import contact_sheet

NAME = "report-annotate"
SAMPLES = 12
TELLING = 1000  # negatives; of fewer the area under the curve says little
HIGHER = 100  # negatives that are listed, at most, because a model finds them likelier than their positives
PROBED = 20_000  # regions, at most, of which words are counted


def write(job: Job, done: Done, counts: list[int], facts: dict[str, Any]) -> str:
  """Writes the report and the page; returns the page's path.

  Args:
    job: what was done.
    done: what came of it.
    counts: the items of each part.
    facts: what else is worth knowing, by name.
  """
  stats = done.stats
  stats.read = done.tally["items.read"]
  if done.scores.count:
    stats.histograms["box_score"] = done.scores
  if done.differences.count:
    stats.histograms["negative_less_positive_cosine"] = done.differences
  text_only = _probe(job, counts)
  for language, measured in (text_only or {}).items():
    low, high = probe.WANTED
    if not low <= measured["auc"] <= high and measured["negatives"] >= TELLING:
      print(
        f"note: words alone tell wrong captions in {language} from right ones (AUC {measured['auc']:.2f}, {low:g} to "
        f"{high:g} is wanted); see text_only in {NAME}.json"
      )
  values = {
    "counts": dict(sorted(done.tally.items())),
    "left_out": {skip.kind: dataclasses.asdict(skip) | {"count": count} for skip, count in stats.sorted_findings},
    "made_by": describe(job),
    "text_only": text_only,
    "scores_higher": _higher(job, counts) if done.differences.count else [],
    **facts,
    "histograms": stats.histograms.to_json(),
  }
  with atomic.file(paths.join(job.output, f"{NAME}.json")) as path, open(path, "w", encoding="utf-8") as file:
    json.dump(values, file, indent=2, ensure_ascii=False)
    file.write("\n")
  page = paths.join(job.output, f"{NAME}.html")
  shown = {name: count for name, count in sorted(done.tally.items()) if count}
  samples = list(_samples(job, counts))
  rows: dict[str, object] = {**facts, **shown}
  paths.write(page, pages.format_page(paths.base_name(job.output), "annotated", stats, samples, rows).encode())
  if samples:
    sheet = contact_sheet.draw(samples)
    paths.write(paths.join(job.output, f"{NAME}.jpg"), pages.encode_jpeg(sheet))
  return page


def _probe(job: Job, counts: list[int]) -> dict[str, Any] | None:
  """How well words alone tell negatives from positives, of English and Chinese regions; None: there are too few."""
  found: dict[str, list[tuple[str, list[str]]]] = {}
  for number in range(len(counts)):
    for draft in read_finished(job, number):
      pairs = found.setdefault(draft.language or "en", [])
      pairs += [(region.short, region.negatives) for region in draft.regions if region.negatives]
    if sum(map(len, found.values())) > PROBED:
      break
  measured = {}
  for language, pairs in found.items():
    if len(pairs) > 1:
      telling = probe.measure(pairs, list if language == "zh" else None)
      positives = negatives.count_values((positive for positive, _ in pairs), language)
      wrong = negatives.count_values((text for _, texts in pairs for text in texts), language)
      measured[language] = dataclasses.asdict(telling) | {"giveaways": find_giveaways(positives, wrong)}
  return measured or None


def _higher(job: Job, counts: list[int]) -> list[dict[str, Any]]:
  """The negatives that fit their regions so much better than the positives, the worst first."""
  found = (
    {"image": draft.item.id, "box": region.box, "positive": region.short, "negative": text, "difference": difference}
    for number in range(len(counts))
    for draft in read_finished(job, number)
    for region in draft.regions
    for text, difference in region.higher.items()
  )
  return heapq.nlargest(HIGHER, found, key=lambda each: each["difference"])


def _samples(job: Job, counts: list[int]) -> Iterator[contact_sheet.Sample]:
  """Some pictures with what is written of them, spread over all parts."""
  parts = [number for number, count in enumerate(counts) if count]
  parts = parts[:: max(len(parts) // SAMPLES, 1)][:SAMPLES]
  each = -(-SAMPLES // len(parts)) if parts else 0
  for number in parts:
    found = list(read_finished(job, number))
    for draft in found[:: max(len(found) // each, 1)][:each]:
      try:
        data = draft.item.read()
        record = dataclasses.replace(draft.to_record(), image=data)
        picture = contact_sheet.draw_boxes(images.open_image(data), record.regions)
      except RecordError:  # it has gone since
        continue
      yield contact_sheet.Sample(draft.item.source, record, picture)


def read_finished(job: Job, number: int) -> Iterator[Draft]:
  """The drafts of a part as they are written."""
  for draft in read_drafts(items.part_path(job.folder("finished"), number)):
    if not draft.rejected:
      yield draft


def format_table(done: Done) -> str:
  """The counts as a text table, a block for each stage."""
  blocks: dict[str, list[tuple[str, int]]] = {}
  for name, count in sorted(done.tally.items()):
    stage, _, what = name.partition(".")
    if count:
      blocks.setdefault(stage, []).append((what, count))
  lines = []
  for stage, rows in blocks.items():
    lines.append(stage.replace("_", " "))
    lines += [f"  {printable(what.replace('_', ' ')):<34}{count:>12,}" for what, count in rows]
  for skip, count in done.stats.sorted_findings:
    lines.append(f"left out: {skip.kind} {count:,}, the first: {skip}")
  return "\n".join(lines)
