"""Checkpoints of a run (Orbax): saved asynchronously and atomically under `WORKDIR/checkpoints/STEP`.

The parameters are an item of their own, so that a model can be read without the optimizer's state; so is their average,
where the run keeps one.
"""

import dataclasses
import functools
import importlib.metadata
import math
import os
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from fgclip_jax.models.params import named_leaves
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.distributed import agree
from fgclip_jax.train.resume import ConfigChangedError
from fgclip_jax.train.state import COUNTS, TrainState
from fgclip_jax.weights.checksums import check as check_sums
from fgclip_jax.weights.checksums import checksums
from fgclip_jax.weights.native import DAMAGED, FOLDER, SoundCheckpoints

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class ForeignCheckpointError(ValueError):
  """The checkpoint holds another model, optimizer or average than the config describes."""


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which checkpoints are kept; an older one is removed after a newer one is complete.

  Attributes:
    newest: how many of the newest are kept.
    every: checkpoints whose step is a multiple of this are kept; 0: none.
    best: how many of the best by `metric`, a name in the run's metrics, are kept; 0: none.
    metric, mode: `min` or `max`, whichever is better.
  """

  newest: int = 2
  every: int = 0
  best: int = 0
  metric: str = "loss"
  mode: str = "min"

  def __post_init__(self):
    for name, least in (("newest", 1), ("every", 0), ("best", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"keep.{name} must be a whole number of at least {least}, got {getattr(self, name)}")
    if self.mode not in ("min", "max"):
      raise ValueError(f"keep.mode must be 'min' or 'max', got {self.mode!r}")

  def policy(self) -> Any:  # Orbax's protocol names other types than its own policies take
    """The same for Orbax."""
    policies = ocp.training.preservation_policies
    kept: list[Any] = [policies.LatestN(self.newest)]
    if self.every:
      kept.append(policies.EveryNSteps(self.every))
    if self.best:
      sign = 1 if self.mode == "max" else -1
      # without the metric (a run that ended on bad numbers) it is the worst
      value = lambda metrics: sign * metrics.get(self.metric, -sign * math.inf)  # noqa: E731
      kept.append(policies.BestN(get_metric_fn=value, n=self.best, keep_checkpoints_without_metrics=False))
    return policies.AnyPreservationPolicy(kept)


class Checkpoints:
  """The checkpoints of one run.

  Args:
    workdir: the run's folder, on this machine or at `gs://`.
    keep: which of them are kept.
    max_failed_saves: this many failed saves in a row are an error.
    log: prints a line.

  Attributes:
    latest: the step of the newest good checkpoint; None: there is none.
  """

  def __init__(
    self, workdir: str, keep: Keep = Keep(), max_failed_saves: int = 3, log: Callable[[str], object] = print
  ):
    paths.check(workdir, "--workdir", paths.ORBAX, write=True)
    self._folder = paths.absolute(paths.join(workdir, FOLDER))
    self._keep, self._max_failed, self._log = keep, max_failed_saves, log
    self._failed = 0
    self._under_way: tuple[int, Any] | None = None  # the step of a save, and Orbax's response
    self._open()

  def _open(self) -> None:
    """Opens the folder, and removes what an earlier process left half written."""
    open_folder = functools.partial(
      ocp.training.Checkpointer,
      self._folder,
      save_decision_policy=cast(Any, ocp.training.save_decision_policies.FixedIntervalPolicy(1)),
      preservation_policy=self._keep.policy(),
      cleanup_tmp_directories=True,
      step_name_format=SoundCheckpoints(self._folder) if paths.is_remote(self._folder) else None,
    )
    try:
      self._checkpointer = open_folder()
    except ValueError:  # Orbax opens no checkpoint of a folder in which one has damaged metadata
      wrong = [step for step in _steps(self._folder) if not _describes_itself(self._folder, step)]
      if not wrong:
        raise
      agree(0)  # every process has looked before one of them renames
      for step in wrong:
        self._set_aside(step, "its metadata is damaged")
      self._checkpointer = open_folder()
    self.latest = _latest(self._checkpointer)

  def save(
    self,
    step: int,
    state: TrainState,
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
    at_once: bool = False,
  ) -> None:
    """Begins to save; returns once the arrays are copied. A step that is already saved is left alone.

    A save that fails, now or later, is logged and counted.

    Args:
      step: the state's.
      state: what is saved.
      config: the run's, saved with it.
      metrics: the step's, by which the best are kept.
      at_once: no save follows: returns once this one is on disk, and retries where it fails.

    Raises:
      OSError: too many saves in a row have failed.
    """
    self.wait()
    while self.latest != step:
      self._begin(step, state, config, metrics)
      if not at_once:
        return
      self.wait()

  def _begin(self, step: int, state: TrainState, config: dict[str, Any], metrics: dict[str, float] | None) -> None:
    if paths.is_remote(self._folder):
      self._attempt(step, lambda: self._remove_damaged(step))
    items = {"params": state.params, "optimizer": _optimizer_item(state)}
    if state.ema is not None:
      items["ema"] = state.ema
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    metadata = {"config": config, "versions": versions, "checksums": checksums(items)}
    begin = functools.partial(
      self._checkpointer.save_checkpointables_async,
      step,
      items,
      metrics=cast(Any, metrics or {}),
      custom_metadata=metadata,
    )
    self._attempt(step, lambda: setattr(self, "_under_way", (step, begin())))

  def wait(self) -> None:
    """Waits until the save under way has ended, one way or the other; errors as for `save`."""
    if self._under_way is not None:
      (step, response), self._under_way = self._under_way, None
      if self._attempt(step, response.result):
        self._failed, self.latest = 0, step

  def _attempt(self, step: int, action: Callable[[], Any]) -> bool:
    """Runs a part of a save on every process; a failure on any is logged and counted on all."""
    fault = None
    try:
      action()
    except Exception as error:  # Orbax and file systems raise many types; all of them mean that it is not saved
      fault = error
    if _all_agree(fault is None):
      return True
    self._failed += 1
    message = (
      f"the checkpoint of step {step} could not be saved ({_reason(fault)}); the last good one is step {self.latest}"
    )
    self._open()  # an open Checkpointer raises an old failure again at each call, and leaves partial files
    if self._failed >= self._max_failed:
      raise OSError(f"{message}; {self._failed} saves in a row have failed") from fault
    self._log(f"{message}; trying again at the next save ({self._failed} of {self._max_failed} failures in a row)")
    return False

  def restore(
    self,
    shardings: TrainState,
    abstract: TrainState,
    check: Callable[[dict[str, Any]], None] = lambda config: None,
  ) -> TrainState | None:
    """The newest good checkpoint's state, laid out by `shardings`, bit for bit as it was saved; None: there is none.

    A checkpoint that cannot be read is renamed (in a bucket, marked), and the one before it is taken.

    Args:
      shardings, abstract: of the wanted state.
      check: called with the config that a checkpoint was saved with, before it is read; may raise
        `ConfigChangedError`.

    Raises:
      ConfigChangedError: from `check`.
      ForeignCheckpointError: it holds another model or another kind of optimizer, or an average where none is wanted,
        or none where one is.
      ValueError: there are checkpoints, but none that can be read.
    """
    while self.latest is not None:
      state = fault = None
      try:
        check(self.saved_config())
        state = self._load(shardings, abstract)
      except (ConfigChangedError, ForeignCheckpointError):
        raise
      except Exception as error:  # Orbax raises many types for damage
        fault = error
      if _all_agree(fault is None):
        return state
      self._set_aside(self.latest, _reason(fault)[:200])
      self._checkpointer.close()
      self._open()
    # those that an earlier start has renamed count, too: a launcher's next try must not begin from nothing
    damaged = [name for name in _names(self._folder) if name.startswith(DAMAGED)]
    if damaged:
      now = "marked by" if paths.is_remote(self._folder) else "now called"
      raise ValueError(
        f"no checkpoint in {self._folder!r} can be read (they are {now} {', '.join(damaged)}); "
        "give another --workdir to start again"
      )
    return None

  def _set_aside(self, step: int, reason: str) -> None:
    """Renames a checkpoint so that no run takes it for a step, and logs that.

    In a bucket every byte would have to be copied for another name, so there an object of that name marks it.
    """
    name = f"{DAMAGED}{step}"
    if paths.is_remote(self._folder):
      if jax.process_index() == 0:
        paths.write(paths.join(self._folder, name), f"{reason}\n".encode())
      agree(0)  # the other processes wait until it is marked
      self._log(f"checkpoint {step} cannot be read, is marked by {name!r} and not used: {reason}")
      return
    while os.path.exists(os.path.join(self._folder, name)):
      name += "-again"
    if jax.process_index() == 0:
      os.rename(os.path.join(self._folder, str(step)), os.path.join(self._folder, name))
    agree(0)  # the other processes wait until it has its new name
    self._log(f"checkpoint {step} cannot be read, is now called {name!r} and not used: {reason}")

  def _remove_damaged(self, step: int) -> None:
    """Removes a checkpoint that is marked as damaged, and its mark: its step is saved again."""
    mark = paths.join(self._folder, f"{DAMAGED}{step}")
    if jax.process_index() == 0 and paths.exists(mark):
      paths.remove(paths.join(self._folder, str(step)))
      paths.remove(mark)

  def _load(self, shardings: TrainState, abstract: TrainState) -> TrainState:
    described = self._checkpointer.checkpointables_metadata(None)
    metadata = described.metadata
    for item, tree in metadata.items():
      if not jax.tree.leaves(tree):
        raise OSError(f"nothing is left of {item!r}")  # without their index, Orbax finds no arrays and raises nothing
    self._check_average("ema" in metadata, abstract.ema is not None)
    # the margin comes and goes with a term of the objective, which may change: it is read where there is one
    begins, has_margin = abstract.margin is not None, "margin" in metadata["optimizer"]
    abstract = dataclasses.replace(abstract, margin=jax.ShapeDtypeStruct((), jnp.float32) if has_margin else None)
    shardings = dataclasses.replace(shardings, margin=shardings.step if has_margin else None)
    stored = _shapes({**metadata["optimizer"], "params": metadata["params"]})
    wanted = _shapes({"params": abstract.params, **_optimizer_item(abstract)})
    names = {name for name, _ in stored.items() ^ wanted.items()}
    if names:
      shown = [
        f"{name} {stored.get(name, 'missing')} (config: {wanted.get(name, 'none')})"
        for name in sorted(names, key=lambda name: (name.startswith("opt_state"), name))[:5]
      ]
      raise ForeignCheckpointError(
        f"checkpoint {self.latest} in {self._folder!r} is of another model or optimizer than the config; give another "
        f"--workdir, or the config it was made with. {len(names)} arrays differ, e.g. {', '.join(shown)}"
      )
    targets = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    wanted = {"params": targets.params, "optimizer": _optimizer_item(targets)}
    if targets.ema is not None:
      wanted["ema"] = targets.ema
    items = self._checkpointer.load_checkpointables(None, wanted)
    check_sums(items, cast(dict[str, Any], described.custom_metadata).get("checksums", {}), metadata)
    state = TrainState(params=items["params"], ema=items.get("ema"), **items["optimizer"])
    if begins and not has_margin:
      self._log(f"checkpoint {self.latest} has no margin of objective.hard_rank: it begins with 0")
      margin = jax.device_put(jnp.zeros((), jnp.float32), shardings.step)
      return dataclasses.replace(state, margin=margin)
    return state if begins else dataclasses.replace(state, margin=None)

  def _check_average(self, stored: bool, wanted: bool) -> None:
    if stored != wanted:
      has, key = ("holds", "is not set") if stored else ("lacks", "is set")
      raise ForeignCheckpointError(
        f"checkpoint {self.latest} in {self._folder!r} {has} averaged weights, and config.ema_decay {key}: an average "
        "begins and ends with its run; continue with ema_decay as it was, or give another --workdir, with "
        "config.init_from to start from these weights"
      )

  def saved_config(self) -> dict[str, Any]:
    """The config that the newest checkpoint was saved with."""
    return cast(dict[str, Any], self._checkpointer.checkpointables_metadata(None).custom_metadata)["config"]

  def close(self) -> None:
    """Waits until everything is on disk; errors as for `save`."""
    self.wait()
    self._checkpointer.close()


def _all_agree(good: bool) -> bool:
  """Whether `good` holds on every process."""
  return bool(agree(int(good), min))


def _reason(fault: Exception | None) -> str:
  return first_line(fault) if fault else "another process failed"


def _names(folder: str) -> list[str]:
  """The names in a folder; none where there is no folder, as in a bucket where nothing is saved."""
  try:
    return paths.list_folder(folder)
  except FileNotFoundError:
    return []


def _steps(folder: str) -> list[int]:
  steps = sorted(int(name) for name in _names(folder) if name.isdigit())
  if not paths.is_remote(folder):
    return steps
  # in a bucket a checkpoint that is half written has its name already
  return [step for step in steps if paths.exists(paths.join(folder, str(step), "commit_success.txt"))]


def _describes_itself(folder: str, step: int) -> bool:
  try:
    ocp.checkpointables_metadata(paths.join(folder, str(step)))
  except ValueError:
    return False
  return True


def _latest(checkpointer: ocp.training.Checkpointer) -> int | None:
  newest = checkpointer.latest
  return None if newest is None else newest.step


def _optimizer_item(state: TrainState) -> dict[str, Any]:
  margin = {} if state.margin is None else {"margin": state.margin}
  return {name: getattr(state, name) for name in ("opt_state", *COUNTS)} | margin


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
