"""The papers' ablations in miniature: what each loss of stage 2 adds, on rendered scenes.

  python benchmarks/ablation.py --workdir runs/ablation --plot benchmarks/ablation.svg       # FG-CLIP; three seeds
  python benchmarks/ablation.py --model fgclip2 --workdir runs/ablation2                     # FG-CLIP 2; three seeds

Each seed trains stage 1 once; from its weights, for the same number of steps on the same images in the same order,
stage 2. For FG-CLIP: with the global losses, with the regional loss added, and with the hard negatives added to that;
the control continues the run of stage 1 itself: for the same number of further steps, on the data that come next,
under one schedule stretched over all of its steps. For FG-CLIP 2: with all losses, without the rank loss with its
moving margin (CMR), without the contrast among texts (TIC), and without both.

Prints tables in Markdown, as mean and standard deviation over seeds, beside what the paper reports of its own models.
A finished run is kept, a stopped one continued: the same command does only what is missing, and draws again.
A small trial: `python benchmarks/ablation.py --workdir /tmp/ablation --seeds 2 --stage1_steps 3 --steps 3`.
"""

import argparse
import dataclasses
import os
import resource
import shutil
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from absl import logging

from benchmarks import kept_results
from benchmarks.machine import machine
from configs import quickstart
from fgclip_jax import evaluate
from fgclip_jax.inference.model import load
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train.config import read_config
from fgclip_jax.train.loop import train


@dataclasses.dataclass(frozen=True)
class Study:
  """An ablation.

  Attributes:
    prefix: of the quickstart's stages.
    data: what `prepare scenes` takes.
    settings: what is trained, with its name in the tables.
    removed: for settings of stage 2, the losses whose weight is 0.
    measures: heading: the metrics whose mean it is.
    paper: the paper's values, in the order of `measures`.
    source: what the paper measured.
    steps_between: the pairs of settings whose differences are shown.
  """

  prefix: str
  data: dict[str, Any]
  settings: dict[str, str]
  removed: dict[str, tuple[str, ...]]
  measures: dict[str, tuple[str, ...]]
  paper: dict[str, tuple[float, float, float]]
  source: str
  steps_between: tuple[tuple[str, str], ...]


_REGIONS = {
  "region among all descriptions": ("region_top1",),
  "region among 11 captions": ("fine_grained_top1",),
}
STUDIES = {
  "fgclip": Study(
    prefix="",
    data={},
    settings={
      "stage1": "stage 1 only",
      "control": "stage 1 continued (control)",
      "global": "+ stage 2, global losses",
      "regional": "+ regional loss",
      "full": "+ hard negatives (full)",
    },
    removed={"global": ("regional", "hard_negative"), "regional": ("hard_negative",)},
    measures={"long captions, R@1": ("long_image_to_text_r1", "long_text_to_image_r1"), **_REGIONS},
    paper={  # arXiv 2505.05071, table 6; DCI is the mean of both ways
      "stage1": (57.9, 47.2, 21.8),
      "global": (61.95, 46.8, 25.4),
      "regional": (61.75, 53.7, 24.5),
      "full": (61.2, 52.3, 46.1),
    },
    source="ViT-B/16: DCI, COCO boxes, FG-OVD hard",
    steps_between=(("stage1", "control"), ("control", "global"), ("global", "regional"), ("regional", "full")),
  ),
  "fgclip2": Study(
    prefix="fgclip2_",
    data={"shapes": "mixed"},
    settings={
      "stage1": "stage 1 only",
      "full": "stage 2, all losses",
      "no_rank": "without CMR",
      "no_intra": "without TIC",
      "neither": "without both",
    },
    removed={
      "no_rank": ("hard_rank",),
      "no_intra": ("text_intra_modal",),
      "neither": ("hard_rank", "text_intra_modal"),
    },
    measures={"short captions, R@1": ("short_image_to_text_r1", "short_text_to_image_r1"), **_REGIONS},
    paper={  # arXiv 2510.10921, table 8; Flickr30k is the mean of both ways
      "full": (88.0, 74.9, 52.3),
      "no_rank": (87.6, 74.0, 50.9),
      "no_intra": (87.75, 70.1, 51.6),
      "neither": (87.55, 62.7, 51.7),
    },
    source="B/16: Flickr30k, COCO boxes, FG-OVD hard",
    steps_between=(("full", "no_rank"), ("full", "no_intra"), ("full", "neither")),
  ),
}
STAGE_2_SEEDS = 100  # added to a seed for the data order of its stage 2, so that it is not stage 1's again
RESULT = "ablation.json"


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  options = parse(argv)
  logging.set_verbosity(logging.WARNING)
  study = STUDIES[options.model]
  if not options.data:
    options.data = os.path.join(options.workdir, "scenes")
    scenes.write(options.data, **study.data)
  results = {}
  for seed in range(options.seeds):
    for setting, label in study.settings.items():
      print(f"== seed {seed}, {setting}: {label}", flush=True)
      results[seed, setting] = run(seed, setting, options)
  print(f"\n{machine('jax', 'flax', 'numpy')}")
  print(report(results, study, options.stage1_steps, options.steps))
  if options.plot:
    draw(results, study, options.plot)
    print(f"\nwrote {options.plot}")
  return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The options."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, metavar="DIR", help="of all runs; 100 MB each, weights and moments")
  parser.add_argument("--model", choices=STUDIES, default="fgclip", help="default: %(default)s")
  parser.add_argument("--data", default="", metavar="DIR", help="rendered scenes (default: renders WORKDIR/scenes)")
  parser.add_argument("--seeds", type=int, default=3, help="from 0 on (default: %(default)s)")
  parser.add_argument("--stage1_steps", type=int, metavar="N", help="default: the quickstart's")
  parser.add_argument("--steps", type=int, default=220, help="of stage 2, and of the control (default: %(default)s)")
  parser.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
  parser.add_argument("--plot", default="", metavar="FILE.svg", help="also draw the results")
  options = parser.parse_args(argv)
  if options.stage1_steps is None:
    options.stage1_steps = quickstart.STEPS[f"{STUDIES[options.model].prefix}stage1"]
  for name in ("seeds", "stage1_steps", "steps", "batch"):
    if getattr(options, name) < 1:
      parser.error(f"--{name} must be at least 1")
  return options


