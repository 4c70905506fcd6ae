"""Compares a picture with texts by a StableHLO export; needs jax, and neither Flax nor the model's code.

python -m fgclip_jax.export --model MODEL exported --format stablehlo
python examples/run_stablehlo.py exported --image photo.jpg --text "a cat" "a dog"
"""

import exported_inputs
import jax


def main():
  args = exported_inputs.parse(__doc__)
  parts = exported_inputs.read_parts(args.folder)

  def load(part):
    data = (args.folder / parts[part]["file"]).read_bytes()
    return jax.jit(jax.export.deserialize(bytearray(data)).call)  # compiled once for each batch size

  encode_image, encode_text = load("image"), load("text")
  image = exported_inputs.read_image(args.image, parts["image"]["preprocessing"])
  tokens = exported_inputs.read_texts(args.text, parts["text"]["preprocessing"], args.folder)
  exported_inputs.show(args.text, (encode_image(*image.values()) @ encode_text(tokens).T)[0])


if __name__ == "__main__":
  main()
