"""Trains the quickstart's stage 2 on scenes that `annotate` has annotated, beside the annotations they come with.

Pictures and captions go in. With boxes given, a region's caption is the known one, and negatives are made by rules.
With boxes of the model's own, phrases are found in the captions, their boxes by `--model`, and negatives are made.
Each is prepared by `prepare pairs` and trained on from the same stage 1 for the same number of steps; all are evaluated
on the same scenes, whose combinations of attributes were never in a caption of training. Nor are they among negatives,
here as in the scenes' own: texts that are always wrong would be learnt as such. `--keep_held_out` leaves them in.
A finished run is kept, a stopped one continued.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator

from benchmarks import kept_results
from benchmarks.annotating.scenes import annotate_scenes, prepare_annotated, write_pictures
from benchmarks.machine import machine
from configs import quickstart
from fgclip_jax import evaluate
from fgclip_jax.data import record
from fgclip_jax.data.shards import Records
from fgclip_jax.inference.model import load
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train.config import read_config
from fgclip_jax.train.loop import train

SETTINGS = {
  "built_in": "those of the scenes",
  "given": "annotated, boxes given",
  "own": "annotated, boxes by the model",
}
MEASURES = {  # heading: the metrics whose mean it is
  "region among 11 captions": ("fine_grained_top1",),
  "region among all descriptions": ("region_top1",),
  "long captions, R@1": ("long_image_to_text_r1", "long_text_to_image_r1"),
}
RESULT = "loop.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--workdir", required=True, help="of all runs")
  parser.add_argument("--stage1", default="runs/quickstart/stage1", help="a run that stage 2 begins with")
  parser.add_argument("--model", default="runs/quickstart/stage2", help="a run or model folder that looks for boxes")
  parser.add_argument("--scenes", type=int, default=20000, help="training scenes (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=quickstart.STEPS["stage2"], help="default: %(default)s")
  parser.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
  parser.add_argument("--keep_held_out", action="store_true", help="leave held-out combinations among negatives")
  parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")


def run(options: argparse.Namespace) -> int:
  """Does what is missing, and prints the table."""
  base = pathlib.Path(options.workdir)
  known = base / "scenes"
  scenes.write(str(known), train=options.scenes)
  results = {}
  for setting in options.settings:
    print(f"== {SETTINGS[setting]}", flush=True)
    results[setting] = _train(setting, base, known, options)
  print(f"\n{machine('jax', 'flax', 'numpy')}\n")
  print(f"{options.scenes} scenes, {options.steps} steps of stage 2, batches of {options.batch}, one seed; in %.\n")
  print(f"| annotations | regions | with ten negatives | {' | '.join(MEASURES)} |")
  print(f"| --- |{' ---: |' * (2 + len(MEASURES))}")
  for setting, result in results.items():
    values = [100 * sum(result["metrics"][name]["value"] for name in names) / len(names) for names in MEASURES.values()]
    shown = " | ".join(f"{value:.1f}" for value in values)
    print(f"| {SETTINGS[setting]} | {result['regions']:,} | {result['full']:.1%} | {shown} |")
  return 0


def _train(setting: str, base: pathlib.Path, known: pathlib.Path, options: argparse.Namespace) -> dict:
  """Annotates, trains and measures, unless that is done."""
  workdir = base / setting
  path = str(workdir / RESULT)
  wanted = {"steps": options.steps, "batch": options.batch, "scenes": options.scenes, "held_out": options.keep_held_out}
  if (result := kept_results.read(path, wanted)) is not None:
    return result
  data = known if setting == "built_in" else _annotate(setting, base, known, options)
  config = quickstart.get_config("stage2")
  config.init_from = options.stage1
  config.steps = options.steps
  config.optimizer.warmup_steps = config.steps // 8
  config.data.update({"path": str(data), "batch_size": options.batch})
  config.keep.newest = 1
  train(read_config(config), str(workdir))
  result = {**wanted, **_count(data), "metrics": evaluate.evaluate(load(str(workdir)), str(known))}
  kept_results.write(path, result)
  return result


def _annotate(setting: str, base: pathlib.Path, known: pathlib.Path, options: argparse.Namespace) -> pathlib.Path:
  """Annotates the training scenes and prepares them; what is done already is kept."""
  output = base / f"data-{setting}"
  if not (output / "dataset_info.json").exists():
    records = [record.decode(data) for data in _read(known)]
    write_pictures(base / "photos", records)
    backend = "existing" if setting == "given" else f"own:{options.model}"
    annotations = annotate_scenes(base, f"annotated-{setting}", backend, records)
    if not options.keep_held_out:
      annotations = [_without_held_out(each, base / f"trained-{setting}") for each in annotations]
    lost = prepare_annotated(base, setting, annotations)
    if lost:
      raise ValueError(f"prepare left out {lost} things of {output}")
  return output


def _without_held_out(annotations: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A copy of a file of annotations in `folder`, without negatives that are held-out combinations."""
  held_out = {each.caption for each in scenes.descriptions() if scenes.is_held_out(each)}
  folder.mkdir(exist_ok=True)
  lines = [json.loads(line) for line in annotations.read_text(encoding="utf-8").splitlines()]
  for line in lines:
    for region in line.get("regions", ()):
      if kept := [text for text in region.pop("negatives", ()) if text not in held_out]:
        region["negatives"] = kept
  copy = folder / annotations.name
  copy.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  return copy


def _read(folder: pathlib.Path) -> Iterator[bytes]:
  records = Records(str(folder), "train")
  return (records[index] for index in range(len(records)))


def _count(folder: pathlib.Path) -> dict[str, float]:
  """How many regions the training pictures have, and the share of those with ten negatives."""
  regions = [region for data in _read(folder) for region in record.decode(data).regions]
  return {"regions": len(regions), "full": sum(len(each.negatives) >= 10 for each in regions) / len(regions)}
