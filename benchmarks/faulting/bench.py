"""What all faults share: where their runs are, how one is killed and compared, and the table."""

import argparse
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import time

from faulting.network import Network
from faulting.runs import Run, read_losses, saving
from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.models.params import flatten
from fgclip_jax.storage import paths
from fgclip_jax.weights.native import read_params

TRIES = 4
LONGEST = 240  # characters of a cell


@dataclasses.dataclass
class Bench:
  """What all faults share.

  Attributes:
    folder: of this machine, for data and the compiled programs of all runs.
    root: the folder of the runs, on this machine or in a bucket.
    data: the data set of all runs.
    options: the command's.
    network: between the runs and their bucket; None: they are on a disk.
    wanted: what an undisturbed run ended with.
  """

  folder: str
  root: str
  data: str
  options: argparse.Namespace
  network: Network | None = None
  begin: float = dataclasses.field(default_factory=time.monotonic)
  rng: random.Random = dataclasses.field(default_factory=random.Random)
  wanted: tuple[str, list[tuple[int, str]]] = ("", [])
  rows: list[list[str]] = dataclasses.field(default_factory=list)
  failed: int = 0

  def run(self, name: str, *flags: str, data: str = "", sick: tuple[int, ...] = (), pause: float = 0.0) -> Run:
    """A run of its own, not yet started."""
    environment = self.network.environment if self.network else {}
    cache = os.path.join(self.folder, "cache")
    return Run(paths.join(self.root, name), cache, data or self.data, [*flags], sick, pause, environment)

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
    if self.options.logs:
      with open(os.path.join(self.options.logs, paths.base_name(run.workdir) + ".log"), "w", encoding="utf-8") as file:
        file.writelines(
          f"{line}\n" for attempt in run.attempts for line in (*attempt.lines, f"exit {attempt.code}", "")
        )
    codes = ", ".join(str(attempt.code) for attempt in run.attempts)
    seconds = sum(attempt.seconds for attempt in run.attempts)
    self.row(injected, said, codes, str(len(run.attempts) - 1), verdict, f"{seconds:.0f}")

  def row(self, *cells: str) -> None:
    """Adds a row and shows it."""
    self.rows.append(
      [cell.replace("|", "/").replace(self.folder, "").replace(self.root, "")[:LONGEST] for cell in cells]
    )
    print("| " + " | ".join(self.rows[-1]) + " |", flush=True)


def result(run: Run) -> tuple[str, list[tuple[int, str]]]:
  """A run's last parameters as a checksum, and its losses by step."""
  digest = hashlib.sha256()
  for name, array in sorted(flatten(read_params(run.workdir)).items()):
    digest.update(f"{name} {array.shape} {array.dtype}".encode() + bytes(memoryview(array).cast("B")))
  return digest.hexdigest(), read_losses(run.workdir)


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
