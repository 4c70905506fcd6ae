"""JSON schemas, as far as requests for annotations need them: checked here whatever a server promises."""

import math
import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
  "object": (dict,),
  "array": (list,),
  "string": (str,),
  "boolean": (bool,),
  "integer": (int,),
  "number": (int, float),
  "null": (type(None),),
}
_KEYWORDS = {
  "type", "properties", "required", "additionalProperties", "items", "enum", "minItems", "maxItems",
  "minLength", "maxLength", "pattern", "minimum", "maximum",
  "title", "description",
}  # fmt: skip
# Servers compile schemas to grammars. Some cannot express these and answer without a schema, or with an error
# (https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md); what is left out is still checked here.
_NOT_SENT = {"minLength", "maxLength", "pattern", "minimum", "maximum", "title", "description"}


def simplify(schema: dict[str, Any]) -> dict[str, Any]:
  """The schema as it is sent: without keywords that servers cannot express."""
  simple = {name: value for name, value in schema.items() if name not in _NOT_SENT}
  if "properties" in simple:
    simple["properties"] = {name: simplify(each) for name, each in simple["properties"].items()}
  if "items" in simple:
    simple["items"] = simplify(simple["items"])
  return simple


def check_schema(schema: dict[str, Any], place: str = "schema") -> None:
  """Checks that every keyword of a schema is one that `find_fault` knows.

  Raises:
    ValueError: names the first that is not.
  """
  if unknown := sorted(set(schema) - _KEYWORDS):
    raise ValueError(f"{place}: {unknown[0]!r} is not checked; use {', '.join(sorted(_KEYWORDS))}")
  if schema.get("type") not in _TYPES:
    raise ValueError(f"{place}: needs a type of {', '.join(_TYPES)}, got {schema.get('type')!r}")
  for name, each in schema.get("properties", {}).items():
    check_schema(each, f"{place}.{name}")
  if "items" in schema:
    check_schema(schema["items"], f"{place}[]")


def find_fault(value: Any, schema: dict[str, Any], place: str = "answer") -> str | None:
  """Says where and how a value differs from its schema; None: it does not."""
  wanted = schema["type"]
  if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
    return f"{place} is of type {type(value).__name__}, not {wanted}"
  if "enum" in schema and value not in schema["enum"]:
    return f"{place} is {_show(value)}, not one of {', '.join(map(str, schema['enum']))}"
  if isinstance(value, dict):
    return _find_in_object(value, schema, place)
  if isinstance(value, list):
    if fault := _find_in_bounds(len(value), schema, "Items", f"{place} has {len(value)} items"):
      return fault
    items = schema.get("items")
    faults = (find_fault(each, items, f"{place}[{index}]") for index, each in enumerate(value)) if items else ()
    return next(filter(None, faults), None)
  if isinstance(value, str):
    if "pattern" in schema and not re.search(schema["pattern"], value):
      return f"{place} is {_show(value)}, which does not fit the pattern {schema['pattern']}"
    return _find_in_bounds(len(value), schema, "Length", f"{place} has {len(value)} characters")
  if isinstance(value, int | float):
    if not math.isfinite(value):
      return f"{place} is {value}"
    return _find_in_bounds(value, schema, "imum", f"{place} is {value}")
  return None


def _find_in_object(value: dict[str, Any], schema: dict[str, Any], place: str) -> str | None:
  known = schema.get("properties", {})
  if missing := [name for name in schema.get("required", ()) if name not in value]:
    return f"{place} has no {missing[0]!r}" + (f" but {_show(next(iter(value)))}" if value else ": it is empty")
  if schema.get("additionalProperties") is False and (unknown := [name for name in value if name not in known]):
    return f"{place} has {_show(unknown[0])}, which was not asked for"
  faults = (find_fault(value[name], each, f"{place}.{name}") for name, each in known.items() if name in value)
  return next(filter(None, faults), None)


def _find_in_bounds(value: int | float, schema: dict[str, Any], what: str, said: str) -> str | None:
  low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
  if low is not None and value < low:
    return f"{said}, at least {low} are wanted" if what != "imum" else f"{said}, below {low}"
  if high is not None and value > high:
    return f"{said}, at most {high} are wanted" if what != "imum" else f"{said}, above {high}"
  return None


def _show(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
