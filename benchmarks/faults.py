"""Disturbs a small training in many ways, types the same command again until it is done, and compares the results.

  python benchmarks/faults.py                         # about 15 minutes on two cores
  python benchmarks/faults.py --kills 2 --only kills  # a trial

The run: stage 2 of a tiny FG-CLIP on rendered scenes, 40 steps, a checkpoint every 4, by `python -m fgclip_jax.main` as
users type it. Prints a table: what was injected, what the run said and how it ended, and whether the parameters after
the last step and every logged loss equal those of a run that nothing disturbed, bit for bit. Needs Linux.
"""

import argparse
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["JAX_PLATFORMS"] = "cpu"

from absl import logging
from faults_runs import STEPS, Disk, Run, checkpoint_files, read_losses, saving, workers_of
from machine import machine

from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.models.params import flatten
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.storage.damaged_shard import DamagedShard
from fgclip_jax.weights.native import read_params

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
KILLS_A_RUN, TRIES = 5, 4
RECORDS = 256
LONGEST = 240  # characters of a cell
ROWS = ("injected", "what the run said", "exit codes", "restarts", "equal", "s")


@dataclasses.dataclass
class Bench:
  """What all faults share: folders, options, and what an undisturbed run ended with."""

  folder: str
  data: str
  options: argparse.Namespace
  begin: float = dataclasses.field(default_factory=time.monotonic)
  rng: random.Random = dataclasses.field(default_factory=random.Random)
  wanted: tuple[str, list[tuple[int, str]]] = ("", [])
  rows: list[list[str]] = dataclasses.field(default_factory=list)
  failed: int = 0

  def run(self, name: str, *flags: str, data: str = "", sick: tuple[int, ...] = ()) -> Run:
    """A run of its own, not yet started."""
    return Run(os.path.join(self.folder, name), os.path.join(self.folder, "cache"), data or self.data, [*flags], sick)

  def copy_data(self, name: str) -> tuple[str, str]:
    """A copy of the data set and the path of its shard, to be damaged."""
    data = shutil.copytree(self.data, os.path.join(self.folder, name))
    return data, *find_shards(data, "train")

  def late(self) -> bool:
    """Whether the time is up."""
    return time.monotonic() - self.begin > self.options.limit

  def report(self, injected: str, run: Run, said: str, wanted=None, note: str = "") -> None:
    """Finishes a run, compares it, and adds its row. Without anything to compare with, `note` says why."""
    finished = run.finish(TRIES)
    if not finished:
      verdict = "**not finished**"
    elif note:
      verdict = note
    else:
      verdict = "yes" if result(run) == (wanted or self.wanted) else "**no**"
    self.failed += verdict.startswith("**")
    codes = ", ".join(str(attempt.code) for attempt in run.attempts)
    seconds = sum(attempt.seconds for attempt in run.attempts)
    self.row(injected, said, codes, str(len(run.attempts) - 1), verdict, f"{seconds:.0f}")

  def row(self, *cells: str) -> None:
    """Adds a row and shows it."""
    self.rows.append([cell.replace("|", "/").replace(self.folder, "")[:LONGEST] for cell in cells])
    print("| " + " | ".join(self.rows[-1]) + " |", flush=True)


def result(run: Run) -> tuple[str, list[tuple[int, str]]]:
  """A run's last parameters as a checksum, and its losses by step."""
  digest = hashlib.sha256()
  for name, array in sorted(flatten(read_params(run.workdir)).items()):
    digest.update(f"{name} {array.shape} {array.dtype}".encode() + bytes(memoryview(array).cast("B")))
  return digest.hexdigest(), read_losses(run.workdir)


# ---- the run is ended from outside


def kills(bench: Bench) -> None:
  """SIGKILL at random moments: in a step, in a save, in the start."""
  done = number = 0
  while done < bench.options.kills and not bench.late():
    run, moments = bench.run(f"killed-{number}"), []
    steps = sorted(bench.rng.sample(range(1, STEPS), KILLS_A_RUN))
    for step in steps:
      if done == bench.options.kills or bench.late():
        break
      moment = kill(bench, run, step, ("step", "save", "start")[bench.rng.choice((0, 0, 1, 1, 2))])
      if moment is None:
        break  # it was done before
      moments.append(moment)
      done += 1
    bench.report(f"SIGKILL x {len(moments)}: {', '.join(moments)}", run, "–")
    number += 1
  if done < bench.options.kills:
    bench.row(f"{bench.options.kills - done} more kills", "not done: the time was up", "", "", "", "")


def kill(bench: Bench, run: Run, step: int, kind: str) -> str | None:
  """Starts a run and kills it; says at which moment, None where it ended before."""
  attempt = run.start()
  if kind == "start":
    seconds = bench.rng.uniform(0.0, 6.0)
    attempt.pause(seconds)
    moment = f"{seconds:.1f} s after its start"
  else:
    attempt.wait_for(f"step {step}")
    attempt.pause(bench.rng.uniform(0.0, 0.4))
    moment = f"step {step}"
    if kind == "save":
      attempt.until(lambda: saving(run.workdir))
      attempt.pause(bench.rng.uniform(0.0, 0.03))
      moment = "in a save"
  if not attempt.signal(signal.SIGKILL):
    return None
  attempt.end()
  # what is there shortly after the start may be from the kill before
  return moment + (" (half a checkpoint was left)" if saving(run.workdir) and kind != "start" else "")


