"""Fast checkpoints on the machines' own disks, which no other machine sees.

Every process writes all that its devices hold, so that after a restart on the same machines each finds its own state
again. A step can be used only if every process finds all it needs, which they agree on. Which of the states on a disk
belong to the run is known from `WORKDIR/attempts.json`: each start of the run is an attempt and has an id. A state of
an earlier attempt beyond the step from which a later one went on is another future of the run, and is not used.
"""

import concurrent.futures
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.checkpoints.settings import CheckpointConfig
from fgclip_jax.train.checkpoints.together import Outcome, attempt
from fgclip_jax.train.distributed import agree
from fgclip_jax.weights.checkpoint_files import shard_files
from fgclip_jax.weights.checkpoint_files.shard_files import HostArray, Parts

ATTEMPTS_FILE = "attempts.json"


class LocalTier:
  """The local checkpoints of one run; every process makes the same calls.

  Args:
    config: how often, where, and how many.
    workdir: the run's folder, in durable storage.
    log: prints a line.
    reach: calls an action on every process, again while the network is down.

  Raises:
    ValueError: the folder cannot be written.
  """

  def __init__(
    self,
    config: CheckpointConfig,
    workdir: str,
    log: Callable[[str], object],
    reach: Callable[[Callable[[], Any]], Any] = lambda action: action(),
  ):
    self._config, self._log = config, log
    self._path = paths.join(workdir, ATTEMPTS_FILE)
    first = jax.process_index() == 0
    self._run, self._attempts = reach(self._read_attempts if first else lambda: (0, []))
    self._run = agree(self._run, lambda values: values[0])
    self._attempt = agree(secrets.randbits(48), lambda values: values[0])
    make = lambda: _own_folder(config.local_folder, f"{self._run:012x}")  # noqa: E731
    self._folder = reach(make) if config.local_every else ""
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "local checkpoint")
    self._under_way: tuple[int, concurrent.futures.Future] | None = None
    self._failing = False

  def _read_attempts(self) -> tuple[int, list[tuple[int, int]]]:
    """The run's number, and for each attempt its id and the step that it began from; new ones where there are none."""
    try:
      found = json.loads(paths.read(self._path))
      return int(found["run"]), [(int(attempt), int(step)) for attempt, step in found["attempts"]]
    except FileNotFoundError:
      return secrets.randbits(48), []
    except (ValueError, TypeError, KeyError):
      self._log(f"{self._path} is damaged: what earlier starts have saved on local disks is not used")
      return secrets.randbits(48), []

  def begin(self, step: int) -> None:
    """Notes that an attempt begins from a step; states beyond it are of no use any more."""
    kept = [each for each in self._attempts if each[1] < step]  # others have left nothing that counts
    self._attempts = [*kept, (self._attempt, step)]
    if jax.process_index() == 0 and (self._config.local_every or paths.exists(self._path)):
      content = {"run": self._run, "attempts": self._attempts}
      paths.write(self._path, json.dumps(content).encode())
    for each in self._steps():
      if each > step:
        self._remove(each)

  def due(self, step: int) -> bool:
    """Whether the state of a step is saved."""
    return bool(self._config.local_every) and step % self._config.local_every == 0

  def newest(self) -> int | None:
    """The newest step that every process has a part of, from the run's own past; None: there is none."""
    if not self._config.local_every:
      return None
    own, bound = self._steps(), None
    while True:
      step = agree(max((each for each in own if bound is None or each < bound), default=-1), min)
      if step < 0:
        return None
      saved_by = self._saved_by(step) if step in own else -1
      same = agree(saved_by, min) == agree(saved_by, max) >= 0
      if agree(int(same and self._counts(saved_by, step)), lambda values: values[0]):
        return step
      bound = step

  def _counts(self, saved_by: int, step: int) -> bool:
    """Whether a state of an attempt is of the run's past: no later attempt began before it."""
    ids = [each for each, _ in self._attempts]
    return saved_by in ids and all(began >= step for _, began in self._attempts[ids.index(saved_by) + 1 :])

  def _saved_by(self, step: int) -> int:
    """The attempt that has saved a step; -1: that cannot be read."""
    folder = self._step_folder(step)
    try:
      ids = {
        int(shard_files.read_description(folder, number)["attempt"]) for number in shard_files.part_numbers(folder)
      }
    except (OSError, ValueError, KeyError, TypeError):
      return -1
    return ids.pop() if len(ids) == 1 else -1

  def open(self, step: int) -> tuple[dict[str, Any], Parts]:
    """What was saved with a step as its metadata, and the parts that are on this machine's disk.

    Raises:
      OSError, ValueError: they are damaged.
    """
    folder = self._step_folder(step)
    parts = Parts(folder, shard_files.part_numbers(folder))
    if not parts.notes:
      raise OSError("no part of it is whole")
    return parts.notes[0]["metadata"], parts

  def drop(self, step: int, reason: str) -> None:
    """Removes a checkpoint that cannot be used, on all machines, and logs that."""
    self._log(f"the local checkpoint of step {step} is not used, and removed: {reason}")
    self._remove(step)

  def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Begins to save; returns once the arrays are copied. What fails is logged, and ends no run."""
    self.wait()
    tried = attempt(lambda: shard_files.to_host(items, every_replica=True), remote=False)
    if tried.outcome != Outcome.GOOD:
      self._report(step, tried.reason)
      return
    note = {"attempt": self._attempt, "step": step, "metadata": metadata}
    self._under_way = (step, self._pool.submit(self._write, step, tried.value, note))

  def _write(self, step: int, arrays: Mapping[str, HostArray], note: Mapping[str, Any]) -> None:
    folder = self._step_folder(step)
    for ending in ("json", "bin"):  # of an earlier attempt; its description first
      paths.remove(os.path.join(folder, f"part-{jax.process_index()}.{ending}"))
    shard_files.write_part(folder, jax.process_index(), arrays, note)

  def wait(self) -> None:
    """Waits until the save under way has ended; what it replaces is removed once every process has saved."""
    if self._under_way is None:
      return
    (step, future), self._under_way = self._under_way, None
    tried = attempt(future.result, remote=False)
    if tried.outcome != Outcome.GOOD:
      self._report(step, tried.reason)
      self._remove(step)
      return
    if self._failing:
      self._log(f"local checkpoints are saved again, at step {step}")
    self._failing = False
    for each in [each for each in self._steps() if each <= step][: -self._config.local_newest]:
      self._remove(each)

  def _report(self, step: int, reason: str) -> None:
    if not self._failing:
      self._log(
        f"the local checkpoint of step {step} could not be saved in {self._folder} ({reason}); training goes on"
      )
    self._failing = True

  def finish(self) -> None:
    """Removes what is on this machine's disk: the run has saved its last step in the workdir."""
    self.wait()
    if self._folder:
      shutil.rmtree(self._folder, ignore_errors=True)  # several processes of a machine may do so

  def close(self) -> None:
    """Waits for the save under way. Agrees with nobody: another process may have ended."""
    self._pool.shutdown()

  def _step_folder(self, step: int) -> str:
    return os.path.join(self._folder, str(step))

  def _steps(self) -> list[int]:
    """The steps of which this machine's disk has a whole part, ascending."""
    if not os.path.isdir(self._folder):
      return []
    steps = sorted(int(name) for name in os.listdir(self._folder) if name.isdecimal())
    return [step for step in steps if os.path.isdir(self._step_folder(step)) and self._has_part(step)]

  def _has_part(self, step: int) -> bool:
    try:
      return bool(shard_files.part_numbers(self._step_folder(step)))
    except FileNotFoundError:  # another process of this machine has removed it
      return False

  def _remove(self, step: int) -> None:
    shutil.rmtree(self._step_folder(step), ignore_errors=True)


def _own_folder(folder: str, run: str) -> str:
  """The folder of a run's local checkpoints, which is made; nobody else may write there.

  Raises:
    ValueError: it cannot be made, or belongs to somebody else.
  """
  base = folder or os.path.join(tempfile.gettempdir(), f"fgclip-checkpoints-{os.getuid()}")
  made = os.path.join(os.path.abspath(base), run)
  try:
    for each in (os.path.dirname(made), made):
      os.makedirs(each, mode=0o700, exist_ok=True)
    if not folder and os.lstat(base).st_uid != os.getuid():  # the temporary folder is everybody's
      raise PermissionError("it belongs to another user")
    probe = os.path.join(made, f".probe-{os.getpid()}")
    paths.write(probe, b"")
    os.remove(probe)
  except OSError as error:
    raise ValueError(
      f"config.checkpoint.local_folder: {base!r} cannot be written ({first_line(error)}); name a folder on this "
      "machine's own disk"
    ) from error
  return made
