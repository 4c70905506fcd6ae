"""Our own model folders: `model.json` beside an Orbax checkpoint of the parameters; and run folders."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from fgclip_jax.models.parameters import flatten, unflatten
from fgclip_jax.models.presets import ModelConfig
from fgclip_jax.weights.table import leaf_shapes
from fgclip_jax.weights.tensors import read_json

MODEL_FILE = "model.json"
PARAMS_FOLDER = "params"
FORMAT = 1


def write(
  folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray], source: Mapping[str, Any] | None = None
) -> list[str]:
  """Writes a model folder; `source` is kept so that a conversion back gives the same files. Returns the paths."""
  os.makedirs(folder, exist_ok=True)
  paths = [os.path.join(folder, MODEL_FILE), os.path.join(folder, PARAMS_FOLDER)]
  ocp.save(os.path.abspath(paths[1]), unflatten({k: np.asarray(v) for k, v in flat.items()}), overwrite=True)
  write_model_file(folder, config, source)
  return paths


def write_model_file(folder: str, config: ModelConfig, source: Mapping[str, Any] | None = None) -> None:
  """Writes `model.json` alone (a run folder has one beside its checkpoints)."""
  with open(os.path.join(folder, MODEL_FILE), "w", encoding="utf-8") as file:
    json.dump({"format": FORMAT, "model": config.to_dict(), "source": source}, file, indent=2)
    file.write("\n")


def read_model_file(folder: str) -> tuple[ModelConfig, dict[str, Any] | None]:
  """Reads `model.json`: the model's size and its source; a ValueError names the file."""
  path = os.path.join(folder, MODEL_FILE)
  values = read_json(path)
  if values.get("format") != FORMAT:
    raise ValueError(f"{path!r} has format {values.get('format')!r}; this version reads {FORMAT}")
  try:
    return ModelConfig.from_dict(values["model"]), values.get("source")
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path!r} does not describe a model: {error}") from error


def is_run(folder: str) -> bool:
  """Whether it is a run folder rather than a model folder."""
  return os.path.exists(os.path.join(folder, MODEL_FILE)) and not os.path.isdir(os.path.join(folder, PARAMS_FOLDER))


def is_averaged(folder: str) -> bool:
  """Whether it is the folder of a run that keeps an average of its weights."""
  from fgclip_jax.train.checkpoint import keeps_average  # avoids a cycle

  return is_run(folder) and keeps_average(folder)


def read_config(folder: str) -> ModelConfig:
  """The model's size."""
  return read_model_file(folder)[0]


def read(folder: str, ema: bool = True) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any] | None]:
  """Reads a model folder, or the newest checkpoint of a run folder: size, flat parameters (as stored), source.

  Args:
    folder: the folder.
    ema: takes the weights averaged over the steps if it is that of a run which keeps them; else the last step's.
  """
  config, source = read_model_file(folder)
  if is_run(folder):
    from fgclip_jax.train.checkpoint import read_params  # avoids a cycle

    tree = read_params(folder, ema)
  else:
    params = os.path.abspath(os.path.join(folder, PARAMS_FOLDER))
    tree = ocp.load(params, _abstract(params))
  flat = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
  expected = dict(leaf_shapes(config))
  found = {name: leaf.shape for name, leaf in flat.items()}
  if expected != found:
    different = sorted(set(expected.items()) ^ set(found.items()))
    raise ValueError(f"{folder!r}: the parameters do not fit {MODEL_FILE}: {different}")
  return config, flat, source


def _abstract(path: str):
  """The stored tree's shapes and dtypes, to be read onto one local device."""
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), ocp.metadata(path).metadata
  )
