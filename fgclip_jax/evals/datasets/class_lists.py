"""The classes of segmentation benchmarks, in the order of the numbers in their label maps.

The lists are in `segmentation_classes.json`, each with its source; names are as in the source. `voc21_sclip` has the
wording of training-free methods since SCLIP (arXiv 2312.01597): several names for a class, and things that make up the
background.
"""

import dataclasses
import functools
import importlib.resources
import json
import re
from typing import Any, Literal

from fgclip_jax.storage import text

MOST = 65_535  # classes, since label maps have at most 16 bits


@dataclasses.dataclass(frozen=True)
class ClassList:
  """Classes.

  Attributes:
    names: one or more names of each class; the best-scoring one counts.
    zero: the meaning of level 0 in the benchmark's label maps: `ignored` (level 1 is the first class), `background`
      (the first class is anything outside the others), or `class` (the first class is like the others).
  """

  names: tuple[tuple[str, ...], ...]
  zero: Literal["ignored", "background", "class"]


@functools.cache
def lists() -> dict[str, dict[str, Any]]:
  """The content of the file: by name, `source`, `zero` and `classes` (several names of one are separated by `; `)."""
  file = importlib.resources.files("fgclip_jax.evals") / "segmentation_classes.json"
  return json.loads(file.read_text(encoding="utf-8"))


def read(source: str) -> ClassList:
  """A list by name, or from a text file with a class on each line; several names of one are separated by semicolons.

  The label maps of a file are taken to have a class for level 0, the background if the first class is `background`.

  Raises:
    FileNotFoundError, ValueError: there is no such list or file, or a line of the file is empty.
  """
  if source in lists():
    entry = lists()[source]
    return ClassList(tuple(map(_split, entry["classes"])), entry["zero"])
  try:
    lines = list(text.lines(source))
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{source!r} is neither a file nor one of the lists {', '.join(lists())}") from error
  while lines and not lines[-1].strip():  # blank lines at the end are no classes
    lines.pop()
  names = [_split(line) for line in lines]
  for number, each in enumerate(names, 1):
    if not each:
      raise ValueError(f"{source}, line {number}: needs the name of a class")
    if "\t" in lines[number - 1].strip():
      raise ValueError(f"{source}, line {number}: {lines[number - 1]!r:.80} has several columns: leave only the names")
  if len(names) > 1 and all(re.match(r"\d+\s*[:.)=,]?\s+\S|\d+[:=,]", line.strip()) for line in lines):
    raise ValueError(f"{source}: every line begins with a number, as in {lines[0].strip()!r:.80}: leave only the names")
  if not 2 <= len(names) <= MOST:
    raise ValueError(f"{source} has {len(names)} classes: needs one on each line, 2 to {MOST:,}")
  return ClassList(tuple(names), "background" if names[0][0].lower() == "background" else "class")


def _split(line: str) -> tuple[str, ...]:
  return tuple(name.strip() for name in line.split(";") if name.strip())
