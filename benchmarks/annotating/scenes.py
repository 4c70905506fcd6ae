"""Rendered scenes through the embedded stages: time, and how well a model's boxes fit those that are known.

With boxes given, their captions are kept and negatives are made. With `--model`, pictures and captions alone go in:
phrases are found in the captions, and their boxes by the model. An object counts as found where a region has a caption
that names its colour and shape, and an intersection over union with it of at least 0.5. The constant guess is the best
single box.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable

from benchmarks.machine import machine
from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.annotate.boxes.suppress import overlap
from fgclip_jax.data import record
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare.sources import scenes


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--scenes", type=int, default=500)
  parser.add_argument("--model", default="", help="a run or model folder that looks for boxes")
  parser.add_argument("--shapes", choices=[*scenes.CANVASES], default="square")


def run(options: argparse.Namespace) -> int:
  """Prints the tables."""
  print(machine("numpy", "pillow", "jax"), end="\n\n")
  print("| boxes | seconds | pictures | regions | with ten negatives | left out by prepare | found | constant guess |")
  print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    records = [scenes.make_record(0, index, "validation", options.shapes) for index in range(options.scenes)]
    write_pictures(base / "photos", records)
    for name, backend in (("given", "existing"), *([("own", f"own:{options.model}")] if options.model else [])):
      begin = time.perf_counter()
      annotations = annotate_scenes(base, name, backend, records)
      seconds = time.perf_counter() - begin
      lost = prepare_annotated(base, name, annotations)
      found = {
        each["image"]: each for each in map(json.loads, "".join(p.read_text() for p in annotations).splitlines())
      }
      regions = [region for each in found.values() for region in each.get("regions", ())]
      full = sum(len(region.get("negatives", ())) >= 10 for region in regions) / max(len(regions), 1)
      hits, guess = _compare(records, found)
      print(
        f"| {name} | {seconds:.0f} | {len(found)} | {len(regions)} | {full:.1%} | {lost} | {hits:.1%} | {guess:.1%} |"
      )
  return 0


def write_pictures(folder: pathlib.Path, records: Iterable[record.Record]) -> None:
  """Writes the pictures of scenes into a folder."""
  folder.mkdir(exist_ok=True)
  for each in records:
    (folder / picture_name(each)).write_bytes(each.image)


def picture_name(scene: record.Record) -> str:
  """The file name of a scene's picture."""
  return f"{scene.id.replace('/', '_')}.png"


def annotate_scenes(
  base: pathlib.Path, name: str, backend: str, records: Iterable[record.Record]
) -> list[pathlib.Path]:
  """Annotates the pictures in `base`/photos, of which captions are known, and with the backend `existing` boxes, too.

  Returns:
    The files of annotations, in `base`/`name`.
  """
  given = backend == "existing"
  write_known(base / f"known-{name}.jsonl", records, regions=given)
  files = ["--images", base / "photos", "--known", base / f"known-{name}.jsonl", "--output", base / name]
  run_quietly(annotate.main, *files, "--boxes", backend, "--workers", os.cpu_count() if given else 1)
  return sorted((base / name / "annotations").iterdir())


def write_known(path: pathlib.Path, records: Iterable[record.Record], regions: bool) -> None:
  """Writes what is known of scenes: captions, and boxes with theirs."""
  with open(path, "w") as file:
    for each in records:
      known: dict[str, object] = {"image": picture_name(each), "short": each.short, "long": each.long}
      if regions:
        known["regions"] = [{"box": region.box, "short": region.short} for region in each.regions]
      file.write(json.dumps(known) + "\n")


def prepare_annotated(base: pathlib.Path, name: str, annotations: list[pathlib.Path]) -> int:
  """Prepares annotated pictures as `base`/data-`name`; returns how many things were left out."""
  run_quietly(prepare.main, "pairs", "--captions", *annotations, "--images", base / "photos",
           "--output", base / f"data-{name}", "--workers", 1)  # fmt: skip
  report = json.loads((base / f"data-{name}" / "report-train.json").read_text())
  return sum(each["count"] for each in report["findings"].values() if each["loss"] != "note")


def run_quietly(main, *arguments) -> None:
  """Calls a command; what it prints is shown if it fails."""
  text = io.StringIO()
  with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
    code = main([str(each) for each in arguments])
  if code:
    raise SystemExit(text.getvalue())


def _compare(records, found) -> tuple[float, float]:
  """The share of objects that are found, and the share that the best box of one size and place would find."""
  objects = hits = 0
  boxes = []
  for scene in records:
    regions = found[picture_name(scene)].get("regions", ())
    for truth in scene.regions:
      _, _, colour, _, shape = truth.short.split()
      named = [each for each in regions if colour in each["short"].split() and shape in each["short"].split()]
      hits += any(overlap(truth.box, tuple(each["box"])) >= 0.5 for each in named)
      objects += 1
      boxes.append(truth.box)
  guesses = boxes[:200]
  best = max(sum(overlap(guess, box) >= 0.5 for box in boxes) for guess in guesses)
  return hits / objects, best / objects
