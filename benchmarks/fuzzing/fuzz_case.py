"""One mutation of `fuzz.py`: an input is changed, a command reads it, and what came of it is compared."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any
from unittest import mock

import numpy as np

import fgclip_jax
from fgclip_jax import convert, embed, evaluate
from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.loader import Loader
from fgclip_jax.data.packing import Layout
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.prepare import __main__ as prepare
from fuzzing import fuzz_mutations
from fuzzing.fuzz_targets import TARGETS, Target

UNCHANGED = ":unchanged"  # the end of a seed for which nothing is mutated
SECONDS = 30  # of a mutation; the parent process waits twice as long
WRITTEN = (b"a/out/", b"a/in/index/", b"a/in/out/")  # where commands may write
OUTCOMES = ("exit 0", "error", "unclear", "uncaught", "hang", "outside", "counts")


class Hang(BaseException):
  """The alarm rang."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a mutation.

  Attributes:
    seed: `TARGET:NUMBER`.
    outcomes: some of `OUTCOMES`.
    detail: the exception, message or files.
    change: what was mutated.
    seconds: how long the command took.
  """

  seed: str
  outcomes: list[str]
  detail: str = ""
  change: str = ""
  seconds: float = 0.0


def run(
  seed: str,
  base: pathlib.Path,
  root: pathlib.Path,
  model: FGCLIP,
  verbose: bool = False,
  seconds: float | None = None,
) -> Outcome:
  """Mutates an input and runs a command on it.

  Args:
    seed: `TARGET:NUMBER`; with `UNCHANGED`, the input stays as it is.
    base: the inputs of all targets.
    root: the folder to work in; it is emptied first.
    model: the model of `embed` and `evaluate`.
    verbose: print what the command prints, and the traceback.
    seconds: what it may take (default: `SECONDS`).
  """
  name = seed.rpartition(":")[0]
  target = next(target for target in TARGETS if target.name == name)
  rng = random.Random(seed)
  shutil.rmtree(os.fsencode(root), ignore_errors=True)
  given, out, current = root / "a" / "in", root / "a" / "out", root / "a" / "here"
  shutil.copytree(base / target.folder, given, symlinks=True)
  for folder in (out, current, root / "tmp"):
    folder.mkdir()
  files = sorted({path for pattern in target.mutated for path in given.glob(pattern) if path.is_file()})
  changes = []
  for _ in range(0 if seed.endswith(UNCHANGED) else rng.choice((1, 1, 1, 2))):
    path = rng.choice(files)
    if path.is_file() and path.stat().st_size < 2**24 and not path.is_symlink():
      changes.append(fuzz_mutations.mutate(rng, path))
  before = _list_files(root)
  os.chdir(current)
  tempfile.tempdir = str(root / "tmp")
  start = time.monotonic()
  arguments = [word.replace("{in}", str(given)).replace("{out}", str(out)) for word in target.arguments.split()]
  outcome, detail, code = _call(target.command, arguments, model, verbose, seconds or SECONDS)
  taken = time.monotonic() - start
  outcomes = [outcome]
  after = _list_files(root)
  changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
  if outside := [path for path in changed if not path.startswith(WRITTEN)]:
    outcomes.append("outside")
    detail += f" {outside[:3]}"
  if code == 0 and (wrong := check_counts(target, given, out)):
    outcomes.append("counts")
    detail += f" {wrong}"
  os.chdir(root)
  return Outcome(seed, outcomes, detail[:500], "; ".join(changes), taken)


def _call(
  command: str, arguments: list[str], model: FGCLIP, verbose: bool, limit: float
) -> tuple[str, str, int | None]:
  """Calls a command; returns an outcome, its detail, and the exit code (None: an exception)."""
  commands = {
    "annotate": annotate.main,
    "training": _load_batches,
    "prepare": prepare.main,
    "embed": embed.main,
    "evaluate": evaluate.main,
    "convert": convert.main,
  }
  loads = [mock.patch.object(module, "load", lambda *_, **__: model) for module in (embed, evaluate)]
  streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace")]

  def ring(*_: Any) -> None:
    raise Hang

  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, limit)
  try:
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), loads[0], loads[1]:
      if command == "load":
        code = _load(arguments[0])
      else:
        code = commands[command](arguments)
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else 1
  except Hang:
    return "hang", _where(traceback.format_exc()), None
  except BaseException as error:
    signal.setitimer(signal.ITIMER_REAL, 0)
    if verbose:
      traceback.print_exc()
    return "uncaught", f"{type(error).__name__}: {str(error)[:200]!r} at {_where(traceback.format_exc())}", None
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  for stream in streams:
    stream.flush()
  told = streams[1].buffer.getvalue().decode()  # type: ignore[attr-defined]
  if verbose:
    print(streams[0].buffer.getvalue().decode(), told)  # type: ignore[attr-defined]
  # An event loop of Orbax's that an earlier mutation left says so when a later one frees it.
  if "Traceback" in told and "Event loop is closed" not in told:
    return "unclear", f"a traceback: {told[told.index('Traceback') :][-300:]!r}", code
  if code == 0:
    return "exit 0", "", 0
  _, found, message = told.rpartition("error: ")
  lines = message.rstrip("\n").split("\n")
  table = lines[0].endswith(":")  # the table of what was left out follows
  if not found or (len(lines) > 1 and not table) or not all(line.isprintable() for line in lines):
    return "unclear", repr(message[:300]) if found else "no line with `error:`", code
  return "error", message[:200], code


def _load_batches(arguments: list[str]) -> int:
  """Makes batches as training does, and looks at what the step would read."""
  config = DataConfig(
    path=arguments[0], split="validation", batch_size=2, boxes=4, workers=0, max_bad_share=0.01, crop="random"
  )
  try:
    loader = Loader(config, Layout(boxes=4), 24, seed=0)
    for batch in itertools.islice(loader, 6):
      wrong = [key for key, value in batch.items() if not np.isfinite(value).all()]
      if wrong or batch["tokens"].min() < 0 or batch["tokens"].max() >= get_tokenizer("clip").vocab_size:
        raise AssertionError(f"a batch with {wrong or 'other tokens than the model has'}")
    loader.close()
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _load(path: str) -> int:
  """Loads a model as its users do."""
  try:
    fgclip_jax.load(path, allow_pickle=True)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _where(text: str) -> str:
  """The last lines of this package in a traceback."""
  lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
  ours = [line for line in lines if "fgclip_jax" in line][-2:]
  return " < ".join(line.replace('File "', "").replace('"', "") for line in reversed(ours or lines[-2:]))


def _list_files(root: pathlib.Path) -> dict[bytes, tuple]:
  """Everything below a folder, with what tells whether it was changed."""
  found = {}
  top = os.fsencode(root)
  for folder, folders, files in os.walk(top):
    for name in [*folders, *files]:
      path = os.path.join(folder, name)
      status = os.lstat(path)
      state = (status.st_mode,) if name in folders else (status.st_mode, status.st_size, status.st_mtime_ns)
      found[os.path.relpath(path, top)] = state
  return found


def check_counts(target: Target, given: pathlib.Path, out: pathlib.Path) -> str:
  """Compares what a command says of its records with its output and its input; returns what differs."""
  if target.command == "prepare":
    for path in out.glob("data/report-*.json"):
      report = json.loads(path.read_bytes())
      left_out = sum(found["count"] for found in report["findings"].values() if found["loss"] != "note")
      split = path.stem.removeprefix("report-")
      written = len(Records(str(out / "data"), split))
      lines = count_lines(given / target.mutated[0])
      if not written == report["records"] or report["read"] < written or report["read"] > written + left_out:
        return f"read {report['read']}, left out {left_out}, records {report['records']}, written {written}"
      if lines is not None and lines != report["read"]:
        return f"{lines} lines in, {report['read']} read"
  elif target.command == "embed" and "--regions" not in target.arguments:
    report = json.loads(next(out.glob("*report.json")).read_bytes())
    lines = count_lines(given / target.mutated[0])
    ids = (out / "rows.ids.txt").read_text().splitlines()
    used = sum(not re.search("#[1-9][0-9]*$", name) for name in ids)  # a list of texts gives rows ID#0, ID#1, ...
    if len(ids) != report["rows"] or report["items"] != used + sum(report["left_out"].values()):
      return f"items {report['items']}, {used} of them in {report['rows']} rows, left out {report['left_out']}"
    if lines is not None and lines != report["items"]:
      return f"{lines} lines in, {report['items']} items"
  return ""


def count_lines(path: pathlib.Path) -> int | None:
  """The records of a file of JSON, JSON lines or CSV; None where that is not plain."""
  if not path.is_file() or path.suffix not in (".jsonl", ".json", ".csv", ".tsv") or path.stem in ("long", "instances"):
    return None
  try:
    text = path.read_bytes().decode()
    if path.suffix == ".json":
      tree = json.loads(text)
      return len(tree) if isinstance(tree, list) and path.stem in ("captions", "texts") else None
  except (ValueError, RecursionError):
    return None
  if not text.isascii() or any(mark in text for mark in "\r\0\f\v") or (path.suffix != ".jsonl" and '"' in text):
    return None
  lines = [line for line in text.split("\n") if line]
  return None if any(not line.strip() for line in lines) else len(lines) - (path.suffix != ".jsonl")
