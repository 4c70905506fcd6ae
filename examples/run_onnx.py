"""Compares a picture with texts by an ONNX export; needs onnxruntime and no JAX.

python -m fgclip_jax.export --model MODEL exported --format onnx
python examples/run_onnx.py exported --image photo.jpg --text "a cat" "a dog"
"""

import exported_inputs
import onnxruntime


def main():
  args = exported_inputs.parse(__doc__)
  parts = exported_inputs.read_parts(args.folder)

  def run(part, **arrays):
    return onnxruntime.InferenceSession(args.folder / parts[part]["file"]).run(None, arrays)[0]

  image = exported_inputs.read_image(args.image, parts["image"]["preprocessing"])
  tokens = exported_inputs.read_texts(args.text, parts["text"]["preprocessing"], args.folder)
  exported_inputs.show(args.text, (run("image", **image) @ run("text", tokens=tokens).T)[0])


if __name__ == "__main__":
  main()
