"""Runs that are killed (SIGKILL) at random moments and started again: what is lost, and what is asked twice.

Captions are asked of a server that answers at once, and negatives of the regions that each picture has. After the last
kill the command runs to its end. Every picture must be written exactly once, the annotations must be equal byte for
byte to those of a run that nobody stopped, and the server may see no more requests than that one's and, for each kill,
those in flight.
"""

import argparse
import json
import pathlib
import random
import tempfile
import time

from benchmarks.annotating import scale, stub
from benchmarks.machine import machine

REGIONS = ("a red leather collar", "a small blue ball", "a white wooden fence", "a striped metal bowl")


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--items", type=int, default=3000)
  parser.add_argument("--kills", type=int, default=5)
  parser.add_argument("--in_flight", type=int, default=16)
  parser.add_argument("--workers", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0, help="of the moments")


def run(options: argparse.Namespace) -> int:
  """Prints the table; returns 1 if anything was lost, written twice, changed, or asked more often than it may be."""
  print(machine("numpy", "pillow"), end="\n\n")
  with tempfile.TemporaryDirectory() as folder, stub.serve() as url:
    base = pathlib.Path(folder)
    scale.make_items(base, options.items)
    _add_regions(base / "known.jsonl")
    given = ["--captions", "http", "--negatives", "http", "--in_flight", options.in_flight, "--workers"]
    whole = scale.make_command(base, url, *given, options.workers, output="whole")
    killed = scale.make_command(base, url, *given, options.workers, output="killed")
    if scale.start(whole).wait():
      return 1
    asked = stub.count_answers(url)
    moments = sorted(random.Random(options.seed).uniform(0.02, 0.98) * asked for _ in range(options.kills))
    print("| killed after requests | of | seen by the server |\n|---:|---:|---:|")
    for moment in moments:
      with scale.start(killed) as process:
        while process.poll() is None and stub.count_answers(url) < asked + moment:
          time.sleep(0.01)
        process.kill()
      time.sleep(1)  # its worker processes end, and so do their requests
      print(f"| {moment:,.0f} | {asked:,} | {stub.count_answers(url) - asked:,} |", flush=True)
    code = scale.start(killed).wait()
    seen = stub.count_answers(url) - asked
    most = asked + options.kills * options.in_flight * options.workers
    one, other = ({path.name: path.read_bytes() for path in (base / name / "annotations").iterdir()} for name in
                  ("whole", "killed"))  # fmt: skip
    images = [json.loads(line)["image"] for data in other.values() for line in data.splitlines()]
    once = len(images) == len(set(images)) == options.items
  print(
    f"\n{seen:,} requests, at most {most:,} wanted; {len(set(images)):,} of {options.items:,} pictures, "
    f"{'each once' if once else 'NOT each once'}; files {'equal' if one == other else 'DIFFER'}."
  )
  return int(bool(code) or seen > most or not once or one != other)


def _add_regions(path: pathlib.Path) -> None:
  """Gives each picture a region, whose caption is of few."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for number, line in enumerate(lines):
    line["regions"] = [{"box": [0.1, 0.1, 0.6, 0.7], "short": REGIONS[number % len(REGIONS)]}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
