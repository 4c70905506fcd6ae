"""Models of OpenAI's code, of open_clip and of Long-CLIP: one layout of tensors, with or without a config beside it.

Without an `open_clip_config.json`, sizes are inferred from the tensors' shapes. Shapes do not show two things:
the number of attention heads, which is known for the widths of published models and must be said for others, and the
activation, which is taken to be OpenAI's quick_gelu.
"""

import math
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from fgclip_jax.models.config import END_ID, ModelConfig, ResNetConfig, TextConfig, VisionConfig
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights import families, torch_pickle
from fgclip_jax.weights.clip_to_fgclip import to_clip
from fgclip_jax.weights.huggingface import save
from fgclip_jax.weights.name_map import leaf_shapes, read_rows, tensor_shape, write_rows
from fgclip_jax.weights.open_clip_pixels import read_pixels, write_pixels
from fgclip_jax.weights.openai_names import LONG_REST, counters, table
from fgclip_jax.weights.tensor_files import Tensors, find_file, open_tensors, read_json

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_FILES = (
  WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors",
  "pytorch_model.bin",
)  # fmt: skip
HEAD_WIDTH = 64  # of a ResNet's pooling, and where open_clip's config says nothing
# Heads by width, of every ViT and of every text tower among open_clip's model_configs. ViT-H, g, bigG and e have 16.
_IMAGE_HEADS = {384: 6, 512: 8, 768: 12, 896: 14, 1024: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
_TEXT_HEADS = {256: 4, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1280: 20}
_NO_PARAMETERS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
_LARGEST_ID = 2  # TextConfig's number for the rule that these models follow
# open_clip's settings that change what a model computes, with the value under which it is a model of ours
_OURS = {
  "vision_cfg": {
    "pos_embed_type": "learnable", "pool_type": "tok", "ls_init_value": None, "attentional_pool": False,
    "no_ln_pre": False, "final_ln_after_pool": False,
  },
  "text_cfg": {
    "proj_type": "linear", "proj_bias": False, "ls_init_value": None, "embed_cls": False, "no_causal_mask": False,
    "final_ln_after_pool": False, "hf_model_name": None, "hf_tokenizer_name": None, "tokenizer_kwargs": None,
    "tokenizer_mode": None,
  },
}  # fmt: skip
# settings that are read below, or change nothing of the result
_READ = {
  "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"},
  "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "pool_type",
               "eos_id"},
}  # fmt: skip
_HARMLESS = {
  "vision_cfg": {"patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"},
  "text_cfg": {"pad_id", "output_tokens"},
}
_HINTS = {
  "timm_model_name": ": an image tower of timm (SigLIP, EVA-CLIP, MobileCLIP, ConvNeXt and others); use open_clip",
  "hf_model_name": ": a text tower of Hugging Face; use open_clip",
  "hf_tokenizer_name": ": another tokenizer (SigLIP, MetaCLIP 2 and others); use open_clip",
}


def is_ours(names: Collection[str]) -> bool:
  """Whether tensors of these names are of this layout."""
  return any(name.startswith("visual.") for name in names)


