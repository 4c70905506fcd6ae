"""Measures what each evaluator costs beside encoding its pictures alone, and its memory.

  python benchmarks/evals.py                                     # all of them: about twelve minutes on two cores
  python benchmarks/evals.py --model small --count 256           # a small model
  python benchmarks/evals.py --only fgovd detection --count 64

Prints a table in Markdown. Pictures and annotations are generated, the model's parameters random. Each evaluator has a
process of its own, in which it takes turns with `FGCLIP.encode_image` of the same files (`encode_dense` where it is the
dense features that are compared: they take a block more); both have run once before, so that nothing is compiled.
Texts are timed apart, and so is the fitting of classifiers: how long they take does not depend on the encoder of
pictures. `time` and `processor time` are times that of encoding alone; both shall be within the aim, the second also on
a machine that has other work. What is done once for a benchmark, such as reading annotations, weighs the more the fewer
pictures there are. Needs requirements-evals.txt.
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
from collections.abc import Callable

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.data.dataset_folder import shard_path

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from machine import machine

from fgclip_jax import evals
from fgclip_jax.data import dataset_folder, record
from fgclip_jax.evals.evaluator import Evaluator
from fgclip_jax.evals.tasks import linear_probe
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config, params

AIM = 1.1  # times as long as encoding alone
DENSE = ("records", "boxes", "fgovd", "detection", "detection_lvis", "segmentation")
NAMES = ("classification", "retrieval", "compositional", "probe", *DENSE)
SMALL_VISION = {"width": 256, "depth": 6, "heads": 4, "mlp_width": 1024, "image_size": 224, "patch_size": 16}
MODELS = {
  "small": config.preset("tiny").replace(vision=SMALL_VISION, embedding_width=512),
  "b16": config.preset("vit_b16"),
}
WIDTH, HEIGHT = 480, 360
BOXES, NEGATIVES, CAPTIONS = 8, 10, 5  # of each picture, box, picture
CLASSES, PROPOSALS = 80, 100
LVIS_FREQUENCIES, LVIS_PROPOSALS = "r" * 337 + "c" * 461 + "f" * 405, 300
PACKAGES = ("jax", "numpy", "pillow", "faster-coco-eval", "scikit-learn")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
  parser.add_argument(
    "--model", choices=MODELS, default="b16", help="b16: ViT-B/16 as the paper's; small: a trial (default: %(default)s)"
  )
  parser.add_argument(
    "--count", type=int, default=32, help="pictures, at least 16; above 64 a multiple of it (default: %(default)s)"
  )
  parser.add_argument("--rounds", type=int, default=3, help="turns that are timed (default: %(default)s)")
  parser.add_argument("--one", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.one:
    print(json.dumps(measure(*options.one, options.model, options.count, options.rounds)))
    return 0
  vision = MODELS[options.model].vision
  model = f"ViT of width {vision.width}, depth {vision.depth}, patch {vision.patch_size} at {vision.image_size} px"
  print(
    f"{machine(*PACKAGES)}\n\n{model}; {options.count} JPEG files of {WIDTH} x {HEIGHT}, {options.rounds} rounds.\n"
  )
  heads = ("images/s", "alone, images/s", "time", "processor time", "texts and fits, s", "peak, MiB", "alone, MiB")
  print(f"| evaluator | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    generate(pathlib.Path(folder), options.count)
    for name in options.only:
      command = [sys.executable, __file__, "--one", name, folder, f"--model={options.model}"]
      command += [f"--count={options.count}", f"--rounds={options.rounds}"]
      done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
      row = json.loads(done.stdout.splitlines()[-1])
      times = (row["seconds"] / row["alone"], row["processor"] / row["processor_alone"])
      cells = (
        name,
        f"{options.count / row['seconds']:.1f}",
        f"{options.count / row['alone']:.1f}",
        *(f"{each:.2f}{'' if each <= AIM else f' (aim: {AIM})'}" for each in times),
        f"{row['apart']:.1f}",
        f"{row['peak']:,.0f}",
        f"{row['peak_alone']:,.0f}",
      )
      print(f"| {' | '.join(cells)} |", flush=True)
  return 0


def make_model(name: str) -> FGCLIP:
  """A model with random parameters."""
  rng = np.random.default_rng(0)
  draw = lambda leaf: np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
  return FGCLIP(MODELS[name], jax.tree.map(draw, params.abstract_params(MODELS[name])))


def generate(folder: pathlib.Path, count: int) -> None:
  """Pictures, and the annotations of every benchmark."""
  rng = np.random.default_rng(0)
  names = [f"images/class {number % CLASSES}/{number}.jpg" for number in range(count)]
  write_pictures(folder, names, rng)
  captions = [[f"picture {number}, caption {each}" for each in range(CAPTIONS)] for number in range(count)]
  write_lines(
    folder / "captions.jsonl", [{"image": name, "captions": own} for name, own in zip(names, captions, strict=True)]
  )
  for category, wrong in (("swap", 1), ("add", 2)):
    rows = [
      {"filename": name, "caption": own[0], "negative_caption": own[wrong]}
      for name, own in zip(names, captions, strict=True)
    ]
    (folder / f"{category}.json").write_text(json.dumps(rows))
  size = {"width": WIDTH, "height": HEIGHT}
  boxes = [[draw_box(rng) for _ in range(BOXES)] for _ in names]
  texts = [[[f"A thing of kind {each}." for each in draw_texts(rng)] for _ in range(BOXES)] for _ in names]
  rows = [
    {"img_path": name, "bbox": box, "test_type": "1_attributes", "pos_expression": own[:1], "neg_expression": own[1:]}
    for name, mine, theirs in zip(names, boxes, texts, strict=True)
    for box, own in zip(mine, theirs, strict=True)
  ]
  write_lines(folder / "rows.jsonl", [row | size for row in rows])
  write_records(folder, names, captions, boxes, texts)
  write_detection(folder, "coco", names, boxes, [{}] * CLASSES, PROPOSALS, rng)
  write_detection(folder, "lvis", names, boxes, [{"frequency": each} for each in LVIS_FREQUENCIES], LVIS_PROPOSALS, rng)


def write_pictures(folder: pathlib.Path, names: list[str], rng: np.random.Generator) -> None:
  """The pictures in folders of classes, in one folder, and in splits for the probe; label maps."""
  (folder / "labels").mkdir()
  (folder / "flat").mkdir()
  (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(21)))
  for number, name in enumerate(names):
    path = folder / name
    small = Image.fromarray(rng.integers(0, 256, (HEIGHT // 12, WIDTH // 12, 3), dtype=np.uint8))
    labels = Image.fromarray(rng.integers(0, 21, (HEIGHT // 40, WIDTH // 40), dtype=np.uint8))
    split = folder / ("train" if number < len(names) // 2 else "test") / f"class {number % 4}"
    for place in (path.parent, split):
      place.mkdir(parents=True, exist_ok=True)
    small.resize((WIDTH, HEIGHT)).save(path, quality=90)
    labels.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(folder / "labels" / f"{number}.png")
    for place in (folder / "flat", split):
      (place / path.name).symlink_to(path)


def write_records(
  folder: pathlib.Path, names: list[str], captions: list[list[str]], boxes: list[list], texts: list[list[list[str]]]
) -> None:
  """A prepared data set of the same pictures."""
  prepared = folder / "records"
  prepared.mkdir()
  writer = ArrayRecordWriter(shard_path(str(prepared), "generated", "validation", 0, 1), "group_size:1")
  for name, caption, mine, theirs in zip(names, captions, boxes, texts, strict=True):
    regions = []
    for (left, top, width, height), own in zip(mine, theirs, strict=True):
      box = (left / WIDTH, top / HEIGHT, (left + width) / WIDTH, (top + height) / HEIGHT)
      regions.append(record.Region(box, own[0], negatives=tuple(own[1:])))
    picture = (folder / name).read_bytes()
    writer.write(record.encode(record.Record(name, picture, caption[0], " and ".join(caption), tuple(regions))))
  writer.close()
  dataset_folder.write_info(str(prepared), {})


def write_detection(
  folder: pathlib.Path,
  name: str,
  names: list[str],
  boxes: list[list],
  classes: list[dict[str, str]],
  proposals: int,
  rng: np.random.Generator,
) -> None:
  """True boxes, and proposals of a detector, in the layout of COCO's files."""
  images, true, found = [], [], []
  for number, (path, mine) in enumerate(zip(names, boxes, strict=True)):
    images.append({"id": number, "file_name": path, "width": WIDTH, "height": HEIGHT})
    for box in mine:
      category = int(rng.integers(1, len(classes) + 1))
      fields = {"image_id": number, "category_id": category, "area": box[2] * box[3], "iscrowd": 0}
      true.append({"id": len(true) + 1, "bbox": box, **fields})
    found += [{"image_id": number, "bbox": draw_box(rng), "score": float(rng.random())} for _ in range(proposals)]
  categories = [{"id": number, "name": f"class {number - 1}", **more} for number, more in enumerate(classes, 1)]
  content = {"images": images, "annotations": true, "categories": categories}
  (folder / f"{name}.json").write_text(json.dumps(content))
  (folder / f"{name}_proposals.json").write_text(json.dumps(found))


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  """A file of JSON lines."""
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw_box(rng: np.random.Generator) -> list[float]:
  """Left, top, width and height in pixels."""
  corner, size = rng.uniform(0, 0.8, 2), rng.uniform(0.05, 0.2, 2)
  return [*np.round(corner * (WIDTH, HEIGHT), 2).tolist(), *np.round(size * (WIDTH, HEIGHT), 2).tolist()]


