"""`config.json` of transformers' SigLIP and SigLIP 2, and of FG-CLIP 2, whose code is made of SigLIP 2's.

SigLIP 2's models for square pictures are `SiglipModel`s as those of SigLIP; `Siglip2Model` is the one for pictures of
any shape (NaFlex).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from fgclip_jax.models.config import END_ID, ModelConfig, NaflexVisionConfig, SiglipTextConfig, SiglipVisionConfig
from fgclip_jax.weights.clip_to_fgclip import REGION_TEMPERATURE
from fgclip_jax.weights.name_map import tensor_shape

FGCLIP2 = re.compile(r"fg_?clip_?2.*", re.IGNORECASE)
_SIGLIP = re.compile(r"siglip2?(model)?", re.IGNORECASE)
_FGCLIP2_HEAD = "longtext_head.weight"
_HEAD = "text_model.head.weight"
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_LONG = "text_model.embeddings.position_embedding_res.weight"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_TEMPERATURE, _BIAS = math.log(10), -10.0  # with which SigLIP's training begins
# By the rows of the token table: the tokenizer, and the ids that end a text and fill its row. Files say other ids: the
# classes' defaults, which nothing uses, are those of CLIP.
_TOKENIZERS = {
  32000: ("siglip", 1, 1), 250000: ("siglip", 1, 1), 256000: ("gemma", 1, 0), END_ID + 1: ("clip_padded", END_ID, 0),
}  # fmt: skip
_OTHER_TOKENIZER = ("gemma", 1, 0)
# what transformers fills in where config.json is silent
_TOWER_DEFAULTS = {
  "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
  "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
_TEXT_DEFAULTS = _TOWER_DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64}
_VISION_DEFAULTS = _TOWER_DEFAULTS | {"image_size": 224, "patch_size": 16}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}  # the others have the same names


def describes(values: Mapping[str, Any]) -> bool:
  """Whether a config.json is that of such a model, by its `model_type`, or without one by its classes."""
  kind, classes = values.get("model_type"), values.get("architectures")
  said = [kind] if kind is not None else classes if isinstance(classes, list) else []
  return any(isinstance(each, str) and (_SIGLIP.fullmatch(each) or FGCLIP2.fullmatch(each)) for each in said)


def model_config(values: Mapping[str, Any], tensors: Mapping[str, Any], path: str) -> ModelConfig:
  """The size of a model.

  Args:
    values: the JSON of `config.json`; what it leaves out has transformers' defaults, but for the number of positions,
      which are those that are there.
    tensors: the model's, of which names and shapes are looked at.
    path: named in errors.

  Raises:
    ValueError: names the file, and what is impossible or has no counterpart here.
  """
  try:
    text, vision = (_section(values, name) for name in ("text_config", "vision_config"))
    text, vision = _TEXT_DEFAULTS | text, _VISION_DEFAULTS | vision
    if vision.get("vision_use_head") is False:
      raise ValueError("vision_config.vision_use_head = False leaves the pooling out, and the model has no features")
    said = (values.get("model_type"), *(values.get("architectures") or ()))
    is_fgclip2 = _FGCLIP2_HEAD in tensors or any(FGCLIP2.fullmatch(str(each)) for each in said)
    is_squares = any(re.fullmatch("siglip(model)?", str(each), re.IGNORECASE) for each in said)
    width = vision["hidden_size"]
    # a file may hold a head though the config says no_head: transformers applies the one that is there
    head = _HEAD in tensors or not text.get("no_head")
    if (joint := text.get("projection_size") or text["hidden_size"]) != width and head:
      raise ValueError(f"text_config.projection_size {joint} is not vision_config.hidden_size {width}")
    return siglip(_vision(vision, is_fgclip2, is_squares, tensors), _text(text, head, is_fgclip2, tensors))
  except (ValueError, TypeError) as error:  # the values may be of any type
    raise ValueError(f"{path!r}: {error}") from error


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The settings of a tower; files that say little leave whole sections out."""
  section = values.get(name)
  if section is None:
    section = {}
  if not isinstance(section, dict):
    raise ValueError(f"{name} = {section!r:.60} must be a section of settings")
  return {key: value for key, value in section.items() if value is not None}


def _tower(values: Mapping[str, Any]) -> dict[str, Any]:
  activation = values["hidden_act"]
  return {
    "width": values["hidden_size"], "depth": values["num_hidden_layers"], "heads": values["num_attention_heads"],
    "mlp_width": values["intermediate_size"], "layer_norm_eps": values["layer_norm_eps"],
    "activation": _ACTIVATIONS.get(activation, activation) if isinstance(activation, str) else activation,
  }  # fmt: skip


