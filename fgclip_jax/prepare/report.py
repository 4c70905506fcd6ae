"""Reports of what a data set holds: an HTML page that needs no other file, and text for a terminal."""

import base64
import dataclasses
import functools
import html
import io
import itertools
from collections.abc import Sequence

from PIL import Image

from fgclip_jax.data import record
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.prepare.stats import SCOPE_NAMES, TITLES, DatasetStats, Histogram, Histograms, format_example
from fgclip_jax.storage import paths, workers
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.viz import contact_sheet
from fgclip_jax.viz.contact_sheet import COLOURS, Sample

SAMPLES = 12  # shown in the report of a conversion
_RECORDS_PER_TASK, _MAX_TASKS = 4096, 1000
_BAR = 40  # characters of the longest bar in a terminal
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 78rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid #ddd; } td.number { text-align: right; } td.example { overflow-wrap: anywhere; }
.note { color: #777; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; } .chart h3 { font-size: .95rem; margin: 0; }
.chart p { margin: 0 0 .3rem; } svg text { font: 12px system-ui, sans-serif; fill: #222; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure img { max-width: 100%; } figcaption { overflow-wrap: anywhere; } figcaption p,
figcaption ol { margin: .3rem 0; } ol { padding-left: 1.4rem; } details { color: #777; }
"""


def count_split(records: Records, processes: int) -> DatasetStats:
  """Reads a split and counts what it holds; a record that cannot be read is a finding.

  Args:
    records: the split.
    processes: the number of processes; the result does not depend on it.
  """
  count = min(-(-len(records) // _RECORDS_PER_TASK), _MAX_TASKS)
  tasks = list(itertools.pairwise(len(records) * task // count for task in range(count + 1)))
  function = functools.partial(_count_range, records)
  found = dict(workers.run_tasks(function, tasks, processes, total=len(records), label="reading", unit=" records"))
  total = DatasetStats()
  for begin in sorted(found):  # tasks end in any order; the first examples are those of the first records
    total.merge(found[begin])
  return total


def _count_range(records: Records, task: tuple[int, int]) -> tuple[int, DatasetStats]:
  """Counts records `begin` to `end`; returns `begin` and the counts."""
  stats, tokenizer = DatasetStats(), get_tokenizer()
  for number in range(*task):
    workers.tick(1)
    stats.read += 1
    try:
      found = record.decode(records[number])
    except RecordError as error:
      file, _, index = records.where(number).rpartition(", record ")
      stats.add_finding("record", error, file, int(index))
      continue
    if found.tokens is None:
      found = dataclasses.replace(found, tokens=record.tokenize(found, tokenizer))
    stats.add_record(found)
  return task[0], stats


def write_page(
  path: str,
  records: Records,
  name: str,
  split: str,
  stats: DatasetStats,
  facts: dict[str, object],
  count: int = SAMPLES,
  seed: int = 0,
) -> str:
  """Writes the page, and beside it a contact sheet of the same samples; returns the path of the sheet.

  Args:
    path: the page to write.
    records: the split, to draw samples from.
    name, split: the names of the data set and the split.
    stats: what the split holds, and what was left out.
    facts: further rows of the table at the end, by name.
    count, seed: how many samples, and which.
  """
  samples = contact_sheet.take(records, count, seed)
  paths.write(path, format_page(name, split, stats, samples, facts).encode())
  sheet = f"{path.removesuffix('.html')}.jpg"
  paths.write(sheet, encode_jpeg(contact_sheet.draw(samples)))
  return sheet


def format_page(name: str, split: str, stats: DatasetStats, samples: Sequence[Sample], facts: dict[str, object]) -> str:
  """Formats the page as HTML; its images are part of it. For the arguments see `write_page`."""
  title = html.escape(f"{name}, split {split}")
  rows = "".join(_row(key.replace("_", " "), f"{value:,}") for key, value in stats.counts.items())
  rows += "".join(_row(f"captions of source {source}", f"{value:,}") for source, value in stats.sources.items())
  others = "".join(
    f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items()
  )
  charts = "".join(_chart(TITLES.get(key, key), value) for key, value in stats.histograms.items() if value.count)
  shown = "".join(map(_figure, samples))
  return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<table>{rows}</table>
<h2>Left out, and notes</h2>
{_findings(stats)}
<h2>Samples</h2>
<div class="samples">{shown}</div>
<h2>Histograms</h2>
<div class="charts">{charts}</div>
<h2>How it was made</h2>
<table>{others}</table>
</body></html>
"""


def format_histograms(histograms: Histograms) -> str:
  """Formats the histograms that are not empty, with bars of characters."""
  return "\n\n".join(
    _format_histogram(TITLES.get(name, name), value) for name, value in histograms.items() if value.count
  )


def _format_histogram(title: str, histogram: Histogram) -> str:
  bins = histogram.bins()
  width, most = max(len(label) for label, _ in bins), max(count for _, count in bins)
  numbers = max(len(f"{count:,}") for _, count in bins)
  lines = [f"{title}\n  {_summary(histogram)}"]
  for label, count in bins:
    bar = "█" * max(round(_BAR * count / most), 1 if count else 0)
    lines.append(f"  {label:>{width}}  {count:>{numbers},}  {100 * count / histogram.count:5.1f}%  {bar}".rstrip())
  return "\n".join(lines)


def _summary(histogram: Histogram) -> str:
  return f"{histogram.count:,} in all, {histogram.low:.4g} to {histogram.high:.4g}, mean {histogram.mean:.4g}"


def _row(name: str, value: str) -> str:
  return f'<tr><td>{html.escape(name)}</td><td class="number">{html.escape(value)}</td></tr>'


def _findings(stats: DatasetStats) -> str:
  if not stats.findings:
    return "<p>Nothing was left out, and there is nothing to note.</p>"
  rows = ["<tr><th>class</th><th>left out</th><th>count</th><th>first example</th></tr>"]
  for skip, count in stats.sorted_findings:
    left_out = SCOPE_NAMES.get(skip.scope, skip.scope)
    style = ' class="note"' if skip.scope == "note" else ""
    rows.append(
      f'<tr{style}><td>{html.escape(skip.kind)}</td><td>{left_out}</td><td class="number">{count:,}</td>'
      f'<td class="example">{html.escape(format_example(skip))}</td></tr>'
    )
  return f"<table>{''.join(rows)}</table>"


def _chart(title: str, histogram: Histogram) -> str:
  bins = histogram.bins()
  most, line, left, length = max(count for _, count in bins), 17, 110, 200
  parts = []
  for index, (label, count) in enumerate(bins):
    y, bar = index * line, length * count / most
    parts.append(
      f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{html.escape(label)}</text>'
      f'<rect x="{left}" y="{y + 2}" width="{bar:.1f}" height="{line - 4}" fill="{COLOURS[1]}"/>'
      f'<text x="{left + bar + 5:.1f}" y="{y + 12}">{count:,} ({100 * count / histogram.count:.1f} %)</text>'
    )
  size = f'width="{left + length + 170}" height="{len(bins) * line + 4}"'
  return (
    f'<div class="chart"><h3>{html.escape(title)}</h3><p class="note">{_summary(histogram)}</p>'
    f'<svg role="img" {size}>{"".join(parts)}</svg></div>'
  )


def _figure(sample: Sample) -> str:
  found = sample.record
  parts = []
  if sample.picture:
    parts.append(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encode_jpeg(sample.picture)).decode()}">')
  parts.append("<figcaption>")
  if sample.fault:
    parts.append(f"<p><b>{html.escape(sample.fault)}</b></p>")
  if found:
    parts.append(f"<p>{html.escape(found.short)}</p>")
    if found.long:
      parts.append(f'<p class="note">{html.escape(found.long)}</p>')
    parts.append(_captions(found.captions))
    entries = []
    for index, region in enumerate(found.regions):
      long = f' <span class="note">{html.escape(region.long)}</span>' if region.long else ""
      negatives = "".join(f"<li>{html.escape(text)}</li>" for text in region.negatives)
      more = f"<details><summary>{len(region.negatives)} negatives</summary><ul>{negatives}</ul></details>"
      colour = COLOURS[index % len(COLOURS)] if index < contact_sheet.MAX_REGIONS else "#777"
      more = _captions(region.captions) + (more if negatives else "")
      entries.append(f'<li><b style="color:{colour}">{html.escape(region.short)}</b>{long}{more}</li>')
    parts.append(f"<ol>{''.join(entries)}</ol>")
  identity = f"{found.id}: {sample.place}" if found else sample.place
  parts.append(f'<p class="note">{html.escape(identity)}</p></figcaption>')
  return f"<figure>{''.join(parts)}</figure>"


def _captions(captions: Sequence[Caption]) -> str:
  """A set of captions, folded; empty if there is none."""
  if not captions:
    return ""
  rows = []
  for caption in captions:
    facts = [
      caption.kind,
      caption.language,
      caption.source,
      "" if caption.weight == 1 else f"weight {caption.weight:g}",
    ]
    note = html.escape(", ".join(filter(None, facts)))
    rows.append(f'<li>{html.escape(caption.text)} <span class="note">{note}</span></li>')
  return f"<details><summary>{len(captions)} captions</summary><ul>{''.join(rows)}</ul></details>"


def encode_jpeg(picture: Image.Image) -> bytes:
  """Encodes a picture as a JPEG file."""
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=88)
  return file.getvalue()
