"""Compares a picture with texts by a StableHLO export; needs jax, and neither Flax nor the model's code.

python -m fgclip_jax.export --model MODEL exported --format stablehlo
python examples/run_stablehlo.py exported --image photo.jpg --text "a cat" "a dog"
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from fgclip_jax.data.decode import decode_patches
from fgclip_jax.data.image import to_levels
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.data.tokenizers import files, get_tokenizer
from fgclip_jax.models.pixel_spec import PixelSpec


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=pathlib.Path, help="what fgclip_jax.export wrote")
  parser.add_argument("--image", required=True)
  parser.add_argument("--text", nargs="+", required=True)
  args = parser.parse_args()
  parts = json.loads((args.folder / "export.json").read_text())["parts"]

  def load(part):
    data = (args.folder / parts[part]["file"]).read_bytes()
    return jax.jit(jax.export.deserialize(bytearray(data)).call)  # compiled once for each batch size

  encode_image, encode_text = load("image"), load("text")
  wanted = parts["image"]["preprocessing"]
  if "max_patches" in wanted:  # a picture of any shape
    layout, spec = PatchLayout(wanted["max_patches"], wanted["patch_size"]), PixelSpec(interpolation=wanted["resample"])
    found, grid, _ = decode_patches(pathlib.Path(args.image).read_bytes(), layout, "exact", pixels=spec)
    padded = np.zeros((1, wanted["max_patches"], found.shape[1]), np.uint8)
    padded[0, : len(found)] = found
    image = {"patches": padded, "grid": np.asarray([grid], np.int32)}
  else:
    spec = PixelSpec(interpolation=wanted["resample"], fill=wanted["fill"])
    image = {"pixels": to_levels(args.image, wanted["size"], wanted["resize"], pixels=spec)[None]}  # uint8 [1, S, S, 3]
  wanted = parts["text"]["preprocessing"]
  tokenizer = get_tokenizer(files.locate(wanted["name"], str(args.folder)))
  tokens = tokenizer(args.text, wanted["longest"])  # [N, L], int32
  cosines = encode_image(*image.values()) @ encode_text(tokens).T
  for text, cosine in zip(args.text, cosines[0], strict=True):
    print(f"{cosine:.3f} {text}")


if __name__ == "__main__":
  main()
