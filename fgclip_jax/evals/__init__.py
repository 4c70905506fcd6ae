"""Benchmarks of a model. The evaluators' classes, e.g. `fgclip_jax.evals.Records`, are imported when first used."""

from fgclip_jax.evals.registry import CLASSES as _CLASSES
from fgclip_jax.evals.registry import get_class as _get_class


def __getattr__(name: str):
  if name not in _CLASSES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return _get_class(_CLASSES[name])


def __dir__() -> list[str]:
  return sorted({*globals(), *_CLASSES})
