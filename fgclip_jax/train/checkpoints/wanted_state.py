"""A state as the items of a checkpoint, and what a checkpoint must hold to give the state that a run wants."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgclip_jax.models.params import named_leaves
from fgclip_jax.train.checkpoints.replicas import broadcast, choose_readers
from fgclip_jax.train.state import COUNTS, TrainState
from fgclip_jax.weights.checkpoint_files.checksums import check as check_sums


class ForeignCheckpointError(ValueError):
  """The checkpoint holds another model, optimizer or average than the config describes."""


class WantedState:
  """The state to restore: what it must fit, and where its arrays go.

  Args:
    shardings, abstract: of the state.
    folder: of the checkpoints, for messages.
    log: prints a line.
  """

  def __init__(self, shardings: TrainState, abstract: TrainState, folder: str, log: Callable[[str], object]):
    self._folder, self._log = folder, log
    self._wanted = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )

  def load(
    self,
    step: int | None,
    metadata: dict[str, Any],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    sums: dict[str, int],
    once: bool = False,
  ) -> Callable[[], TrainState]:
    """Reads a checkpoint by `read`, if what it holds fits. Waits for no other process.

    Args:
      step: the checkpoint's.
      metadata: its items, as trees of shapes and dtypes.
      read: reads the wanted items.
      sums: of its arrays, by name.
      once: what several processes hold is read by one of them.

    Returns:
      A function that sends what the others need, compares all with the checksums, and returns the state. All processes
      call it together, when each has read its part. It raises an OSError if an array is not what was saved.

    Raises:
      ForeignCheckpointError: it does not fit.
      OSError: it is damaged.
    """
    for item, tree in metadata.items():
      if not jax.tree.leaves(tree):
        raise OSError(f"nothing is left of {item!r}")  # without their index, Orbax finds no arrays and raises nothing
    self._check_average(step, "ema" in metadata)
    # the margin comes and goes with a term of the objective, which may change: it is read where there is one
    begins, has_margin = self._wanted.margin is not None, "margin" in metadata["optimizer"]
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=self._wanted.step.sharding)
    targets = items_of(dataclasses.replace(self._wanted, margin=scalar if has_margin else None))
    stored = _shapes({item: metadata[item] for item in ("optimizer", "params")})
    wanted = _shapes({item: targets[item] for item in ("optimizer", "params")})
    names = {name for name, _ in stored.items() ^ wanted.items()}
    if names:
      shown = [
        f"{name} {stored.get(name, 'missing')} (config: {wanted.get(name, 'none')})"
        for name in sorted(names, key=lambda name: (name.startswith("opt_state"), name))[:5]
      ]
      raise ForeignCheckpointError(
        f"checkpoint {step} in {self._folder!r} is of another model or optimizer than the config; give another "
        f"--workdir, or the config it was made with. {len(names)} arrays differ, e.g. {', '.join(shown)}"
      )
    read_items = read(choose_readers(targets) if once else targets)

    def finish() -> TrainState:
      items = broadcast(read_items, targets)
      check_sums(items, sums, metadata)
      state = TrainState(params=items["params"], ema=items.get("ema"), **items["optimizer"])
      if begins and not has_margin:
        self._log(f"checkpoint {step} has no margin of objective.hard_rank: it begins with 0")
        return dataclasses.replace(state, margin=jax.device_put(jnp.zeros((), jnp.float32), scalar.sharding))
      return state if begins else dataclasses.replace(state, margin=None)

    return finish

  def _check_average(self, step: int | None, stored: bool) -> None:
    if stored != (self._wanted.ema is not None):
      has, key = ("holds", "is not set") if stored else ("lacks", "is set")
      raise ForeignCheckpointError(
        f"checkpoint {step} in {self._folder!r} {has} averaged weights, and config.ema_decay {key}: an average "
        "begins and ends with its run; continue with ema_decay as it was, or give another --workdir, with "
        "config.init_from to start from these weights"
      )


def items_of(state: TrainState) -> dict[str, Any]:
  """A state as the items of a checkpoint."""
  optimizer = {name: getattr(state, name) for name in ("opt_state", *COUNTS)}
  items = {"params": state.params, "optimizer": optimizer}
  if state.margin is not None:
    optimizer["margin"] = state.margin
  return items if state.ema is None else items | {"ema": state.ema}


def by_item(shapes: dict[str, Any]) -> dict[str, Any]:
  """Arrays by their names in a checkpoint, e.g. `params/vision/kernel`, sorted by item, the first part of the name."""
  items: dict[str, Any] = {}
  for name, shape in shapes.items():
    item, _, rest = name.partition("/")
    items.setdefault(item, {})[rest] = shape
  return items


def _shapes(items: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """The shapes of a checkpoint's parameters and of what the optimizer's item holds, by name."""
  named = named_leaves({**items["optimizer"], "params": items["params"]})
  return {name: tuple(leaf.shape) for name, leaf in named.items()}