def _rows(tensors: Mapping[str, Any], name: str, default: int) -> int:
  """How many rows a table has; the default where it is not there, which reading reports."""
  shape = tensor_shape(tensors, name) if name in tensors else ()
  return shape[0] if shape else default


def _vision(
  values: Mapping[str, Any], is_fgclip2: bool, is_squares: bool, tensors: Mapping[str, Any]
) -> SiglipVisionConfig | NaflexVisionConfig:
  if _PATCHES in tensors:  # a matrix is NaFlex's, whatever the config calls the model
    has_squares = len(tensor_shape(tensors, _PATCHES)) == 4
  else:
    has_squares = is_squares
  if has_squares:
    sizes = {"image_size": values["image_size"], "patch_size": values["patch_size"]}
    return SiglipVisionConfig(**_tower(values), **sizes, dense_head=is_fgclip2)
  count = values.get("num_patches", _rows(tensors, _POSITIONS, 256))
  if not isinstance(count, int) or count < 1 or math.isqrt(count) ** 2 != count:
    raise ValueError(f"num_patches = {count!r:.60} must be a square number: the positions are those of a square grid")
  sizes = {"patch_size": values["patch_size"], "position_grid": math.isqrt(count)}
  return NaflexVisionConfig(**_tower(values), **sizes, dense_head=is_fgclip2)


def _text(values: Mapping[str, Any], head: bool, is_fgclip2: bool, tensors: Mapping[str, Any]) -> SiglipTextConfig:
  long = values.get("longtext_len", _rows(tensors, _LONG, 196)) if is_fgclip2 else None
  sizes = {"vocab_size": values["vocab_size"], "short_length": values["max_position_embeddings"]}
  return text_config(_tower(values), **sizes, long_length=long, head=head)


def text_config(tower: Mapping[str, Any], vocab_size: Any, **others: Any) -> SiglipTextConfig:
  """A text tower's config, with the tokenizer and the ids that go with a vocabulary of this size."""
  known = _TOKENIZERS.get(vocab_size, _OTHER_TOKENIZER) if isinstance(vocab_size, int) else _OTHER_TOKENIZER
  tokenizer, end_id, pad_id = known
  return SiglipTextConfig(**tower, vocab_size=vocab_size, **others, end_id=end_id, pad_id=pad_id, tokenizer=tokenizer)


def siglip(vision: SiglipVisionConfig | NaflexVisionConfig, text: SiglipTextConfig) -> ModelConfig:
  """A model of these towers, a SigLIP or, where they have its further heads, an FG-CLIP 2."""
  return ModelConfig(
    vision=vision,
    text=text,
    embedding_width=vision.width,
    temperature_init=_TEMPERATURE,
    logit_bias=_BIAS,
    region_temperature_init=None if text.long_length is None else REGION_TEMPERATURE,
  )


def to_config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
  """The `config.json` that transformers (or FG-CLIP 2's code) loads this model with; `dtype` is torch's name."""
  text: Any = config.text  # SigLIP's
  vision: Any = config.vision
  kind = "fgclip2" if config.fine_grained else "siglip2" if vision.takes_patches else "siglip"
  classes = {"fgclip2": "FG_CLIP2_Model", "siglip2": "Siglip2Model", "siglip": "SiglipModel"}
  words = _tower_json(text, f"{kind}_text_model") | {
    "vocab_size": text.vocab_size,
    "max_position_embeddings": text.short_length,
    "projection_size": config.embedding_width,
    "bos_token_id": 2,
    "eos_token_id": text.end_id,
    "pad_token_id": text.pad_id,
  }
  if not text.head:
    words["no_head"] = True
  if config.fine_grained:
    words |= {"longtext_len": text.long_length, "keep_len": 20}
  image = _tower_json(vision, f"{kind}_vision_model") | {"num_channels": 3, "patch_size": vision.patch_size}
  image |= {"num_patches": vision.position_grid**2} if vision.takes_patches else {"image_size": vision.image_size}
  return {
    "architectures": [classes[kind]],
    "model_type": kind,
    "initializer_factor": 1.0,
    "torch_dtype": dtype,
    "text_config": words,
    "vision_config": image,
  }


def _tower_json(tower: Any, model_type: str) -> dict[str, Any]:
  activation = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}.get(tower.activation, tower.activation)
  return {
    "model_type": model_type, "hidden_size": tower.width, "num_hidden_layers": tower.depth,
    "num_attention_heads": tower.heads, "intermediate_size": tower.mlp_width, "hidden_act": activation,
    "layer_norm_eps": tower.layer_norm_eps, "attention_dropout": 0.0,
  }  # fmt: skip
