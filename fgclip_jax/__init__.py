"""FG-CLIP in JAX: a CLIP that sees detail. The public names; each is imported when it is first used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from fgclip_jax.data.tokenizers.clip import Tokenizer
  from fgclip_jax.inference.model import FGCLIP, list_presets, load, preprocess

__version__ = "0.1.0"
__all__ = ["FGCLIP", "Tokenizer", "__version__", "list_presets", "load", "preprocess"]

# Lazy, since the processes that read data import `fgclip_jax.data` and must not load JAX with it.
_HOME = {
  "FGCLIP": "fgclip_jax.inference.model",
  "list_presets": "fgclip_jax.inference.model",
  "load": "fgclip_jax.inference.model",
  "preprocess": "fgclip_jax.inference.model",
  "Tokenizer": "fgclip_jax.data.tokenizers.clip",
}


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
