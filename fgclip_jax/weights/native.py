"""Our own model folders: `model.json` beside an Orbax checkpoint of the parameters; and run folders."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import Params, flatten, unflatten
from fgclip_jax.storage import atomic, paths
from fgclip_jax.storage.errors import first_line
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights.checkpoint_files import shard_files
from fgclip_jax.weights.checkpoint_files.checksums import check as check_sums
from fgclip_jax.weights.name_map import leaf_shapes
from fgclip_jax.weights.tensor_files import open_tensors, read_json

# Orbax raises its errors, and we report each in a line; its own log adds a traceback for every thread and task
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
logging.getLogger("asyncio").addFilter(
  lambda record: not (record.exc_info and "[tensorstore_spec=" in str(record.exc_info[1]))
)

MODEL_FILE = "model.json"
PARAMS_FOLDER = "params"
UNUSED_FILE = "unused.safetensors"  # what a source holds and no model reads, kept for a conversion back
FORMAT = 1
FOLDER = "checkpoints"  # of a run, a checkpoint for each step
DAMAGED = "damaged-"  # before its step: the name, and in a bucket the mark, of a checkpoint that cannot be read


class SoundCheckpoints:
  """Orbax's names of checkpoints, without those of a folder in a bucket that are marked as damaged (see `DAMAGED`)."""

  def __init__(self, folder: str):
    self._folder, self._names = folder, ocp.path.step.standard_name_format()

  def build_name(self, step: int) -> str:
    """The name of a step's folder."""
    return self._names.build_name(step)

  def find_all(self, base_path: Any) -> Iterator[Any]:
    """The complete checkpoints, as Orbax describes them."""
    try:
      there = set(paths.list_folder(self._folder))
    except FileNotFoundError:
      there = set()
    return (found for found in self._names.find_all(base_path) if f"{DAMAGED}{found.step}" not in there)

  def find_step(self, base_path: Any, step: int) -> Any:
    """One of them; raises a ValueError if there is none."""
    return self._names.find_step(base_path, step)


def write(
  folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray], source: Mapping[str, Any] | None = None
) -> list[str]:
  """Writes a model folder; `source` is kept so that a conversion back gives the same files. Returns the paths."""
  os.makedirs(folder, exist_ok=True)
  written = [os.path.join(folder, MODEL_FILE), os.path.join(folder, PARAMS_FOLDER)]
  ocp.save(os.path.abspath(written[1]), unflatten({k: np.asarray(v) for k, v in flat.items()}), overwrite=True)
  source = dict(source) if source else None
  if unused := (source or {}).pop("unused", None):
    written.append(os.path.join(folder, UNUSED_FILE))
    safetensors.numpy.save_file({name: np.asarray(x, order="C") for name, x in unused.items()}, written[-1])
  write_model_file(folder, config, source)
  return written


def write_model_file(folder: str, config: ModelConfig, source: Mapping[str, Any] | None = None) -> None:
  """Writes `model.json` alone (a run folder has one beside its checkpoints)."""
  with atomic.file(paths.join(folder, MODEL_FILE)) as path, open(path, "w", encoding="utf-8") as file:
    json.dump({"format": FORMAT, "model": config.to_dict(), "source": source}, file, indent=2)
    file.write("\n")


def read_model_file(folder: str) -> tuple[ModelConfig, dict[str, Any] | None]:
  """Reads `model.json`: the model's size and its source; a ValueError names the file."""
  path = paths.join(folder, MODEL_FILE)
  values = read_json(path)
  if values.get("format") != FORMAT:
    raise ValueError(f"{path!r} has format {values.get('format')!r}; this version reads {FORMAT}")
  try:
    config = ModelConfig.from_dict(values["model"])
    source = values.get("source")
    _check_source(source)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(f"{path!r} does not describe a model: {printable(str(error))}") from error
  return config, source


def _check_source(source: Any) -> None:
  """A ValueError if it is not what a format's `read` returns; formats look at no other keys."""
  kinds = {"format": str, "config": dict | None, "buffers": dict, "text": str, "prefix": str}
  kinds |= {"absent": list, "scanned": dict, "shapes": dict}
  if source is not None and not isinstance(source, dict):
    raise ValueError(f"source is a {type(source).__name__}")
  for key, kind in kinds.items():
    if source and key in source and not isinstance(source[key], kind):
      raise ValueError(f"source.{key} is a {type(source[key]).__name__}")
  if not all(isinstance(name, str) for name in (source or {}).get("absent", [])):
    raise ValueError("source.absent holds no names")
  for name, shape in (source or {}).get("shapes", {}).items():
    if not isinstance(shape, list) or not all(isinstance(each, int) and each > 0 for each in shape):
      raise ValueError(f"source.shapes.{name} is no shape")
  for name, value in (source or {}).get("buffers", {}).items():
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
      raise ValueError(f"source.buffers.{name} is no number")


def is_run(folder: str) -> bool:
  """Whether it is a run folder rather than a model folder."""
  return paths.exists(paths.join(folder, MODEL_FILE)) and not paths.is_folder(paths.join(folder, PARAMS_FOLDER))


def is_averaged(folder: str) -> bool:
  """Whether it is the folder of a run that keeps an average of its weights."""
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
    tree = read_params(folder, ema)
  else:
    params = paths.absolute(paths.join(folder, PARAMS_FOLDER))
    tree = _abstract(params)
    _check_shapes(folder, config, tree)  # before the arrays take memory
    with _named_damage(params):
      tree = ocp.load(params, tree)
  _check_shapes(folder, config, tree)
  if source is not None and paths.is_file(paths.join(folder, UNUSED_FILE)):
    source["unused"] = _read_unused(paths.join(folder, UNUSED_FILE))
  return config, {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}, source


