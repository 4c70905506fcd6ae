"""What the runners beside this file share: a picture and texts as an export's own description wants them; no JAX."""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from fgclip_jax.data.decode import decode_patches
from fgclip_jax.data.image import to_levels
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.data.tokenizers import files, get_tokenizer
from fgclip_jax.models.pixel_spec import PixelSpec


def parse(description: str | None) -> argparse.Namespace:
  """The command line: `folder`, `image` and `text`."""
  parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=pathlib.Path, help="what fgclip_jax.export wrote")
  parser.add_argument("--image", required=True)
  parser.add_argument("--text", nargs="+", required=True)
  return parser.parse_args()


def read_parts(folder: pathlib.Path) -> dict[str, Any]:
  """The parts of an export by name: the file of each, and how its inputs are made."""
  return json.loads((folder / "export.json").read_text())["parts"]


def read_image(path: str, wanted: dict[str, Any]) -> dict[str, np.ndarray]:
  """A picture's arrays by their names: `patches` and `grid` of a picture of any shape, or `pixels` [1, S, S, 3]."""
  if "max_patches" in wanted:
    layout, spec = PatchLayout(wanted["max_patches"], wanted["patch_size"]), PixelSpec(interpolation=wanted["resample"])
    found, grid, _ = decode_patches(pathlib.Path(path).read_bytes(), layout, "exact", pixels=spec)
    padded = np.zeros((1, wanted["max_patches"], found.shape[1]), np.uint8)
    padded[0, : len(found)] = found
    return {"patches": padded, "grid": np.asarray([grid], np.int32)}
  spec = PixelSpec(interpolation=wanted["resample"], fill=wanted["fill"])
  return {"pixels": to_levels(path, wanted["size"], wanted["resize"], pixels=spec)[None]}


def read_texts(texts: list[str], wanted: dict[str, Any], folder: pathlib.Path) -> np.ndarray:
  """Texts as token ids, int32 [N, L]."""
  return get_tokenizer(files.locate(wanted["name"], str(folder)))(texts, wanted["longest"])


def show(texts: list[str], cosines: np.ndarray) -> None:
  """Prints the cosine of the picture with each text."""
  for text, cosine in zip(texts, cosines, strict=True):
    print(f"{cosine:.3f} {text}")
