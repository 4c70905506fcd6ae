"""How often and where a run saves, and which of its checkpoints stay."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from orbax.checkpoint import v1 as ocp

from fgclip_jax.storage import paths


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

  def value(self, metrics: Mapping[str, float]) -> float:
    """What the best have the highest of; without the metric (a run that ended on bad numbers) it is the worst."""
    sign = 1 if self.mode == "max" else -1
    return sign * metrics.get(self.metric, -sign * math.inf)

  def policy(self) -> Any:  # Orbax's protocol names other types than its own policies take
    """The same for Orbax."""
    policies = ocp.training.preservation_policies
    kept: list[Any] = [policies.LatestN(self.newest)]
    if self.every:
      kept.append(policies.EveryNSteps(self.every))
    if self.best:
      kept.append(policies.BestN(get_metric_fn=self.value, n=self.best, keep_checkpoints_without_metrics=False))
    return policies.AnyPreservationPolicy(kept)

  def choose(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
    """The steps that are kept, of those with these metrics."""
    steps = sorted(metrics)
    best = sorted(steps, key=lambda step: (self.value(metrics[step]), step))[-self.best :] if self.best else []
    return {*steps[-self.newest :], *best, *(step for step in steps if self.every and step % self.every == 0)}


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Fast checkpoints on the machines' own disks, between those in the workdir.

  Attributes:
    local_every: steps between them; 0: there are none.
    local_folder: where, on every machine; empty: in its temporary folder (`TMPDIR`).
    local_newest: how many of the newest stay.
  """

  local_every: int = 0
  local_folder: str = ""
  local_newest: int = 1

  def __post_init__(self):
    for name, least in (("local_every", 0), ("local_newest", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {getattr(self, name)}")
    if paths.is_remote(self.local_folder):
      raise ValueError(f"local_folder {self.local_folder!r} must be on this machine's own disk; --workdir may be a URL")
