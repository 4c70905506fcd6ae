"""Compares a picture with texts by a StableHLO export; needs jax, and neither Flax nor the model's code.

python -m fgclip_jax.export --model MODEL exported --format stablehlo
python examples/run_stablehlo.py exported --image photo.jpg --text "a cat" "a dog"
"""

import argparse
import json
import pathlib

import jax

from fgclip_jax.data.image import to_levels
from fgclip_jax.data.tokenizers.clip import Tokenizer
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
  spec = PixelSpec(interpolation=wanted["resample"], fill=wanted["fill"])
  pixels = to_levels(args.image, wanted["size"], wanted["resize"], pixels=spec)[None]  # [1, S, S, 3], uint8
  tokens = Tokenizer()(args.text, parts["text"]["preprocessing"]["longest"])  # [N, L], int32
  cosines = encode_image(pixels) @ encode_text(tokens).T
  for text, cosine in zip(args.text, cosines[0], strict=True):
    print(f"{cosine:.3f} {text}")


if __name__ == "__main__":
  main()
