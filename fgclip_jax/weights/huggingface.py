"""Models in PyTorch format, as transformers saves them: `config.json` beside the weights.

These are CLIP and FG-CLIP, SigLIP and SigLIP 2 and FG-CLIP 2 (whose config is in `huggingface_siglip.py`).
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from fgclip_jax.models.config import ModelConfig, TextConfig, VisionConfig
from fgclip_jax.weights import families, huggingface_names, huggingface_processor, huggingface_siglip
from fgclip_jax.weights.clip_to_fgclip import REGION_TEMPERATURE, with_text_head
from fgclip_jax.weights.name_map import leaf_shapes, read_rows, write_rows
from fgclip_jax.weights.tensor_files import Tensors, find_file, open_tensors, read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
_TYPES = ("clip", "longclip", "long_clip")
_VISION_TYPE = "clip_vision_model"
_SIGLIP_TOWERS = ("siglip", "naflex")
_MAX_POSITIONS = 1 << 20
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


def _tower(values: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "width": values["hidden_size"], "depth": values["num_hidden_layers"], "heads": values["num_attention_heads"],
    "mlp_width": values["intermediate_size"], "activation": values["hidden_act"],
    "layer_norm_eps": values["layer_norm_eps"],
  }  # fmt: skip


def _vision_config(values: Mapping[str, Any]) -> VisionConfig:
  return VisionConfig(**_tower(values), image_size=values["image_size"], patch_size=values["patch_size"])


def model_config(config: Mapping[str, Any], long_length: int | None, path: str = CONFIG_FILE) -> ModelConfig:
  """Reads transformers' CLIP configuration.

  Args:
    config: the JSON of `config.json`; what it leaves out has transformers' defaults.
    long_length: rows of FG-CLIP's long position table; None for plain CLIP.
    path: named in errors.
  """
  if config.get("model_type") == _VISION_TYPE:
    raise ValueError(f"{path!r} describes an image tower alone (a CLIPVisionModel): a model needs a text tower too")
  families.check_config(path, config)
  towers = (config.get("text_config"), config.get("vision_config"))
  if config.get("model_type", "clip") not in _TYPES or not all(isinstance(tower, dict) for tower in towers):
    has = f"model_type {config.get('model_type')!r:.60}, architectures {config.get('architectures')!r:.80}"
    needs = "needs model_type 'clip', text_config and vision_config"
    raise ValueError(f"{path!r} is not a CLIP configuration ({has}): {needs}")
  try:
    text = _TEXT_DEFAULTS | config["text_config"] | (config.get("text_config_dict") or {})
    vision = _VISION_DEFAULTS | config["vision_config"] | (config.get("vision_config_dict") or {})
    return ModelConfig(
      vision=_vision_config(vision),
      text=TextConfig(
        **_tower(text),
        vocab_size=text["vocab_size"],
        short_length=text["max_position_embeddings"],
        long_length=long_length,
        end_id=49407 if long_length else text["eos_token_id"],  # FG-CLIP sets it whatever config.json says
      ),
      embedding_width=config.get("projection_dim", 512),
      temperature_init=config.get("logit_scale_init_value", 2.6592),
    )
  except (ValueError, TypeError) as error:  # the values may be of any type
    raise ValueError(f"{path!r}: {error}") from error


def to_config_json(config: ModelConfig, dtype: np.dtype) -> dict[str, Any]:
  """The `config.json` that transformers (or FG-CLIP's code) loads this model with."""
  text, dtype_name = config.text, _DTYPE_NAMES.get(np.dtype(dtype), "float32")
  if text.type == "siglip":
    return huggingface_siglip.to_config_json(config, dtype_name)
  return {
    "architectures": ["FGCLIPModel" if config.fine_grained else "CLIPModel"],
    "model_type": "clip",
    "projection_dim": config.embedding_width,
    "logit_scale_init_value": config.temperature_init,
    "initializer_factor": 1.0,
    "torch_dtype": dtype_name,
    "text_config": {
      **_tower_json(text, "clip_text_model", config.embedding_width),
      "vocab_size": text.vocab_size,
      "max_position_embeddings": text.short_length,
      "bos_token_id": 49406,
      "eos_token_id": text.end_id,
      "pad_token_id": 49407,
    },
    "vision_config": _vision_json(config),
  }


def _tower_json(values, model_type: str, embedding_width: int) -> dict[str, Any]:
  return {
    "model_type": model_type, "hidden_size": values.width, "num_hidden_layers": values.depth,
    "num_attention_heads": values.heads, "intermediate_size": values.mlp_width, "hidden_act": values.activation,
    "layer_norm_eps": values.layer_norm_eps, "projection_dim": embedding_width,
  }  # fmt: skip


def _vision_json(config: ModelConfig) -> dict[str, Any]:
  sizes = {"image_size": config.vision.image_size, "patch_size": config.vision.patch_size}
  return _tower_json(config.vision, _VISION_TYPE, config.embedding_width) | sizes


def _open(path: str, allow_pickle: bool) -> tuple[str, dict[str, Any], Tensors]:
  """The path of the config, what it holds, and the tensors, of a folder or of a file in it."""
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  config_file = os.path.join(folder, CONFIG_FILE)
  if not os.path.exists(config_file):
    raise FileNotFoundError(f"no {CONFIG_FILE} in {folder!r}: a model under transformers' names needs it")
  config = read_json(config_file)
  families.check_config(config_file, config)
  file = find_file(path, WEIGHTS_FILES) if os.path.isdir(path) else path
  return config_file, config, open_tensors(file, allow_pickle)


def _read_config(path: str, allow_pickle: bool) -> tuple[ModelConfig, dict[str, Any], Tensors]:
  config_file, config_json, tensors = _open(path, allow_pickle)
  if huggingface_siglip.describes(config_json):
    config = huggingface_siglip.model_config(config_json, tensors, config_file)
  else:
    long_length = None
    classes = config_json.get("architectures")
    if _FGCLIP_ONLY in tensors or (isinstance(classes, list) and "FGCLIPModel" in classes):
      rest = tensors.shape(huggingface_names.LONG_REST) if huggingface_names.LONG_REST in tensors else ()
      long_length = rest[0] if rest else 248
    config = model_config(config_json, long_length, config_file)
  return huggingface_processor.read_image(os.path.dirname(config_file), config), config_json, tensors


def read_config(path: str, allow_pickle: bool = False) -> ModelConfig:
  """The size of a model; raises as `read` does."""
  return _read_config(path, allow_pickle)[0]


def read(path: str, allow_pickle: bool = False) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any]]:
  """Reads a PyTorch-format model.

  Args:
    path: a folder, or a file of weights with `config.json` beside it.
    allow_pickle: see `tensor_files.open_tensors`.

  Returns:
    The model's size; its flat parameters in the file's dtype; and what `write` needs to give the same
    files back (`config`: the JSON as it was; `buffers`: sizes of stored `position_ids`, which are no parameters;
    `absent`: temperatures that the files lack; `unused`: rows of positions that nothing reads).

  Raises:
    FileNotFoundError, ValueError: name the file, and list every tensor that does not fit.
  """
  config, config_json, tensors = _read_config(path, allow_pickle)
  tensors.print_note()
  shapes = leaf_shapes(config)
  buffers = {
    name: tensors.shape(name)[-1] for name in tensors if name.endswith(".position_ids") and tensors.shape(name)
  }
  source: dict[str, Any] = {"format": "pytorch", "config": config_json, "buffers": buffers}
  tensors = tensors.renamed(_no_buffer)
  if absent := _absent_temperatures(config, tensors):
    print(f"{path!r} has no {' and no '.join(absent)}: taken to be ln 100, FG-CLIP 2's first value", file=sys.stderr)
    source["absent"] = sorted(absent)
    tensors = tensors.replaced(absent)
  try:
    flat = huggingface_names.from_theirs(tensors, config, shapes)
  except ValueError as error:
    raise ValueError(f"{path!r}: {error}") from None
  if config.fine_grained:
    source["unused"] = huggingface_names.unused_positions(tensors)
  return config, flat, source