def make_config(seed: int, setting: str, options: argparse.Namespace):
  """The config of a run: quickstart's, of which the losses, the number of steps and the seed differ."""
  study = STUDIES[options.model]
  first = setting in ("stage1", "control")
  config = quickstart.get_config(f"{study.prefix}{'stage1' if first else 'stage2'}")
  config.steps = options.stage1_steps if setting == "stage1" else options.steps
  if setting == "control":
    config.steps += options.stage1_steps
    config.resume_changed = True
  config.objective.update(dict.fromkeys(study.removed.get(setting, ()), 0.0))
  if not first:
    config.init_from = folder(options.workdir, seed, "stage1")
  config.seed = seed if first else STAGE_2_SEEDS + seed
  config.optimizer.warmup_steps = config.steps // 8
  config.data.update({"path": options.data, "batch_size": options.batch})
  config.checkpoint_every = 100
  config.keep.newest = 1
  return config


def folder(workdir: str, seed: int, setting: str) -> str:
  """Where a run is."""
  return os.path.join(workdir, f"seed{seed}", setting)


def run(seed: int, setting: str, options: argparse.Namespace) -> dict:
  """Trains and measures one model, unless that is done.

  Returns:
    `metrics` as `evaluate` returns them, `steps`, `batch`, `seconds` and `processor_seconds` of training and measuring.

  Raises:
    ValueError: the folder has a finished run of other settings.
  """
  workdir = folder(options.workdir, seed, setting)
  path = os.path.join(workdir, RESULT)
  config = make_config(seed, setting, options)
  data = os.path.relpath(os.path.realpath(options.data), os.path.realpath(options.workdir))
  wanted = {
    "model": options.model,
    "steps": config.steps,
    "stage1_steps": options.stage1_steps,
    "batch": options.batch,
    "data": data,
  }
  if (result := kept_results.read(path, wanted)) is not None:
    return result
  begin, begin_processor = time.perf_counter(), processor_seconds()
  if setting == "control" and not os.path.isdir(workdir):
    part = f"{workdir}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder(options.workdir, seed, "stage1"), part, ignore=shutil.ignore_patterns(RESULT))
    os.rename(part, workdir)
  train(read_config(config), workdir)
  metrics = evaluate.evaluate(load(workdir), options.data)
  result = {
    **wanted,
    "metrics": metrics,
    "seconds": time.perf_counter() - begin,
    "processor_seconds": processor_seconds() - begin_processor,
  }
  kept_results.write(path, result)
  return result


