"""Checkpoints of a run, saved in the background under `WORKDIR/checkpoints/STEP`, and faster ones on local disks.

The parameters are an item of their own, so that a model can be read without the optimizer's state; so is their average,
where the run keeps one.
"""

import concurrent.futures
import functools
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import jax

from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import AccessRefusedError, UnreachableError, describe_fault, first_line
from fgclip_jax.train.checkpoints.local_tier import LocalTier
from fgclip_jax.train.checkpoints.orbax_store import OrbaxStore, names_in
from fgclip_jax.train.checkpoints.settings import CheckpointConfig, Keep
from fgclip_jax.train.checkpoints.shard_store import ShardStore
from fgclip_jax.train.checkpoints.together import Attempt, Outcome, attempt, insist
from fgclip_jax.train.checkpoints.wanted_state import ForeignCheckpointError, WantedState, by_item, items_of
from fgclip_jax.train.distributed import agree
from fgclip_jax.train.resume import ConfigChangedError
from fgclip_jax.train.state import TrainState
from fgclip_jax.weights.checkpoint_files.checksums import checksums
from fgclip_jax.weights.native import DAMAGED, FOLDER, uses_orbax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_REACH_SECONDS = 600.0  # for which opening and restoring try to reach a place, after the libraries' own tries
_PROBE_EVERY = 20.0  # seconds between looks whether a place that was out of reach is back
_SAVE_PATIENCE = 10.0  # seconds that training waits for an earlier save over a network to end


_SAME_EVERYWHERE = (ConfigChangedError, ForeignCheckpointError)  # errors that all processes come to


