"""Model folders of any known format."""

import glob
import os
import shutil
from typing import Any

import numpy as np

from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.weights import huggingface, native

FORMATS = {"pytorch": huggingface, "jax": native}


def detect(folder: str) -> str:
  """Which format a folder has: `pytorch` or `jax`.

  Raises:
    FileNotFoundError: it is neither, or not there.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"no model folder at {folder!r}")
  for name, file in (("jax", native.MODEL_FILE), ("pytorch", huggingface.CONFIG_FILE)):
    if os.path.exists(os.path.join(folder, file)):
      return name
  raise FileNotFoundError(
    f"{folder!r} is no model folder: it has neither {huggingface.CONFIG_FILE} (PyTorch format) "
    f"nor {native.MODEL_FILE} (a model or run folder of ours)"
  )


def read(folder: str, ema: bool = True) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any] | None]:
  """Reads a folder of either format: the model's size, flat parameters as stored, and its source.

  Args:
    folder: the folder.
    ema: takes a run's averaged weights if it keeps them (see `is_averaged`); otherwise those of its last step.
  """
  return native.read(folder, ema) if detect(folder) == "jax" else huggingface.read(folder)


def is_averaged(folder: str) -> bool:
  """Whether a folder is that of a run that keeps an average of its weights, which `read` takes."""
  return detect(folder) == "jax" and native.is_averaged(folder)


def read_config(folder: str) -> ModelConfig:
  """The size of a folder's model, without reading its weights."""
  return FORMATS[detect(folder)].read_config(folder)


def remove_model(folder: str) -> None:
  """Removes the files of a model of either format, and no others, so that another one can be written there.

  Raises:
    ValueError: it is a run folder, whose checkpoints are of no use without its `model.json`.
  """
  if native.is_run(folder):
    raise ValueError(f"{folder!r} is a run folder; name another one")
  shards = glob.glob(os.path.join(glob.escape(folder), "model-*-of-*.safetensors"))
  names = (native.MODEL_FILE, huggingface.CONFIG_FILE, huggingface.WEIGHTS_FILE, huggingface.INDEX_FILE)
  for file in (*shards, *(os.path.join(folder, name) for name in names)):
    if os.path.exists(file):
      os.remove(file)
  shutil.rmtree(os.path.join(folder, native.PARAMS_FOLDER), ignore_errors=True)
