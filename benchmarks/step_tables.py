"""The tables of `step.py`: runs the engines one after the other, packs, and says which aims were met."""

import argparse
import concurrent.futures
import math
import multiprocessing
import os
import pathlib
import sys
import tempfile

import jax
import numpy as np
import safetensors.numpy
import step_batches
import step_packing
from machine import machine
from step_batches import Mix
from step_engines import Job, Result, run

from fgclip_jax.data.packing import assemble
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import ModelConfig, preset
from fgclip_jax.models.params import flatten, init_params
from fgclip_jax.train.flops import count_flops, dense_forward, image_forward, text_forward
from fgclip_jax.weights.huggingface_names import to_theirs

ENGINES = {"pytorch": "PyTorch", "packed": "ours, packed", "padded": "ours, padded"}
# The padded form keeps so much for the backward pass (57 GiB for 8 images of `real`) that it recomputes every block.
REMAT = {"packed": "dots", "padded": "full"}
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")
AIM_SPEED = {"paper": 1.6, "real": 2.5}  # packed over PyTorch
AIM_PROMISE, AIM_FILLED, AIM_OVERHEAD, AIM_PACKING = 0.9, 0.9, 1.15, 0.05


def make(options: argparse.Namespace) -> int:
  """Measures what the options say and prints it; returns the command's exit code."""
  jax.config.update("jax_platforms", "cpu")
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # every engine inherits it
  model = preset(options.model)
  sections = [taken_on(options)]
  with tempfile.TemporaryDirectory() as folder:
    prepared = None
    if os.path.isdir(options.real):
      prepared = step_batches.prepare_real(options.real, os.path.join(folder, "data"))
    elif "real" in options.mix:
      say(f"no folder {options.real!r}: the mix `real` is left out")
    mixes = [step_batches.paper_mix(options.fgovd)] if "paper" in options.mix else []
    mixes += [step_batches.real_mix(prepared)] if "real" in options.mix and prepared else []
    if not mixes:
      print("error: nothing to measure", file=sys.stderr)
      return 1
    if "step" in options.tables:
      weights = os.path.join(folder, "weights.safetensors")
      write_weights(model, weights, options.seed)
      sections += [step_section(mix, model, weights, options) for mix in mixes]
    if "packing" in options.tables:
      sections.append(packing_section(mixes, model, prepared))
  text = "\n\n".join(sections) + "\n"
  print(text)
  if options.output:
    pathlib.Path(options.output).write_text(text, encoding="utf-8")
    say(f"wrote {options.output}")
  return 0


def say(text: str) -> None:
  """Progress, apart from the tables."""
  print(text, file=sys.stderr, flush=True)


def taken_on(options: argparse.Namespace) -> str:
  """What the tables were taken on, and what was measured."""
  return (
    f"{machine(*PACKAGES)}\n{options.model}, float32, batch {options.batch}, {options.batches} batches x "
    f"{options.steps} timed steps, forward and backward."
  )


def write_weights(model: ModelConfig, path: str, seed: int) -> None:
  """Random weights, none of them at a value such as 0 or 1 that would hide a mistake, in the PyTorch format."""
  rng = np.random.default_rng(seed)
  flat = {name: np.array(leaf) for name, leaf in flatten(init_params(model, jax.random.key(seed))).items()}
  for name, leaf in flat.items():
    if "norm" in name or "bias" in name or "temperature" in name:
      flat[name] = leaf + np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32)
  safetensors.numpy.save_file(to_theirs(flat, model), path)