def infer_config(
  tensors: Mapping[str, Any], activation: str | None = None, heads: tuple[int, int] | None = None
) -> ModelConfig:
  """The size of a model from its tensors.

  Args:
    tensors: a whole model's, under its names.
    activation: `quick_gelu` (the default) or `gelu`, of both towers.
    heads: attention heads of the image and the text tower; by default those of the published models of these widths.
      A ResNet's are given by its width.

  Raises:
    ValueError: a tensor that the size follows from is missing, there is no such model, or no published one has this
      width and `heads` is not given.
  """
  text = "text." if "text.positional_embedding" in tensors else ""

  def shape(name, rank):
    if name not in tensors:
      raise ValueError(f"there is no {name}, from which the model's size would follow")
    if len(found := tensor_shape(tensors, name)) != rank or 0 in found:
      raise ValueError(f"{name} has shape {found}, from which no size follows")
    return found

  def depth(start, end):
    """How many layers there are with names start0end, start1end..."""
    numbers = [name[len(start) : -len(end)] for name in tensors if name.startswith(start) and name.endswith(end)]
    return len(numbers)

  def tower(prefix, width, given, known):
    if not given and width not in known:
      part = "image" if prefix == "visual." else "text"
      raise ValueError(
        f"the tensors do not show the number of attention heads of the {part} tower, and no published model has its "
        f"width, {width}: say it by heads= (--heads IMAGE TEXT)"
      )
    blocks = f"{prefix}transformer.resblocks."
    return {
      "width": width,
      "depth": depth(blocks, ".ln_1.weight"),
      "heads": given or known[width],
      "mlp_width": shape(f"{blocks}0.mlp.c_fc.weight", 2)[0],
      "activation": activation or "quick_gelu",
    }

  def grid(name):
    return math.isqrt(shape(name, 2)[0] - 1)

  image_heads, text_heads = heads or (None, None)
  if "visual.attnpool.positional_embedding" in tensors:
    depths = tuple(depth(f"visual.layer{number}.", ".conv1.weight") for number in range(1, 5))
    side = 32 * grid("visual.attnpool.positional_embedding")
    vision = ResNetConfig(shape("visual.layer1.0.conv1.weight", 4)[0], depths, side)
  else:
    width, _, patch, _ = shape("visual.conv1.weight", 4)
    side = patch * grid("visual.positional_embedding")
    vision = VisionConfig(**tower("visual.", width, image_heads, _IMAGE_HEADS), image_size=side, patch_size=patch)
  length, width = shape(f"{text}positional_embedding", 2)
  vocabulary, _ = shape(f"{text}token_embedding.weight", 2)
  return ModelConfig(
    vision=vision,
    text=TextConfig(
      **tower(text, width, text_heads, _TEXT_HEADS),
      vocab_size=vocabulary,
      short_length=length,
      long_length=None,
      end_id=_end_id({}, vocabulary),
    ),
    embedding_width=shape(f"{text}text_projection", 2)[1],
    logit_bias=0.0 if "logit_bias" in tensors else None,
  )


def _end_id(text: Mapping[str, Any], vocabulary: int) -> int:
  """Where a text is read: at its largest id, which in CLIP's vocabulary is that of the end of text."""
  if text.get("pool_type", "argmax") == "eos":
    return text.get("eos_id", 2)
  return END_ID if vocabulary == END_ID + 1 else _LARGEST_ID


