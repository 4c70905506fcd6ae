"""`prepare benchmark`: how many images a second this machine delivers, and how many a mesh needs."""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile

from fgclip_jax.cli import positive, shipped_file

SHORT = "measure how quickly a data set is read here"
TEXT = """
Measures every step from file to batch on this machine, and the whole loader with a few settings; changes nothing.

With --step_seconds and --batch, or with --config and --topology, from which `python -m fgclip_jax.plan` estimates
them (compiling takes about a minute), it also shows how many images a second each host of the mesh needs, how many
cores that takes, and what to change if this machine could not deliver them.
"""
EXAMPLE = "data/finehard --config configs/stage2.py --topology v5e:16x16"
CHIPS_PER_HOST = 4  # in TPU slices of several hosts
ROOM = 1.2  # a reserve of cores: steps differ in length, and the rest of the program needs some too


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  parser.add_argument("folder", metavar="DIR", help="the folder of a data set, or its URL (gs://..., s3://...)")
  parser.add_argument("--split", default="train", help="the split to read (default: %(default)s)")
  parser.add_argument("--size", type=positive, default=224, help="side of the model's images (default: %(default)s)")
  parser.add_argument("--seconds", type=float, default=4, help="length of each trial (default: %(default)s)")
  parser.add_argument("--batch", type=positive, help="images in a global batch")
  parser.add_argument("--step_seconds", type=float, help="seconds that a step takes on the mesh")
  hosts = "machines that feed the mesh (default: as the topology says, or 1)"
  parser.add_argument("--hosts", type=positive, help=hosts)
  parser.add_argument("--config", help="estimate the step of this config, instead of --batch and --step_seconds")
  parser.add_argument("--topology", help="the devices to plan for, e.g. v5e:16x16, h100:4x8 (hosts x GPUs)")


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  if bool(options.config) != bool(options.topology):
    raise ValueError("--config and --topology are given together")
  if options.config and options.step_seconds:
    raise ValueError("give either --step_seconds, measured, or --config and --topology, for an estimate")
  if options.step_seconds and not options.batch:
    raise ValueError("--step_seconds needs --batch, the images of a step")
  from absl import flags

  flags.FLAGS.mark_as_parsed()  # Grain's worker processes read them
  from fgclip_jax.data.config import DataConfig
  from fgclip_jax.data.loader import choose_workers
  from fgclip_jax.prepare import loader_timing
  from fgclip_jax.storage.workers import count_processors

  config = DataConfig(path=options.folder, split=options.split, batch_size=128, short_prefix="a photo of ")
  print(f"Reading {loader_timing.SAMPLE} records of {options.folder} ({options.split})", flush=True)
  stages = loader_timing.measure_stages(config, options.size)
  print(describe(stages, options.size))
  print("\nThe whole loader:\n\n  decode  workers  threads    images/s", flush=True)
  cores = count_processors()
  best = (0.0, 0, 0)
  default, layout = choose_workers(config), loader_timing.make_layout(config)

  def measure(**changes) -> float:
    return loader_timing.measure_loader(dataclasses.replace(config, **changes), layout, options.size, options.seconds)

  for workers, threads in sorted({*loader_timing.settings_to_try(cores), default}):
    rate = measure(workers=workers, threads=threads)
    best = max(best, (rate, workers, threads))
    chosen = "   (chosen by default)" if (workers, threads) == default else ""
    print(f"  {'fast':<7}{workers:>8}{threads:>9}{rate:>12,.0f}{chosen}", flush=True)
  rate, workers, threads = best
  exact = measure(workers=workers, threads=threads, decode="exact")
  print(f"  {'exact':<7}{workers:>8}{threads:>9}{exact:>12,.0f}")
  print(f"\nBest here: {rate:,.0f} images/s on {cores} cores with data.workers={workers} data.threads={threads}")
  need = _need(options)
  if need:
    print(verdict(need, options.hosts or _hosts(options.topology), rate, cores, stages, options.size))
  else:
    print("To compare with what a mesh needs, give --config and --topology, or --batch and --step_seconds")
  keys = f"--config.data.path={options.folder} --config.data.workers={workers} --config.data.threads={threads}"
  path = options.config or shipped_file("configs", "stage2.py")
  print(f"Next: python -m fgclip_jax.main --config={path} {keys} --workdir=DIR")


