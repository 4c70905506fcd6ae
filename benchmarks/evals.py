"""Measures what each evaluator costs beside encoding its pictures alone, and its memory.

  python benchmarks/evals.py                       # all of them: about five minutes on two cores
  python benchmarks/evals.py --only fgovd detection --count 64

Prints a table in Markdown. Pictures and annotations are generated, the model's parameters random. Each evaluator has a
process of its own, in which it takes turns with `FGCLIP.encode_image` of the same files (`encode_dense` where it is the
dense features that are compared: they take a block more); both have run once before, so that nothing is compiled.
Texts are timed apart: how many there are does not depend on the pictures. `time` and `processor time` are times that of
encoding alone; the second says the same on a machine that has other work, too.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from machine import machine

from fgclip_jax import evals
from fgclip_jax.api import FGCLIP
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.models import parameters, presets

AIM = 1.1  # times as long as encoding alone
DENSE = ("boxes", "fgovd", "detection", "segmentation")
NAMES = ("classification", "retrieval", *DENSE)
CLASSES, WIDTH, HEIGHT = 80, 480, 360
BOXES, PROPOSALS, NEGATIVES, CAPTIONS = 8, 100, 10, 5
PACKAGES = ("jax", "numpy", "pillow", "faster-coco-eval")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
  parser.add_argument("--count", type=int, default=256, help="pictures (default: %(default)s)")
  parser.add_argument("--rounds", type=int, default=3, help="turns that are timed (default: %(default)s)")
  parser.add_argument("--one", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.one:
    print(json.dumps(measure(*options.one, options.count, options.rounds)))
    return 0
  print(f"{machine(*PACKAGES)}\n\n{describe(make_model())}; {options.count} JPEG files of {WIDTH} x {HEIGHT}.\n")
  heads = ("images/s", "alone, images/s", "time", "processor time", "texts, s", "peak, MiB", "alone, MiB")
  print(f"| evaluator | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    generate(pathlib.Path(folder), options.count)
    for name in options.only:
      command = [sys.executable, __file__, "--one", name, folder, f"--count={options.count}"]
      done = subprocess.run([*command, f"--rounds={options.rounds}"], check=True, stdout=subprocess.PIPE, text=True)
      row = json.loads(done.stdout.splitlines()[-1])
      elapsed, processor = row["seconds"] / row["alone"], row["processor"] / row["processor_alone"]
      cells = (
        name,
        f"{options.count / row['seconds']:.1f}",
        f"{options.count / row['alone']:.1f}",
        f"{elapsed:.2f}",
        f"{processor:.2f}{'' if processor <= AIM else f' (aim: {AIM})'}",
        f"{row['texts']:.1f}",
        f"{row['peak']:,.0f}",
        f"{row['peak_alone']:,.0f}",
      )
      print(f"| {' | '.join(cells)} |", flush=True)
  return 0


def make_model() -> FGCLIP:
  """A small model that reads pictures of 224 pixels."""
  vision = {"width": 256, "depth": 6, "heads": 4, "mlp_width": 1024, "image_size": 224, "patch_size": 16}
  config = presets.preset("tiny").replace(vision=vision, embedding_width=512)
  rng = np.random.default_rng(0)
  shapes = parameters.abstract_params(config)
  return FGCLIP(config, jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes))


def describe(model: FGCLIP) -> str:
  """The model in a few words."""
  vision = model.config.vision
  return f"ViT of width {vision.width}, depth {vision.depth}, patch {vision.patch_size} at {vision.image_size} px"


def generate(folder: pathlib.Path, count: int) -> None:
  """Pictures, and the annotations of every benchmark."""
  rng = np.random.default_rng(0)
  (folder / "labels").mkdir()
  captions, true, proposals, rows = [], [], [], []
  for number in range(count):
    path = folder / "images" / f"class {number % CLASSES}" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(rng.integers(0, 256, (HEIGHT // 12, WIDTH // 12, 3), dtype=np.uint8))
    small.resize((WIDTH, HEIGHT)).save(path, quality=90)
    name = str(path.relative_to(folder))
    labels = Image.fromarray(rng.integers(0, 21, (HEIGHT // 40, WIDTH // 40), dtype=np.uint8))
    labels.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(folder / "labels" / f"{number}.png")
    captions.append({"image": name, "captions": [f"picture {number}, caption {each}" for each in range(CAPTIONS)]})
    for place in range(PROPOSALS):
      left, top = rng.uniform(0, 0.8, 2) * (WIDTH, HEIGHT)
      box = [left, top, *np.round(rng.uniform(0.05, 0.2, 2) * (WIDTH, HEIGHT), 2)]
      proposals.append({"image_id": number, "bbox": box, "score": float(rng.random())})
      if place < BOXES:
        category = int(rng.integers(1, CLASSES + 1))
        fields = {"image_id": number, "category_id": category, "area": box[2] * box[3], "iscrowd": 0}
        true.append({"id": len(true) + 1, "bbox": box, **fields})
        texts = [f"A thing of kind {each}." for each in rng.choice(400, NEGATIVES + 1, replace=False)]
        row = {"img_path": name, "bbox": box, "width": WIDTH, "height": HEIGHT, "test_type": "1_attributes"}
        rows.append(row | {"pos_expression": texts[:1], "neg_expression": texts[1:]})
  sizes = [{"id": i, "file_name": line["image"], "width": WIDTH, "height": HEIGHT} for i, line in enumerate(captions)]
  classes = [{"id": number, "name": f"class {number - 1}"} for number in range(1, CLASSES + 1)]
  (folder / "true.json").write_text(json.dumps({"images": sizes, "annotations": true, "categories": classes}))
  (folder / "proposals.json").write_text(json.dumps(proposals))
  for name, lines in (("captions", captions), ("rows", rows)):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(21)))
  (folder / "flat").mkdir()
  for path in (folder / "images").rglob("*.jpg"):
    (folder / "flat" / path.name).symlink_to(path)


def make(name: str, folder: pathlib.Path) -> Evaluator:
  """An evaluator over the generated files."""
  at = {each: str(folder / each) for each in ("images", "flat", "labels", "true.json", "proposals.json", "classes.txt")}
  makers = {
    "classification": lambda: evals.Classification("folder", at["images"], templates="name"),
    "retrieval": lambda: evals.ImageTextRetrieval(
      "pairs", str(folder / "captions.jsonl"), str(folder), "short", mode="squash"
    ),
    "boxes": lambda: evals.BoxClassification(at["true.json"], str(folder), templates="name"),
    "fgovd": lambda: evals.FgOvd((str(folder / "rows.jsonl"),), str(folder)),
    "detection": lambda: evals.Detection(at["true.json"], str(folder), at["proposals.json"], templates="name"),
    "segmentation": lambda: evals.Segmentation(at["flat"], at["labels"], at["classes.txt"], templates="name"),
  }
  return makers[name]()


def measure(name: str, folder: str, count: int, rounds: int) -> dict[str, float]:
  """Seconds of encoding alone and of an evaluator without its texts, and the process's peak memory after each."""
  model, evaluator = make_model(), make(name, pathlib.Path(folder))
  files = sorted(pathlib.Path(folder, "images").rglob("*.jpg"))
  texts = Timed(model.encode_text)
  model.encode_text = texts
  encode = model.encode_dense if name in DENSE else model.encode_image
  encode(files)
  result = {"peak_alone": peak()}
  found = evaluator.run(model)
  if found.skipped:
    raise ValueError(f"{name} skipped some of what was generated: {found.skipped}")
  result["peak"] = peak()
  turns: dict[str, list[float]] = {}
  for _ in range(rounds):
    times = clocks()
    encode(files)
    alone, texts.seconds = clocks() - times, np.zeros(2)
    times = clocks()
    evaluator.run(model)
    whole = clocks() - times - texts.seconds
    names = ("alone", "processor_alone", "seconds", "processor", "texts", "processor_texts")
    for key, value in zip(names, np.concatenate([alone, whole, texts.seconds]).tolist(), strict=True):
      turns.setdefault(key, []).append(value)
  return result | {key: statistics.median(values) for key, values in turns.items()}


def clocks() -> np.ndarray:
  """Seconds by the clock, and of this process's processor time."""
  return np.asarray([time.perf_counter(), time.process_time()])


class Timed:
  """A function, and how many seconds its calls took, by both clocks."""

  def __init__(self, function):
    self.function, self.seconds = function, np.zeros(2)

  def __call__(self, *args, **options):
    start = clocks()
    try:
      return self.function(*args, **options)
    finally:
      self.seconds += clocks() - start


def peak() -> float:
  """The most memory that this process has held, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
  sys.exit(main())