def _absent_temperatures(config: ModelConfig, tensors: Tensors) -> dict[str, np.ndarray]:
  """FG-CLIP 2's temperatures of regions that a file has not, with their first value: published files lack them."""
  if config.region_temperature_init is None:
    return {}
  names = huggingface_names.REGION_TEMPERATURES.values()
  return {name: np.asarray(config.region_temperature_init, np.float32) for name in names if name not in tensors}


def _no_buffer(name: str) -> str | None:
  return None if name.endswith("position_ids") else name


def read_vision(path: str, allow_pickle: bool = False) -> tuple[VisionConfig, dict[str, np.ndarray]]:
  """Reads the image tower alone, of a `CLIPVisionModel` or of a whole model: its size and its flat parameters.

  Without its projection; the parameters' names begin with `vision/`. Args and errors as for `read`.
  """
  config_file, config_json, tensors = _open(path, allow_pickle)
  alone = config_json.get("model_type") == _VISION_TYPE
  values = config_json if alone else config_json.get("vision_config") or {}
  try:
    config = _vision_config(_VISION_DEFAULTS | values)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{config_file!r}: {error}") from error
  # transformers 5 leaves the tower's name out where there is no other
  bare = alone and not any(name.startswith("vision_model.") for name in tensors)

  def rename(name):
    name = f"vision_model.{name}" if bare else name
    return _no_buffer(name) if name.startswith("vision_model.") else None

  shapes = leaf_shapes(ModelConfig(config, TextConfig(64, 1, 1, 64), 64))
  rows = huggingface_names.vision_table(config)
  try:
    return config, read_rows(rows, tensors.renamed(rename), shapes)
  except ValueError as error:
    raise ValueError(f"{path!r}: {error}") from None


