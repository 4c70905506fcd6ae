"""Benchmarks and pictures of a model. The evaluators' names; each is imported when it is first used."""

import importlib

# Lazy, since drawing and reading need no model.
_HOME = {
  "BoxClassification": "box_classification",
  "Classification": "classification",
  "Compositional": "compositional",
  "Detection": "detection",
  "FgOvd": "fgovd",
  "ImageTextRetrieval": "retrieval",
  "LinearProbe": "linear_probe",
  "Records": "dataset",
  "Segmentation": "segmentation",
}


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.tasks.{_HOME[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOME})
