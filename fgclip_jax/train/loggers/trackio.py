"""trackio: a local dashboard (`trackio show`), or a Space; TRACKIO_DIR and its other settings work as everywhere."""

import importlib
import os
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fgclip_jax.train.loggers.protocol import RunInfo

PACKAGE = "trackio"


class TrackioLogger:
  """A run of trackio; a run that is started again goes on in the same one."""

  def __init__(self, info: RunInfo):
    trackio = importlib.import_module("trackio")
    self._trackio, kept = trackio, info.kept()
    project = kept.get("project") or info.project or os.environ.get("TRACKIO_PROJECT") or "fgclip"
    # a name is what trackio knows a run by, and other folders may have the same
    name = kept.get("name") or f"{info.name.replace('/', '-')}-{uuid.uuid4().hex[:6]}"
    info.keep(project=project, name=name)
    self._run = trackio.init(
      project=project, name=name, resume="allow", config=info.config, auto_log_gpu=False, auto_log_cpu=False
    )

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    self._run.log(dict(values), step=step)

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    self._run.log({name: self._trackio.Image(image, caption=caption or None)}, step=step)

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    self._run.log({name: self._trackio.Table(list(columns), [list(row) for row in rows])}, step=step)

  def close(self, failed: bool) -> None:
    self._run.finish()
