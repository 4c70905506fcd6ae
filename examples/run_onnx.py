"""Compares a picture with texts by an ONNX export; needs onnxruntime and no JAX.

python -m fgclip_jax.export --model MODEL exported --format onnx
python examples/run_onnx.py exported --image photo.jpg --text "a cat" "a dog"
"""

import argparse
import json
import pathlib

import onnxruntime

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

  def run(part, **arrays):
    return onnxruntime.InferenceSession(args.folder / parts[part]["file"]).run(None, arrays)[0]

  wanted = parts["image"]["preprocessing"]
  spec = PixelSpec(interpolation=wanted["resample"], fill=wanted["fill"])
  pixels = to_levels(args.image, wanted["size"], wanted["resize"], pixels=spec)[None]  # [1, S, S, 3], uint8
  tokens = Tokenizer()(args.text, parts["text"]["preprocessing"]["longest"])  # [N, L], int32
  cosines = run("image", pixels=pixels) @ run("text", tokens=tokens).T
  for text, cosine in zip(args.text, cosines[0], strict=True):
    print(f"{cosine:.3f} {text}")


if __name__ == "__main__":
  main()
