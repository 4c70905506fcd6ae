"""Rendered scenes annotated by one process, by four, and by Apache Beam: the bytes must be equal.

Captions and boxes are known, and negatives are made. Each engine also goes on with what the one before it has begun:
the annotations are removed and made once more from its state.
"""

import argparse
import importlib.util
import pathlib
import shutil
import tempfile
import time

from benchmarks.annotating import scenes as parts
from benchmarks.machine import machine
from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.annotate import items
from fgclip_jax.prepare.sources import scenes

ENGINES = {"1 process": ["--workers", "1"], "4 processes": ["--workers", "4"], "Beam": ["--engine", "beam"]}
PART = 32  # items, so that each process has several parts


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--scenes", type=int, default=500)


def run(options: argparse.Namespace) -> int:
  """Prints the table; returns 1 if the bytes of two engines differ."""
  print(machine("numpy", "pillow"), end="\n\n")
  items.PART = PART
  engines = {name: ENGINES[name] for name in ENGINES if name != "Beam" or importlib.util.find_spec("apache_beam")}
  first, begun, equal = None, None, True
  print("| engine | seconds | parts | bytes | equal | equal after the one before |\n|---|---:|---:|---:|---|---|")
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    records = [scenes.make_record(0, index, "validation", "square") for index in range(options.scenes)]
    parts.write_pictures(base / "photos", records)
    parts.write_known(base / "known.jsonl", records, regions=True)
    for name, engine in engines.items():
      output, began = base / name, time.perf_counter()
      found = _annotate(base, output, engine)
      seconds, first = time.perf_counter() - began, first or found
      again = None
      if begun:
        shutil.rmtree(begun / "annotations")
        again = _annotate(base, begun, engine) == first
      begun, equal = output, equal and found == first and again is not False
      row = [name, f"{seconds:.0f}", len(found), f"{sum(map(len, found.values())):,}", found == first, again]
      print("| " + " | ".join({True: "yes", False: "NO", None: ""}.get(each, str(each)) for each in row) + " |")
  return int(not equal)


def _annotate(base: pathlib.Path, output: pathlib.Path, engine: list[str]) -> dict[str, bytes]:
  """The files of annotations."""
  given = ["--images", base / "photos", "--known", base / "known.jsonl", "--output", output, *engine]
  parts.run_quietly(annotate.main, *given)
  return {path.name: path.read_bytes() for path in (output / "annotations").iterdir()}
