"""The files beside the weights from which transformers makes its image processor and its tokenizer."""

import json
import os
from typing import Any

from fgclip_jax.data.image import MEAN, STD
from fgclip_jax.data.tokenizers.clip import END, START, VOCAB_SIZE, Tokenizer
from fgclip_jax.models.config import ModelConfig

IMAGE_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")
FILES = (IMAGE_FILE, TOKENIZER_FILE, *VOCABULARY_FILES)
_BICUBIC = 3  # Pillow's number for it


def write_image(folder: str, config: ModelConfig) -> list[str]:
  """Writes how images are made ready: squashed to a square for FG-CLIP, cut to one for plain CLIP. Returns the path."""
  side = config.vision.image_size
  square = {"height": side, "width": side}
  values: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": square if config.fine_grained else {"shortest_edge": side},
    "resample": _BICUBIC,
    "do_center_crop": not config.fine_grained,
    "crop_size": square,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
  }
  return [_write_json(folder, IMAGE_FILE, values)]


def write_tokenizer(folder: str, config: ModelConfig) -> list[str]:
  """Writes CLIP's tokenizer; nothing for a model with another vocabulary. Returns the paths."""
  if config.text.vocab_size != VOCAB_SIZE:
    return []
  values = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": config.text.short_length,
    "do_lower_case": True,
    "bos_token": START,
    "eos_token": END,
    "pad_token": END,
    "unk_token": END,
  }
  return [_write_json(folder, TOKENIZER_FILE, values), *Tokenizer().save_vocabulary(folder)]


def _write_json(folder: str, name: str, values: dict[str, Any]) -> str:
  path = os.path.join(folder, name)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(values, file, indent=2)
    file.write("\n")
  return path
