"""The classes of segmentation benchmarks, in the order of the numbers in their label maps.

The lists are in `segmentation_classes.json`, each with its source; names are as there. `voc21_sclip` has the wording
that training-free methods since SCLIP (arXiv 2312.01597) report: more names for a class, among them things that stand
for the background.
"""

import dataclasses
import functools
import importlib.resources
import json
from typing import Any, Literal

from fgclip_jax.storage import paths

MOST = 65_535  # classes: label maps have 16 bits at most


@dataclasses.dataclass(frozen=True)
class ClassList:
  """Classes.

  Attributes:
    names: of each class its names, of which the best counts.
    zero: what level 0 of the benchmark's label maps is: `ignored` (level 1 is the first class), `background` (the first
      class is what none of the others is), or `class` (the first class is one like the others).
  """

  names: tuple[tuple[str, ...], ...]
  zero: Literal["ignored", "background", "class"]


@functools.cache
def lists() -> dict[str, dict[str, Any]]:
  """The content of the file: by name, `source`, `zero` and `classes` (more names of one are parted by `; `)."""
  file = importlib.resources.files("fgclip_jax.evals") / "segmentation_classes.json"
  return json.loads(file.read_text(encoding="utf-8"))


def read(source: str) -> ClassList:
  """A list by name, or from a text file with a class on each line; more names of one are parted by semicolons.

  A file whose first class is called `background` has one; its label maps are taken to have a class for level 0.

  Raises:
    FileNotFoundError, ValueError: there is no such list or file, or a line of the file is empty.
  """
  if source in lists():
    entry = lists()[source]
    return ClassList(tuple(map(_split, entry["classes"])), entry["zero"])
  try:
    lines = paths.read(source).decode("utf-8").strip().splitlines()
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{source!r} is neither a file nor one of the lists {', '.join(lists())}") from error
  names = tuple(map(_split, lines))
  for number, each in enumerate(names, 1):
    if not each:
      raise ValueError(f"{source}, line {number}: needs the name of a class")
  if not 2 <= len(names) <= MOST:
    raise ValueError(f"{source} has {len(names)} classes: needs one on each line, 2 to {MOST:,}")
  return ClassList(names, "background" if names[0][0].lower() == "background" else "class")


def _split(line: str) -> tuple[str, ...]:
  return tuple(name.strip() for name in line.split(";") if name.strip())
