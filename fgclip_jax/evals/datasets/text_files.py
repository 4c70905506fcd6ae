"""What readers of annotation files share: whole JSON files, and the description of a record that lacks a field."""

import difflib
import json
from collections.abc import Iterable
from typing import Any

from fgclip_jax.storage import text
from fgclip_jax.storage.skip_report import printable

# what reading the fields of a record of any form can raise
ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def describe(error: Exception) -> str:
  """Says what one of `ERRORS` means for the reader of a record."""
  return f"not the expected fields ({error if isinstance(error, ValueError) else repr(error)})"


def read_json(path: str) -> Any:
  """The value of a JSON file.

  Raises:
    OSError, ValueError: it cannot be read, is no JSON or has a name twice in one object; the message names the file.
  """
  try:
    return json.loads(text.read(path), object_pairs_hook=_distinct)
  except (json.JSONDecodeError, RecursionError, _TwiceError) as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error


def need(entry: Any, name: str) -> Any:
  """The value of a field of a record.

  Raises:
    ValueError: there is no such field; the message lists those there are, and a likely one.
  """
  if not isinstance(entry, dict):
    raise ValueError(f"is no object, but {entry!r:.40}")
  if name not in entry:
    raise ValueError(lacks(name, entry))
  return entry[name]


def lacks(name: str, fields: Iterable[str]) -> str:
  """Says that a field is missing, which there are, and which one is likely meant."""
  there = list(map(str, fields))
  likely = difflib.get_close_matches(name.lower(), {each.lower() for each in there}, 1, 0.7)
  advice = next(f"; is {each!r} meant?" for each in there if each.lower() == likely[0]) if likely else ""
  return printable(f"has no {name!r}, but {', '.join(there[:12]) or 'nothing'}{advice}")


class _TwiceError(ValueError):
  """A name is twice in one object."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise _TwiceError(f"the name {next(name for name in found if names.count(name) > 1)!r:.80} is twice in one object")
  return found
