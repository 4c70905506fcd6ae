"""Detects the format of a model's folder or file, reads it, and writes the formats that can be written.

A new format is a module with the functions of a `Format`, and a line in `FORMATS`.
"""

import contextlib
import dataclasses
import fnmatch
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.storage import atomic, folders, paths
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights import big_vision, huggingface, huggingface_processor, native, open_clip
from fgclip_jax.weights.clip_to_fgclip import to_clip
from fgclip_jax.weights.tensor_files import INDEX_SUFFIX, SUFFIXES, index_shards, open_tensors

Flat = Mapping[str, np.ndarray]
Source = Mapping[str, Any]
Model = tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any] | None]  # size, flat parameters as stored, source


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """What `read` was given; a format looks at what concerns it.

  Attributes:
    ema: takes a run's averaged weights if it keeps them (see `is_averaged`); otherwise those of its last step.
    allow_pickle: see `tensor_files.open_tensors`.
    activation, heads: what OpenAI's layout does not tell by itself; see `open_clip.infer_config`.
  """

  ema: bool = True
  allow_pickle: bool = False
  activation: str | None = None
  heads: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Format:
  """A format of models. One that has no `read` can only be written.

  Attributes:
    write: writes a model into a folder, and returns the paths: a function of the folder, the size, the flat parameters,
      and the source that `read` returned (None: there is none).
    read: reads a folder or a file of weights.
    read_config: the size of such a model, without its weights.
    marker: the file that tells that a folder has this format, and what messages call the format.
    in_folder: whether a folder has it, by the names of its files; by default, whether the marker is there.
    in_tensors: whether a bare file of weights has it, by the names of its tensors.
    files: patterns of the files and folders that `write` makes: they are removed before another model is written.
    bare: a bare file does not tell the activation and the heads, so that `read` may be told.
    loads: Python that loads the folder `{0}`, shown as the next step.
  """

  write: Callable[[str, ModelConfig, Flat, Source | None], list[str]]
  read: Callable[[str, ReadOptions], Model] | None = None
  read_config: Callable[[str], ModelConfig] | None = None
  marker: tuple[str, str] | None = None
  in_folder: Callable[[Collection[str]], bool] | None = None
  in_tensors: Callable[[Collection[str]], bool] = lambda names: False
  files: tuple[str, ...] = ()
  bare: bool = False
  loads: str = 'import fgclip_jax; print(fgclip_jax.load("{0}"))'

  def is_in_folder(self, files: Collection[str]) -> bool:
    """Whether a folder of these files has the format."""
    if self.in_folder is not None:
      return self.in_folder(files)
    return self.marker is not None and self.marker[0] in files


def _write_clip(folder: str, config: ModelConfig, flat: Flat, source: Source | None = None) -> list[str]:
  if config.text.type != "causal":
    raise ValueError("transformers' CLIPModel has no place for a SigLIP: write it as siglip, pytorch or jax")
  return huggingface.write(folder, *to_clip(config, flat), None if config.fine_grained else source)


def _write_clip_vision(folder: str, config: ModelConfig, flat: Flat, source: Source | None = None) -> list[str]:
  return huggingface.write_vision(folder, config, flat)


def _write_siglip(folder: str, config: ModelConfig, flat: Flat, source: Source | None = None) -> list[str]:
  if config.text.type != "siglip":
    raise ValueError("the model is a CLIP and no SigLIP: write it as clip, pytorch, open_clip or jax")
  return huggingface.write(folder, *to_clip(config, flat), None if config.fine_grained else source)


def _is_huggingface(files: Collection[str]) -> bool:
  names = (name + suffix for name in huggingface.WEIGHTS_FILES for suffix in ("", INDEX_SUFFIX))
  # folders for open_clip may have a config.json as well: then the weights decide
  return huggingface.CONFIG_FILE in files and (
    open_clip.CONFIG_FILE not in files or any(name in files for name in names)
  )


def _has_huggingface_names(names: Collection[str]) -> bool:
  return any(name.startswith(("vision_model.", "text_model.")) for name in names)


