"""Published numbers of benchmarks, from `published.json`, each with its source.

The file is a list of tables: `benchmark`, an evaluator's name; `settings`, parts of its settings by which its data set
is known; `metrics`, its metrics; `source`; and `rows`, for each model the numbers of these metrics in percent, null
where there is none.
"""

import functools
import importlib.resources
import json
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
  for table in tables():
    parts = table["settings"].items()
    if table["benchmark"] != benchmark or any(part not in str(settings.get(key)) for key, part in parts):
      continue
    for name, value in zip(table["metrics"], table["rows"].get(model, ()), strict=False):
      if name in wanted and value is not None:
        found[name] = {"value": value / 100, "chance": None, "count": None}
        sources[table["source"]] = None
  return found, list(sources)
