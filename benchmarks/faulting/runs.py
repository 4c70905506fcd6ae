"""The runs that `faults.py` disturbs: processes that are watched line by line, and what they have written."""

import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from fgclip_jax.storage import paths
from fgclip_jax.weights.native import FOLDER

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STEPS = 40
COMMITTED = "commit_success.txt"  # the object that makes a checkpoint in a bucket complete
PATIENCE = 600.0  # seconds after which a run counts as hanging
# every step is logged, so that all losses can be compared
FLAGS = {
  "model": "tiny",
  "init_from": "",
  "steps": STEPS,
  "log_every": 1,
  "checkpoint_every": 4,
  "optimizer.warmup_steps": 4,
  "runtime.unroll": 1,
  "data.batch_size": 16,
  "data.row_length": 512,
  "data.workers": 0,
}
# the command, with a pause of so many seconds before each batch (the first argument), and NaN for the boxes of the
# batches of the steps from the second argument to the third
CHANGED = """
import sys, time
import numpy as np
from absl import app
from fgclip_jax import main
from fgclip_jax.train import loop
pause, first, last = (float(sys.argv.pop(1)) for _ in range(3))
class Loader(loop.Loader):
  def __init__(self, *arguments, start, **options):
    super().__init__(*arguments, start=start, **options)
    self.step = start
  def __next__(self):
    time.sleep(pause)
    batch, self.step = super().__next__(), self.step + 1
    return batch | {"boxes": np.full_like(batch["boxes"], np.nan)} if first <= self.step <= last else batch
loop.Loader = Loader
app.run(main.main, flags_parser=main.parse_flags)
"""


class Attempt:
  """The command typed once.

  Attributes:
    lines: what it has printed so far.
    code: its exit code, negative for a signal; None while it runs.
    seconds: from start to end.
  """

  def __init__(self, command: list[str], environment: dict[str, str]):
    self.lines, self.seconds = [], 0.0
    environment = os.environ | {"PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"} | environment
    self._begin = time.monotonic()
    # a session of its own: data workers that a killed run leaves are ended with it
    self._process = subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      start_new_session=True,
    )  # fmt: skip
    self.pid, self.code = self._process.pid, None
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self) -> None:
    for line in self._process.stdout:
      self.lines.append(line.rstrip())

  def running(self) -> bool:
    """Whether it has not ended."""
    return self._process.poll() is None

  def until(self, condition: Callable[[], object]) -> None:
    """Waits until something is so, or the run has ended; a TimeoutError where neither comes."""
    end = time.monotonic() + PATIENCE
    while not condition() and self.running():
      if time.monotonic() > end:
        os.killpg(self.pid, signal.SIGKILL)
        raise TimeoutError("\n".join(["the run hangs; it has said:", *self.lines]))
      time.sleep(0.001)

  def wait_for(self, text: str) -> None:
    """Waits until a line that begins with or holds a text has been printed, or the run has ended.

    `step N` waits for step N or a later one, as a continued run may begin behind it.
    """
    if text.startswith("step "):
      wanted = int(text.split()[1])
      self.until(lambda: any(_step(line) >= wanted for line in list(self.lines[-3:])))
    else:
      self.until(lambda: self.find(text))

  def step(self) -> int:
    """The last step that it has logged; 0: none."""
    return max(map(_step, list(self.lines)), default=0)

  def pause(self, seconds: float) -> None:
    """Lets it run for a while, if it does not end before."""
    end = time.monotonic() + seconds
    self.until(lambda: time.monotonic() >= end)

  def signal(self, number: signal.Signals) -> bool:
    """Sends a signal; returns whether it was still running."""
    running = self.running()
    if running:
      os.kill(self.pid, number)
    return running

  def end(self) -> None:
    """Waits until it has ended."""
    self.until(lambda: False)
    self.code = self._process.wait()
    self.seconds = time.monotonic() - self._begin
    try:
      os.killpg(self.pid, signal.SIGKILL)  # what it may have left behind would keep its output open
    except ProcessLookupError:
      self._reader.join()  # nothing was left
    self._reader.join()

  def find(self, *texts: str) -> str:
    """The first line that holds one of the texts; empty: none does."""
    return next((line for line in list(self.lines) for text in texts if text in line), "")


