"""The values of a config, looked at one by one: each function returns a value in its type, or names the key."""

import contextlib
import dataclasses
import math
import types
import typing
from typing import Any


def as_section(key: str, value: Any) -> Any:
  """The value, if it is a dict."""
  if not isinstance(value, dict):
    raise ValueError(f"config.{key} must be a section with keys of its own, got {value!r}")
  return value


def as_dataclass(key: str, value: Any, kind: type, **extra: Any) -> Any:
  """A section as the dataclass `kind`, and sections in it as those of its fields; what is missing has its default.

  Args:
    key: the section's, for messages.
    value: the section.
    kind: the dataclass, which checks what its values mean.
    extra: values of fields that are no keys.

  Raises:
    ValueError: an unknown key, or an impossible value.
  """
  given = as_section(key, value)
  fields = {field.name: field.type for field in dataclasses.fields(kind) if field.name not in extra}
  unknown = sorted(set(given) - set(fields))
  if unknown:
    raise ValueError(f"unknown keys {unknown} in config.{key}; it takes {sorted(fields)}")
  given = {name: _as_field(f"{key}.{name}", each, fields[name]) for name, each in given.items()}
  try:
    return kind(**given, **extra)
  except ValueError as error:  # the values themselves are checked by the dataclass
    message = str(error)
    raise ValueError(f"config.{message}" if message.startswith(f"{key}.") else f"config.{key}: {message}") from None


def _as_field(key: str, value: Any, kind: Any) -> Any:
  return (
    as_dataclass(key, value, kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    else as_typed(key, value, kind)
  )


def as_whole(key: str, value: Any, least: int = 1, most: int | float = math.inf) -> Any:
  """The value, if it is a whole number from `least` to `most`."""
  if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
    limit = f"of at least {least}" if most == math.inf else f"in {least}..{most}"
    raise ValueError(f"config.{key} must be a whole number {limit}, got {value!r}")
  return value


def as_typed(key: str, value: Any, kind: Any) -> Any:
  """The value in its type: a whole number may stand for a float, a list for a tuple. Floats are finite."""
  try:
    return _convert(value, kind)
  except TypeError:
    name = kind if typing.get_args(kind) else kind.__name__
    raise ValueError(f"config.{key} must be {name}, got {value!r}") from None
  except OverflowError:
    raise ValueError(f"config.{key} must be finite, got {value}") from None


def _convert(value: Any, kind: Any) -> Any:
  """The value in its type; a TypeError where it is of another one, an OverflowError where it is not finite."""
  if kind is Any:
    return value
  inner = typing.get_args(kind)
  if isinstance(kind, types.UnionType):
    for option in inner:
      with contextlib.suppress(TypeError):
        return _convert(value, option)
    raise TypeError
  if (typing.get_origin(kind) or kind) is tuple and isinstance(value, list | tuple):
    kinds = (inner or (Any,))[:1] * len(value) if len(inner) < 2 or inner[1] is ... else inner
    if len(value) != len(kinds):
      raise TypeError
    return tuple(_convert(item, item_kind) for item, item_kind in zip(value, kinds, strict=True))
  if kind is float and type(value) is int:
    value = float(value)
  if inner or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise TypeError
  if kind is float and not math.isfinite(value):
    raise OverflowError
  return value


def as_pairs(key: str, value: Any) -> tuple[tuple[int, int], ...]:
  """The value as pairs of a step and an image size."""
  pairs = tuple(as_typed(key, entry, tuple[int, ...]) for entry in as_typed(key, value, tuple))
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError(f"config.{key} must hold pairs of a step and an image size, got {value!r}")
  return pairs


def given_changes(section: str, values: dict[str, Any]) -> dict[str, Any]:
  """The values that are not None, of a section and those in it; sizes are positive."""
  given = {}
  for key, value in values.items():
    if isinstance(value, dict):
      given[key] = given_changes(f"{section}.{key}", value)
    elif value is not None:
      if not isinstance(value, float):
        as_whole(f"{section}.{key}", value)
      elif not 0 < value < math.inf:
        raise ValueError(f"config.{section}.{key} must be positive and finite, got {value}")
      given[key] = value
  return given
