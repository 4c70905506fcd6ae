"""Checkpoints of a run (Orbax): saved asynchronously and atomically under `WORKDIR/checkpoints/STEP`.

The parameters are an item of their own, so that a model can be read without the optimizer's state; so is their average,
where the run keeps one.
"""

import dataclasses
import functools
import importlib.metadata
import logging
import math
import os
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fgclip_jax.models.params import named_leaves
from fgclip_jax.storage.errors import first_line
from fgclip_jax.train.distributed import agree
from fgclip_jax.train.resume import ConfigChangedError
from fgclip_jax.train.state import COUNTS, TrainState
from fgclip_jax.weights.checksums import check as check_sums
from fgclip_jax.weights.checksums import checksums
from fgclip_jax.weights.native import FOLDER

# what goes wrong in Orbax is raised, and told by us in a line; its own log has a traceback for every thread
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class ForeignCheckpointError(ValueError):
  """A checkpoint of something else than the config describes."""


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which checkpoints stay; a newer one is complete before an older one goes.

  Attributes:
    newest: so many of the newest.
    every: those whose step is a multiple of this; 0: none.
    best: so many of the best by `metric`, a name in the run's metrics; 0: none.
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

  def policy(self) -> ocp.training.preservation_policies.PreservationPolicy:
    """As Orbax understands it."""
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
    workdir: the run's folder.
    keep: which of them stay.
    max_failed_saves: so many saves in a row may fail before it is an error.
    say: prints a line.
  """

  def __init__(self, workdir: str, keep: Keep = Keep(), max_failed_saves: int = 3, say: Callable[[str], None] = print):
    self._folder = os.path.abspath(os.path.join(workdir, FOLDER))
    self._keep, self._max_failed, self._say = keep, max_failed_saves, say
    self._failed, self._under_way = 0, None
    self._open()

  def _open(self) -> None:
    """Looks at the folder, and removes what an earlier process left half written."""
    open_folder = functools.partial(
      ocp.training.Checkpointer,
      self._folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=self._keep.policy(),
      cleanup_tmp_directories=True,
    )
    try:
      self._checkpointer = open_folder()
    except ValueError:  # Orbax opens none where one describes itself wrongly
      wrong = [step for step in _steps(self._folder) if not _describes_itself(self._folder, step)]
      if not wrong:
        raise
      agree(0)  # all have looked
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
    """Begins to save; returns once the arrays are copied. A step that is there already is left alone.

    A save that fails, now or later, is reported and counted.

    Args:
      step: of the state.
      state: what is saved.
      config: saved with it.
      metrics: of that step, by which the best are kept.
      at_once: there is no next save: returns once this one is on disk, and tries again where it fails.

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
    items = {"params": state.params, "optimizer": _optimizer_item(state)}
    if state.ema is not None:
      items["ema"] = state.ema
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    metadata = {"config": config, "versions": versions, "checksums": checksums(items)}
    begin = functools.partial(
      self._checkpointer.save_checkpointables_async, step, items, metrics=metrics or {}, custom_metadata=metadata
    )
    self._attempt(step, lambda: setattr(self, "_under_way", (step, begin())))

  def wait(self) -> None:
    """Waits until the save under way has ended, one way or the other; errors as for `save`."""
    if self._under_way is not None:
      (step, response), self._under_way = self._under_way, None
      if self._attempt(step, response.result):
        self._failed, self.latest = 0, step

  def _attempt(self, step: int, action: Callable[[], Any]) -> bool:
    """Does a part of a save; a failure is told and counted."""
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
    self._open()  # Orbax tells of an old failure again and again, and leaves what it had written
    if self._failed >= self._max_failed:
      raise OSError(f"{message}; {self._failed} saves in a row have failed") from fault
    self._say(f"{message}; trying again at the next save ({self._failed} of {self._max_failed} failures in a row)")
    return False

  def restore(
    self,
    shardings: TrainState,
    abstract: TrainState,
    check: Callable[[dict[str, Any]], None] = lambda config: None,
  ) -> TrainState | None:
    """The newest good checkpoint's state, laid out by `shardings`, bit for bit as it was saved; None: there is none.

    One that cannot be read is set aside, under another name, and the one before it is taken.

    Args:
      shardings, abstract: of the state that is wanted.
      check: is given the config that a checkpoint was saved with, before it is read; may raise `ConfigChangedError`.

    Raises:
      ConfigChangedError: from `check`.
      ForeignCheckpointError: it holds another model or another kind of optimizer, or an average where none is wanted,
        or none where one is.
      ValueError: there are checkpoints, but none that can be read.
    """
    damaged = []
    while self.latest is not None:
      state = fault = None
      try:
        check(self.saved_config())
        state = self._load(shardings, abstract)
      except (ConfigChangedError, ForeignCheckpointError):
        raise
      except Exception as error:  # what Orbax raises for damage is of many types
        fault = error
      if _all_agree(fault is None):
        return state
      damaged.append(self._set_aside(self.latest, _reason(fault)[:200]))
      self._checkpointer.close()
      self._open()
    if damaged:
      raise ValueError(
        f"no checkpoint in {self._folder!r} can be read (they are now called {', '.join(damaged)}); "
        "give another --workdir to begin anew"
      )
    return None

  def _set_aside(self, step: int, reason: str) -> str:
    """Gives a checkpoint a name that no run takes for a step, and says so; returns it."""
    name = f"damaged-{step}"
    while os.path.exists(os.path.join(self._folder, name)):
      name += "-again"
    if jax.process_index() == 0:
      os.rename(os.path.join(self._folder, str(step)), os.path.join(self._folder, name))
    agree(0)  # the others go on when it has its new name
    self._say(f"checkpoint {step} cannot be read, is now called {name!r} and not used: {reason}")
    return name

  def _load(self, shardings: TrainState, abstract: TrainState) -> TrainState:
    described = self._checkpointer.checkpointables_metadata(None)
    metadata = described.metadata
    for item, tree in metadata.items():
      if not jax.tree.leaves(tree):
        raise OSError(f"nothing is left of {item!r}")  # Orbax finds no array where their index is gone
    self._check_average("ema" in metadata, abstract.ema is not None)
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
    check_sums(items, described.custom_metadata.get("checksums", {}), metadata)
    return TrainState(params=items["params"], ema=items.get("ema"), **items["optimizer"])

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
    return self._checkpointer.checkpointables_metadata(None).custom_metadata["config"]

  def close(self) -> None:
    """Waits until everything is on disk; errors as for `save`."""
    self.wait()
    self._checkpointer.close()


def _all_agree(good: bool) -> bool:
  """Whether it is so on every process."""
  return bool(agree(int(good), min))


def _reason(fault: Exception | None) -> str:
  return first_line(fault) if fault else "another process failed"


def _steps(folder: str) -> list[int]:
  return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def _describes_itself(folder: str, step: int) -> bool:
  try:
    ocp.checkpointables_metadata(os.path.join(folder, str(step)))
  except ValueError:
    return False
  return True


def _latest(checkpointer: ocp.training.Checkpointer) -> int | None:
  newest = checkpointer.latest
  return None if newest is None else newest.step


def _optimizer_item(state: TrainState) -> dict[str, Any]:
  return {name: getattr(state, name) for name in ("opt_state", *COUNTS)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