def make_flags(workdir: str, cache: str, data: str, **changes: object) -> list[str]:
  """The command's flags for a run in a folder, on a data set, with a folder of compiled programs."""
  values = FLAGS | {"data.path": data, "compilation_cache": cache} | changes
  return [
    "--config=configs/quickstart.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


class Run:
  """A run: the same command, typed again and again.

  Args:
    workdir: its folder.
    cache: a folder of compiled programs, the same for all runs.
    data: a folder of a data set.
    flags: further flags.
    sick: the first and the last step whose batch has NaN in it; empty: none.
    pause: seconds that each batch takes longer.
    environment: further variables.
  """

  def __init__(
    self,
    workdir: str,
    cache: str,
    data: str,
    flags: list[str],
    sick: tuple[int, ...] = (),
    pause: float = 0.0,
    environment: dict[str, str] | None = None,
  ):
    self.workdir, self.sick, self.pause, self.attempts = workdir, sick, pause, []
    self.environment = environment or {}
    self.flags = [*make_flags(workdir, cache, data), *flags]

  def start(self) -> Attempt:
    """Types the command."""
    changed = ["-c", CHANGED, str(self.pause), *map(str, self.sick or (0, 0))]
    plain = not self.sick and not self.pause
    command = [sys.executable, *(["-m", "fgclip_jax.main"] if plain else changed), *self.flags]
    self.attempts.append(Attempt(command, self.environment))
    return self.attempts[-1]

  def finish(self, tries: int) -> bool:
    """Types the command until it has trained to the last step, at most so often; returns whether it has."""
    for _ in range(tries):
      if self.attempts and self.attempts[-1].code == 0:
        break
      self.start().end()
    return self.attempts[-1].code == 0


def saving(workdir: str) -> bool:
  """Whether a checkpoint is half written: under way, or left by a run that was killed."""
  folder = paths.join(workdir, FOLDER)
  if not paths.is_remote(workdir):
    return bool(glob.glob(os.path.join(folder, "*orbax-checkpoint-tmp*")))
  found = set(paths.find(folder))
  return any(
    f"{step}/{COMMITTED}" not in found for step in {name.partition("/")[0] for name in found} if step.isdigit()
  )


def checkpoint_files(workdir: str, part: str = "") -> list[str]:
  """The files of the newest complete checkpoint whose path holds a part."""
  folder = paths.join(workdir, FOLDER)
  if paths.is_remote(workdir):
    found = [name.split("/") for name in paths.find(folder)]
  else:
    files = (path for path in glob.glob(os.path.join(folder, "**"), recursive=True) if os.path.isfile(path))
    found = [os.path.relpath(path, folder).split(os.sep) for path in files]
  complete = [name[0] for name in found if name[0].isdigit() and (not paths.is_remote(workdir) or name[1] == COMMITTED)]
  newest = max(complete, key=int)
  return sorted(path for name in found if name[0] == newest and part in (path := paths.join(folder, *name)))


def read_losses(workdir: str) -> list[tuple[int, str]]:
  """Steps and losses, as a run has logged them; as text, so that NaN equals NaN."""
  lines = [json.loads(line) for line in paths.read(paths.join(workdir, "metrics.jsonl")).splitlines()]
  return [(line["step"], repr(line["loss"])) for line in lines]


def workers_of(pid: int) -> list[int]:
  """The processes that load data for a run."""
  found = []
  for path in glob.glob(f"/proc/{pid}/task/*/children"):
    with open(path, encoding="utf-8") as file:
      found += [int(child) for child in file.read().split()]
  return [child for child in found if "spawn_main" in _command(child)]


def _command(pid: int) -> str:
  with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
    return file.read()


def _step(line: str) -> int:
  """The step that a progress line tells of; 0 for any other line."""
  return int(line.split()[1].partition("/")[0]) if line.startswith("step ") and "/" in line.split()[1] else 0