def _read_unused(path: str) -> dict[str, np.ndarray]:
  if not paths.is_remote(path):
    return dict(open_tensors(path))
  with atomic.scratch() as scratch:  # files of tensors are opened by name
    paths.download(path, local := os.path.join(scratch, UNUSED_FILE))
    return {name: np.array(tensor) for name, tensor in open_tensors(local).items()}


def _check_shapes(folder: str, config: ModelConfig, tree: Params) -> None:
  expected = dict(leaf_shapes(config))
  found = {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
  if expected != found:
    different = sorted(set(expected.items()) ^ set(found.items()))
    names = ", ".join(f"{name} {size}" for name, size in different[:8])
    raise ValueError(f"{folder!r}: the parameters do not fit {MODEL_FILE}: {names}{', ...' * (len(different) > 8)}")


def _abstract(path: str):
  """The stored tree's shapes and dtypes, to be read onto one local device; a ValueError if it is damaged."""
  paths.check_regular(path)  # Orbax would wait at a pipe
  with _named_damage(path):
    return _on_one_device(ocp.metadata(path).metadata)


def _on_one_device(stored: Any) -> Any:
  """Shapes and dtypes of a tree of arrays as Orbax describes it, to be read onto one local device."""
  if not isinstance(stored, Mapping):
    raise ValueError("its list of parameters cannot be read")
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored)


@contextlib.contextmanager
def _named_damage(path: str) -> Iterator[None]:
  """Turns what Orbax raises at a damaged checkpoint into a ValueError of one line that names it."""
  try:
    yield
  except (OSError, MemoryError):
    raise
  except Exception as error:  # Orbax and TensorStore raise many types for damage
    message = first_line(error).partition(" See full TensorStore details")[0]
    raise ValueError(f"{path!r} is damaged: {printable(message)[:300]}") from error


def read_params(workdir: str, ema: bool = True) -> Params:
  """The parameters of a run's newest checkpoint, as stored, on one local device.

  Args:
    workdir: the run's folder.
    ema: takes their average if the run keeps one.

  Raises:
    FileNotFoundError: the run has no complete checkpoint.
    OSError, ValueError: they are damaged, or its disk has changed them since they were saved.
  """
  folder = _checkpoints_of(workdir)
  if not uses_orbax(folder):
    return _read_shard_files(folder, ema)
  with _newest(workdir) as (checkpointer, described):
    stored = described.metadata
    item = "ema" if ema and "ema" in stored else "params"
    with _named_damage(os.path.join(workdir, FOLDER)):
      items = checkpointer.load_checkpointables(None, {item: _on_one_device(stored.get(item))})
    check_sums(items, described.custom_metadata.get("checksums", {}), stored)
    return items[item]


def uses_orbax(folder: str) -> bool:
  """Whether a run's checkpoints in this folder are, or will be, Orbax's; else they are plain files (`shard_files`)."""
  try:
    steps = [int(name) for name in paths.list_folder(folder) if name.isdecimal()]
  except FileNotFoundError:
    steps = []
  if any(paths.exists(paths.join(folder, str(step), shard_files.MARKER)) for step in steps):
    return False  # also where the run was copied to from other storage
  return not paths.is_remote(folder) or folder.partition("://")[0] in paths.ORBAX


def _read_shard_files(folder: str, ema: bool) -> Params:
  """The newest checkpoint of plain files: the parameters, or their average; errors as for `read_params`."""
  _, parts = _open_newest(folder)
  item = "ema" if ema and any(name.startswith("ema/") for name in parts.shapes) else "params"
  stored = {name: shape for name, shape in parts.shapes.items() if name.startswith(f"{item}/")}
  tree = unflatten({name.removeprefix(f"{item}/"): shape for name, shape in stored.items()})
  return parts.read(_on_one_device(tree), prefix=f"{item}/")


def _open_newest(folder: str) -> tuple[dict[str, Any], shard_files.Parts]:
  steps = shard_files.complete_steps(folder, DAMAGED)
  if not steps:
    raise FileNotFoundError(f"no complete checkpoint in {folder!r}")
  return shard_files.open_parts(paths.join(folder, str(steps[-1])))


def keeps_average(workdir: str) -> bool:
  """Whether a run's newest checkpoint holds an average of the parameters; errors as for `read_params`."""
  folder = _checkpoints_of(workdir)
  if not uses_orbax(folder):
    return any(name.startswith("ema/") for name in _open_newest(folder)[1].shapes)
  with _newest(workdir) as (_, described):
    return "ema" in described.metadata


def _checkpoints_of(workdir: str) -> str:
  """The folder of a run's checkpoints."""
  folder = paths.absolute(paths.join(workdir, FOLDER))
  if not paths.is_folder(folder):
    raise FileNotFoundError(f"{workdir!r} has no {FOLDER!r} folder: no run has saved anything there")
  return folder


@contextlib.contextmanager
def _newest(workdir: str) -> Iterator[tuple[ocp.training.Checkpointer, Any]]:
  """A run's checkpointer, and what its newest checkpoint holds, as Orbax describes it: shapes and dtypes, metadata."""
  folder = _checkpoints_of(workdir)
  names: Any = SoundCheckpoints(folder) if paths.is_remote(folder) else None
  with ocp.training.Checkpointer(folder, step_name_format=names) as checkpointer:
    if checkpointer.latest is None:
      raise FileNotFoundError(f"no complete checkpoint in {folder!r}")
    with _named_damage(folder):
      described = checkpointer.checkpointables_metadata(None)
    yield checkpointer, described
