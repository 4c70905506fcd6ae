"""PyTorch-format folders of CLIP and FG-CLIP: `config.json` with `model.safetensors`, whole or in shards."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from fgclip_jax.models.parameters import abstract_params, flatten
from fgclip_jax.models.presets import ModelConfig, TextConfig, VisionConfig
from fgclip_jax.weights.names import from_theirs, stretch_positions, to_theirs

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FGCLIP_ONLY = "text_filip_projection.weight"
_DTYPE_NAMES = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}
_DTYPE_NAMES[np.dtype(ml_dtypes.bfloat16)] = "bfloat16"

# what transformers fills in where config.json is silent
_TEXT_DEFAULTS = {
  "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
  "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "vocab_size": 49408, "max_position_embeddings": 77,
  "eos_token_id": 49407,
}  # fmt: skip
_VISION_DEFAULTS = {
  "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
  "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32,
}  # fmt: skip


class SafetensorsFolder(Mapping[str, np.ndarray]):
  """The tensors of a folder by name, each read from disk when asked for.

  Raises:
    FileNotFoundError: there is no safetensors file, or the index names one that is not there.
    ValueError: a file is not readable safetensors, or lacks a tensor that the index promises.
  """

  def __init__(self, folder: str):
    index = os.path.join(folder, INDEX_FILE)
    if os.path.exists(index):
      weight_map = read_json(index).get("weight_map", {})
      names = sorted(set(weight_map.values()))
    elif os.path.exists(os.path.join(folder, WEIGHTS_FILE)):
      weight_map, names = None, [WEIGHTS_FILE]
    else:
      pickles = [name for name in sorted(os.listdir(folder)) if name.endswith((".bin", ".pt", ".pth"))]
      hint = f"; {pickles[0]} is a pickle, which can run code when loaded: convert it to safetensors" if pickles else ""
      raise FileNotFoundError(f"no {WEIGHTS_FILE} or {INDEX_FILE} in {folder!r}{hint}")
    self._files, self._owner = {}, {}
    for name in names:
      path = os.path.join(folder, name)
      if not os.path.exists(path):
        raise FileNotFoundError(f"{INDEX_FILE} names {name!r}, which is not in {folder!r}")
      try:
        self._files[name] = safetensors.safe_open(path, framework="numpy")
      except safetensors.SafetensorError as error:
        raise ValueError(f"{path!r} is not a readable safetensors file: {error}") from error
      for key in self._files[name].keys():
        self._owner[key] = name
    lacking = sorted(set(weight_map or ()) - set(self._owner))
    if lacking:
      raise ValueError(f"{index!r} promises tensors that its files lack: {', '.join(lacking)}")

  def __getitem__(self, name: str) -> np.ndarray:
    return self._files[self._owner[name]].get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._owner)

  def __len__(self) -> int:
    return len(self._owner)


def read_json(path: str) -> dict[str, Any]:
  """The JSON object in a file; a ValueError names the file where it holds none."""
  try:
    with open(path, encoding="utf-8") as file:
      value = json.load(file)
  except ValueError as error:
    raise ValueError(f"{path!r} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path!r} must hold a JSON object, holds a {type(value).__name__}")
  return value


def model_config(config: Mapping[str, Any], long_length: int | None, path: str = CONFIG_FILE) -> ModelConfig:
  """Reads transformers' CLIP configuration.

  Args:
    config: the JSON of `config.json`; what it leaves out has transformers' defaults.
    long_length: rows of FG-CLIP's long position table; None for plain CLIP.
    path: named in errors.
  """
  towers = (config.get("text_config"), config.get("vision_config"))
  if config.get("model_type", "clip") != "clip" or not all(isinstance(tower, dict) for tower in towers):
    raise ValueError(f"{path!r} is not a CLIP configuration: needs model_type 'clip', text_config and vision_config")
  text = _TEXT_DEFAULTS | config["text_config"] | (config.get("text_config_dict") or {})
  vision = _VISION_DEFAULTS | config["vision_config"] | (config.get("vision_config_dict") or {})

  def tower(values):
    return {
      "width": values["hidden_size"], "depth": values["num_hidden_layers"], "heads": values["num_attention_heads"],
      "mlp_width": values["intermediate_size"], "activation": values["hidden_act"],
      "layer_norm_eps": values["layer_norm_eps"],
    }  # fmt: skip

  try:
    return ModelConfig(
      vision=VisionConfig(**tower(vision), image_size=vision["image_size"], patch_size=vision["patch_size"]),
      text=TextConfig(
        **tower(text),
        vocab_size=text["vocab_size"],
        short_length=text["max_position_embeddings"],
        long_length=long_length,
        end_id=49407 if long_length else text["eos_token_id"],  # FG-CLIP sets it whatever config.json says
      ),
      embedding_width=config.get("projection_dim", 512),
      temperature_init=config.get("logit_scale_init_value", 2.6592),
    )
  except ValueError as error:
    raise ValueError(f"{path!r}: {error}") from error


def to_config_json(config: ModelConfig, dtype: np.dtype) -> dict[str, Any]:
  """The `config.json` that transformers (or FG-CLIP's code) loads this model with."""

  def tower(values, kind):
    return {
      "model_type": f"clip_{kind}_model", "hidden_size": values.width, "num_hidden_layers": values.depth,
      "num_attention_heads": values.heads, "intermediate_size": values.mlp_width, "hidden_act": values.activation,
      "layer_norm_eps": values.layer_norm_eps, "projection_dim": config.embedding_width,
    }  # fmt: skip

  text, vision = config.text, config.vision
  return {
    "architectures": ["FGCLIPModel" if config.fine_grained else "CLIPModel"],
    "model_type": "clip",
    "projection_dim": config.embedding_width,
    "logit_scale_init_value": config.temperature_init,
    "initializer_factor": 1.0,
    "torch_dtype": _DTYPE_NAMES.get(np.dtype(dtype), "float32"),
    "text_config": {
      **tower(text, "text"),
      "vocab_size": text.vocab_size,
      "max_position_embeddings": text.short_length,
      "bos_token_id": 49406,
      "eos_token_id": text.end_id,
      "pad_token_id": 49407,
    },
    "vision_config": {
      **tower(vision, "vision"),
      "image_size": vision.image_size,
      "patch_size": vision.patch_size,
    },
  }


def _read_config(folder: str) -> tuple[ModelConfig, dict[str, Any], SafetensorsFolder]:
  path = os.path.join(folder, CONFIG_FILE)
  if not os.path.exists(path):
    raise FileNotFoundError(f"no {CONFIG_FILE} in {folder!r}: not a PyTorch-format model folder")
  config_json = read_json(path)
  tensors = SafetensorsFolder(folder)
  long_length = None
  if _FGCLIP_ONLY in tensors or "FGCLIPModel" in (config_json.get("architectures") or ()):
    rest = "text_model.embeddings.position_embedding_res.weight"
    long_length = tensors[rest].shape[0] if rest in tensors else 248
  return model_config(config_json, long_length, path), config_json, tensors


def read_config(folder: str) -> ModelConfig:
  """The size of a folder's model; raises as `read` does."""
  return _read_config(folder)[0]


def read(folder: str) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any]]:
  """Reads a PyTorch-format folder of CLIP or FG-CLIP.

  Returns:
    The model's size; its flat parameters in the file's dtype; and what `write` needs to give the same
    files back (`config`: the JSON as it was; `buffers`: sizes of stored `position_ids`, which are no parameters).

  Raises:
    FileNotFoundError, ValueError: name the file, and list every tensor that does not fit.
  """
  config, config_json, tensors = _read_config(folder)
  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}
  buffers = {name: tensors[name].shape[-1] for name in tensors if name.endswith(".position_ids")}
  try:
    flat = from_theirs(_Without(tensors, buffers), config, shapes)
  except ValueError as error:
    raise ValueError(f"{folder!r}: {error}") from None
  return config, flat, {"config": config_json, "buffers": buffers}


