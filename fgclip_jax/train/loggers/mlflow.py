"""MLflow: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other settings work as everywhere."""

import importlib
import os
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fgclip_jax.train.loggers.protocol import RunInfo

PACKAGE = "mlflow"
_MOST_CHARACTERS = 500  # of a parameter's value; servers take at least this much
_MOST_ENTRIES = 100  # of one request


class MlflowLogger:
  """A run of MLflow; a run that is started again goes on in the same one. Pictures and tables are artifacts."""

  def __init__(self, info: RunInfo):
    mlflow = importlib.import_module("mlflow")
    self._entities, kept = importlib.import_module("mlflow.entities"), info.kept()
    address = os.environ.get("MLFLOW_TRACKING_URI") or kept.get("tracking_uri") or mlflow.get_tracking_uri()
    self._client = mlflow.MlflowClient(tracking_uri=address)
    if kept.get("run_id"):
      self._run_id = kept["run_id"]
      self._client.update_run(self._run_id, status="RUNNING")
    else:
      name = info.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fgclip"
      found = self._client.get_experiment_by_name(name)
      experiment = found.experiment_id if found else self._client.create_experiment(name)
      self._run_id = self._client.create_run(experiment, run_name=info.name).info.run_id
      info.keep(run_id=self._run_id, tracking_uri=address)
    config = {_name(key): str(value)[:_MOST_CHARACTERS] for key, value in info.config.items()}
    there = self._client.get_run(self._run_id).data.params
    self._log(params=[self._entities.Param(key, value) for key, value in config.items() if key not in there])
    # a parameter cannot be changed once it is set; where a run goes on with another value, a tag has it
    changed = {key: value for key, value in config.items() if there.get(key, value) != value}
    self._log(tags=[self._entities.RunTag(f"config.{key}", value) for key, value in changed.items()])

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    at = int(seconds * 1000)
    self._log(metrics=[self._entities.Metric(_name(name), value, at, step) for name, value in values.items()])

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    self._client.log_image(self._run_id, image, key=_name(name).replace("/", "_"), step=step)

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
    self._client.log_dict(self._run_id, table, f"tables/{_name(name)}-step-{step}.json")

  def close(self, failed: bool) -> None:
    self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

  def _log(self, **entries: list[Any]) -> None:
    """Sends parameters, metrics or tags, not more at once than a server takes."""
    ((kind, every),) = entries.items()
    for start in range(0, len(every), _MOST_ENTRIES):
      self._client.log_batch(self._run_id, **{kind: every[start : start + _MOST_ENTRIES]})


def _name(text: str) -> str:
  """A name with only the characters that MLflow takes."""
  return re.sub(r"[^\w\-. /]", "_", text).strip("/")
