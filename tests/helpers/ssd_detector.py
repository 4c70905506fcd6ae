"""A detector of others as a program for `annotate --boxes command:`, with what belongs to it alone.

It is the SSD with MobileNetV2 for 23 classes of Open Images (Google, Apache-2.0) inside the npm package
`@mediapipe/objectron`, run by `ai-edge-litert`, which this project does not need. The program imports nothing of it:

  npm pack @mediapipe/objectron@0.4.1675468480 && tar xf mediapipe-objectron-*.tgz
  pip install ai-edge-litert numpy pillow
  python -m fgclip_jax.annotate --boxes "command:python tests/helpers/ssd_detector.py package" \
    --convention yxyx,fraction ...

A phrase is looked for as the class that its last word names; boxes are top, left, bottom, right as fractions, of which
some end a little outside of the picture.
"""

import hashlib
import json
import math
import os
import sys

import numpy as np
from PIL import Image

FILE, FIRST = "objectron_solution_packed_assets.data", 184  # the labels stand before the model
SHA256 = "d0a5255bf8c4f5a0bc4240741a76c41d5e939f7655078f945f50ab53a9375da6"
SIDE = 300
LEAST = 0.1  # the least score that is told
CELLS = (19, 10, 5, 3, 2, 1)
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
WORDS = {
  "Person": "person people man men woman women boy girl child children baby lady player singer musician driver rider",
  "Bicycle": "bicycle bike", "Boot": "boot", "Laptop": "laptop", "Chair": "chair armchair", "Cattle": "cattle cow bull",
  "Desk": "desk", "Cat": "cat kitten", "Computer monitor": "monitor screen", "Box": "box carton", "Mug": "mug",
  "Coffee cup": "cup", "Table": "table", "Bottle": "bottle", "High heels": "heels", "Footwear": "shoe sneaker sandal",
  "Vehicle": "vehicle truck van bus lorry", "Dog": "dog puppy", "Book": "book", "Camera": "camera",
  "Car": "car sedan convertible coupe",
}  # fmt: skip


def load(folder: str):
  """The labels and the model, from the package's folder."""
  from ai_edge_litert.interpreter import Interpreter

  with open(os.path.join(folder, FILE), "rb") as file:
    labels = file.read(FIRST).decode().splitlines()
    model = file.read()
  if hashlib.sha256(model).hexdigest() != SHA256:
    raise SystemExit(f"{FILE} in {folder} is not the one of @mediapipe/objectron@0.4.1675468480")
  interpreter = Interpreter(model_content=model, num_threads=1)
  interpreter.allocate_tensors()
  return labels, interpreter


def make_anchors() -> np.ndarray:
  """Centre y, centre x, height and width of the 1917 anchors, as fractions (SSD, arXiv 1512.02325, section 2.2)."""
  found = []
  for layer, cells in enumerate(CELLS):
    scale, next_scale = SCALES[layer : layer + 2]
    shapes = [(scale, ratio) for ratio in (1, 2, 1 / 2, 3, 1 / 3)] + [(math.sqrt(scale * next_scale), 1)]
    if layer == 0:  # the finest grid has fewer
      shapes = [(0.1, 1), (scale, 2), (scale, 1 / 2)]
    for y in range(cells):
      for x in range(cells):
        for size, ratio in shapes:
          found.append(((y + 0.5) / cells, (x + 0.5) / cells, size / math.sqrt(ratio), size * math.sqrt(ratio)))
  return np.array(found)


def detect(interpreter, anchors: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray]:
  """Boxes [1917, 4] as top, left, bottom, right, and scores [1917, 24] of the labels, of a picture."""
  with Image.open(path) as picture:
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
  interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.asarray(small, np.float32)[None] / 127.5 - 1)
  interpreter.invoke()
  outputs = [
    interpreter.get_tensor(each["index"]).reshape(len(anchors), -1) for each in interpreter.get_output_details()
  ]
  codes, logits = sorted(outputs, key=lambda output: output.shape[1])
  centre = codes[:, :2] / 10 * anchors[:, 2:] + anchors[:, :2]
  half = np.exp(codes[:, 2:] / 5) * anchors[:, 2:] / 2
  return np.concatenate([centre - half, centre + half], 1), 1 / (1 + np.exp(-logits))


def find_label(phrase: str, labels: list[str]) -> int | None:
  """The number of the label that a phrase's last word names."""
  word = phrase.lower().split()[-1].strip(".,")
  for number, label in enumerate(labels):
    known = WORDS.get(label, "").split()
    if word in known or word.removesuffix("s") in known or word.removesuffix("es") in known:
      return number
  return None


def main() -> None:
  """Answers each line of the standard input."""
  labels, interpreter = load(sys.argv[1])
  anchors = make_anchors()
  for line in sys.stdin:
    asked = json.loads(line)
    boxes, scores = detect(interpreter, anchors, asked["image"])
    answers = []
    for number, phrase in enumerate(asked["phrases"]):
      label = find_label(phrase, labels)
      for index in np.argsort(-scores[:, label])[:5] if label is not None else ():
        if scores[index, label] >= LEAST:
          box = [round(float(value), 4) for value in boxes[index]]
          answers.append({"box": box, "phrase": number, "score": round(float(scores[index, label]), 4)})
    print(json.dumps({"id": asked["id"], "boxes": answers}), flush=True)


if __name__ == "__main__":
  main()
