"""The loggers by their names in `config.loggers`.

To add one, write its file here and add a line to `LOGGERS`. The file has `PACKAGE`, the library that it needs (empty:
none), and a class with the methods of `protocol.Logger`, made from a `RunInfo`. It imports its library when it is made,
since runs without it have not installed it. It needs no care for failures, threads or speed: each logger runs in a
thread of its own (see `background.py`).
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType

from fgclip_jax.train.loggers.background import BackgroundLogger
from fgclip_jax.train.loggers.protocol import Logger, RunInfo

# name: module of this folder and class
LOGGERS = {
  "wandb": "wandb:WandbLogger",
  "trackio": "trackio:TrackioLogger",
  "mlflow": "mlflow:MlflowLogger",
}


def check(names: Sequence[str], installed: bool = True) -> tuple[str, ...]:
  """The names, once each.

  Args:
    names: of `LOGGERS`; several may be in one text, with commas between them.
    installed: looks for their libraries.

  Raises:
    ValueError: no such logger, or its library is missing.
  """
  names = [name.strip() for entry in names for name in entry.split(",")]
  for name in names:
    if name not in LOGGERS:
      files = "; metrics.jsonl and TensorBoard's files are always written" if name in ("jsonl", "tensorboard") else ""
      raise ValueError(f"config.loggers: there is no {name!r}, there are {', '.join(LOGGERS)}{files}")
    package = _module(name).PACKAGE
    if installed and package and importlib.util.find_spec(package) is None:
      raise ValueError(
        f"config.loggers: {name!r} needs the library {package!r}: pip install {package} (requirements-loggers.txt)"
      )
  return tuple(dict.fromkeys(names))


def open_loggers(names: Sequence[str], make_info: Callable[[str], RunInfo]) -> list[BackgroundLogger]:
  """Loggers that open in the background; `make_info` gives what the logger of a name is opened with."""
  return [BackgroundLogger(name, functools.partial(open_logger, make_info(name))) for name in names]


def open_logger(info: RunInfo) -> Logger:
  """The logger itself; raises whatever its library does."""
  return getattr(_module(info.logger), LOGGERS[info.logger].partition(":")[2])(info)


def _module(name: str) -> ModuleType:
  return importlib.import_module(f"fgclip_jax.train.loggers.{LOGGERS[name].partition(':')[0]}")
