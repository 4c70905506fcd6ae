"""Checkpoints of a run (Orbax): saved asynchronously and atomically under `WORKDIR/checkpoints/STEP`.

The parameters are an item of their own, so that a model can be read without the optimizer's state; so is their average,
where the run keeps one.
"""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fgclip_jax.models.parameters import Params
from fgclip_jax.train.state import COUNTS, TrainState

FOLDER = "checkpoints"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Checkpoints:
  """The checkpoints of one run.

  Args:
    workdir: the run's folder.
    keep: the newest so many are kept.
    keep_every: so is every one whose step is a multiple of this; 0: none.
  """

  def __init__(self, workdir: str, keep: int = 2, keep_every: int = 0):
    policies = ocp.training.preservation_policies
    kept: list[Any] = [policies.LatestN(keep)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    self._folder = os.path.abspath(os.path.join(workdir, FOLDER))
    self._checkpointer = ocp.training.Checkpointer(
      self._folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(kept),
      cleanup_tmp_directories=True,
    )

  @property
  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    newest = self._checkpointer.latest
    return None if newest is None else newest.step

  def save(self, step: int, state: TrainState, config: dict[str, Any]) -> None:
    """Begins to save; returns once the arrays are copied. A step that is there already is left alone."""
    if self.latest == step:
      return
    items = {"params": state.params, "optimizer": _optimizer_item(state)}
    if state.ema is not None:
      items["ema"] = state.ema
    metadata = {"config": config, "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}}
    self._checkpointer.save_checkpointables_async(step, items, custom_metadata=metadata)

  def restore(self, shardings: TrainState, abstract: TrainState) -> TrainState:
    """The newest checkpoint's state, laid out by `shardings`, bit for bit as it was saved.

    Raises:
      ValueError: it holds another model or another kind of optimizer, or an average where none is wanted, or none.
    """
    metadata = self._checkpointer.checkpointables_metadata(None).metadata
    self._check_average("ema" in metadata, abstract.ema is not None)
    stored = _shapes({**metadata["optimizer"], "params": metadata["params"]})
    wanted = _shapes({"params": abstract.params, **_optimizer_item(abstract)})
    names = {name for name, _ in stored.items() ^ wanted.items()}
    if names:
      shown = [
        f"{name} {stored.get(name, 'missing')} (config: {wanted.get(name, 'none')})"
        for name in sorted(names, key=lambda name: (name.startswith("opt_state"), name))[:5]
      ]
      raise ValueError(
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
    return TrainState(params=items["params"], ema=items.get("ema"), **items["optimizer"])

  def _check_average(self, stored: bool, wanted: bool) -> None:
    if stored != wanted:
      has, key = ("holds", "is not set") if stored else ("lacks", "is set")
      raise ValueError(
        f"checkpoint {self.latest} in {self._folder!r} {has} averaged weights, and config.ema_decay {key}: an average "
        "begins and ends with its run; continue with ema_decay as it was, or give another --workdir, with "
        "config.init_from to start from these weights"
      )

  def saved_config(self) -> dict[str, Any]:
    """The config that the newest checkpoint was saved with."""
    return self._checkpointer.checkpointables_metadata(None).custom_metadata["config"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._checkpointer.close()


def _optimizer_item(state: TrainState) -> dict[str, Any]:
  return {name: getattr(state, name) for name in ("opt_state", *COUNTS)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def read_params(workdir: str, ema: bool = True) -> Params:
  """The parameters of a run's newest checkpoint, as stored, on one local device.

  Args:
    workdir: the run's folder.
    ema: takes their average if the run keeps one.

  Raises:
    FileNotFoundError: the run has no complete checkpoint.
  """
  with _newest(workdir) as (checkpointer, stored):
    item = "ema" if ema and "ema" in stored else "params"
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return checkpointer.load_checkpointables(None, {item: jax.tree.map(place, stored[item])})[item]


def keeps_average(workdir: str) -> bool:
  """Whether a run's newest checkpoint holds an average of the parameters; errors as for `read_params`."""
  with _newest(workdir) as (_, stored):
    return "ema" in stored


@contextlib.contextmanager
def _newest(workdir: str) -> Iterator[tuple[ocp.training.Checkpointer, dict[str, Any]]]:
  """A run's checkpointer, and what its newest checkpoint holds: trees of shapes and dtypes."""
  folder = os.path.abspath(os.path.join(workdir, FOLDER))
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"{workdir!r} has no {FOLDER!r} folder: no run has saved anything there")
  with ocp.training.Checkpointer(folder) as checkpointer:
    if checkpointer.latest is None:
      raise FileNotFoundError(f"no complete checkpoint in {folder!r}")
    yield checkpointer, checkpointer.checkpointables_metadata(None).metadata