def processor_seconds() -> float:
  """Of this process, its threads, and the worker processes that have ended."""
  usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def percentages(results: dict[tuple[int, str], dict], setting: str, names: tuple[str, ...]) -> np.ndarray:
  """The mean of some metrics of a setting in percent, one value for each seed."""
  seeds = sorted({seed for seed, _ in results})
  metrics = [results[seed, setting]["metrics"] for seed in seeds]
  return np.array([100 * np.mean([each[name]["value"] for name in names]) for each in metrics])


def report(results: dict[tuple[int, str], dict], study: Study, stage1_steps: int, steps: int) -> str:
  """The tables, in Markdown, and how long all of it took."""
  seeds = len({seed for seed, _ in results})
  batch = next(iter(results.values()))["batch"]
  lines = [
    f"{stage1_steps} steps of stage 1, {steps} of stage 2, batches of {batch}, {seeds} seeds; in %: mean ± standard "
    f"deviation over seeds, in brackets the paper's ({study.source}).",
    "",
    f"| | {' | '.join(study.measures)} |",
    f"| --- |{' ---: |' * len(study.measures)}",
    f"| chance | {' | '.join(f'{chance(results, names):.2f}' for names in study.measures.values())} |",
  ]
  for setting, label in study.settings.items():
    paper = study.paper.get(setting)
    cells = [
      kept_results.cell(percentages(results, setting, names)) + (f" ({paper[place]:.1f})" if paper else "")
      for place, names in enumerate(study.measures.values())
    ]
    lines.append(f"| {label} | {' | '.join(cells)} |")
  lines += [
    "",
    "What each step changes, in points: mean ± standard deviation of the differences within seeds.",
    "",
    f"| | {' | '.join(study.measures)} |",
    f"| --- |{' ---: |' * len(study.measures)}",
  ]
  for before, after in study.steps_between:
    cells = []
    for place, names in enumerate(study.measures.values()):
      change = percentages(results, after, names) - percentages(results, before, names)
      known = before in study.paper and after in study.paper
      paper = f" ({study.paper[after][place] - study.paper[before][place]:+.1f})" if known else ""
      cells.append(kept_results.cell(change, "+") + paper)
    lines.append(f"| {study.settings[before]} → {study.settings[after]} | {' | '.join(cells)} |")
  wall = sum(result["seconds"] for result in results.values()) / 60
  processor = sum(result["processor_seconds"] for result in results.values()) / 60
  lines += ["", f"All runs together took {wall:.0f} minutes, and {processor:.0f} minutes of processor time."]
  return "\n".join(lines)


def chance(results: dict[tuple[int, str], dict], names: tuple[str, ...]) -> float:
  """What guessing would give, in percent."""
  metrics = next(iter(results.values()))["metrics"]
  return 100 * float(np.mean([metrics[name]["chance"] for name in names]))


def draw(results: dict[tuple[int, str], dict], study: Study, path: str) -> None:
  """A panel for each measure: bars for means, a point for each seed, and the paper's values as diamonds."""
  import matplotlib

  matplotlib.use("svg")
  matplotlib.rcParams["svg.hashsalt"] = "ablation"  # the same file for the same numbers
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, len(study.measures), figsize=(11, 3.6), sharey=True)
  places = np.arange(len(study.settings))[::-1]
  for number, (axis, (heading, names)) in enumerate(zip(axes, study.measures.items(), strict=True)):
    for place, setting in zip(places, study.settings, strict=True):
      values = percentages(results, setting, names)
      colour = "0.7" if setting == "control" else "C0"
      axis.barh(place, values.mean(), color=colour, height=0.6, alpha=0.75)
      axis.plot(values, [place] * len(values), ".", color="black", markersize=4, label="a seed")
      axis.text(112, place, f"{values.mean():.1f}", ha="right", va="center", fontsize=8)
      if setting in study.paper:
        axis.plot(study.paper[setting][number], place, "D", color="C1", markersize=5, label="paper (real images)")
    axis.axvline(chance(results, names), color="grey", linewidth=0.8, linestyle="--", label="chance")
    axis.set(title=f"{heading}, %", xlim=(0, 112), xticks=range(0, 101, 20), yticks=places)
    axis.set_yticklabels(study.settings.values())
    axis.spines[["top", "right"]].set_visible(False)
  handles, labels = axes[0].get_legend_handles_labels()
  unique = dict(zip(labels, handles, strict=True))
  figure.legend(unique.values(), unique.keys(), loc="lower right", ncols=len(unique), frameon=False, fontsize=8)
  figure.tight_layout(rect=(0, 0.06, 1, 1))
  figure.savefig(path, metadata={"Date": None})
  pyplot.close(figure)


if __name__ == "__main__":
  sys.exit(main())
