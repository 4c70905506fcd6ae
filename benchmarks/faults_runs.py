"""The runs that `faults.py` disturbs: processes that are watched line by line, and a disk that can be full."""

import ctypes
import glob
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = 40
PATIENCE = 240.0  # seconds after which a run counts as hanging
DISK_MIB = 64
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
# the command, with NaN for the boxes of the batches of the steps from the first argument to the second
SICK = """
import sys
import numpy as np
from absl import app
from fgclip_jax import main
from fgclip_jax.train import loop
first, last = (int(sys.argv.pop(1)) for _ in range(2))
class Loader(loop.Loader):
  def __init__(self, *arguments, start, **options):
    super().__init__(*arguments, start=start, **options)
    self.step = start
  def __next__(self):
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

  def __init__(self, command: list[str], workdir: str):
    self.workdir, self.lines, self.seconds = workdir, [], 0.0
    environment = os.environ | {"PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
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


class Run:
  """A run: the same command, typed again and again.

  Args:
    workdir: its folder.
    cache: a folder of compiled programs, the same for all runs.
    data: a folder of a data set.
    flags: further flags.
    sick: the first and the last step whose batch has NaN in it; empty: none.
  """

  def __init__(self, workdir: str, cache: str, data: str, flags: list[str], sick: tuple[int, ...] = ()):
    self.workdir, self.sick, self.attempts = workdir, sick, []
    values = FLAGS | {"data.path": data, "compilation_cache": cache}
    self._flags = ["--config=configs/quickstart.py", f"--workdir={workdir}"]
    self._flags += [*(f"--config.{key}={value}" for key, value in values.items()), *flags]

  def start(self) -> Attempt:
    """Types the command."""
    sick = ["-c", SICK, *map(str, self.sick)]
    command = [sys.executable, *(sick if self.sick else ["-m", "fgclip_jax.main"]), *self._flags]
    self.attempts.append(Attempt(command, self.workdir))
    return self.attempts[-1]

  def finish(self, tries: int) -> bool:
    """Types the command until it has trained to the last step, at most so often; returns whether it has."""
    for _ in range(tries):
      if self.attempts and self.attempts[-1].code == 0:
        break
      self.start().end()
    return self.attempts[-1].code == 0


class Disk:
  """A small disk that can be filled to the last byte: a tmpfs, or where mounting is not allowed a limit on files.

  Attributes:
    folder: where it is.
    kind: what it is.
  """

  def __init__(self, folder: str):
    self.folder, self._ballast = folder, os.path.join(folder, "ballast")
    os.makedirs(folder)
    # MS_NOSUID | MS_NODEV
    options = f"size={DISK_MIB}m".encode()
    self._mounted = ctypes.CDLL(None).mount(b"tmpfs", folder.encode(), b"tmpfs", 6, options) == 0
    self.kind = f"tmpfs of {DISK_MIB} MiB" if self._mounted else "RLIMIT_FSIZE of the process"

  def fill(self, attempt: Attempt) -> None:
    """Leaves no byte free."""
    if not self._mounted:
      resource.prlimit(attempt.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
      return
    size = 1 << 20
    with open(self._ballast, "wb", buffering=0) as file:
      while size:
        try:
          file.write(bytes(size))
        except OSError:
          size //= 2

  def free(self, attempt: Attempt) -> None:
    """Makes room again."""
    if self._mounted:
      os.remove(self._ballast)
    elif attempt.running():
      resource.prlimit(attempt.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

  def __enter__(self) -> "Disk":
    return self

  def __exit__(self, *_) -> None:
    if self._mounted:
      ctypes.CDLL(None).umount2(self.folder.encode(), 2)  # MNT_DETACH


def saving(workdir: str) -> bool:
  """Whether a checkpoint is half written: under way, or left by a run that was killed."""
  return bool(glob.glob(os.path.join(workdir, "checkpoints", "*orbax-checkpoint-tmp*")))


def checkpoint_files(workdir: str, part: str = "") -> list[str]:
  """The files of the newest checkpoint whose path holds a part."""
  folder = os.path.join(workdir, "checkpoints")
  newest = max((name for name in os.listdir(folder) if name.isdigit()), key=int)
  paths = glob.glob(os.path.join(folder, newest, "**"), recursive=True)
  return sorted(path for path in paths if os.path.isfile(path) and part in path)


def read_losses(workdir: str) -> list[tuple[int, str]]:
  """Steps and losses, as a run has logged them; as text, so that NaN equals NaN."""
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
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
