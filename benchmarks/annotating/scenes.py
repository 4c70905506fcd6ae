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

from benchmarks.machine import machine
from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.annotate.boxes.suppress import overlap
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
    (base / "photos").mkdir()
    for record in records:
      (base / "photos" / f"{record.id.replace('/', '_')}.png").write_bytes(record.image)
    for name, backend in (("given", "existing"), *([("own", f"own:{options.model}")] if options.model else [])):
      _write_known(base, records, regions=name == "given")
      begin = time.perf_counter()
      _quietly(annotate.main, "--images", base / "photos", "--known", base / "known.jsonl", "--output", base / name,
               "--boxes", backend, "--workers", 1 if name == "own" else os.cpu_count())  # fmt: skip
      seconds = time.perf_counter() - begin
      annotations = sorted((base / name / "annotations").iterdir())
      _quietly(prepare.main, "pairs", "--captions", *annotations, "--images", base / "photos",
               "--output", base / f"data-{name}", "--workers", 1)  # fmt: skip
      report = json.loads((base / f"data-{name}" / "report-train.json").read_text())
      lost = sum(each["count"] for each in report["findings"].values() if each["loss"] != "note")
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


def _write_known(base: pathlib.Path, records, regions: bool) -> None:
  with open(base / "known.jsonl", "w") as file:
    for record in records:
      known = {"image": f"{record.id.replace('/', '_')}.png", "short": record.short, "long": record.long}
      if regions:
        known["regions"] = [{"box": region.box, "short": region.short} for region in record.regions]
      file.write(json.dumps(known) + "\n")


def _quietly(main, *arguments) -> None:
  text = io.StringIO()
  with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
    code = main([str(each) for each in arguments])
  if code:
    raise SystemExit(text.getvalue())


def _compare(records, found) -> tuple[float, float]:
  """The share of objects that are found, and the share that the best box of one size and place would find."""
  objects = hits = 0
  boxes = []
  for record in records:
    regions = found[f"{record.id.replace('/', '_')}.png"].get("regions", ())
    for truth in record.regions:
      _, _, colour, _, shape = truth.short.split()
      named = [each for each in regions if colour in each["short"].split() and shape in each["short"].split()]
      hits += any(overlap(truth.box, tuple(each["box"])) >= 0.5 for each in named)
      objects += 1
      boxes.append(truth.box)
  guesses = boxes[:200]
  best = max(sum(overlap(guess, box) >= 0.5 for box in boxes) for guess in guesses)
  return hits / objects, best / objects