# By the names of `convert --to`. A folder has the first format that recognises it.
FORMATS: dict[str, Format] = {
  "jax": Format(
    write=native.write,
    read=lambda path, options: native.read(path, options.ema),
    read_config=native.read_config,
    marker=(native.MODEL_FILE, "a model or run folder of ours"),
    files=(native.MODEL_FILE, native.PARAMS_FOLDER, native.UNUSED_FILE),
  ),
  "pytorch": Format(
    write=huggingface.write,
    read=lambda path, options: huggingface.read(path, options.allow_pickle),
    read_config=huggingface.read_config,
    marker=(huggingface.CONFIG_FILE, "PyTorch format"),
    in_folder=_is_huggingface,
    in_tensors=_has_huggingface_names,
    files=(
      huggingface.CONFIG_FILE,
      huggingface.WEIGHTS_FILE,
      huggingface.WEIGHTS_FILE + INDEX_SUFFIX,
      "model-*-of-*.safetensors",
      *huggingface_processor.FILES,
    ),
  ),
  "siglip": Format(
    write=_write_siglip, loads='import transformers; print(transformers.AutoModel.from_pretrained("{0}"))'
  ),
  "clip": Format(write=_write_clip, loads='import transformers; print(transformers.CLIPModel.from_pretrained("{0}"))'),
  "clip_vision": Format(
    write=_write_clip_vision, loads='import transformers; print(transformers.CLIPVisionModel.from_pretrained("{0}"))'
  ),
  "open_clip": Format(
    write=open_clip.write,
    read=lambda path, options: open_clip.read(path, options.allow_pickle, options.activation, options.heads),
    read_config=open_clip.read_config,
    marker=(open_clip.CONFIG_FILE, "open_clip"),
    in_tensors=open_clip.is_ours,
    files=(open_clip.CONFIG_FILE, open_clip.WEIGHTS_FILE),
    bare=True,
    loads='import open_clip; print(open_clip.create_model("local-dir:{0}"))',
  ),
  "big_vision": Format(
    write=big_vision.write,
    read=lambda path, options: big_vision.read(path),
    read_config=big_vision.read_config,
    marker=(big_vision.WEIGHTS_FILE, "big_vision"),
    files=(big_vision.WEIGHTS_FILE,),
  ),
}
_WEIGHTS = (*SUFFIXES, big_vision.SUFFIX)  # how names of files of weights end


def detect(path: str, allow_pickle: bool = False) -> str:
  """Which format a folder or a file of weights has: a key of `FORMATS`.

  Args:
    path: the folder or file.
    allow_pickle: see `tensor_files.open_tensors`; only a file that no config describes is opened.

  Raises:
    FileNotFoundError: there is nothing, or no model.
    ValueError: a file that is damaged, a pickle without permission, or of no known format.
  """
  if paths.is_folder(path):
    return _detect_folder(path, allow_pickle)
  if not paths.is_file(path):
    raise FileNotFoundError(f"no model folder at {path!r}")
  return _detect_file(path, allow_pickle)


def _detect_folder(folder: str, allow_pickle: bool) -> str:
  files = paths.list_folder(folder)
  for name, each in FORMATS.items():
    if each.is_in_folder(files):
      return name
  weights = [name for name in files if name.endswith((*_WEIGHTS, INDEX_SUFFIX)) and not folders.is_hidden(name)]
  if len(weights) == 1:
    return _detect_file(paths.join(folder, weights[0]), allow_pickle)
  several = f"; it holds {', '.join(sorted(weights))}: give the path of one" if weights else ""
  ours, *others = (each.marker for each in FORMATS.values() if each.marker)
  markers = ", nor ".join(f"{file} ({kind})" for file, kind in (*others, ours))
  raise FileNotFoundError(f"{folder!r} is no model folder: it has neither {markers}{several}")


def _detect_file(file: str, allow_pickle: bool) -> str:
  if file.endswith(big_vision.SUFFIX):
    return "big_vision"
  if paths.is_remote(file):
    with _at_hand(file) as local:
      return _detect_file(local, allow_pickle)
  tensors = open_tensors(file, allow_pickle)
  for name, each in FORMATS.items():
    if each.in_tensors(tensors):
      return name
  there = ", ".join(f"{printable(name)} {tensors.shape(name)}" for name in sorted(tensors)[:5])
  raise ValueError(f"{file!r} holds tensors of no known model: {there}, ... ({len(tensors)} in all)")


def read(
  path: str,
  ema: bool = True,
  allow_pickle: bool = False,
  activation: str | None = None,
  heads: tuple[int, int] | None = None,
) -> Model:
  """Reads a model of any format: its size, flat parameters as stored, and its source (see `Format.write`).

  Args:
    path: a folder, or a file of weights; see `detect`.
    ema, allow_pickle, activation, heads: see `ReadOptions`.
  """
  found = FORMATS[detect(path, allow_pickle)]
  if (activation or heads) and not found.bare:
    raise ValueError(f"{path!r} tells the activation and the heads: leave `activation` and `heads` out")
  assert found.read is not None, "a format that is detected can be read"
  with _at_hand(path) as local:
    return found.read(local, ReadOptions(ema, allow_pickle, activation, heads))


def is_averaged(path: str) -> bool:
  """Whether it is the folder of a run that keeps an average of its weights, which `read` takes."""
  if not paths.is_folder(path) or not native.is_run(path):  # first, for a copy of a URL's files may be large
    return False
  with _at_hand(path) as local:
    return native.is_averaged(local)


def read_config(path: str) -> ModelConfig:
  """The size of a model, without reading its weights."""
  found = FORMATS[detect(path)]
  assert found.read_config is not None, "a format that is detected can be read"
  with _at_hand(path) as local:
    return found.read_config(local)