def describe(stages, size: int) -> str:
  """Formats the table of the time that a record takes."""
  rows = [("read, from memory", stages.read, stages.read), ("bytes to record", stages.fields, stages.fields)]
  rows.append((f"picture to {size} px", stages.image["exact"], stages.image["fast"]))
  ids = "stored" if stages.stored_tokens else "made"
  rows.append((f"captions (ids {ids})", stages.captions, stages.captions))
  rows.append(("packing, batch", stages.batch, stages.batch))
  totals = [stages.total(mode) for mode in ("exact", "fast")]
  sides = f", longer side of pictures {stages.sides:.0f} px" if stages.sides else ""
  lines = [
    f"A record: {stages.record_bytes / 1e3:,.1f} kB{sides}, {stages.jpegs:.0%} JPEG",
    f"From disk or storage: {1 / stages.disk:,.0f} records/s ({stages.record_bytes / stages.disk / 1e6:,.0f} MB/s)",
    "\nWhere the time of a record goes, microseconds of one core:\n",
    f"  {'':<24}{'exact':>10}{'fast':>10}",
  ]
  lines += [f"  {name:<24}{1e6 * exact:>10,.0f}{1e6 * fast:>10,.0f}" for name, exact, fast in rows]
  lines.append(f"  {'sum':<24}{1e6 * totals[0]:>10,.0f}{1e6 * totals[1]:>10,.0f}")
  lines.append(f"  {'images/s of a core':<24}{1 / totals[0]:>10,.0f}{1 / totals[1]:>10,.0f}")
  return "\n".join(lines)


def verdict(need: float, hosts: int, rate: float, cores: int, stages, size: int) -> str:
  """Tells whether a machine like this one delivers a host's share of `need` images a second, and what to change if not.

  Args:
    need: images per second that the whole mesh takes.
    hosts: machines that feed the mesh.
    rate: images per second of this machine.
    cores: processors of this machine.
    stages: the time of each step of a record.
    size: the side of the model's images, in pixels.
  """
  each = need / hosts
  wanted = each / (rate / cores) * ROOM
  lines = [
    f"\nThe mesh takes {need:,.0f} images/s: {each:,.0f} for each of {hosts} hosts. At {rate / cores:,.0f} images/s "
    f"of a core that is {wanted:,.1f} cores of a host, {ROOM - 1:.0%} in reserve included; here are {cores}."
  ]
  slow = 1 / stages.disk < each
  if wanted <= cores and not slow:
    return "\n".join([*lines, "Verdict: a host like this one feeds it."])
  lines.append("Verdict: a host like this one does NOT feed it: training would wait for data. What helps:")
  if slow:
    lines.append(f"- storage delivers {1 / stages.disk:,.0f} records/s: a quicker disk, or smaller records")
  if wanted > cores:
    lines.append(f"- hosts with {-(-wanted // 1):,.0f} cores or more")
    if stages.image["fast"] > 0.5 * stages.total("fast") and (stages.sides > 1.5 * size or not stages.sides):
      lines.append(f"- smaller pictures: prepare with --max_side {max(256, 32 * round(1.5 * size / 32))}")
    if not stages.stored_tokens:
      lines.append(f"- captions stored as ids (prepare again): {1e6 * stages.tokens:,.0f} microseconds less a record")
    lines.append("- data.decode=fast, if the config says exact; data.workers and data.threads as measured best above")
  return "\n".join(lines)


def _need(options: argparse.Namespace) -> float | None:
  """Returns the images per second that the mesh takes; None if no option describes the mesh."""
  if options.step_seconds:
    return options.batch / options.step_seconds
  if not options.config:
    return None
  with tempfile.TemporaryDirectory() as scratch:
    file = os.path.join(scratch, "plan.json")
    command = [sys.executable, "-m", "fgclip_jax.plan", f"--config={options.config}", f"--topology={options.topology}"]
    command += [f"--config.data.batch_size={options.batch}"] if options.batch else []
    print(f"\nPlanning the step: {' '.join(command[1:])}", flush=True)
    done = subprocess.run([*command, f"--json={file}"], capture_output=True, text=True, check=False)
    if done.returncode:
      raise ValueError(f"the plan failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    with open(file, encoding="utf-8") as stream:
      (plan,) = json.load(stream)["plans"]
  seconds, images = plan["estimate"]["step_seconds_overlapped"], plan["batch"]["images"]
  print(f"At its quickest, every part at the chip's peak rate, a step of {images:,} images takes {seconds:.3g} s")
  return images / seconds


def _hosts(topology: str | None) -> int:
  """Counts the machines of a topology."""
  chip, _, shape = (topology or "").partition(":")
  if not shape:
    return 1
  sizes = [int(size) for size in shape.split("x")]
  if chip == "h100":
    return sizes[0]
  return max(math.prod(sizes) // CHIPS_PER_HOST, 1)
