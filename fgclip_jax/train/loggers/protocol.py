"""What a logger is, and what it knows of its run."""

import dataclasses
import json
import threading
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from fgclip_jax.storage import atomic, paths

IDS_FILE = "loggers.json"  # in the run's folder: what each logger keeps between the starts of the run
_LOCK = threading.Lock()


@runtime_checkable
class Logger(Protocol):
  """Takes what a run has to show; called by one thread, in the order of the steps.

  Any method may raise any exception: the call is then tried again later (see `background.py`). A step may come again,
  with the same values, after the run was killed and has gone on from an earlier checkpoint.
  """

  def log_scalars(self, step: int, values: dict[str, float], seconds: float) -> None:
    """Takes the numbers of a step; `seconds`: when it was logged, since 1970."""
    ...

  def log_image(self, step: int, name: str, image: Image.Image, caption: str) -> None:
    """Takes a picture that was drawn after a step."""
    ...

  def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Takes a table of texts and numbers."""
    ...

  def close(self, failed: bool) -> None:
    """Sends what is left; `failed`: the run ends by an error, or will go on later."""
    ...


@dataclasses.dataclass(frozen=True)
class RunInfo:
  """What a logger is opened with.

  Attributes:
    logger: its name in `config.loggers`.
    workdir: the run's folder.
    project: the project or experiment to log to; empty: the service's own setting, or `fgclip`.
    name: the run's name to show.
    config: the whole config, `{"data.path": ...}`.
    begin: the step that the run continues from.
  """

  logger: str
  workdir: str
  project: str
  name: str
  config: dict[str, Any]
  begin: int = 0

  def kept(self) -> dict[str, str]:
    """What the logger kept at an earlier start of the run, such as the run's id; empty at the first."""
    return _read_ids(self.workdir).get(self.logger, {})

  def keep(self, **values: str) -> None:
    """Keeps values for later starts."""
    with _LOCK:
      ids = _read_ids(self.workdir)
      ids[self.logger] = ids.get(self.logger, {}) | values
      path = paths.join(self.workdir, IDS_FILE)
      with atomic.file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(ids, file, indent=2)
        file.write("\n")


def _read_ids(workdir: str) -> dict[str, dict[str, str]]:
  """The file's content; empty where there is none, or none that can be read."""
  try:
    found = json.loads(paths.read(paths.join(workdir, IDS_FILE)))
  except (FileNotFoundError, ValueError):
    return {}
  return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}