def model_config(config: Mapping[str, Any], path: str = CONFIG_FILE) -> ModelConfig:
  """Reads open_clip's configuration: the JSON of `open_clip_config.json`, or of one of its `model_configs`.

  Raises:
    ValueError: names the file and the setting that has no counterpart here.
  """
  model = config.get("model_cfg", config)
  vision, text = (model.get(part) if isinstance(model, dict) else None for part in _OURS)
  if not isinstance(vision, dict) or not isinstance(text, dict) or "embed_dim" not in model:
    raise ValueError(f"{path!r} is no configuration of open_clip: needs embed_dim, vision_cfg and text_cfg")
  if "multimodal_cfg" in model:
    raise ValueError(f"{path!r}: multimodal_cfg has no counterpart here: it is a CoCa; use open_clip")
  for part, ours in _OURS.items():
    for key, value in model[part].items():
      fits = value == ours[key] if key in ours else not value or key in _READ[part] | _HARMLESS[part]
      if not fits:
        found = f"{part}.{printable(key)} = {printable(repr(value)[:200])}"
        raise ValueError(f"{path!r}: {found} has no counterpart here{_HINTS.get(key, '')}")
  if text.get("pool_type", "argmax") not in ("argmax", "eos"):
    raise ValueError(f"{path!r}: text_cfg.pool_type = {text['pool_type']!r} has no counterpart here")
  activation = "quick_gelu" if model.get("quick_gelu") else "gelu"

  def tower(values, heads, width):
    return {
      "width": width,
      "depth": values.get("layers", 12),
      "heads": heads,
      "mlp_width": int(width * values.get("mlp_ratio", 4.0)),
      "activation": activation,
      "layer_norm_eps": (values.get("norm_kwargs") or {}).get("eps", 1e-5),
    }

  head_width, text_width = vision.get("head_width", 64), text.get("width", 512)
  size, vocabulary = vision.get("image_size", 224), text.get("vocab_size", END_ID + 1)
  sides = size if isinstance(size, list) else [size]
  try:
    if len(set(sides)) > 1:
      raise ValueError(f"images of {size} are no squares")
    pixels = read_pixels(config.get("preprocess_cfg") or {}, sides[0])
    width = vision.get("width", 768)
    if isinstance(vision.get("layers"), list):
      if head_width != HEAD_WIDTH:
        raise ValueError(f"a ResNet's pooling has heads of 64 channels, not {head_width}")
      tower_config = ResNetConfig(width, tuple(vision["layers"]), sides[0], pixels)
    else:
      patch = vision.get("patch_size", 16)
      values = tower(vision, width // head_width, width)
      tower_config = VisionConfig(**values, image_size=sides[0], patch_size=patch, pixels=pixels)
    return ModelConfig(
      vision=tower_config,
      text=TextConfig(
        **tower(text, text.get("heads", 8), text_width),
        vocab_size=vocabulary,
        short_length=text.get("context_length", 77),
        long_length=None,
        end_id=_end_id(text, vocabulary),
      ),
      embedding_width=model["embed_dim"],
      temperature_init=model.get("init_logit_scale", ModelConfig.temperature_init),
      logit_bias=model.get("init_logit_bias"),
    )
  except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:  # values of any type
    raise ValueError(f"{path!r}: {error}") from error


def to_config_json(config: ModelConfig) -> dict[str, Any]:
  """The `open_clip_config.json` that open_clip loads this model with.

  Raises:
    ValueError: open_clip has no such image tower; the towers have different activations, of which it has one; or
      pictures are resized by a filter that it does not know.
  """
  vision, text = config.vision, config.text
  if vision.type not in _IMAGE_JSON:
    raise ValueError(f"open_clip's CLIP has no {vision.label} of this kind: write it as jax")
  if not isinstance(text, TextConfig):
    raise ValueError("open_clip's CLIP has no SigLIP's text tower: write it as jax")
  activation = getattr(vision, "activation", text.activation)  # a ResNet has none to choose
  if activation != text.activation:
    raise ValueError(
      f"open_clip has one activation for both towers; here the image tower has {activation} and the text tower "
      f"{text.activation}"
    )
  image = {"image_size": vision.image_size, "width": vision.width, **_IMAGE_JSON[vision.type](vision)}
  words = {
    "context_length": text.short_length, "vocab_size": text.vocab_size, "width": text.width, "heads": text.heads,
    "layers": text.depth, **_ratio_and_norm(text),
  }  # fmt: skip
  if text.end_id != _end_id({}, text.vocab_size):
    words |= {} if text.end_id == _LARGEST_ID else {"pool_type": "eos", "eos_id": text.end_id}
  model: dict[str, Any] = {"embed_dim": config.embedding_width, "vision_cfg": image, "text_cfg": words}
  if text.activation == "quick_gelu":
    model["quick_gelu"] = True
  model["init_logit_scale"] = config.temperature_init
  if config.logit_bias is not None:
    model["init_logit_bias"] = config.logit_bias
  return {"model_cfg": model, "preprocess_cfg": write_pixels(config)}


def _vit_json(vision: VisionConfig) -> dict[str, Any]:
  sizes = {"layers": vision.depth, "patch_size": vision.patch_size, "head_width": vision.width // vision.heads}
  return sizes | _ratio_and_norm(vision)


def _resnet_json(vision: ResNetConfig) -> dict[str, Any]:
  return {"layers": list(vision.depths), "patch_size": None}


def _ratio_and_norm(tower: VisionConfig | TextConfig) -> dict[str, Any]:
  ratio = tower.mlp_width / tower.width
  if int(tower.width * ratio) != tower.mlp_width:  # rounded down, as open_clip does
    ratio = (tower.mlp_width + 0.5) / tower.width
  values: dict[str, Any] = {} if ratio == 4 else {"mlp_ratio": ratio}
  return values if tower.layer_norm_eps == 1e-5 else values | {"norm_kwargs": {"eps": tower.layer_norm_eps}}


_IMAGE_JSON: dict[str, Callable[[Any], dict[str, Any]]] = {"vit": _vit_json, "resnet": _resnet_json}  # by type


def _open(
  path: str, allow_pickle: bool, activation: str | None, heads: tuple[int, int] | None
) -> tuple[ModelConfig, dict[str, Any] | None, Tensors]:
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  file = find_file(path, WEIGHTS_FILES) if os.path.isdir(path) else path
  found = open_tensors(file, allow_pickle)
  # OpenAI's archives hold their sizes; anybody may have saved another one
  is_openais = "input_resolution" in found and torch_pickle.is_script(file)
  tensors = found.renamed(lambda name: None if name in _NO_PARAMETERS else name)
  config_file = os.path.join(folder, CONFIG_FILE)
  if os.path.exists(config_file):
    if activation or heads:
      raise ValueError(f"{config_file!r} tells the activation and the heads: leave `activation` and `heads` out")
    config_json = read_json(config_file)
    return model_config(config_json, config_file), config_json, tensors
  try:
    config = infer_config(tensors, activation, heads)
    families.check_vocabulary(file, config.text.vocab_size)
  except ValueError as error:
    raise ValueError(f"{file!r}: {error}") from None
  if not activation and not is_openais and LONG_REST not in tensors:
    warnings.warn(
      f"{file!r} has no {CONFIG_FILE} beside it, so its activation is not known: taken to be quick_gelu, OpenAI's. "
      "Most models trained with open_clip have gelu: say which by activation= (--activation)",
      stacklevel=4,
    )
  return config, None, tensors


def read_config(
  path: str, allow_pickle: bool = False, activation: str | None = None, heads: tuple[int, int] | None = None
) -> ModelConfig:
  """The size of a model; raises as `read` does."""
  return _open(path, allow_pickle, activation, heads)[0]


def read(
  path: str, allow_pickle: bool = False, activation: str | None = None, heads: tuple[int, int] | None = None
) -> tuple[ModelConfig, dict[str, np.ndarray], dict[str, Any]]:
  """Reads a model in OpenAI's, open_clip's or Long-CLIP's layout.

  Args:
    path: a file of weights, or a folder that holds one; with `open_clip_config.json` beside it or not.
    allow_pickle: see `tensor_files.open_tensors`.
    activation, heads: what the tensors do not show, see `infer_config`; an error where there is a config.

  Returns:
    The model's size; its flat parameters in the file's dtypes; and what `write` needs to give the same files back.

  Raises:
    FileNotFoundError, ValueError: name the file, and list every tensor that does not fit.
  """
  config, config_json, tensors = _open(path, allow_pickle, activation, heads)
  tensors.print_note()
  buffers = {name: tensors[name].item() for name in counters(config) if name in tensors}
  text = "text." if "text.positional_embedding" in tensors else ""
  rows = table(config, text, split_positions=LONG_REST in tensors)
  shapes = leaf_shapes(config)
  scalars = ("logit_scale", "logit_bias")  # open_clip also keeps them as arrays of one
  single = {name: tensors[name].reshape(()) for name in scalars if name in tensors and tensors.shape(name) == (1,)}
  kept = tensors.renamed(lambda name: None if name in buffers else name).replaced(single)
  try:
    flat = read_rows(rows, kept, shapes)
  except ValueError as error:
    raise ValueError(f"{path!r}: {error}") from None
  return config, flat, {"format": "open_clip", "config": config_json, "buffers": buffers, "text": text}


def write(
  folder: str, config: ModelConfig, flat: Mapping[str, np.ndarray], source: Mapping[str, Any] | None = None
) -> list[str]:
  """Writes a folder that open_clip loads (`local-dir:FOLDER`); of an FG-CLIP its path for short texts.

  Args:
    folder: made if it does not exist.
    config: the model's size.
    flat: flat parameters; their dtype is kept.
    source: what `read` returned for the file this model came from, so that the same JSON goes out.

  Raises:
    ValueError: see `to_config_json`.
  """
  source = source if source and source.get("format") == "open_clip" else {}
  config, flat = to_clip(config, flat)
  config_json, text = source.get("config"), source.get("text", "")
  if not config_json:
    config_json = to_config_json(config)
  elif model_config(config_json).vision.pixels != config.vision.pixels:  # changed since it was read
    config_json = {
      "model_cfg": config_json.get("model_cfg", config_json),
      "preprocess_cfg": write_pixels(config),
    }
  tensors = write_rows(table(config, text), flat)
  counts = source.get("buffers", {})
  for name in counters(config):
    tensors[name] = np.asarray(counts.get(name, 0), np.int64)
  return save(folder, config_json, tensors, CONFIG_FILE, WEIGHTS_FILE)
