"""How long a step waits for a save: to a disk, to a bucket, and to a bucket 50 ms away.

  python benchmarks/saving.py

A run as users type it for each storage: a tiny FG-CLIP on rendered scenes, of which each batch is held back for a
moment, as on a machine whose devices compute while the host is free. The bucket is on a server on this machine, behind
a proxy that delays every request. Columns: `held`, how long a save holds the loop, median and longest, without the last
one; `written in`, the last one's time, as it is waited for to its end; `step`, median without a save
and with one that begins. Needs requirements-gcs.txt and requirements-dev.txt.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["JAX_PLATFORMS"] = "cpu"

from absl import logging
from faulting.network import CALM, serve
from faulting.proxy import Conditions
from faulting.runs import Attempt, make_flags
from machine import machine

from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.storage import paths

PACKAGES = ("jax", "orbax-checkpoint", "tensorstore", "gcsfs")
STEPS, SAVES = 120, 6
# the command, with a pause before each batch; writes when each save began and returned, and when each batch was wanted
TIMED = """
import json, sys, time
from absl import app
from fgclip_jax import main
from fgclip_jax.train import loop
target, pause = sys.argv.pop(1), float(sys.argv.pop(1))
log = []
class Checkpoints(loop.Checkpoints):
  def save(self, step, *arguments, **options):
    begin = time.monotonic()
    super().save(step, *arguments, **options)
    log.append(("save", step, begin, time.monotonic()))
class Loader(loop.Loader):
  step = 0
  def __next__(self):
    self.step += 1
    log.append(("batch", self.step, 0.0, time.monotonic()))
    time.sleep(pause)
    return super().__next__()
loop.Checkpoints, loop.Loader = Checkpoints, Loader
try:
  app.run(main.main, flags_parser=main.parse_flags)
finally:
  with open(target, "w") as file:
    json.dump(log, file)
"""


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--pause", type=float, default=0.4, help="seconds before each batch (default: %(default)s)")
  parser.add_argument("--latency", type=float, default=0.05, help="of the bucket, in seconds (default: %(default)s)")
  options = parser.parse_args(argv)
  logging.set_verbosity(logging.WARNING)
  rows = []
  with tempfile.TemporaryDirectory() as folder, serve(seed=0) as network:
    data = os.path.join(folder, "scenes")
    prepare.main(["scenes", "--output", data, "--train", "256", "--validation", "1", "--workers", "1"])
    latency = Conditions(delay=(options.latency, options.latency))
    places = {
      "warm up": (folder, CALM),
      "disk": (folder, CALM),
      "bucket": (network.bucket, CALM),
      f"bucket {1e3 * options.latency:.0f} ms away": (network.bucket, latency),
    }
    for name, (root, conditions) in places.items():
      target = os.path.join(folder, "log.json")
      with network.conditions(conditions):
        run(paths.join(root, name.replace(" ", "-")), folder, data, target, options.pause, network.environment)
      with open(target, encoding="utf-8") as file:
        rows.append((name, *measure(json.load(file))))
  print(machine(*PACKAGES) + "\n")
  print("| storage | held, ms | longest | written in, s | step without, ms | step with, ms |")
  print("| --- | ---: | ---: | ---: | ---: | ---: |")
  for name, held, longest, last, without, with_save in rows[1:]:
    print(
      f"| {name} | {1e3 * held:.0f} | {1e3 * longest:.0f} | {last:.1f} | {1e3 * without:.0f} | {1e3 * with_save:.0f} |"
    )
  return 0


def run(workdir: str, folder: str, data: str, target: str, pause: float, environment: dict[str, str]) -> None:
  """Makes a run, which writes its times to `target`."""
  changes = {"steps": STEPS, "checkpoint_every": STEPS // SAVES, "log_every": STEPS}
  flags = make_flags(workdir, os.path.join(folder, "cache"), data, **changes)
  attempt = Attempt([sys.executable, "-c", TIMED, target, str(pause), *flags], environment)
  attempt.end()
  if attempt.code:
    raise RuntimeError("\n".join(["the run failed:", *attempt.lines]))


def measure(log: list[tuple[str, int, float, float]]) -> tuple[float, float, float, float, float]:
  """Seconds: a save's median and longest, the last one's; a step's median without a save, and with one that begins."""
  saves = {step: end - begin for kind, step, begin, end in log if kind == "save"}
  wanted = {step: at for kind, step, _, at in log if kind == "batch"}
  # a save of step s is between the moments when the batches of steps s + 1 and s + 2 are wanted; the first ones compile
  turns = {step: wanted[step + 2] - wanted[step + 1] for step in range(STEPS // SAVES // 2, STEPS - 1)}
  last = saves.pop(max(saves))
  with_save = [seconds for step, seconds in turns.items() if step in saves]
  without = [seconds for step, seconds in turns.items() if step not in saves]
  held = saves.values()
  return statistics.median(held), max(held), last, statistics.median(without), statistics.median(with_save)


if __name__ == "__main__":
  sys.exit(main())