def step_section(mix: Mix, model: ModelConfig, weights: str, options: argparse.Namespace) -> str:
  """Runs the engines on a mix; the table and what to read from it."""
  examples = mix.examples(options.batch * options.batches, options.seed, model.vision.image_size)
  groups = step_batches.split(examples, options.batch)
  layouts = {form: step_batches.our_layout(mix, options.batch, form == "packed") for form in ("packed", "padded")}
  ours = {form: [assemble(group, 1, layout) for group in groups] for form, layout in layouts.items()}
  theirs = [step_batches.collate(group) for group in groups]
  works = {form: [count_flops(model, Objective(), batch) for batch in batches] for form, batches in ours.items()}
  useful = sum(work.useful for work in works["packed"]) / len(groups)
  executed = {form: sum(work.executed for work in group) / len(groups) for form, group in works.items()}
  executed["padded"] *= 4 / 3  # the forward pass twice, the backward one at twice its cost
  slots = {form: sum(work.slots for work in group) / len(groups) for form, group in works.items()}
  tokens = {form: sum(work.tokens for work in group) / len(groups) for form, group in works.items()}
  padded = [pytorch_work(model, batch) for batch in theirs]
  executed["pytorch"], slots["pytorch"] = (sum(part) / len(groups) for part in zip(*padded, strict=True))
  tokens["pytorch"] = tokens["padded"]

  results: dict[str, Result] = {}
  expected = None
  for engine in (name for name in ENGINES if name in options.engines):  # PyTorch first: the others must agree with it
    batches = theirs if engine == "pytorch" else ours[engine]
    trace = os.path.join(options.trace, f"{mix.name}-{engine}") if options.trace else ""
    job = Job(
      engine=engine,
      model=model,
      weights=weights,
      batches=batches,
      steps=options.steps,
      limit=options.limit,
      cores=options.cores,
      expected=expected,
      unroll=options.unroll,
      remat=REMAT.get(engine, "none"),
      trace=trace,
    )
    say(f"{mix.name}: {ENGINES[engine]}, {options.batches} batches x {1 + options.steps} steps ...")
    results[engine] = in_own_process(job)
    expected = expected or results[engine].terms
    say(f"  {results[engine].seconds:.2f} s a step; first pass {results[engine].first:.0f} s")

  header = [
    "engine", "images/s", "x PyTorch", "promised", "of promise", "s/step", "steps", "spread", "cores", "AdamW s",
    "peak GiB", "text slots", "tokens", "TFLOP", "/ useful", "GFLOP/s",
  ]  # fmt: skip
  base, rows = results.get("pytorch"), []
  for engine, result in results.items():
    speed = base.seconds / result.seconds if base else math.nan
    promised = executed["pytorch"] / executed[engine]
    rows.append(
      [
        ENGINES[engine],
        f"{options.batch / result.seconds:.3g}",
        f"{speed:.2f}",
        f"{promised:.2f}",
        f"{speed / promised:.2f}",
        f"{result.seconds:.3g}",
        str(result.steps * options.batches),
        f"{result.spread[0] - 1:+.0%} {result.spread[1] - 1:+.0%}",
        f"{result.cores:.1f}",
        f"{result.update:.2g}",
        f"{result.peak / 2**30:.2f}",
        f"{slots[engine]:,.0f}",
        f"{tokens[engine]:,.0f}",
        f"{executed[engine] / 1e12:.3g}",
        f"{executed[engine] / useful:.2f}",
        f"{executed[engine] / result.seconds / 1e9:.0f}",
      ]
    )
  lines = [f"### {mix.name}", f"{mix.about}.", "", table(header, rows), ""]
  if len(results) > 1:
    difference = max(result.difference for result in results.values())
    lines.append(f"Loss terms and gradient norms of all engines agree to {difference:.0e}.")
  if base and "packed" in results:
    speed = base.seconds / results["packed"].seconds
    promised = executed["pytorch"] / executed["packed"]
    lines.append(aim("packed over PyTorch", speed, AIM_SPEED[mix.name]))
    lines.append(aim("of what the operations promise", speed / promised, AIM_PROMISE))
  lines.append(aim("executed over useful operations, packed", executed["packed"] / useful, AIM_OVERHEAD, most=True))
  return "\n".join(lines)


def in_own_process(job: Job) -> Result:
  """Runs an engine in a fresh process."""
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(run, job).result()


def pytorch_work(model: ModelConfig, batch: dict) -> tuple[float, int]:
  """Forward and backward operations of a batch as the published collator pads it, and its text slots.

  Every row's attention is counted in full, as ours is. Image tower, dense path and text blocks by
  fgclip_jax/train/flops.py; the backward pass costs twice the forward one.
  """
  shapes = [batch[key].shape for key in ("short_ids", "long_ids", "region_ids", "hard_ids")]
  slots = sum(rows * length for rows, length in shapes)
  attended = sum(rows * length**2 for rows, length in shapes)
  project = 2 * model.text.width * model.embedding_width * sum(rows for rows, _ in shapes)
  images = len(batch["pixels"]) * (image_forward(model) + dense_forward(model))
  return 3 * (images + text_forward(model, slots, attended) + project), slots


def packing_section(mixes: list[Mix], model: ModelConfig, prepared: str | None) -> str:
  """Packs batches of several sizes; the table and what to read from it."""
  say("packing ...")
  loading = step_packing.loading_seconds(prepared, model.vision.image_size) if prepared else math.nan
  header = ["mix", "batch", "slots filled", "worst batch", "executed / useful", "µs per example", "of loader's time"]
  rows, found = [], []
  for mix in mixes:
    for size in step_packing.SIZES:
      result = step_packing.measure(mix, model, size)
      found.append(result)
      rows.append(
        [
          mix.name,
          str(size),
          f"{result.filled:.1%}",
          f"{result.least:.1%}",
          f"{result.overhead:.3f}",
          f"{result.seconds * 1e6:.0f}",
          f"{result.seconds / (result.seconds + loading):.1%}",
        ]
      )
  lines = ["### Packing", table(header, rows), ""]
  if prepared:
    lines.append(
      f"The rest of the loader (read, decode, resize, tokenise; mix `real`): {loading * 1e6:.0f} µs a picture."
    )
  large = [result for result in found if result.batch >= 64]
  lines.append(aim("slots filled at batch 64 and above, least", min(result.filled for result in large), AIM_FILLED))
  lines.append(
    aim("executed over useful, batch 64 and above, most", max(r.overhead for r in large), AIM_OVERHEAD, True)
  )
  if prepared:
    share = max(result.seconds / (result.seconds + loading) for result in found)
    lines.append(aim("packing's share of the loader's time, most", share, AIM_PACKING, most=True))
  return "\n".join(lines)


def table(header: list[str], rows: list[list[str]]) -> str:
  """A Markdown table with aligned columns; what could not be measured is a dash."""
  rows = [["–" if "nan" in cell else cell for cell in row] for row in rows]
  widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
  marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

  def line(cells):
    return "| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |"

  return "\n".join(map(line, [header, marks, *rows]))


def aim(name: str, value: float, wanted: float, most: bool = False) -> str:
  """A line that says whether an aim was met, and by how much it was missed."""
  met = value <= wanted if most else value >= wanted
  verdict = "met" if met else f"missed by {abs(value / wanted - 1):.1%}"
  return f"- {name}: {value:.3g} (aim: at {'most' if most else 'least'} {wanted:.3g}) – {verdict}"
