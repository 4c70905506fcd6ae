"""Disturbs a small training in many ways, types the same command again until it is done, and compares the results.

  python benchmarks/faults.py                         # about 15 minutes on two cores
  python benchmarks/faults.py --kills 2 --only kills  # a trial
  python benchmarks/faults.py --storage gcs           # the runs are in a bucket behind a network, which is bad at times

The run: stage 2 of a tiny FG-CLIP on rendered scenes, 40 steps, a checkpoint every 4, by `python -m fgclip_jax.main` as
users type it. Prints a table: what was injected, what the run said and how it ended, and whether the parameters after
the last step and every logged loss equal those of a run that nothing disturbed, bit for bit. Needs Linux.
"""

import argparse
import contextlib
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
from faulting.bench import Bench, kill, result
from faulting.disk import full_disk
from faulting.network import serve
from faulting.network_faults import FAULTS as NETWORK_FAULTS
from faulting.processes import one_of_two
from faulting.runs import STEPS, checkpoint_files, workers_of
from machine import machine

from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.storage import paths
from fgclip_jax.storage.damaged_shard import DamagedShard

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
KILLS_A_RUN = 5
RECORDS = 256
ROWS = ("injected", "what the run said", "exit codes", "restarts", "equal", "s")


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
  shown = path.partition("checkpoints/")[2]
  bench.report(f"SIGKILL, then {name}: {shown}", run, attempt.find("cannot be read", "continuing"))


def cut(path: str) -> None:
  """Leaves the first half of a file."""
  paths.write(path, paths.read(path, 0, paths.size(path) // 2))


def flip_bit(path: str) -> None:
  """Changes one bit a third into a file."""
  data = bytearray(paths.read(path))
  data[len(data) // 3] ^= 1
  paths.write(path, bytes(data))


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


def damages(bits: str) -> dict[str, Callable[[Bench], None]]:
  """Damages of the newest checkpoint; `bits`: a part of the path of a file in which one is changed."""
  newest = "of the newest checkpoint"
  return {
    "truncated": lambda bench: damaged_checkpoint(bench, f"a file {newest} cut to a half", "/d/", cut),
    "flipped": lambda bench: damaged_checkpoint(bench, f"a bit {newest} changed", bits, flip_bit),
    "deleted": lambda bench: damaged_checkpoint(bench, f"a file {newest} deleted", "", paths.remove),
  }


ENDS: dict[str, Callable[[Bench], None]] = {
  "kills": kills,
  "sigterm": lambda bench: told_to_end(bench, signal.SIGTERM),
  "ctrl-c": lambda bench: told_to_end(bench, signal.SIGINT),
  "ctrl-c-twice": lambda bench: told_to_end(bench, signal.SIGINT, 2),
}
FAULTS: dict[str, dict[str, Callable[[Bench], None]]] = {
  "disk": {
    **ENDS,
    "disk": lambda bench: full_disk(bench, for_good=False),
    "disk-for-good": lambda bench: full_disk(bench, for_good=True),
    **damages("process_0/d/"),
    "flipped-shard": lambda bench: damaged_shard(bench, "with bytes changed at two places", flip, "record_corrupt"),
    "cut-shard": lambda bench: damaged_shard(bench, "without its last three records", cut_records, "damaged shard"),
    "half-shard": half_a_shard,
    "worker": lost_worker,
    "stuck-worker": stuck_worker,
    "nan": one_sick_batch,
    "nan-for-good": sick_from_then_on,
  },
  "gcs": {
    **ENDS,
    **damages("process_0/d/"),
    "nan-for-good": sick_from_then_on,
    "two-processes": one_of_two,
    **NETWORK_FAULTS,
  },
}


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code: 1 where a run was not finished or its result is not the undisturbed one's."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--storage", choices=FAULTS, default="disk", help="where the runs are (default: %(default)s)")
  parser.add_argument("--kills", type=int, default=20, metavar="N", help="SIGKILLs in all (default: %(default)s)")
  names = dict.fromkeys(name for faults in FAULTS.values() for name in faults)
  parser.add_argument("--only", nargs="+", choices=names, help="some of the faults")
  parser.add_argument("--limit", type=float, default=1200.0, metavar="SECONDS", help="nothing is begun after that")
  parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
  parser.add_argument("--output", metavar="FILE", help="the table is written here, too")
  parser.add_argument("--logs", metavar="DIR", help="all that the runs print is written here")
  options = parser.parse_args(argv)
  if options.logs:
    os.makedirs(options.logs, exist_ok=True)
  if foreign := [name for name in options.only or () if name not in FAULTS[options.storage]]:
    parser.error(
      f"--storage {options.storage} knows no {', '.join(foreign)}; give some of {', '.join(FAULTS[options.storage])}"
    )
  logging.set_verbosity(logging.WARNING)
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    network = stack.enter_context(serve(options.seed)) if options.storage == "gcs" else None
    root, data = (network.bucket if network else folder), os.path.join(folder, "scenes")
    bench = Bench(folder, root, data, options, network, rng=random.Random(options.seed))
    prepare.main(["scenes", "--output", bench.data, "--train", str(RECORDS), "--validation", "1", "--workers", "1"])
    if not disturb(bench):
      return 1
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


def disturb(bench: Bench) -> bool:
  """Makes the undisturbed runs and then all others; False: there is nothing to compare with."""
  for name in ("undisturbed", "undisturbed again"):  # the first compiles; the second shows that a run is exact at all
    run = bench.run(name)
    if not run.finish(1):
      print("\n".join(["error: the undisturbed run failed", *run.attempts[0].lines]), file=sys.stderr)
      return False
    bench.wanted = bench.wanted if bench.wanted[0] else result(run)
  bench.report("nothing", run, run.attempts[0].find("trained to"))
  faults = FAULTS[bench.options.storage]
  for name in bench.options.only or faults:
    if bench.late():
      bench.row(name, "not done: the time was up", "", "", "", "")
      continue
    try:
      faults[name](bench)
    except TimeoutError as error:
      bench.failed += 1
      bench.row(name, str(error).replace("\n", " / "), "", "", "**hangs**", "")
  return True


if __name__ == "__main__":
  sys.exit(main())
