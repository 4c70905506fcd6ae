"""The files beside the weights from which transformers makes its image processor and its tokenizer.

What an image processor's file says is read as transformers reads it, defaults and older forms included. It becomes a
`PixelSpec`, or an error that names the file and the setting: a model whose pictures are made ready in another way than
it was trained with gives plausible embeddings that are wrong.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, SIGLIP_PIXELS, PixelSpec
from fgclip_jax.weights.tensor_files import read_json

IMAGE_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # of transformers 5, which reads the section `image_processor` first
TOKENIZER_FILE = "tokenizer_config.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")
# of tokenizers that are a model's own: what a folder has of these goes wherever the model goes
OWN_TOKENIZER_FILES = (
  "tokenizer.json", "tokenizer.model", "spiece.model", TOKENIZER_FILE, "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
FILES = (IMAGE_FILE, PROCESSOR_FILE, *VOCABULARY_FILES, *OWN_TOKENIZER_FILES)

# what transformers fills in where the file is silent, by the start of the processor's class; sizes are the model's
_CROPPED = {"square": False, "do_center_crop": True, "mean": CLIP_PIXELS.mean, "std": CLIP_PIXELS.std, "resample": 3}
_SQUASHED = {"square": True, "do_center_crop": False, "mean": (0.5,) * 3, "std": (0.5,) * 3}
_DEFAULTS = {
  "CLIP": _CROPPED,
  "Bit": _CROPPED,
  "Siglip": _SQUASHED | {"resample": 3},
  "ViT": _SQUASHED | {"resample": 2},
}
# of processors that cut pictures of any shape into patches
_PATCH_DEFAULTS = _SQUASHED | {"resample": 2, "patch_size": 16, "max_num_patches": 256}
_PATCH_STARTS = ("Siglip2", "Fgclip2")
_KINDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_OTHER_STEPS = ("crop_pct", "rescale_offset", "size_divisor", "max_size")


def read_image(folder: str, config: ModelConfig) -> ModelConfig:
  """The config of a model with what its folder says of how pictures are made ready.

  A folder that is silent leaves each tower its default. FG-CLIP's published code squashes a picture before it calls the
  processor, whose own resizing and cropping then change nothing; so they are taken as FG-CLIP's way if they are of the
  model's size. Of a model for pictures of any shape, the number of patches is that taken where none is asked for
  (FG-CLIP 2's `dynamic_max_patches` is for the caller to ask for).

  Raises:
    ValueError: names the file and a setting that no `PixelSpec` can express.
  """
  path, values = _open(folder)
  if values is None:
    return config
  try:
    if config.vision.takes_patches:
      return config.replace(vision=_read_patches(values, config.vision.patch_size))
    squashed_before = config.fine_grained and config.text.type == "causal"
    return config.replace(vision={"pixels": _read_squares(values, config.vision.image_size, squashed_before)})
  except ValueError as error:
    advice = "change it, or remove the file to have pictures made ready as the published models do"
    raise ValueError(f"{path!r}: {error}: {advice}") from error


def _open(folder: str) -> tuple[str, dict[str, Any] | None]:
  """The file that describes the image processor, and its settings; None: there is none."""
  path, values = os.path.join(folder, PROCESSOR_FILE), None
  if os.path.exists(path):
    values = read_json(path).get("image_processor")
  if values is None:
    path = os.path.join(folder, IMAGE_FILE)
    values = read_json(path) if os.path.exists(path) else None
  if values is None:
    return path, None
  if not isinstance(values, Mapping):
    raise ValueError(f"{path!r}: image_processor = {values!r} must be a section of settings")
  return path, {key: value for key, value in values.items() if value is not None}


def _read_squares(values: Mapping[str, Any], side: int, squashed_before: bool) -> PixelSpec:
  defaults = _defaults(values)
  steps = _read_steps(values, defaults)
  resize = _read_resize(values, steps, bool(defaults["square"]), side, squashed_before)
  mean, std = _read_levels(values, steps, defaults)
  return PixelSpec(mean, std, resize, _read_filter(values, defaults))


def _read_patches(values: Mapping[str, Any], patch_size: int) -> dict[str, Any]:
  """The fields of a NaFlex tower's config that an image processor decides."""
  kind, defaults = values.get("image_processor_type", "Siglip2ImageProcessor"), _PATCH_DEFAULTS
  if kind not in [start + end for start in _PATCH_STARTS for end in _KINDS]:
    known = ", ".join(f"{start}ImageProcessor" for start in _PATCH_STARTS)
    raise ValueError(f"image_processor_type = {kind!r} makes no patches of pictures of any shape, as {known} do")
  sizes = {name: values.get(name, defaults[name]) for name in ("patch_size", "max_num_patches")}
  for name, size in sizes.items():
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
      raise ValueError(f"{name} = {size!r} must be a positive number")
  if sizes["patch_size"] != patch_size:
    raise ValueError(f"patch_size = {sizes['patch_size']} is not the model's, {patch_size}")
  steps = _read_steps(values, defaults)
  if not steps["do_resize"]:
    raise ValueError("do_resize = False leaves pictures as large as they are, which may be no whole patches")
  if steps["do_center_crop"]:
    raise ValueError("do_center_crop = True cuts pictures, and the model sees whole ones")
  mean, std = _read_levels(values, steps, defaults)
  return {
    "pixels": PixelSpec(mean, std, SIGLIP_PIXELS.resize, _read_filter(values, defaults)),
    "max_patches": sizes["max_num_patches"],
  }


def _read_steps(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, bool]:
  """Which steps are taken; an error names one that has no counterpart here."""
  steps = {name: values.get(name, defaults.get(name, True)) for name in _STEPS}
  for name, value in values.items():
    if name in steps and not isinstance(value, bool):
      raise ValueError(f"{name} = {value!r} must be true or false")
    if value and ((name.startswith("do_") and name not in steps) or name in _OTHER_STEPS):
      raise ValueError(f"{name} = {value!r} is a step that has no counterpart here")
  return steps


def _read_filter(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
  resample = values.get("resample", defaults["resample"])
  if isinstance(resample, bool) or resample not in list(Image.Resampling):
    raise ValueError(f"resample = {resample!r} must be Pillow's number of a filter, 0 to 5")
  return Image.Resampling(resample).name.lower()


def _read_levels(values: Mapping[str, Any], steps: Mapping[str, bool], defaults: Mapping[str, Any]) -> tuple:
  """Mean and std of red, green and blue, for levels that are divided by 255 here."""
  mean, std = (0.0,) * 3, (1.0,) * 3
  if steps["do_normalize"]:
    mean, std = (_colours(f"image_{name}", values.get(f"image_{name}", defaults[name])) for name in ("mean", "std"))
  factor = values.get("rescale_factor", 1 / 255) if steps["do_rescale"] else 1.0
  if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
    raise ValueError(f"rescale_factor = {factor!r} must be a positive number")
  if abs(255 * factor - 1) > 1e-6:  # (factor * level - mean) / std
    mean, std = (tuple(value / (255 * factor) for value in each) for each in (mean, std))
  return mean, std


def _defaults(values: Mapping[str, Any]) -> Mapping[str, Any]:
  """What transformers fills in for the image processor of these settings."""
  key = next((key for key in ("image_processor_type", "feature_extractor_type") if key in values), None)
  if key is None:
    return _CROPPED
  for start, defaults in _DEFAULTS.items():
    if values[key] in [start + kind for kind in _KINDS]:
      return defaults
  known = ", ".join(f"{start}ImageProcessor" for start in _DEFAULTS)
  raise ValueError(f"{key} = {values[key]!r} is not known here, only {known}")


def _colours(key: str, value: Any) -> tuple:
  """Three values from three or, as transformers allows, from one for all colours."""
  values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
  good = len(values) == 3 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
  if not good or (key == "image_std" and min(values) <= 0):
    raise ValueError(f"{key} = {value!r} must be {'positive numbers' if key == 'image_std' else 'numbers'} of RGB")
  return values


def _read_resize(
  values: Mapping[str, Any], steps: Mapping[str, bool], square: bool, side: int, squashed_before: bool
) -> str | None:
  """How pictures become squares; None where that is the model's own way."""
  square = bool(values.get("use_square_size", square))
  squashed, edge = _edge("size", values.get("size", side), square)
  crop = _edge("crop_size", values.get("crop_size", side), True)[1] if steps["do_center_crop"] else side
  sizes = ([("size", edge)] if steps["do_resize"] else []) + [("crop_size", crop)]
  for key, found in sizes:
    if found != side:
      raise ValueError(f"{key} = {values[key]!r} gives pictures of {found} pixels, and the model reads {side}")
  if squashed_before:
    return None
  if not steps["do_resize"]:
    raise ValueError("do_resize = False leaves pictures as large as they are, and the model reads squares")
  if squashed:
    return "squash"
  if not steps["do_center_crop"]:
    raise ValueError("do_center_crop = False leaves pictures longer than wide, and the model reads squares")
  return None


def _edge(key: str, value: Any, square: bool) -> tuple[bool, int]:
  """Whether a size is that of both sides, and how many pixels it has."""
  if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
    square, value = False, value["shortest_edge"]
  elif isinstance(value, Mapping) and set(value) == {"height", "width"}:
    value = [value["height"], value["width"]]
  if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
    square, value = True, value[0]
  if not isinstance(value, int) or isinstance(value, bool):
    raise ValueError(
      f"{key} = {value!r} must be a side in pixels: one number, shortest_edge, or height and width alike"
    )
  return square, value


def check_image(config: ModelConfig) -> None:
  """A ValueError if transformers' image processor has no place for how the model's pictures are made ready."""
  if config.resize == "pad":
    raise ValueError(
      "the model's pictures are padded (vision.pixels.resize = 'pad'), which transformers' CLIPImageProcessor has no "
      "place for: write it as jax or open_clip"
    )


def write_image(folder: str, config: ModelConfig) -> list[str]:
  """Writes how pictures are made ready; returns the path. Errors as those of `check_image`."""
  check_image(config)
  vision: Any = config.vision  # of a dataclass, whatever its type
  side, pixels = vision.image_size, vision.pixels
  square = {"height": side, "width": side}
  crop = config.resize == "center_crop"
  sizes: dict[str, Any]
  if vision.takes_patches:
    kind, sizes = "Siglip2", {"patch_size": vision.patch_size, "max_num_patches": vision.max_patches}
  elif vision.type == "siglip" and not crop:
    kind, sizes = "Siglip", {"size": square}
  else:
    kind, sizes = "CLIP", {"size": {"shortest_edge": side} if crop else square}
    sizes |= {"do_center_crop": crop, "crop_size": square}
  values: dict[str, Any] = {
    "image_processor_type": f"{kind}ImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    **sizes,
    "resample": Image.Resampling[pixels.interpolation.upper()].value,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(pixels.mean),
    "image_std": list(pixels.std),
  }
  return [_write_json(folder, IMAGE_FILE, values)]


def write_tokenizer(folder: str, config: ModelConfig) -> list[str]:
  """Writes CLIP's tokenizer; nothing for a model with another one, or another vocabulary. Returns the paths."""
  from fgclip_jax.data.tokenizers import clip  # here: only writing needs ftfy and tokenizers, which take long to import

  if config.text.tokenizer != "clip" or config.text.vocab_size != clip.VOCAB_SIZE:
    return []
  values = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": config.text.short_length,
    "do_lower_case": True,
    "bos_token": clip.START,
    "eos_token": clip.END,
    "pad_token": clip.END,
    "unk_token": clip.END,
  }
  return [_write_json(folder, TOKENIZER_FILE, values), *clip.Tokenizer().save_vocabulary(folder)]


def _write_json(folder: str, name: str, values: dict[str, Any]) -> str:
  path = os.path.join(folder, name)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(values, file, indent=2)
    file.write("\n")
  return path