def draw_texts(rng: np.random.Generator) -> list[int]:
  """The numbers of the right text of a box and of its wrong ones."""
  return rng.choice(400, NEGATIVES + 1, replace=False).tolist()


def make(name: str, folder: pathlib.Path) -> Evaluator:
  """An evaluator over the generated files."""
  at = lambda *names: str(folder.joinpath(*names))  # noqa: E731
  makers = {
    "classification": lambda: evals.Classification("folder", at("images"), templates="name"),
    "retrieval": lambda: evals.ImageTextRetrieval("pairs", at("captions.jsonl"), at(), "short"),
    "compositional": lambda: evals.Compositional("sugarcrepe", (at("swap.json"), at("add.json")), at()),
    "probe": lambda: evals.LinearProbe("folder", at("train"), at("test")),
    "records": lambda: evals.Records(at("records")),
    "boxes": lambda: evals.BoxClassification(at("coco.json"), at(), templates="name"),
    "fgovd": lambda: evals.FgOvd((at("rows.jsonl"),), at()),
    "detection": lambda: evals.Detection(at("coco.json"), at(), at("coco_proposals.json"), templates="name"),
    "detection_lvis": lambda: evals.Detection(at("lvis.json"), at(), at("lvis_proposals.json"), templates="name"),
    "segmentation": lambda: evals.Segmentation(at("flat"), at("labels"), at("classes.txt"), templates="name"),
  }
  return makers[name]()