def told_to_end(bench: Bench, number: signal.Signals, times: int = 1) -> None:
  """SIGTERM, Ctrl-C, and Ctrl-C again."""
  run = bench.run(f"{number.name}-{times}")
  attempt = run.start()
  step = bench.rng.randrange(8, 24)
  attempt.wait_for(f"step {step}")
  for _ in range(times):
    attempt.signal(number)
    attempt.wait_for(number.name)
  attempt.end()
  name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
  said = attempt.find("told to end") or attempt.lines[-1]
  bench.report(f"{name}{' twice' if times > 1 else ''} after step {step}", run, said)


# ---- storage


def full_disk(bench: Bench, for_good: bool) -> None:
  """A disk without a free byte, until it has room again; or until the run gives up."""
  name = "disk, full for good" if for_good else "disk"
  with Disk(os.path.join(bench.folder, name)) as disk:
    run = bench.run(os.path.join(name, "run"))
    attempt = run.start()
    attempt.wait_for("step 10")
    disk.fill(attempt)
    if for_good:
      attempt.end()
    else:
      attempt.wait_for("(2 of 3 failures in a row)")
    disk.free(attempt)
    attempt.end()
    how = "until the run ended" if for_good else "for two saves"
    said = attempt.find("error:" if for_good else "could not be saved")
    bench.report(f"a full disk ({disk.kind}) {how}", run, said)


def damaged_checkpoint(bench: Bench, name: str, part: str, damage: Callable[[str], None]) -> None:
  """The newest checkpoint has lost something since it was written."""
  run = bench.run(name.replace(" ", "-"))
  attempt = run.start()
  attempt.wait_for(f"step {bench.rng.randrange(14, 30)}")
  attempt.signal(signal.SIGKILL)
  attempt.end()
  path = bench.rng.choice(checkpoint_files(run.workdir, part))
  damage(path)
  attempt = run.start()
  attempt.end()
  shown = os.path.relpath(path, os.path.join(run.workdir, "checkpoints"))
  bench.report(f"SIGKILL, then {name}: {shown}", run, attempt.find("cannot be read", "continuing"))


def cut(path: str) -> None:
  """Leaves the first half of a file."""
  os.truncate(path, os.path.getsize(path) // 2)


def flip_bit(path: str) -> None:
  """Changes one bit a third into a file."""
  with open(path, "rb+") as file:
    file.seek(os.path.getsize(path) // 3)
    byte = file.read(1)[0]
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte ^ 1]))


# ---- data


def damaged_shard(bench: Bench, name: str, damage: Callable[[str, random.Random], None], word: str) -> None:
  """A few records are gone; the result is that of any other run on the same data."""
  data, path = bench.copy_data(f"data {name}")
  damage(path, bench.rng)
  whole, run = (bench.run(f"{name} {part}", data=data) for part in ("undisturbed", "killed"))
  if not whole.finish(1):
    bench.report(f"a shard {name}", whole, whole.attempts[-1].lines[-1])
    return
  kill(bench, run, bench.rng.randrange(8, 30), "step")
  said = whole.attempts[0].find(word)
  bench.report(f"a shard {name}; SIGKILL", run, said, wanted=result(whole))