@contextlib.contextmanager
def _at_hand(path: str) -> Iterator[str]:
  """A path with the files of a model, which libraries open by name: of a URL a copy that goes with the block.

  Our own folders at `gs://`, and run folders anywhere, are read where they are. Small files and shards beside a file
  come along. Errors name the URL.
  """
  if not paths.is_remote(path) or _is_read_in_place(path):
    yield path
    return
  with atomic.scratch() as scratch:
    local = os.path.join(scratch, "model")
    given = local
    if paths.is_folder(path):
      deep = paths.exists(paths.join(path, native.MODEL_FILE))  # `params` and checkpoints are folders
      _copy(path, local, paths.find(path) if deep else _files(path))
    else:
      given = os.path.join(local, paths.base_name(path))
      shards = index_shards(path).values() if path.endswith(INDEX_SUFFIX) else []
      there = _files(paths.parent(path))
      beside = [name for name in there if name in shards or not name.endswith(_WEIGHTS)]
      _copy(paths.parent(path), local, [paths.base_name(path), *beside])
    try:
      yield given
    except (OSError, ValueError) as error:
      if scratch not in str(error):
        raise
      kind = next(each for each in (FileNotFoundError, OSError, ValueError) if isinstance(error, each))
      raise kind(str(error).replace(given, path).replace(local, paths.parent(path))) from error


def _is_read_in_place(path: str) -> bool:
  if not paths.exists(paths.join(path, native.MODEL_FILE)):
    return False
  return path.startswith("gs://") or native.is_run(path)


def _files(folder: str) -> list[str]:
  return [name for name, is_folder in paths.scan_folder(folder) if not is_folder]


def _copy(folder: str, local: str, names: Collection[str]) -> None:
  for name in dict.fromkeys(names):
    target = os.path.join(local, *name.split("/"))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    paths.download(paths.join(folder, name), target)


def write(
  folder: str,
  to: str,
  config: ModelConfig,
  flat: Flat,
  source: Source | None = None,
  tokenizer_from: str | None = None,
) -> list[str]:
  """Writes a model into a folder, in place of a model of any format that it holds; other files in it stay.

  The new model is made whole first: a failure leaves the folder as it was. A text pooling, which only our own format
  has a place for, is left out of others, and a line says so.

  Args:
    folder: made if it does not exist.
    to: a key of `FORMATS`.
    config, flat, source: what `read` returned.
    tokenizer_from: a folder or a file of weights: the files there of the model's own tokenizer come along.

  Returns:
    The paths written.

  Raises:
    ValueError: the format has no place for this model.
    OSError: the folder cannot be written, or its disk is full.
  """
  if to != "jax" and config.text_pooling is not None:
    print(f"{to} has no place for the text pooling: it is left out", flush=True)
    config, flat = without_text_pooling(config, flat)
  with atomic.folder(folder, model_files()) as temporary:
    made = FORMATS[to].write(temporary, config, flat, source)
    if tokenizer_from and config.text.tokenizer != "clip":
      made += copy_tokenizer(tokenizer_from, temporary)
    return [paths.join(folder, os.path.relpath(path, temporary)) for path in made]


def without_text_pooling(config: ModelConfig, flat: Flat) -> tuple[ModelConfig, dict[str, np.ndarray]]:
  """The model without its text pooling."""
  kept = {name: leaf for name, leaf in flat.items() if not name.startswith("text_pooling/")}
  return dataclasses.replace(config, text_pooling=None), kept


def copy_tokenizer(path: str, folder: str) -> list[str]:
  """Copies the files of a tokenizer from a folder, or from beside a file of weights; returns the copies' paths."""
  found = path if paths.is_folder(path) else paths.parent(path)
  there = set(_files(found))
  names = [name for name in huggingface_processor.OWN_TOKENIZER_FILES if name in there]
  for name in names:
    with paths.open(paths.join(found, name)) as source, paths.open(paths.join(folder, name), "wb") as target:
      shutil.copyfileobj(source, target)
  return [paths.join(folder, name) for name in names]


def model_files() -> list[str]:
  """Patterns of the names of files and folders that a model of any format consists of."""
  return [pattern for each in FORMATS.values() for pattern in each.files]


def input_files(path: str) -> list[str]:
  """The files that a model is read from: all in its folder, or a file of weights, its shards and what lies beside."""
  if paths.is_remote(path):
    return []  # what is written is compared by its address alone
  if os.path.isdir(path):
    return [os.path.join(base, name) for base, _, files in os.walk(path) for name in files]
  folder = os.path.dirname(path) or "."
  shards = index_shards(path) if path.endswith(INDEX_SUFFIX) else []
  beside = [name for name in os.listdir(folder) if any(fnmatch.fnmatchcase(name, each) for each in model_files())]
  return [path, *(os.path.join(folder, name) for name in [*shards, *beside])]
