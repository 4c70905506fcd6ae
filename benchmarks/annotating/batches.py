"""Batch files: very many requests are written, answered in any order, and read back.

5 % of the answers are missing, 2 % failed, and 1 % come twice; what has no good answer is written again. Requests are
written in parts of a run's size. `lines` counts all answers that were read.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import tempfile
import time

from benchmarks.annotating.requests import make_request
from benchmarks.machine import machine
from fgclip_jax.annotate import items
from fgclip_jax.annotate.servers import batch_files
from fgclip_jax.annotate.servers.requests import Answer


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--requests", type=int, default=120_000)


def run(options: argparse.Namespace) -> int:
  """Prints the table; returns 1 if a request is not accounted for."""
  print(machine("numpy"), end="\n\n")
  count = options.requests
  with tempfile.TemporaryDirectory() as folder:
    started = time.monotonic()
    sent = os.path.join(folder, "requests")
    keys = list(map(str, range(count)))
    write_parts(keys, sent)
    wrote = time.monotonic() - started
    files = sorted(pathlib.Path(sent).glob(batch_files.PATTERN))
    size = max(file.stat().st_size for file in files)
    lines = max(sum(1 for _ in file.open("rb")) for file in files)
    random.Random(0).shuffle(keys)
    missing, failed = keys[: count // 20], keys[count // 20 : count * 7 // 100]
    answered = keys[len(missing) + len(failed) :]
    answers = answered + answered[: count // 100] + failed
    random.Random(1).shuffle(answers)
    bad = set(failed)
    with open(os.path.join(folder, "answers.jsonl"), "w", encoding="utf-8") as file:
      file.writelines(make_answer(key, key in bad) for key in answers)
    started = time.monotonic()
    table = batch_files.make_table([os.path.join(folder, "answers.jsonl")], os.path.join(folder, "table"))
    found = collections.Counter()
    left = set(keys)
    for result in batch_files.find(table, map(make_request, sorted(keys))):
      found["answered" if isinstance(result, Answer) else result.kind] += 1
      if isinstance(result, Answer):
        left.remove(result.key)
    read = time.monotonic() - started
    again = write_parts(sorted(left), os.path.join(folder, "again"))
  print("| requests | files | most lines | most MB | written in | lines | read in | answered | failed | asked again |")
  print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
  row = [f"{count:,}", len(files), f"{lines:,}", f"{size / 1e6:.0f}", f"{wrote:.1f} s", f"{table.entries:,}"]
  row += [f"{read:.1f} s", *(f"{found[kind]:,}" for kind in ("answered", "server_error")), f"{again:,}"]
  print(f"| {' | '.join(map(str, row))} |")
  agree = found == {"answered": len(answered), "server_error": len(failed)} and table.entries == len(answers)
  return 0 if agree and again == len(missing) + len(failed) else 1


def write_parts(keys: list[str], folder: str) -> int:
  """Writes the requests of keys as the parts of a run do; how many there are in the files."""
  for first in range(0, len(keys), items.PART):
    part = map(make_request, keys[first : first + items.PART])
    batch_files.write(part, folder, f"captions-{first // items.PART:05d}", "stub")
  return batch_files.gather(folder)["requests"]


def make_answer(key: str, failed: bool) -> str:
  """A line of answers."""
  content = json.dumps({"long": f"A cup {key} stands on a table.", "short": "a cup", "unusable": False})
  body = {"model": "stub", "choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
  response = {"status_code": 500, "body": {"error": "overloaded"}} if failed else {"status_code": 200, "body": body}
  return json.dumps({"custom_id": key, "response": response, "error": None}) + "\n"