class Checkpoints:
  """The checkpoints of one run.

  Args:
    workdir: the run's folder, on this machine or in object storage.
    keep: which of them are kept; None: the newest two.
    max_failed_saves: this many failed saves in a row are an error.
    log: prints a line.
    config: of local checkpoints; None: there are none.
    outage_seconds: for so long training goes on while the workdir's storage cannot be reached; then it is an error.

  Attributes:
    latest: the step of the newest good checkpoint in the workdir; None: there is none.
    restored: the step of the state that `restore` has returned; 0: none.
  """

  def __init__(
    self,
    workdir: str,
    keep: Keep | None = None,
    max_failed_saves: int = 3,
    log: Callable[[str], object] = print,
    config: CheckpointConfig | None = None,
    outage_seconds: float = 7200.0,
  ):
    paths.check(workdir, "--workdir", write=True)
    self._folder = paths.absolute(paths.join(workdir, FOLDER))
    self._max_failed, self._log, self._outage_seconds = max_failed_saves, log, outage_seconds
    self._remote = paths.is_remote(self._folder)
    self._failed = self._skipped = 0
    self._under_way: tuple[int, concurrent.futures.Future] | None = None  # the step of a save, and when it ends
    self._down_since: float | None = None  # since when the storage cannot be reached
    self._reason, self._is_back = "", False  # why it cannot be reached, and whether a later look could
    self._probe: concurrent.futures.Future | None = None  # a look whether it is back
    self._next_probe = 0.0
    self._stale = False  # the store has to be opened again: Orbax raises an old failure at each call
    self.restored = 0
    self._waiter = concurrent.futures.ThreadPoolExecutor(1, "checkpoint waiter")
    kind = OrbaxStore if self._reach(lambda: uses_orbax(self._folder)) else ShardStore
    self._store = kind(self._folder, keep or Keep(), log)
    self._local = LocalTier(config or CheckpointConfig(), workdir, log, self._reach)
    self._open()

  @property
  def latest(self) -> int | None:
    return self._store.latest

  def _reach(self, action: Callable[[], Any]) -> Any:
    """Calls `action` on every process until the storage can be reached; raises any other error."""
    tried = insist(action, self._folder, self._remote, self._log, _REACH_SECONDS)
    if tried.outcome != Outcome.GOOD:
      raise tried.fault or OSError(f"{self._folder!r} could not be used by another process")
    return tried.value

  def _open(self) -> None:
    """Finds the checkpoints; those with damaged metadata are set aside, half-written ones removed."""
    self._reach(self._store.open)
    while (step := agree(max(self._store.wrong, default=-1))) >= 0:
      self._store.set_aside(step, "its metadata is damaged")
      self._reach(self._store.open)
    self._reach(self._store.clean)

  # ---- saving

  def local_due(self, step: int) -> bool:
    """Whether the state of a step is saved on the local disks."""
    return self._local.due(step)

  def save_local(self, step: int, state: TrainState, config: dict[str, Any]) -> None:
    """Begins to save on the local disks; returns once the arrays are copied. A failure is logged and ends nothing."""
    self._local.save(step, items_of(state), {"config": config, "versions": _versions()})

  def overdue(self) -> bool:
    """Whether a checkpoint that the network has cost can be made now; the same on every process.

    To be asked after each step. Costs nothing unless a save has been skipped or has failed for want of the network.
    """
    if not self._skipped and self._down_since is None:
      return False
    if self._under_way is not None:
      step = self._under_way[0]
      if not self._has_ended(0.0):
        return False
      self.wait()
      return self.latest == step
    self._is_back = bool(agree(int(self._looks_back()), min))
    return self._is_back

  def _looks_back(self) -> bool:
    """Whether this process could reach the storage; looks once in a while, in the background, as it may take long."""
    if self._probe is None and time.monotonic() >= self._next_probe:
      self._probe = self._waiter.submit(names_in, self._folder)
    if self._probe is None or not self._probe.done():
      return False
    if self._probe.exception() is None:
      return True  # until the next save: others may see it later
    self._probe, self._next_probe = None, time.monotonic() + _PROBE_EVERY
    return False

  def save(
    self,
    step: int,
    state: TrainState,
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
    at_once: bool = False,
  ) -> None:
    """Begins to save; returns once the arrays are copied. A step that is already saved is left alone.

    A save that fails, now or later, is logged and counted. Where the storage is out of reach, or an earlier save is
    still under way after some seconds, the step is skipped, which is logged and counted too; see `overdue`.

    Args:
      step: the state's.
      state: what is saved.
      config: the run's, saved with it.
      metrics: the step's, by which the best are kept.
      at_once: no save follows: returns once this one is in the workdir, and retries where it fails.

    Raises:
      OSError: too many saves in a row have failed, or the storage was out of reach for too long.
    """
    if self._remote and not at_once and self._under_way and not self._has_ended(_SAVE_PATIENCE):
      self._skip(step, f"that of step {self._under_way[0]} is still under way")
      return
    self.wait()
    if self._down_since is not None and not at_once and not self._is_back:
      self._note_outage(step)
      return
    pause = 1.0
    while self.latest != step:
      self._begin(step, state, config, metrics)
      if not at_once:
        return
      self.wait()
      if self.latest != step and self._down_since is not None:
        time.sleep(pause)
        pause = min(2 * pause, 30.0)

  def _has_ended(self, seconds: float) -> bool:
    """Whether the save under way has ended on every process within so many seconds, well or not."""
    assert self._under_way is not None
    done, _ = concurrent.futures.wait([self._under_way[1]], seconds)
    return bool(agree(len(done), min))

  def _skip(self, step: int, reason: str) -> None:
    self._skipped += 1
    self._log(
      f"step {step} is not saved: {reason} ({self._skipped} skipped); training goes on, and the newest state is saved "
      f"when that is possible; the last good checkpoint is step {self.latest}"
    )

  def _begin(self, step: int, state: TrainState, config: dict[str, Any], metrics: dict[str, float] | None) -> None:
    def prepare() -> None:
      if self._stale:
        self._store.open()
      self._store.prepare(step)

    if not self._is_good(step, attempt(prepare, self._remote)):
      return
    self._stale = False
    items = items_of(state)
    metadata = {"config": config, "versions": _versions(), "checksums": checksums(items)}
    tried = attempt(lambda: self._store.begin(step, items, metadata, metrics or {}), self._remote)
    if self._is_good(step, tried):
      self._under_way = (step, self._waiter.submit(tried.value.result))

  def wait(self) -> None:
    """Waits until the save under way has ended, one way or the other; errors as for `save`."""
    if self._under_way is None:
      return
    (step, future), self._under_way = self._under_way, None
    if self._is_good(step, attempt(future.result, self._remote)):
      if self._skipped or self._down_since is not None:
        self._log(f"step {step} is saved; {self._skipped} checkpoints were skipped before")
      self._failed = self._skipped = 0
      self._down_since, self._store.latest = None, step

  def _is_good(self, step: int, tried: Attempt) -> bool:
    """Whether a part of a save has gone well on every process; a failure on any is logged and counted on all."""
    if tried.outcome == Outcome.GOOD:
      return True
    if tried.outcome == Outcome.UNREACHABLE:
      self._reason = tried.reason[:200]
      self._note_outage(step)
    else:
      self._note_failure(step, tried)
    return False

  def _note_outage(self, step: int) -> None:
    now = time.monotonic()
    self._down_since = now if self._down_since is None else self._down_since
    self._probe, self._next_probe, self._is_back, self._stale = None, now + _PROBE_EVERY, False, True
    down = now - self._down_since
    if agree(int(down > self._outage_seconds)):
      raise UnreachableError(
        f"{self._folder!r} has been out of reach for {down:.0f} s ({self._reason}), longer than guard.outage_seconds; "
        f"the last good checkpoint is step {self.latest}"
      )
    self._skip(step, f"{self._folder} cannot be reached ({self._reason})")

  def _note_failure(self, step: int, tried: Attempt) -> None:
    self._failed, self._skipped = self._failed + 1, 0
    reason = tried.reason
    if tried.outcome == Outcome.REFUSED:
      reason = str(describe_fault(AccessRefusedError, self._folder, tried.fault))
    message = f"the checkpoint of step {step} could not be saved ({reason}); the last good one is step {self.latest}"
    if self._failed >= self._max_failed:
      raise OSError(f"{message}; {self._failed} saves in a row have failed") from tried.fault
    self._stale = attempt(self._store.open, self._remote).outcome != Outcome.GOOD  # removes partial files
    self._log(f"{message}; trying again at the next save ({self._failed} of {self._max_failed} failures in a row)")

  # ---- restoring

  def restore(
    self,
    shardings: TrainState,
    abstract: TrainState,
    check: Callable[[dict[str, Any]], None] = lambda config: None,
  ) -> TrainState | None:
    """The newest good checkpoint's state, laid out by `shardings`, bit for bit as it was saved; None: there is none.

    It is the newest of both tiers that every process can read. A checkpoint in the workdir that cannot be read is
    renamed (in a bucket, marked), and the one before it is taken; a local one is removed. A network that is down is no
    damage: it is tried again.

    Args:
      shardings, abstract: of the wanted state.
      check: called with the config that a checkpoint was saved with, before it is read; may raise
        `ConfigChangedError`.

    Raises:
      ConfigChangedError: from `check`.
      ForeignCheckpointError: it holds another model or another kind of optimizer, or an average where none is wanted,
        or none where one is.
      UnreachableError, AccessRefusedError: the workdir's storage cannot be reached or refuses access.
      ValueError: there are checkpoints, but none that can be read.
    """
    state = self._restore_newest(WantedState(shardings, abstract, self._folder, self._log), check)
    self._reach(lambda: self._local.begin(self.restored))
    return state

  def _restore_newest(self, wanted: WantedState, check: Callable[[dict[str, Any]], None]) -> TrainState | None:
    while True:
      local = self._local.newest()
      if local is not None and local >= (self.latest or 0):
        load = functools.partial(self._load_local, local, wanted, check)
        tried = _finish(attempt(load, False, _SAME_EVERYWHERE))
        if tried.outcome == Outcome.GOOD:
          self.restored = local
          self._log(f"restored from the local disk{'s' if jax.process_count() > 1 else ''}")
          return tried.value
        self._local.drop(local, tried.reason[:200])
      elif self.latest is not None:
        tried = self._try_durable(wanted, check)
        if tried.outcome == Outcome.GOOD:
          self.restored = self.latest
          return tried.value
        self._store.set_aside(self.latest, tried.reason[:200])
        self._store.close()
        self._open()
      else:
        break
    # those that an earlier start has renamed count, too: a launcher's next try must not begin from nothing
    damaged = [name for name in self._reach(lambda: names_in(self._folder)) if name.startswith(DAMAGED)]
    if damaged:
      now = "marked by" if self._remote else "now called"
      raise ValueError(
        f"no checkpoint in {self._folder!r} can be read (they are {now} {', '.join(damaged)}); "
        "give another --workdir to start again"
      )
    return None

  def _try_durable(self, wanted: WantedState, check: Callable[[dict[str, Any]], None]) -> Attempt:
    def load() -> Callable[[], TrainState]:
      metadata, saved = self._store.describe()
      check(saved["config"])
      return wanted.load(self.latest, metadata, self._store.load, saved.get("checksums", {}), once=True)

    # over a network, what looks damaged may have been cut on its way, or not be in all listings yet
    for again in (False, True):
      tried = _finish(insist(load, self._folder, self._remote, self._log, _REACH_SECONDS, _SAME_EVERYWHERE))
      if tried.outcome == Outcome.GOOD or not self._remote or again:
        break
      self._log(f"checkpoint {self.latest} cannot be read ({tried.reason[:200]}); reading it once more")
      self._open()
    return tried

  def _load_local(
    self, step: int, wanted: WantedState, check: Callable[[dict[str, Any]], None]
  ) -> Callable[[], TrainState]:
    saved, parts = self._local.open(step)
    check(saved["config"])
    return wanted.load(step, by_item(parts.shapes), parts.read, {})

  def saved_config(self) -> dict[str, Any]:
    """The config that the newest checkpoint in the workdir was saved with."""
    return self._store.describe()[1]["config"]

  # ---- the end

  def finish(self) -> None:
    """The run has made its last step, which is saved: local checkpoints are removed."""
    self._local.finish()

  def close(self, failed: bool = False) -> None:
    """Waits until everything is saved; errors as for `save`.

    `failed`: this process ends by an error. The others do not know it yet, so that nothing is agreed with them.
    """
    self._local.close()
    if failed and self._under_way is not None:
      (step, future), self._under_way = self._under_way, None
      if fault := future.exception():
        self._log(f"the checkpoint of step {step} could not be saved ({first_line(fault)})")
    self.wait()
    self._waiter.shutdown()
    self._store.close()


def _finish(read: Attempt) -> Attempt:
  """Makes the state of what all processes have read well; they wait for each other, so that no one may be missing."""
  return attempt(read.value, False, (jax.errors.JaxRuntimeError,)) if read.outcome == Outcome.GOOD else read


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in _PACKAGES}