def flip(path: str, rng: random.Random) -> None:
  """Changes bytes at two places of a shard."""
  size = os.path.getsize(path)
  with open(path, "rb+") as file:
    for place in (rng.randrange(size // 8, size // 2), rng.randrange(size // 2, size * 7 // 8)):
      file.seek(place)
      data = file.read(8)
      file.seek(place)
      file.write(bytes(byte ^ 255 for byte in data))


def cut_records(path: str, rng: random.Random, lost: int = 3) -> None:
  """Cuts a shard so that it loses its last records."""
  while len(DamagedShard(path)) > RECORDS - lost:
    os.truncate(path, os.path.getsize(path) - 4096)


def half_a_shard(bench: Bench) -> None:
  """More is gone than `data.max_bad_share` allows; then the shard is there again."""
  data, path = bench.copy_data("data half")
  cut(path)
  run = bench.run("half", data=data)
  attempt = run.start()
  attempt.end()
  shutil.copytree(bench.data, data, dirs_exist_ok=True)
  said = attempt.find("error:")
  # it ends in its first batch, so that nothing remembers the damage
  bench.report("a shard cut to a half, then whole again", run, said)


def lost_worker(bench: Bench) -> None:
  """The process that loads data is killed."""
  run = bench.run("worker", "--config.data.workers=1")
  attempt = run.start()
  attempt.wait_for("step 10")
  os.kill(workers_of(attempt.pid)[0], signal.SIGKILL)
  attempt.end()
  bench.report("SIGKILL of the data worker", run, attempt.find("error:"))


def stuck_worker(bench: Bench) -> None:
  """The process that loads data stands still for a while."""
  run = bench.run("stuck", "--config.data.workers=1", "--config.guard.watchdog_seconds=4")
  attempt = run.start()
  attempt.wait_for("step 10")
  before = len(attempt.lines)
  worker = workers_of(attempt.pid)[0]
  os.kill(worker, signal.SIGSTOP)
  attempt.until(lambda: [line for line in attempt.lines[before:] if "waiting for" in line])
  said = next((line for line in attempt.lines[before:] if "waiting for" in line), "")
  os.kill(worker, signal.SIGCONT)
  attempt.end()
  bench.report("the data worker stops, later goes on", run, said)


# ---- numbers


def one_sick_batch(bench: Bench) -> None:
  """NaN in one batch; the result is that of any other run which left out this batch."""
  whole, run = (bench.run(f"sick {part}", sick=(10, 10)) for part in ("undisturbed", "killed"))
  whole.finish(1)
  kill(bench, run, bench.rng.randrange(12, 30), "step")
  said = whole.attempts[0].find("nothing was changed")
  bench.report("boxes of NaN in the batch of step 10; SIGKILL", run, said, wanted=result(whole))


def sick_from_then_on(bench: Bench) -> None:
  """NaN in all batches from a step on, until the run gives up; and then no more."""
  run = bench.run("sick", sick=(10, STEPS))
  attempt = run.start()
  attempt.end()
  run.sick = ()
  said = attempt.find("error:")
  bench.report("boxes of NaN in all batches from step 10 on, then sound ones", run, said, note="10 updates fewer")


FAULTS: dict[str, Callable[[Bench], None]] = {
  "kills": kills,
  "sigterm": lambda bench: told_to_end(bench, signal.SIGTERM),
  "ctrl-c": lambda bench: told_to_end(bench, signal.SIGINT),
  "ctrl-c-twice": lambda bench: told_to_end(bench, signal.SIGINT, 2),
  "disk": lambda bench: full_disk(bench, for_good=False),
  "disk-for-good": lambda bench: full_disk(bench, for_good=True),
  "truncated": lambda bench: damaged_checkpoint(bench, "a file of the newest checkpoint cut to a half", "/d/", cut),
  "flipped": lambda bench: damaged_checkpoint(
    bench, "a bit of the newest checkpoint changed", "process_0/d/", flip_bit
  ),
  "deleted": lambda bench: damaged_checkpoint(bench, "a file of the newest checkpoint deleted", "", os.remove),
  "flipped-shard": lambda bench: damaged_shard(bench, "with bytes changed at two places", flip, "record_corrupt"),
  "cut-shard": lambda bench: damaged_shard(bench, "without its last three records", cut_records, "damaged shard"),
  "half-shard": half_a_shard,
  "worker": lost_worker,
  "stuck-worker": stuck_worker,
  "nan": one_sick_batch,
  "nan-for-good": sick_from_then_on,
}


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code: 1 where a run was not finished or its result is not the undisturbed one's."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=20, metavar="N", help="SIGKILLs in all (default: %(default)s)")
  parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), help="some of the faults")
  parser.add_argument("--limit", type=float, default=1200.0, metavar="SECONDS", help="nothing is begun after that")
  parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
  parser.add_argument("--output", metavar="FILE", help="the table is written here, too")
  options = parser.parse_args(argv)
  logging.set_verbosity(logging.WARNING)
  with tempfile.TemporaryDirectory() as folder:
    bench = Bench(folder, os.path.join(folder, "scenes"), options, rng=random.Random(options.seed))
    prepare.main(["scenes", "--output", bench.data, "--train", str(RECORDS), "--validation", "1", "--workers", "1"])
    for name in ("undisturbed", "undisturbed again"):  # the first compiles; the second shows that a run is exact at all
      run = bench.run(name)
      if not run.finish(1):
        print("\n".join(["error: the undisturbed run failed", *run.attempts[0].lines]), file=sys.stderr)
        return 1
      bench.wanted = bench.wanted if bench.wanted[0] else result(run)
    bench.report("nothing", run, run.attempts[0].find("trained to"))
    for name in options.only:
      if bench.late():
        bench.row(name, "not done: the time was up", "", "", "", "")
        continue
      try:
        FAULTS[name](bench)
      except TimeoutError as error:
        bench.failed += 1
        bench.row(name, str(error).replace("\n", " / "), "", "", "**hangs**", "")
    lines = [ROWS, ["---"] * 4 + ["---", "---:"], *bench.rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = f"{machine(*PACKAGES)}\n\n{table}\n"
    print("\n" + text)
    if options.output:
      with open(options.output, "w", encoding="utf-8") as file:
        file.write(text)
      print(f"wrote {options.output}")
    print(f"{len(bench.rows)} rows in {time.monotonic() - bench.begin:.0f} s; not as they should be: {bench.failed}")
    return int(bench.failed > 0)


if __name__ == "__main__":
  sys.exit(main())
