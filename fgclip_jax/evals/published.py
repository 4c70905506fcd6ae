"""Published numbers of benchmarks, from `published.json`, each with its source.

The file is a list of tables: `benchmark`, an evaluator's name (or what there is no evaluator for, such as heads that
were trained on top); `settings`, parts of its settings by which its data set is known, of a path of its last name;
`metrics`, its metrics; `source`; and `rows`, for each model the numbers of these metrics in percent, null for none.
"""

import functools
import importlib.resources
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any


@functools.cache
def tables() -> list[dict[str, Any]]:
  """The content of the file."""
  return json.loads((importlib.resources.files("fgclip_jax.evals") / "published.json").read_text(encoding="utf-8"))


def models() -> list[str]:
  """The models of which there are numbers, e.g. `FG-CLIP B/16`."""
  return list(dict.fromkeys(model for table in tables() for model in table["rows"]))


def check(model: str) -> None:
  """A ValueError where nothing is published of a model; it lists those there are."""
  if model not in models():
    raise ValueError(f"nothing is published of {model!r}; there are {', '.join(models())}")


def matches(benchmark: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
  """The places of the tables that are of the same data as a benchmark with these settings."""
  return tuple(
    place
    for place, table in enumerate(tables())
    if table["benchmark"] == benchmark
    and all(part in os.path.basename(str(settings.get(key))) for key, part in table["settings"].items())
  )


def describe(model: str) -> str:
  """All that is published of a model, a line for each number, with its source."""
  rows = []
  for table in tables():
    where = " ".join([table["benchmark"], *(f"{key}={part}" for key, part in table["settings"].items())])
    for name, value in zip(table["metrics"], table["rows"].get(model, ()), strict=False):
      if value is not None:
        rows.append((f"{where}: {name}", value, table["source"]))
  width = max(len(name) for name, _, _ in rows)
  return "\n".join(f"{name:{width}}  {value:5.1f}  {source}" for name, value, source in rows)


def find(
  model: str, benchmark: str, settings: Mapping[str, Any], metrics: Iterable[str]
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
  """A model's numbers for a benchmark, as metrics of a result, and their sources.

  Args:
    model: see `models`.
    benchmark, settings: the evaluator's name and settings.
    metrics: those that are wanted.
  """
  wanted, found, sources = set(metrics), {}, {}
  for place in matches(benchmark, settings):
    table = tables()[place]
    for name, value in zip(table["metrics"], table["rows"].get(model, ()), strict=False):
      if name in wanted and value is not None:
        found[name] = {"value": value / 100, "chance": None, "count": None}
        sources[table["source"]] = None
  return found, list(sources)
