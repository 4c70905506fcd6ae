"""Gives damaged, odd and hostile files to the commands and to `load`, and counts what comes of them.

  python benchmarks/fuzz.py                                          # 20,000 mutations
  python benchmarks/fuzz.py --only prepare-coco load --mutations 500 # targets by the beginnings of their names
  python benchmarks/fuzz.py --reproduce prepare-coco-json:17         # one mutation again, with its traceback and files

Each mutation changes one file (sometimes two) of a small valid input, and runs the command on it. A seed is the name of
a target and a number; the base is drawn once from fixed seeds. Commands run in forked processes by their `main`, with
one small model in memory in place of the one that `embed` and `evaluate` would load each time, and with files on a disk
in memory. Every process has an alarm and a bound on its memory; one that hangs or dies is counted and replaced. Needs
Linux, requirements-evals.txt and PyTorch (requirements-dev.txt) to write the first inputs.

Columns: `exit 0`; `error`: another exit code and one line that begins with `error:`; `unclear`: another message than
that, several lines, or control characters; `uncaught`: an exception, or the end of the process; `hang`: more than 30 s;
`outside`: files written, changed or left elsewhere than in the output; `counts`: records in are not records out and
those counted as left out, by the command's own report and by the lines of the input.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fuzzing import fuzz_inputs
from fuzzing.forks import in_fork
from fuzzing.fuzz_case import OUTCOMES, SECONDS, UNCHANGED, Outcome, run
from fuzzing.fuzz_targets import TARGETS, Target
from machine import machine

from fgclip_jax.inference.model import FGCLIP

MEMORY = 4 << 30  # bytes of address space beyond those of the process before its first mutation
PACKAGES = ("jax", "numpy", "pillow", "pyarrow", "array_record", "safetensors", "orbax-checkpoint")


def main(argv: list[str] | None = None) -> int:
  """The command; returns 1 if anything but errors of one line was met."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--mutations", type=int, default=20_000, help="default: %(default)s")
  parser.add_argument("--seconds", type=float, default=3600, help="stop after that long (default: %(default)g)")
  parser.add_argument("--seed", type=int, default=0, help="the first number of all seeds (default: %(default)s)")
  parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="targets whose names begin so")
  parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
  parser.add_argument("--reproduce", metavar="SEED", help="run one mutation again, and keep its files")
  parser.add_argument("--folder", default="/dev/shm", help="where files are written (default: %(default)s)")
  options = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-", dir=options.folder))
  keep = False
  try:
    in_fork(lambda: fuzz_inputs.generate(folder / "base"))
    if options.reproduce:
      keep = True
      print(run(options.reproduce, folder / "base", folder / "case", make_model(), verbose=True))
      print(f"its files are in {folder / 'case'}")
      return 0
    targets = [target for target in TARGETS if target.name.startswith(tuple(options.only))]
    if not targets:
      parser.error(f"--only: the targets are {', '.join(target.name for target in TARGETS)}")
    seeds = list_seeds(targets, options.mutations, options.seed)
    start = time.monotonic()
    found = []
    for outcome in run_all(seeds, folder, options.processes, start + options.seconds):
      found.append(outcome)
      if len(found) % 1000 == 0:
        print(f"{len(found):,} mutations in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
      if outcome.outcomes[0] not in OUTCOMES[:2] or len(outcome.outcomes) > 1:
        print(f"{', '.join(outcome.outcomes)}: {outcome.seed} ({outcome.change}): {outcome.detail}", flush=True)
    print(f"\n{machine(*PACKAGES)}")
    print(f"{len(found):,} mutations, seeds from {options.seed}, in {time.monotonic() - start:.0f} s\n")
    print(format_table(found))
    return int(any(set(outcome.outcomes) - set(OUTCOMES[:2]) for outcome in found))
  finally:
    if not keep:
      shutil.rmtree(folder, ignore_errors=True)


def list_seeds(targets: list[Target], count: int, first: int) -> list[str]:
  """Lists `TARGET:NUMBER`: targets take turns, as often as their weights say."""
  turn = [target.name for target in targets for _ in range(target.weight)]
  random.Random(0).shuffle(turn)
  seen: collections.Counter[str] = collections.Counter()
  seeds = []
  for number in range(count):
    name = turn[number % len(turn)]
    seeds.append(f"{name}:{first + seen[name]}")
    seen[name] += 1
  return seeds


def format_table(found: list[Outcome]) -> str:
  """Formats counts by command and kind of file as a table in Markdown."""
  kinds = {target.name: (target.command, target.kind) for target in TARGETS}
  rows: dict[tuple[str, str], collections.Counter[str]] = {}
  seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
  for outcome in found:
    key = kinds[outcome.seed.rpartition(":")[0]]
    rows.setdefault(key, collections.Counter()).update(["mutations", *outcome.outcomes])
    seconds[key] += outcome.seconds
  names = ("mutations", *OUTCOMES)
  lines = [f"| command | files | {' | '.join(names)} | ms |", f"| --- | --- |{' ---: |' * (len(names) + 1)}"]
  total: collections.Counter[str] = collections.Counter()
  for (command, kind), counts in sorted(rows.items()):
    lines.append(
      f"| {command} | {kind} | {' | '.join(f'{counts[name]:,}' for name in names)} | "
      f"{1000 * seconds[command, kind] / counts['mutations']:.0f} |"
    )
    total.update(counts)
  milliseconds = 1000 * sum(seconds.values()) / max(len(found), 1)
  lines.append(f"| all | | {' | '.join(f'{total[name]:,}' for name in names)} | {milliseconds:.0f} |")
  return "\n".join(lines)


def make_model() -> FGCLIP:
  """The model that `embed` and `evaluate` use."""
  return FGCLIP(fuzz_inputs.FINE_GRAINED, fuzz_inputs.make_params(fuzz_inputs.FINE_GRAINED))


class Worker:
  """A forked process that runs seeds one after the other, and says before each that it begins."""

  def __init__(self, seeds: list[str], folder: pathlib.Path):
    self.seeds, self.current, self.since = seeds, "", time.monotonic()
    reading, writing = os.pipe()
    sys.stdout.flush()
    self.pid = os.fork()
    if not self.pid:
      os.close(reading)
      try:
        _work(seeds, folder, os.fdopen(writing, "w"))
      except BaseException:
        os.write(2, traceback.format_exc().encode())
      finally:
        os._exit(0)
    os.close(writing)
    self.log = folder / f"log{self.pid}"
    self.pipe = reading

  def read(self) -> Iterator[Outcome | None]:
    """Yields what a process says, or None where it says nothing; ends with the process."""
    buffered = b""
    while True:
      if select.select([self.pipe], [], [], 0.05)[0]:
        received = os.read(self.pipe, 1 << 16)
        if not received:
          if self.current:
            yield self._end("uncaught", f"the process died: {self.log.read_bytes()[-200:]!r}")
          return
        *lines, buffered = (buffered + received).split(b"\n")
        for line in lines:
          if line.startswith(b"{"):
            self.seeds, self.current = self.seeds[1:], ""
            yield Outcome(**json.loads(line))
          else:
            self.current, self.since = line.decode(), time.monotonic()
      elif self.current and time.monotonic() - self.since > 2 * SECONDS:
        yield self._end("hang", "did not react to its alarm")
        return
      yield None

  def _end(self, outcome: str, detail: str) -> Outcome:
    self.stop()
    self.seeds = self.seeds[1:]
    return Outcome(self.current, [outcome], detail, "", time.monotonic() - self.since)

  def stop(self) -> None:
    """Ends the process."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError, OSError):
      os.close(self.pipe)
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
      os.kill(self.pid, signal.SIGKILL)
      os.waitpid(self.pid, 0)


def run_all(seeds: list[str], folder: pathlib.Path, processes: int, end: float) -> Iterator[Outcome]:
  """Yields the outcomes of seeds, run by several processes, until a time of `time.monotonic`."""
  parts = [seeds[number::processes] for number in range(processes)]
  workers = [Worker(part, folder) for part in parts]
  streams = [worker.read() for worker in workers]
  while any(worker.seeds for worker in workers) and time.monotonic() < end:
    for number, worker in enumerate(workers):
      if not worker.seeds:
        continue
      try:
        outcome = next(streams[number])
      except StopIteration:  # the process has ended
        worker.stop()
        workers[number] = Worker(worker.seeds, folder)
        streams[number] = workers[number].read()
        continue
      if outcome:
        yield outcome
  for worker in workers:
    worker.stop()


def _work(seeds: list[str], folder: pathlib.Path, pipe: Any) -> None:
  """Runs seeds in this process, and writes the outcome of each as a line of JSON."""
  model = make_model()
  log = os.open(folder / f"log{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(log, 1)
  os.dup2(log, 2)
  with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
  for target in TARGETS:  # what has been compiled is not compiled within the time of a mutation
    if seeds and target.command in ("embed", "evaluate"):
      run(target.name + UNCHANGED, folder / "base", folder / f"worker{os.getpid()}", model, seconds=600)
  for seed in seeds:
    pipe.write(f"{seed}\n")
    pipe.flush()
    outcome = run(seed, folder / "base", folder / f"worker{os.getpid()}", model)
    pipe.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
    pipe.flush()


if __name__ == "__main__":
  sys.exit(main())
