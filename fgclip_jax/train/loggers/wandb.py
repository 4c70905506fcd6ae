"""Weights & Biases: WANDB_API_KEY, WANDB_MODE=offline, WANDB_ENTITY and its other settings work as everywhere."""

import importlib
import os
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fgclip_jax.storage import paths
from fgclip_jax.train.loggers.protocol import RunInfo

PACKAGE = "wandb"


class WandbLogger:
  """A run of Weights & Biases; a run that is started again goes on in the same one."""

  def __init__(self, info: RunInfo):
    wandb = importlib.import_module("wandb")
    self._wandb, kept = wandb, info.kept()
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    if not offline and not wandb.api.api_key:
      # wandb would ask at the terminal
      raise RuntimeError("no API key: set WANDB_API_KEY or run `wandb login`, or set WANDB_MODE=offline")
    run_id = kept.get("id") or uuid.uuid4().hex[:8]
    project = kept.get("project") or info.project or os.environ.get("WANDB_PROJECT") or "fgclip"
    info.keep(id=run_id, project=project)  # first: a run that is killed meanwhile must not begin another one
    self._run = wandb.init(
      id=run_id,
      resume=None if offline else "allow",
      project=project,
      name=os.environ.get("WANDB_NAME") or info.name,
      config=info.config,
      dir=None if paths.is_remote(info.workdir) or "WANDB_DIR" in os.environ else info.workdir,
      settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
    )
    # the training step as the axis: wandb's own step only grows, and a run that was killed makes some steps again
    self._run.define_metric("step", hidden=True)
    self._run.define_metric("*", step_metric="step")

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    self._run.log({"step": step, **values})

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    self._run.log({"step": step, name: self._wandb.Image(image, caption=caption or None)})

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    self._run.log({"step": step, name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

  def close(self, failed: bool) -> None:
    self._run.finish(exit_code=int(failed))
