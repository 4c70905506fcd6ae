"""Results as files and tables: one JSON file per benchmark and model, its examples as JSON lines, comparisons.

Published numbers to compare with are in `published.json`, a list of tables: `benchmark`, the name of an evaluator (or
of what has no evaluator here, such as heads trained on top); `settings`, which tell the data set: for each of the
evaluator's settings a part of it, of a path a part of its last name; `metrics`, the names of its columns; `source`; and
`rows`, for each model its numbers in percent, null where there is none.
"""

import dataclasses
import errno
import functools
import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import fgclip_jax
from fgclip_jax.evals.datasets.text_files import read_json
from fgclip_jax.evals.evaluator import Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import params
from fgclip_jax.storage import atomic, paths
from fgclip_jax.storage.skip_report import printable

FORMAT = 2  # of the JSON files
_ROWS = 10_000  # examples held as Python objects at once
_MOST_BYTES = 64 << 20  # of a result file
_FIELDS = {"benchmark": str, "name": str, "metrics": dict, "settings": dict, "skipped": dict}  # that comparing reads
_KINDS = {str: "text", dict: "an object"}

_LABELS = {
  "top1_argmax": "top1, of classes of the same name the first alone (as published)",
  "fine_grained_top1": "region: own caption among its hard negatives",
  **{f"region_top{k}": f"region: own caption among all classes, top {k}" for k in (1, 5)},
  **{
    f"{kind}_{stage}{way}_r{k}": f"{kind} captions: {way.replace('_', ' ')}, R@{k}{', reranked' * bool(stage)}"
    for kind in ("long", "short")
    for stage in ("", "reranked_")
    for way in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
  },
  **{
    f"{stage}{way}_r{k}": f"{way.replace('_', ' ')}, R@{k}{', reranked' * bool(stage)}"
    for stage in ("", "reranked_")
    for way in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
  },
}

Metrics = Mapping[str, Mapping[str, Any]]  # by name: value, chance and count


def fingerprint(model: FGCLIP) -> str:
  """A hash of the model's parameters and size: equal for equal models, wherever they were read from."""
  digest = hashlib.sha256(json.dumps(model.config.identity(), sort_keys=True).encode())
  for name, leaf in sorted(params.flatten(model.params).items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(jax.device_get(leaf)).data)
  return digest.hexdigest()[:16]


def describe(
  model: FGCLIP, benchmark: str, name: str, result: Result, settings: dict[str, Any], seconds: float
) -> dict[str, Any]:
  """A result as JSON: metrics, settings, the model's fingerprint, versions, device, time.

  Args:
    model: the model that was measured.
    benchmark: the evaluator's name.
    name: the model's name in tables.
    result: the evaluator's result.
    settings: the evaluator's and the model's.
    seconds: the time of the measurement.
  """
  devices = jax.devices()
  versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "numpy", "pillow")}
  return {
    "format": FORMAT,
    "benchmark": benchmark,
    "name": name,
    "metrics": as_json(result),
    "settings": settings,
    "records": result.records,
    "skipped": dict(result.skipped),
    "notes": list(result.notes),
    "model": {"fingerprint": fingerprint(model), "config": model.config.identity()},
    "versions": {"fgclip_jax": fgclip_jax.__version__, "python": platform.python_version(), **versions},
    "device": {"kind": devices[0].device_kind, "count": len(devices)},
    "seconds": round(seconds, 2),
    "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
  }


def as_json(result: Result) -> dict[str, dict[str, float | int | None]]:
  """The metrics as `{name: {"value": share, "chance": share or None, "count": questions}}`."""
  return {name: dataclasses.asdict(metric) for name, metric in result.metrics.items()}


def check_outputs(outputs: Sequence[str | None], inputs: Sequence[str]) -> None:
  """Looks, before anything is computed, whether files of results can be written; makes their folders.

  Args:
    outputs: the paths; None for one that is not wanted.
    inputs: files and folders that are read, which results must not replace.

  Raises:
    OSError, ValueError: one is a folder, cannot be written, or is an input or another output.
  """
  taken = {paths.identity(path): path for path in inputs}
  for output in filter(None, outputs):
    paths.check(output, "output", write=True)
    place = paths.identity(output)
    if place in taken:
      raise ValueError(f"{output!r} would replace {taken[place]!r}: give another file for the results")
    taken[place] = output
    if paths.is_folder(output):
      raise IsADirectoryError(errno.EISDIR, "is a folder, and results are a file", output)
    if paths.is_remote(output):
      continue
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    if not os.access(output if os.path.exists(output) else os.path.dirname(place), os.W_OK):
      raise PermissionError(errno.EACCES, "may not be written", output)


