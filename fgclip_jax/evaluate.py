"""Measures a model on a data set, and compares results.

python -m fgclip_jax.evaluate --model runs/stage2 --data data/scenes --output stage2.json
python -m fgclip_jax.evaluate --compare stage1.json stage2.json
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax

import fgclip_jax
from fgclip_jax.api import DTYPES, FGCLIP, load
from fgclip_jax.evals.embedded import embed
from fgclip_jax.evals.metrics import Evaluator, Metric, NothingToMeasureError
from fgclip_jax.evals.regions import FineGrained, RegionClassification
from fgclip_jax.evals.retrieval import Retrieval
from fgclip_jax.inference import use_compilation_cache
from fgclip_jax.weights import folder as folders

EVALUATORS: tuple[Evaluator, ...] = (Retrieval("long"), Retrieval("short"), RegionClassification(), FineGrained())
FORMAT = 1  # of the JSON files

_LABELS = {
  "fine_grained_top1": "region: own caption among its hard negatives",
  **{f"region_top{k}": f"region: own caption among all classes, top {k}" for k in (1, 5)},
  **{
    f"{kind}_{way}_r{k}": f"{kind} captions: {way.replace('_', ' ')}, R@{k}"
    for kind in ("long", "short")
    for way in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
  },
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What a model was measured at.

  Attributes:
    metrics: by name.
    records: how many records were read.
    skipped: how many of them could not be used, by kind of fault.
    notes: metrics left out and why, faults, cut texts.
  """

  metrics: dict[str, Metric]
  records: int
  skipped: dict[str, int]
  notes: tuple[str, ...]


def measure(
  model: FGCLIP,
  data: str,
  split: str = "validation",
  limit: int | None = None,
  evaluators: Sequence[Evaluator] = EVALUATORS,
  progress: bool = False,
) -> Report:
  """Encodes a split of a record folder once and runs evaluators over the embeddings.

  Args:
    model: the model.
    data, split: the record folder and its split.
    limit: reads only so many records, the first ones.
    evaluators: what to measure.
    progress: shows progress bars.

  Raises:
    FileNotFoundError, ValueError: the split is not there, or holds no usable record.
  """
  examples = embed(model, data, split, limit, progress)
  metrics: dict[str, Metric] = {}
  notes = list(examples.notes)
  for evaluator in evaluators:
    try:
      metrics |= evaluator.run(model, examples)
    except NothingToMeasureError as error:
      notes.append(f"{evaluator.name} left out: {error}")
  return Report(metrics, examples.records, examples.skipped, tuple(notes))


def evaluate(
  model: FGCLIP, data: str, split: str = "validation", limit: int | None = None
) -> dict[str, dict[str, float | int]]:
  """All metrics of a model on a split: `{name: {"value": share, "chance": share, "count": questions}}`.

  A metric without labels is left out. That, records that could not be used, and cut texts are warned of.
  Arguments and errors as for `measure`.
  """
  report = measure(model, data, split, limit)
  for note in report.notes:
    warnings.warn(f"evaluating {data!r}: {note}", stacklevel=2)
  return {name: dataclasses.asdict(metric) for name, metric in report.metrics.items()}