def measure(name: str, folder: str, size: str, count: int, rounds: int) -> dict[str, float]:
  """Seconds of encoding alone and of an evaluator without what is timed apart, and the process's peak memory after
  each."""
  model, evaluator = make_model(size), make(name, pathlib.Path(folder))
  files = sorted(pathlib.Path(folder, "images").rglob("*.jpg"))
  apart = Apart()
  model.encode_text = apart.timed(model.encode_text)
  linear_probe.Fit.on = apart.timed(linear_probe.Fit.on)
  encode = model.encode_dense if name in DENSE else model.encode_image
  encode(files)
  result = {"peak_alone": peak()}
  found = evaluator.run(model)
  if found.skipped or found.records < count:
    raise ValueError(f"{name} read {found.records} of {count} and skipped {found.skipped} of what was generated")
  result["peak"] = peak()
  turns: dict[str, list[float]] = {}
  for _ in range(rounds):
    times = clocks()
    encode(files)
    alone, apart.seconds = clocks() - times, np.zeros(2)
    times = clocks()
    evaluator.run(model)
    whole = clocks() - times - apart.seconds
    names = ("alone", "processor_alone", "seconds", "processor", "apart", "processor_apart")
    for key, value in zip(names, np.concatenate([alone, whole, apart.seconds]).tolist(), strict=True):
      turns.setdefault(key, []).append(value)
  return result | {key: statistics.median(values) for key, values in turns.items()}


def clocks() -> np.ndarray:
  """Seconds by the clock, and of this process's processor time."""
  return np.asarray([time.perf_counter(), time.process_time()])


class Apart:
  """How many seconds the calls of some functions took, by both clocks."""

  def __init__(self):
    self.seconds = np.zeros(2)

  def timed(self, function: Callable) -> Callable:
    """The function, with its calls timed."""

    def call(*args, **options):
      start = clocks()
      try:
        return function(*args, **options)
      finally:
        self.seconds += clocks() - start

    return call


def peak() -> float:
  """The most memory that this process has held, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
  sys.exit(main())