def write(
  folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray], source: Mapping[str, Any] | None = None
) -> list[str]:
  """Writes a PyTorch-format folder, with the files of transformers' processors; returns the files' paths.

  Args:
    folder: made if it does not exist.
    config: the model's size.
    flat: flat parameters; their dtype is kept.
    source: what `read` returned for the folder this model came from, so that the same JSON goes out.

  Raises:
    ValueError: the format has no place for this model: it has a logit bias or a ResNet, or its pictures are padded.
  """
  _check(config)
  source = source if (source or {}).get("format", "pytorch") == "pytorch" else None
  if config.text.type == "siglip" and not source:
    config, flat = with_text_head(config, flat)  # transformers' class always has one
  tensors = huggingface_names.to_theirs(flat, config)
  for name, length in (source or {}).get("buffers", {}).items():
    if length <= _MAX_POSITIONS:
      tensors[name] = np.arange(length, dtype=np.int64)[None]
  huggingface_names.restore_unused(tensors, (source or {}).get("unused", {}))
  for name in (source or {}).get("absent", []):
    if name in tensors and np.float32(tensors[name]) == np.float32(REGION_TEMPERATURE):
      del tensors[name]
  config_json = (source or {}).get("config") or to_config_json(config, common_dtype(flat.values()))
  paths = save(folder, config_json, tensors)
  return (
    paths + huggingface_processor.write_image(folder, config) + huggingface_processor.write_tokenizer(folder, config)
  )


def write_vision(folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray]) -> list[str]:
  """Writes the image tower as a `CLIPVisionModel` (LLaVA's and others' image encoder); returns the files' paths.

  It has no projection: its users read hidden states. Raises as `write` does.
  """
  if config.text.type != "causal":
    raise ValueError("the image tower is a SigLIP's and no CLIPVisionModel: write the whole model, as siglip")
  _check(config)
  tensors = write_rows(huggingface_names.IMAGE_ROWS[config.vision.type](config.vision), flat)
  kept = {"torch_dtype": _DTYPE_NAMES.get(common_dtype(tensors.values()), "float32")}
  config_json = {"architectures": ["CLIPVisionModel"], **_vision_json(config), **kept}
  return save(folder, config_json, tensors) + huggingface_processor.write_image(folder, config)


def _check(config: ModelConfig) -> None:
  towers = (config.vision.type, config.text.type)
  if (config.vision.type in _SIGLIP_TOWERS) != (config.text.type in _SIGLIP_TOWERS):
    raise ValueError(f"transformers has no model with these two towers, {towers}: write it as jax")
  if config.text.type in _SIGLIP_TOWERS:
    if config.fine_grained and not config.vision.takes_patches:
      raise ValueError(
        "FG-CLIP 2's published code takes pictures of any shape, and this model takes squares: convert it --as naflex "
        "too, or write it as jax"
      )
    return
  if config.logit_bias is not None:
    raise ValueError(
      "the model has a logit bias (temperature/bias, of the sigmoid contrast), which transformers' CLIP has no place "
      "for: write it as jax or open_clip"
    )
  if config.vision.type not in huggingface_names.IMAGE_ROWS:
    raise ValueError(f"transformers' CLIP has no {config.vision.label}: write it as jax or open_clip")
  huggingface_processor.check_image(config)


def common_dtype(arrays: Iterable[np.ndarray]) -> np.dtype:
  """The dtype of all arrays, float32 if they differ."""
  dtypes = {np.dtype(array.dtype) for array in arrays}
  return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def save(
  folder: str,
  config_json: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  config_file: str = CONFIG_FILE,
  weights_file: str = WEIGHTS_FILE,
) -> list[str]:
  """Writes a JSON file and a safetensors file into a folder, which is made; returns their paths."""
  os.makedirs(folder, exist_ok=True)
  paths = [os.path.join(folder, config_file), os.path.join(folder, weights_file)]
  with open(paths[0], "w", encoding="utf-8") as file:
    json.dump(config_json, file, indent=2)
    file.write("\n")
  tensors = {name: np.asarray(value, order="C") for name, value in sorted(tensors.items())}
  safetensors.numpy.save_file(tensors, paths[1], metadata={"format": "pt"})
  return paths
