"""Very many pictures captioned by a server that answers at once: memory by items, size of the files, restart.

The stage `captions` is asked, because every picture is sent and has an answer of its own; nothing else takes time. The
pictures are links to few small files, with a known short caption each. `MB` is what the largest process of the command
has in memory (its resident set). With `--restart`, the command is killed (SIGKILL) after that many answers and started
again; what is timed is from there to the first new request.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from PIL import Image

from benchmarks.annotating import stub
from benchmarks.machine import machine

LINKS = 50_000  # of one file, which file systems limit
EACH = 10_000  # files of a folder
STEPS = 20  # rows of the table


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--items", type=int, default=20_000)
  parser.add_argument("--workers", type=int, default=1)
  parser.add_argument("--restart", type=int, default=0, help="answers after which the command is killed; 0: never")
  parser.add_argument("--folder", help="where the files are made (default: a temporary folder)")


def run(options: argparse.Namespace) -> int:
  """Prints the table."""
  print(machine("numpy", "pillow"), end="\n\n")
  with tempfile.TemporaryDirectory(dir=options.folder) as folder, stub.serve() as url:
    base = pathlib.Path(folder)
    make_items(base, options.items)
    command = make_command(base, url, "--captions", "http", "--stages", "captions", "--workers", options.workers)
    if options.restart:
      with start(command) as process:
        _watch(process, url, options.items, options.restart)
        process.kill()
    before, began = stub.count_answers(url), time.perf_counter()
    with start(command) as process:
      if options.restart:
        while stub.count_answers(url) == before and process.poll() is None:
          time.sleep(0.05)
        print(f"\n{before:,} answers in the journal; first new request after {time.perf_counter() - began:.1f} s.\n")
      _watch(process, url, options.items)
      return process.returncode or _measure_files(base, options.items)


def make_items(base: pathlib.Path, count: int) -> None:
  """Makes pictures in `BASE/photos`, and `BASE/known.jsonl` with a short caption of each."""
  for first in range(0, count, LINKS):
    Image.new("RGB", (32, 32), (first // LINKS * 5 % 256, 90, 30)).save(file := io.BytesIO(), "PNG")
    (base / f"{first}.png").write_bytes(file.getvalue())
    for number in range(first, min(first + LINKS, count)):
      if number % EACH == 0:
        (base / "photos" / str(number // EACH)).mkdir(parents=True)
      os.link(base / f"{first}.png", base / "photos" / str(number // EACH) / f"{number}.png")
  with open(base / "known.jsonl", "w", encoding="utf-8") as known:
    for number in range(count):
      line = {"image": f"{number // EACH}/{number}.png", "short": f"A dog lies beside the ball number {number}."}
      known.write(json.dumps(line) + "\n")


def make_command(base: pathlib.Path, url: str, *options: object, output: str = "out") -> list[str]:
  """The command that annotates what `make_items` has made."""
  given = ["--images", base / "photos", "--known", base / "known.jsonl", "--output", base / output]
  server = ["--endpoint", url, "--model", "stub"]
  return [sys.executable, "-m", "fgclip_jax.annotate", *map(str, [*given, *server, *options])]


def start(command: list[str]) -> subprocess.Popen:
  """Starts it; what it prints is left out."""
  return subprocess.Popen(command, cwd=stub.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _watch(process: subprocess.Popen, url: str, count: int, last: int = sys.maxsize) -> None:
  """Prints a row for each step of the way until the command ends, or the server has answered `last` requests."""
  print("| answers | seconds | MB, largest process | of it the command's own |\n|---:|---:|---:|---:|")
  began, largest, own, due = time.perf_counter(), 0.0, 0.0, 0

  def show(name: str) -> None:
    print(f"| {name} | {time.perf_counter() - began:.0f} | {largest:.0f} | {own:.0f} |", flush=True)

  while process.poll() is None:
    sizes = _sizes(process.pid)
    if sizes:
      largest, own = max(largest, *sizes), max(own, sizes[0])
    if (answers := stub.count_answers(url)) >= min(due, last):
      show(f"{answers:,}")
      largest = own = 0.0
      due = min(answers + max(count // STEPS, 1), count) if answers < count else sys.maxsize
    if answers >= last:
      return
    time.sleep(0.5)
  show("to the end")


def _sizes(process: int) -> list[float]:
  """Megabytes in memory of a process and of those that it has started."""
  try:
    children = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()
    found = [int(pathlib.Path(f"/proc/{each}/statm").read_text().split()[1]) for each in (process, *children)]
  except (OSError, IndexError):  # one of them has just ended
    return []
  return [pages * os.sysconf("SC_PAGE_SIZE") / 1e6 for pages in found]


def _measure_files(base: pathlib.Path, count: int) -> int:
  """Prints how large the files are; returns 1 if an item is missing."""
  output = base / "out"
  sizes = {}
  for path in output.rglob("*"):
    if path.is_file():
      name = "/".join(path.relative_to(output).parts[:-1]) or "reports"
      sizes[name] = sizes.get(name, 0) + path.stat().st_size
  texts, images = 0, set()
  for path in (output / "annotations").iterdir():
    for line in map(json.loads, path.read_text().splitlines()):
      texts += len((line["short"] + line["long"]).encode())
      images.add(line["image"])
  print(f"\n{len(images):,} pictures written. Captions of one have {texts / count:.0f} bytes; bytes of one in files:\n")
  print("| folder | bytes |\n|---|---:|")
  for name, size in sorted(sizes.items()):
    print(f"| {name} | {size / count:,.0f} |")
  print(f"| together | {sum(sizes.values()) / count:,.0f} |")
  return int(len(images) != count)