def write(path: str, result: dict[str, Any]) -> None:
  """Writes a described result; a failure leaves an older file as it was."""
  paths.make_folder(paths.parent(path))
  # names of files that are not UTF-8 become escapes of JSON
  with atomic.file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
    json.dump(result, file, indent=2, ensure_ascii=False)
    file.write("\n")


def write_examples(path: str, result: Result) -> int:
  """Writes a line of JSON for each question; returns the number of lines."""
  paths.make_folder(paths.parent(path))
  columns = result.examples
  count = len(next(iter(columns.values()), ()))
  with atomic.file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
    for first in range(0, count, _ROWS):
      block = [column[first : first + _ROWS] for column in columns.values()]
      for row in zip(*(part.tolist() if isinstance(part, np.ndarray) else part for part in block), strict=True):
        file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
  return count


def read(path: str) -> dict[str, Any]:
  """Reads a described result.

  Raises:
    OSError, ValueError: the file is missing, is not one, or has a value that none can have; the message names the
      field.
  """
  if paths.size(path) > _MOST_BYTES:
    raise ValueError(f"{path!r} is larger than a result file can be ({_MOST_BYTES:,} bytes)")
  result = read_json(path)
  if not isinstance(result, dict) or result.get("format") != FORMAT or "metrics" not in result:
    raise ValueError(
      f"{path!r} is not a result file of `python -m fgclip_jax.evaluate` (format {FORMAT}): run it again"
    )
  for name, kind in _FIELDS.items():
    if not isinstance(result.get(name), kind):
      raise ValueError(f"{path!r}: `{name}` must be {_KINDS[kind]}, got {result.get(name)!r:.40}: run it again")
  for name, metric in result["metrics"].items():
    _check_metric(f"{path!r}: metric {name!r:.80}", metric)
  for kind, count in result["skipped"].items():
    if not _is_count(count):
      raise ValueError(f"{path!r}: `skipped.{printable(kind):.80}` must be a count, got {count!r:.40}")
  limit = result["settings"].get("limit")
  if limit is not None and not _is_count(limit):
    raise ValueError(f"{path!r}: `settings.limit` must be a count, got {limit!r:.40}")
  return result


