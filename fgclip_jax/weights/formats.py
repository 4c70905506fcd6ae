"""Detects the format of a model's folder or file, reads it, and lists the formats that can be written."""

import glob
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.weights import huggingface, huggingface_processor, native, open_clip
from fgclip_jax.weights.clip_to_fgclip import to_clip
from fgclip_jax.weights.tensor_files import INDEX_SUFFIX, SUFFIXES, open_tensors

Flat = Mapping[str, np.ndarray]
Source = Mapping[str, Any]
Write = Callable[[str, ModelConfig, Flat, Source | None], list[str]]


def _write_clip(folder: str, config: ModelConfig, flat: Flat, source: Source | None = None) -> list[str]:
  return huggingface.write(folder, *to_clip(config, flat), None if config.fine_grained else source)


def _write_clip_vision(folder: str, config: ModelConfig, flat: Flat, source: Source | None = None) -> list[str]:
  return huggingface.write_vision(folder, config, flat)


# what can be written, by the names of `convert --to`
WRITERS: dict[str, Write] = {
  "jax": native.write,
  "pytorch": huggingface.write,
  "clip": _write_clip,
  "clip_vision": _write_clip_vision,
  "open_clip": open_clip.write,
}


def detect(path: str, allow_pickle: bool = False) -> str:
  """Which format a folder or a file of weights has.

  Args:
    path: the folder or file.
    allow_pickle: see `tensor_files.open_tensors`; only a file that no config describes is opened.

  Returns:
    `jax` (a model or run folder of ours), `pytorch` (transformers' layout of CLIP and FG-CLIP) or `open_clip`
    (OpenAI's, open_clip's and Long-CLIP's layout).

  Raises:
    FileNotFoundError: there is nothing, or no model.
    ValueError: a file that is damaged, a pickle without permission, or of none of these layouts.
  """
  if os.path.isdir(path):
    return _detect_folder(path, allow_pickle)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"no model folder at {path!r}")
  return _detect_file(path, allow_pickle)


def _detect_folder(folder: str, allow_pickle: bool) -> str:
  files = os.listdir(folder)
  if native.MODEL_FILE in files:
    return "jax"
  names = (name + suffix for name in huggingface.WEIGHTS_FILES for suffix in ("", INDEX_SUFFIX))
  if huggingface.CONFIG_FILE in files and (open_clip.CONFIG_FILE not in files or any(name in files for name in names)):
    return "pytorch"
  if open_clip.CONFIG_FILE in files:
    return "open_clip"
  weights = [name for name in files if name.endswith((*SUFFIXES, INDEX_SUFFIX))]
  if len(weights) == 1:
    return _detect_file(os.path.join(folder, weights[0]), allow_pickle)
  several = f"; it holds {', '.join(sorted(weights))}: give the path of one" if weights else ""
  raise FileNotFoundError(
    f"{folder!r} is no model folder: it has neither {huggingface.CONFIG_FILE} (PyTorch format), nor "
    f"{open_clip.CONFIG_FILE} (open_clip), nor {native.MODEL_FILE} (a model or run folder of ours){several}"
  )


def _detect_file(file: str, allow_pickle: bool) -> str:
  names = open_tensors(file, allow_pickle)
  if open_clip.is_ours(names):
    return "open_clip"
  if any(name.startswith(("vision_model.", "text_model.")) for name in names):
    return "pytorch"
  raise ValueError(f"{file!r} holds tensors of no known model: {', '.join(sorted(names)[:5])}, ...")


def read(
  path: str,
  ema: bool = True,
  allow_pickle: bool = False,
  activation: str | None = None,
  heads: tuple[int, int] | None = None,
) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any] | None]:
  """Reads a model of any format: its size, flat parameters as stored, and its source (see the formats' `write`).

  Args:
    path: a folder, or a file of weights; see `detect`.
    ema: takes a run's averaged weights if it keeps them (see `is_averaged`); otherwise those of its last step.
    allow_pickle: see `tensor_files.open_tensors`.
    activation, heads: what OpenAI's layout does not say; see `open_clip.infer_config`.
  """
  found = detect(path, allow_pickle)
  if found == "open_clip":
    return open_clip.read(path, allow_pickle, activation, heads)
  if activation or heads:
    raise ValueError(f"{path!r} tells the activation and the heads: leave `activation` and `heads` out")
  return native.read(path, ema) if found == "jax" else huggingface.read(path, allow_pickle)


def is_averaged(path: str) -> bool:
  """Whether it is the folder of a run that keeps an average of its weights, which `read` takes."""
  return os.path.isdir(path) and native.is_averaged(path)


def read_config(path: str) -> ModelConfig:
  """The size of a model, without reading its weights."""
  return {"jax": native, "pytorch": huggingface, "open_clip": open_clip}[detect(path)].read_config(path)


def remove_model(folder: str) -> None:
  """Removes the files of a model of any format, and no others, so that another one can be written there.

  Raises:
    ValueError: it is a run folder, whose checkpoints are of no use without its `model.json`.
  """
  if native.is_run(folder):
    raise ValueError(f"{folder!r} is a run folder; name another one")
  shards = glob.glob(os.path.join(glob.escape(folder), "model-*-of-*.safetensors"))
  names = (native.MODEL_FILE, huggingface.CONFIG_FILE, huggingface.WEIGHTS_FILE, open_clip.CONFIG_FILE)
  names += (huggingface.WEIGHTS_FILE + INDEX_SUFFIX, open_clip.WEIGHTS_FILE, *huggingface_processor.FILES)
  for file in (*shards, *(os.path.join(folder, name) for name in names)):
    if os.path.exists(file):
      os.remove(file)
  shutil.rmtree(os.path.join(folder, native.PARAMS_FOLDER), ignore_errors=True)