def table(columns: dict[str, dict[str, dict[str, float | int]]]) -> str:
  """Results side by side, as text: a row for each metric; values and chance in percent.

  Args:
    columns: the heading of each result, with its metrics as `evaluate` returns them.
  """
  names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
  rows = [("", "chance", *columns, "count")]
  for name in names:
    found = [metrics.get(name) for metrics in columns.values()]
    rows.append(
      (
        _LABELS.get(name, name),
        _one_or_all([f"{100 * metric['chance']:.2f}" for metric in found if metric]),
        *(f"{100 * metric['value']:.1f}" if metric else "-" for metric in found),
        _one_or_all([f"{metric['count']:,}" for metric in found if metric]),
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


def compare(paths: Sequence[str]) -> str:
  """The table of several result files, under their names, and what is different about how they came about.

  Raises:
    FileNotFoundError, ValueError: a file is missing, or is not a result of `python -m fgclip_jax.evaluate`.
  """
  results = [_read(path) for path in paths]
  columns: dict[str, dict] = {}
  for path, result in zip(paths, results, strict=True):
    heading = result["name"] if result["name"] not in columns else f"{result['name']} ({path})"
    columns[heading] = result["metrics"]
  lines = [table(columns), "Values and chance in percent."]
  for key in ("data", "split", "limit"):
    values = [result["settings"].get(key) for result in results]
    if any(value != values[0] for value in values):
      lines.append(f"note: not the same {key}: {', '.join(map(str, values))}")
  return "\n".join(lines)


def write(path: str, name: str, report: Report, settings: dict[str, Any], seconds: float) -> None:
  """Writes results as JSON: metrics, settings, versions, time."""
  versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "numpy")}
  result = {
    "format": FORMAT,
    "name": name,
    "metrics": {key: dataclasses.asdict(metric) for key, metric in report.metrics.items()},
    "settings": settings,
    "records": report.records,
    "skipped": report.skipped,
    "notes": list(report.notes),
    "versions": {"fgclip_jax": fgclip_jax.__version__, "python": platform.python_version(), **versions},
    "device": jax.devices()[0].device_kind,
    "seconds": round(seconds, 2),
    "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
  }
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(result, file, indent=2, ensure_ascii=False)
    file.write("\n")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", metavar="DIR", help="a PyTorch-format, model or run folder")
  parser.add_argument("--data", metavar="DIR", help="a record folder, as `python -m fgclip_jax.prepare` writes it")
  parser.add_argument("--split", default="validation", help="the split of the data (default: %(default)s)")
  parser.add_argument("--limit", type=int, metavar="N", help="read only the first N records")
  parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="compute in (default: %(default)s)")
  parser.add_argument("--raw_weights", action="store_true", help="of a run, the last step's weights, not their average")
  parser.add_argument("--name", help="what the results are called in a comparison (default: the model folder's name)")
  parser.add_argument("--output", metavar="FILE", help="write the results to this JSON file")
  parser.add_argument("--compare", metavar="FILE", nargs="+", help="print result files side by side, and do no more")
  args = parser.parse_args(argv)
  if not args.compare and not (args.model and args.data):
    parser.error("needs --model and --data, or --compare")
  if args.compare and (args.model or args.data or args.output):
    parser.error("--compare reads result files alone: leave out --model, --data and --output")
  try:
    if args.compare:
      print(compare(args.compare))
    else:
      _run(args)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _run(args: argparse.Namespace) -> None:
  start = time.perf_counter()
  use_compilation_cache()
  model = load(args.model, args.dtype, ema=not args.raw_weights)
  print(f"{args.model}: {model}")
  if not args.raw_weights and folders.is_averaged(args.model):
    print("Weights averaged over the run's steps (--raw_weights: those of its last step)")
  print(f"Evaluating on split {args.split!r} of {args.data}")
  report = measure(model, args.data, args.split, args.limit, progress=True)
  seconds = time.perf_counter() - start
  name = args.name or os.path.basename(os.path.normpath(args.model))
  print(f"\n{table({name: {key: dataclasses.asdict(metric) for key, metric in report.metrics.items()}})}")
  print(f"Values and chance in percent. {report.records:,} records in {seconds:.0f} s.")
  for note in report.notes:
    print(f"note: {note}")
  if args.output:
    settings = {key: getattr(args, key) for key in ("model", "data", "split", "limit", "dtype", "raw_weights")}
    write(args.output, name, report, settings, seconds)
    print(f"wrote {args.output}")
    print(f"next: python -m fgclip_jax.evaluate --compare {args.output} OTHER.json")
  print(
    f"next: python -m fgclip_jax.show --model {args.model} --data {args.data} --split {args.split} --output heat.png"
  )


def _one_or_all(values: list[str]) -> str:
  """The value if all are the same, else all of them."""
  return "/".join(dict.fromkeys(values))


def _read(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding="utf-8") as file:
      result = json.load(file)
  except ValueError as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error
  if not isinstance(result, dict) or result.get("format") != FORMAT or "metrics" not in result:
    raise ValueError(f"{path!r} is not a result file of `python -m fgclip_jax.evaluate` (format {FORMAT})")
  return result


if __name__ == "__main__":
  sys.exit(main())
