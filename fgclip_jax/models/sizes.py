"""Checks of the sizes that a model is said to have. Imports no JAX."""

from typing import Any

# The largest sizes that are believed, far above those of any model: a file may say anything.
_LARGEST = {
  "width": 1 << 17, "depth": 1 << 12, "heads": 1 << 12, "mlp_width": 1 << 20, "image_size": 1 << 15,
  "patch_size": 1 << 12, "vocab_size": 1 << 25, "short_length": 1 << 20, "long_length": 1 << 20,
  "embedding_width": 1 << 17, "position_grid": 1 << 10, "max_patches": 1 << 16,
}  # fmt: skip


def check_sizes(config: Any) -> None:
  """A ValueError if a field that is a size is no whole number between 1 and its largest."""
  for name, most in _LARGEST.items():
    value = getattr(config, name, 1)
    if (name, value) == ("long_length", None):
      continue
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
      raise ValueError(f"{name} must be a whole number from 1 to {most}, got {shown(value)}")


def check_number(name: str, value: Any, least: float = -1e30) -> None:
  """A ValueError if a value is no number from `least` to 1e30."""
  if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= 1e30:
    raise ValueError(
      f"{name} must be a finite number{f' from {least:g} on' if least > -1e30 else ''}, got {shown(value)}"
    )


def is_depth(value: Any) -> bool:
  """Whether a value can be a number of blocks."""
  return isinstance(value, int) and 1 <= value <= _LARGEST["depth"]


def shown(value: Any) -> str:
  """A value as messages show it: it may come from a file, of any type and length."""
  return repr(value)[:60] if not isinstance(value, int) or abs(value) < 1 << 64 else "a larger one"