def _check_metric(where: str, metric: Any) -> None:
  if not isinstance(metric, dict):
    raise ValueError(f"{where} must be an object, got {metric!r:.40}")
  for key in ("value", "chance", "count"):
    if key not in metric:
      raise ValueError(f"{where} has no {key!r}")
  for key in ("value", "chance"):
    share = metric[key]
    number = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
    if not number and (key == "value" or share is not None):
      raise ValueError(f"{where}: {key!r} must be a share from 0 to 1, got {share!r:.40}")
  if metric["count"] is not None and not _is_count(metric["count"]):
    raise ValueError(f"{where}: 'count' must be a count, got {metric['count']!r:.40}")


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def table(columns: Mapping[str, Metrics]) -> str:
  """Results side by side, as text: a row for each metric; values and chance in percent.

  Args:
    columns: the heading of each result, with its metrics.
  """
  names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
  rows = [("", "chance", *map(_short, columns), "count")]
  for name in names:
    found = [metrics.get(name) for metrics in columns.values()]
    chances = [metric["chance"] for metric in found if metric]
    rows.append(
      (
        _LABELS.get(name, _short(name)),
        _one_or_all([f"{100 * chance:.2f}" for chance in chances if chance is not None]) or "-",
        *(f"{100 * metric['value']:.1f}" if metric else "-" for metric in found),
        _one_or_all([f"{metric['count']:,}" for metric in found if metric and metric["count"]]) or "-",
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = [
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]
  return "\n".join([lines[0].rstrip(), "-" * len(lines[0]), *lines[1:]])


def compare(paths: Sequence[str], published_rows: Sequence[str] = ()) -> str:
  """The tables of several result files, one per benchmark, with published numbers, and notes on settings that differ.

  Results of one benchmark on different published data sets (boxes of COCO, boxes of LVIS) get a table each.

  Args:
    paths: result files, of one benchmark or several.
    published_rows: models whose published numbers are added, e.g. `FG-CLIP B/16`.

  Raises:
    FileNotFoundError, ValueError: a file is missing or no result, or a model has no published numbers.
  """
  for row in published_rows:
    check_published(row)
  results = [read(path) for path in paths]
  groups: dict[tuple, list[tuple[str, dict[str, Any]]]] = {}
  for path, result in zip(paths, results, strict=True):
    known = _matching_tables(result["benchmark"], result["settings"])
    groups.setdefault((result["benchmark"], known), []).append((path, result))
  parts = []
  for (benchmark, _), mine in groups.items():
    columns: dict[str, Metrics] = {}
    notes = []
    for path, result in mine:
      name = result["name"] if result["name"] not in columns else f"{result['name']} ({path})"
      while name in columns:  # the same file again
        name = f"{name} again"
      columns[name] = result["metrics"]
      notes += [f"note: {_short(name)}: {note}" for note in _incomplete(result)]
    notes += _differences([result for _, result in mine])
    beside, sources = published_columns(benchmark, mine[0][1]["settings"], columns.values(), published_rows)
    notes += [f"note: {source}" for source in sources]
    heading = [] if len(groups) == 1 else [f"{_short(benchmark)} ({', '.join(path for path, _ in mine)})"]
    parts.append("\n".join([*heading, table(columns | beside), "Values and chance in percent.", *notes]))
  return "\n\n".join(parts)


def _incomplete(result: dict[str, Any]) -> list[str]:
  """Notes on the data that a result leaves out."""
  notes = []
  if result["skipped"]:
    kinds = ", ".join(f"{_short(kind)} {count:,}" for kind, count in result["skipped"].items())
    notes.append(f"not all of the data could be used ({kinds})")
  if result["settings"].get("limit"):
    notes.append(f"measured on the first {result['settings']['limit']:,} alone")
  return notes


def _differences(results: Sequence[dict[str, Any]]) -> list[str]:
  """A note for each setting that differs between the results, apart from the model."""
  notes = []
  for key in dict.fromkeys(key for result in results for key in result["settings"] if key != "model"):
    values = [result["settings"].get(key) for result in results]
    if any(value != values[0] for value in values):
      notes.append(f"note: not the same {_short(key)}: {', '.join(_short(str(value), 1000) for value in values)}")
  return notes


def _short(text: str, longest: int = 200) -> str:
  """A text of a file as a table shows it."""
  text = printable(text)
  return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _one_or_all(values: list[str]) -> str:
  """The value if all are the same, else all of them."""
  return "/".join(dict.fromkeys(values))


def published_models() -> list[str]:
  """The models with published numbers, e.g. `FG-CLIP B/16`."""
  return list(dict.fromkeys(model for table in published_tables() for model in table["rows"]))


def check_published(model: str) -> None:
  """Raises a ValueError for a model without published numbers; the message lists those that have some."""
  if model not in published_models():
    raise ValueError(f"nothing is published of {model!r}; there are {', '.join(published_models())}")


def describe_published(model: str) -> str:
  """All published numbers of a model, one on each line, with their sources."""
  rows = []
  for table in published_tables():
    where = " ".join([table["benchmark"], *(f"{key}={part}" for key, part in table["settings"].items())])
    for name, value in zip(table["metrics"], table["rows"].get(model, ()), strict=False):
      if value is not None:
        rows.append((f"{where}: {name}", value, table["source"]))
  width = max(len(name) for name, _, _ in rows)
  return "\n".join(f"{name:{width}}  {value:5.1f}  {source}" for name, value, source in rows)


def published_columns(
  benchmark: str, settings: Mapping[str, Any], measured: Iterable[Metrics], models: Sequence[str]
) -> tuple[dict[str, Metrics], list[str]]:
  """Columns of the models' published numbers, for the metrics that were measured, and notes that name the sources.

  Args:
    benchmark, settings: the evaluator's name and settings.
    measured: the metrics of one or several results.
    models: see `published_models`.
  """
  wanted = [name for metrics in measured for name in metrics]
  columns, notes = {}, []
  for model in models:
    numbers, sources = find_published(model, benchmark, settings, wanted)
    if numbers:
      columns[f"{model} (published)"] = numbers
    notes += [f"{model}: {source}" for source in sources or (f"nothing published of {benchmark!r} with this data",)]
  return columns, notes


@functools.cache
def published_tables() -> list[dict[str, Any]]:
  """The content of `published.json`."""
  return json.loads((importlib.resources.files("fgclip_jax.evals") / "published.json").read_text(encoding="utf-8"))


def _matching_tables(benchmark: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
  """The places of the published tables for the same data as a benchmark with these settings."""
  return tuple(
    place
    for place, table in enumerate(published_tables())
    if table["benchmark"] == benchmark
    and all(part in os.path.basename(str(settings.get(key))) for key, part in table["settings"].items())
  )


def find_published(
  model: str, benchmark: str, settings: Mapping[str, Any], metrics: Iterable[str]
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
  """A model's published numbers for some metrics of a benchmark, as metrics of a result, and their sources."""
  wanted, found, sources = set(metrics), {}, {}
  for place in _matching_tables(benchmark, settings):
    table = published_tables()[place]
    for name, value in zip(table["metrics"], table["rows"].get(model, ()), strict=False):
      if name in wanted and value is not None:
        found[name] = {"value": value / 100, "chance": None, "count": None}
        sources[table["source"]] = None
  return found, list(sources)
