"""Captions as sets: what each further caption of a picture costs, and what it teaches on rendered scenes.

  python benchmarks/captions.py cost                                     # a minute; --model vit_b32 --batch 64 for more
  python benchmarks/captions.py scenes --workdir runs/captions           # three seeds; about two hours on two cores

`cost` makes batches of random words: each picture has a short and a long caption, and 0, 2, 4 or 8 captions of its set,
which are runs of 1 to 3 sentences. It counts what the text tower executes, packed and padded, and times steps.

`scenes` trains quickstart's small model from nothing, with all losses of stage 2, on scenes with sets of captions
(`prepare scenes --captions set`): with the first captions only, with captions drawn by weight, with the loss over sets
of four captions and sentences added to that, and with text-conditioned pooling added to that. Validation is the same
for all. A finished run is kept, a stopped one continued: the same command does only what is missing, and prints the
table.
A small trial: `python benchmarks/captions.py scenes --workdir /tmp/captions --seeds 1 --steps 4 --train 256`.
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from absl import logging

from benchmarks import kept_results
from benchmarks.machine import machine
from configs import quickstart
from fgclip_jax import evaluate
from fgclip_jax.data.loader import Loader
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, row_buckets_from_samples
from fgclip_jax.inference.model import load
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.prepare.sources import scenes
from fgclip_jax.train.config import read_config
from fgclip_jax.train.flops import StepFlops, count_flops
from fgclip_jax.train.logger import METRICS_FILE
from fgclip_jax.train.loop import train
from fgclip_jax.train.mesh import make_mesh, to_devices
from fgclip_jax.train.state import TrainSetup, init_state
from fgclip_jax.train.step import make_step

SIZES = (0, 2, 4, 8)  # captions of the set
LONG, SHORT, SENTENCE = (130, 35), (15, 4), (14, 4)  # mean and standard deviation, in tokens

SETTINGS = {
  "first": "first captions only",
  "weighted": "drawn by weight",
  "sentences": "+ sets of 4, with sentences",
  "pooling": "+ text-conditioned pooling",
}
MEASURES = {  # heading: the metrics whose mean it is
  "long captions, R@1": ("long_image_to_text_r1", "long_text_to_image_r1"),
  "short captions, R@1": ("short_image_to_text_r1", "short_text_to_image_r1"),
  "region among all descriptions": ("region_top1",),
  "region among 11 captions": ("fine_grained_top1",),
}
RESULT = "captions.json"


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  options = parse(argv)
  logging.set_verbosity(logging.WARNING)
  print(machine("jax", "flax", "numpy"))
  return options.run(options)


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The options."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  cost = commands.add_parser("cost", help="executed tokens and step time by the number of captions")
  cost.add_argument("--model", default="tiny", help="a preset (default: %(default)s)")
  cost.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
  cost.add_argument("--steps", type=int, default=5, help="timed steps of each kind (default: %(default)s)")
  cost.set_defaults(run=measure_cost)
  learnt = commands.add_parser("scenes", help="what captions teach: retrieval and regions")
  learnt.add_argument("--workdir", required=True, metavar="DIR", help="of all runs")
  learnt.add_argument("--data", default="", metavar="DIR", help="scenes with sets (default: renders WORKDIR/scenes)")
  learnt.add_argument("--train", type=int, default=20000, help="training scenes to render (default: %(default)s)")
  learnt.add_argument("--seeds", type=int, default=3, help="from 0 on (default: %(default)s)")
  learnt.add_argument("--steps", type=int, default=600, help="of each run (default: %(default)s)")
  learnt.add_argument("--batch", type=int, default=64, help="images (default: %(default)s)")
  learnt.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="(default: all)")
  learnt.set_defaults(run=measure_scenes)
  options = parser.parse_args(argv)
  for name in ("batch", "steps", "seeds", "train"):
    if getattr(options, name, 1) < 1:
      parser.error(f"--{name} must be at least 1")
  return options


# ---- cost


def make_examples(count: int, set_size: int, layout: Layout, size: int, vocabulary: int, seed: int) -> list[Example]:
  """Examples of random words; each caption of a set is a run of one to three sentences."""
  rng = np.random.default_rng(seed)

  def caption(length: float, long: bool = False) -> Caption:
    length = int(np.clip(round(length), 4, layout.max_length(long)))
    return Caption((vocabulary - 2, *rng.integers(1, vocabulary - 2, length - 2).tolist(), vocabulary - 1), long)

  def run_of_sentences() -> Caption:
    return caption(rng.normal(*SENTENCE, rng.integers(1, 4)).sum())

  return [
    Example(
      image=np.zeros((size, size, 3), np.uint8),
      short=caption(rng.normal(*SHORT)),
      long=caption(rng.normal(*LONG), long=True),
      captions=tuple(run_of_sentences() for _ in range(set_size)),
      caption_weights=(1.0,) * set_size,
    )
    for _ in range(count)
  ]


def measure_cost(options: argparse.Namespace) -> int:
  """Prints the table of `cost`."""
  model = preset(options.model)
  size, vocabulary = model.vision.image_size, model.text.vocab_size
  print(
    f"{options.model}, batch {options.batch}, float32, forward, backward and update; short captions {SHORT[0]} ± "
    f"{SHORT[1]} tokens, long {LONG[0]} ± {LONG[1]}, those of sets 1 to 3 sentences of {SENTENCE[0]} ± {SENTENCE[1]}; "
    f"median of {options.steps} steps\n"
  )
  heads = (
    "captions of the set",
    "form",
    "rows",
    "executed tokens",
    "filled",
    "executed / useful",
    "ms a step",
    "x none",
  )
  print(f"| {' | '.join(heads)} |\n| ---: | --- |{' ---: |' * 6}")
  for packed in (True, False):
    without = 0.0
    for set_size in SIZES:
      layout = Layout(boxes=0, long_length=model.text.long_length, packed=packed, set_size=set_size)
      samples = [make_examples(options.batch, set_size, layout, size, vocabulary, seed) for seed in range(4)]
      needed = [assemble(each, 1, layout)["tokens"].shape[1] for each in samples]
      buckets = row_buckets_from_samples(layout, options.batch, needed)
      batch = assemble(samples[0], 1, Layout(**{**vars(layout), "row_buckets": buckets}))
      objective = Objective(regional=0.0, hard_negative=0.0, caption_set=float(set_size > 0))
      work = count_flops(model, objective, batch)
      seconds = time_steps(
        TrainSetup(model, make_mesh({"data": 1}), objective, runtime=Runtime()), batch, options.steps
      )
      without = without or seconds
      print(
        f"| {set_size or 'none'} | {'packed' if packed else 'padded'} | {batch['tokens'].shape[1]} | {work.slots:,} | "
        f"{work.tokens / work.slots:.1%} | {work.executed / work.useful:.2f} | {1000 * seconds:.0f} | "
        f"{seconds / without:.2f} |",
        flush=True,
      )
  return 0


def time_steps(setup: TrainSetup, batch: dict[str, np.ndarray], steps: int) -> float:
  """The median time of a step in seconds, once it is compiled."""
  step, state, placed = make_step(setup), init_state(setup), to_devices(batch, setup.mesh)
  seconds = []
  for _ in range(steps + 2):
    begin = time.perf_counter()
    state, metrics = step(state, placed)
    loss = float(metrics["loss"])  # waits for it
    seconds.append(time.perf_counter() - begin)
    if not np.isfinite(loss):
      raise ValueError("the loss is not finite: the times mean nothing")
  return statistics.median(seconds[2:])


# ---- scenes


def make_config(seed: int, setting: str, options: argparse.Namespace):
  """The config of a run: quickstart's stage 2 from random weights, with the setting's captions."""
  config = quickstart.get_config("stage2")
  config.init_from = ""
  config.seed, config.steps = seed, options.steps
  config.optimizer.warmup_steps = config.steps // 8
  config.data.update({"path": options.data, "batch_size": options.batch})
  config.checkpoint_every = config.steps
  config.keep.newest = 1
  config.objective.mask_identical = True  # few things are said of scenes: one batch holds many captions twice
  if setting != "first":
    config.data.captions.draw = "weighted"
  if setting in ("sentences", "pooling"):
    config.data.captions.update({"set_size": 4, "sentences": 2})
    config.objective.caption_set = 1.0
  if setting == "pooling":
    config.model_changes.text_pooling.heads = 4
    config.objective.text_conditioned = 1.0
  return config


def measure_scenes(options: argparse.Namespace) -> int:
  """Trains what is missing, and prints the table of `scenes`."""
  if not options.data:
    options.data = os.path.join(options.workdir, "scenes")
    scenes.write(options.data, train=options.train, captions="set")
  results = {}
  for seed in range(options.seeds):
    for setting in options.settings:
      print(f"== seed {seed}, {setting}: {SETTINGS[setting]}", flush=True)
      results[seed, setting] = run(seed, setting, options)
  print(f"\n{report(results, options)}")
  return 0


def run(seed: int, setting: str, options: argparse.Namespace) -> dict:
  """Trains and measures one model, unless that is done.

  Returns:
    `steps`, `batch`, `metrics` as `evaluate` returns them, `seconds` (median of a step), `tokens`, `slots`, and
    `useful` and `executed` operations of a step.

  Raises:
    ValueError: the folder has a finished run of other settings.
  """
  workdir = os.path.join(options.workdir, f"seed{seed}", setting)
  path = os.path.join(workdir, RESULT)
  wanted = {"steps": options.steps, "batch": options.batch, "data": os.path.abspath(options.data)}
  if (result := kept_results.read(path, wanted)) is not None:
    return result
  settings = read_config(make_config(seed, setting, options))
  train(settings, workdir)
  with open(os.path.join(workdir, METRICS_FILE), encoding="utf-8") as file:
    speeds = [line["images_per_second"] for line in map(json.loads, file) if line.get("images_per_second")]
  work = count_batches(settings)
  result = {
    **wanted,
    "metrics": evaluate.evaluate(load(workdir), options.data),
    "seconds": options.batch / statistics.median(speeds) if speeds else float("nan"),
    **{name: getattr(work, name) for name in ("tokens", "slots", "useful", "executed")},
  }
  kept_results.write(path, result)
  return result


def count_batches(settings, batches: int = 8) -> StepFlops:
  """What a step computes, on average over the run's first batches."""
  loader = Loader(settings.data, settings.layout(), settings.model.vision.image_size, seed=settings.seed)
  counts = [count_flops(settings.model, settings.objective, next(loader)) for _ in range(batches)]
  loader.close()
  total = sum(counts, StepFlops())
  return StepFlops(*(getattr(total, name) // batches for name in ("useful", "executed", "tokens", "slots")))


def report(results: dict[tuple[int, str], dict], options: argparse.Namespace) -> str:
  """The table, in Markdown: means and standard deviations over seeds."""
  costs = ("text tokens", "executed", "TFLOP a step", "ms a step", "x first")
  lines = [
    f"{options.steps} steps from random weights, batches of {options.batch}, {options.seeds} seeds; in %: mean ± "
    "standard deviation over seeds. Cost: means of a step, text tokens and slots that the tower executes.",
    "",
    f"| | {' | '.join((*MEASURES, *costs))} |",
    f"| --- |{' ---: |' * (len(MEASURES) + len(costs))}",
  ]
  first = None
  for setting in options.settings:
    found = [results[seed, setting] for seed in range(options.seeds)]
    cells = []
    for names in MEASURES.values():
      values = np.asarray([100 * np.mean([each["metrics"][name]["value"] for name in names]) for each in found])
      cells.append(kept_results.cell(values))
    mean = {name: float(np.mean([each[name] for each in found])) for name in ("tokens", "slots", "executed", "seconds")}
    first = first or mean["seconds"]
    cells += [f"{mean['tokens']:,.0f}", f"{mean['slots']:,.0f}", f"{mean['executed'] / 1e12:.3f}"]
    cells += [f"{1000 * mean['seconds']:.0f}", f"{mean['seconds'] / first:.2f}"]
    lines.append(f"| {SETTINGS[setting]} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