class _Without(Mapping):
  """A mapping less some of its keys; reads as lazily as the one it wraps."""

  def __init__(self, mapping, keys):
    self._mapping, self._keys = mapping, [key for key in mapping if key not in keys]

  def __getitem__(self, key):
    return self._mapping[key]

  def __iter__(self):
    return iter(self._keys)

  def __len__(self):
    return len(self._keys)


def write(
  folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray], source: Mapping[str, Any] | None = None
) -> list[str]:
  """Writes a PyTorch-format folder; returns the files' paths.

  Args:
    folder: made if it does not exist.
    config: the model's size.
    flat: flat parameters; their dtype is kept.
    source: what `read` returned for the folder this model came from, so that the same JSON goes out.

  Raises:
    ValueError: the model has a logit bias, which this format has no place for.
  """
  if config.logit_bias is not None:
    raise ValueError("the model has a logit bias (temperature/bias, of the sigmoid contrast): write it as a jax folder")
  os.makedirs(folder, exist_ok=True)
  tensors = to_theirs(flat, config)
  for name, length in (source or {}).get("buffers", {}).items():
    tensors[name] = np.arange(length, dtype=np.int64)[None]
  config_json = (source or {}).get("config") or to_config_json(config, tensors["visual_projection.weight"].dtype)
  paths = [os.path.join(folder, CONFIG_FILE), os.path.join(folder, WEIGHTS_FILE)]
  with open(paths[0], "w", encoding="utf-8") as file:
    json.dump(config_json, file, indent=2)
    file.write("\n")
  tensors = {name: np.asarray(value, order="C") for name, value in sorted(tensors.items())}
  safetensors.numpy.save_file(tensors, paths[1], metadata={"format": "pt"})
  return paths


def to_fgclip(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> tuple[ModelConfig, dict[str, np.ndarray]]:
  """Makes FG-CLIP from plain CLIP: positions stretched 77 to 248, projection and temperature copied."""
  positions = stretch_positions(flat["text/short_positions"])
  return config.replace(text={"long_length": len(positions), "end_id": 49407}), {
    **flat,
    "text/long_positions": positions,
    "long_projection/kernel": flat["short_projection/kernel"],
    "temperature/regional": flat["temperature/global"],
    "temperature/hard_negative": flat["temperature/global"],
  }
