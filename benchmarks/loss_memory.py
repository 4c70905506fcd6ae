"""Measures the memory of the global contrast and its gradients alone, per device, in every form.

  python benchmarks/loss_memory.py --plot docs/loss_memory.svg

Compiles ahead of time for TPUs, of which none is needed; libtpu is (requirements-tpu.txt). Prints a table in Markdown:
the compiler's peak for one device, embeddings and gradients included, against the batch of the whole mesh. Where a
program does not fit, the compiler says how much it would take. The plot needs matplotlib (requirements-dev.txt).
A small trial: `python benchmarks/loss_memory.py --topologies v5e:2x2 --batches 32768 --forms rows ring`.
"""

import argparse
import collections
import importlib.metadata
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.losses.blockwise import FORMS, choose_form
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.fgclip import Embeddings
from fgclip_jax.plan import hardware
from fgclip_jax.plan.estimate import needed_bytes
from fgclip_jax.train.mesh import make_mesh

MIB, GIB = 2**20, 2**30
AIM = (256, 2**20, GIB)  # devices, batch, bytes


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  options = parse(argv)
  hardware.prepare_environment(options.topologies[0])
  try:
    meshes = [mesh_of(name) for name in options.topologies]
  except (ModuleNotFoundError, ValueError) as error:
    sys.exit(str(error))
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "libtpu"))
  print(f"Peak per device in MiB, {options.width} wide, float32, chunks of {options.chunk:,}; {versions}.")
  print("`> x`: does not fit the device, would take x. **Bold**: what `auto` chooses.\n")
  print(f"| devices | batch | {' | '.join(options.forms)} |\n| ---: | ---: |{' ---: |' * len(options.forms)}")
  peaks = {}
  for name, mesh in zip(options.topologies, meshes, strict=True):
    for batch in options.batches:
      cells = []
      for form in options.forms:
        started = time.monotonic()
        peak, fits = peaks[mesh.size, batch, form] = compiled_peak(mesh, batch, options.width, form, options.chunk)
        print(f"{name} {batch:,} {form}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        cell = f"{'' if fits else '> '}{peak / MIB:,.{0 if peak > 10 * MIB else 1}f}"
        chosen = form == choose_form(batch // mesh.size, mesh.size, options.chunk)
        cells.append(f"**{cell}**" if chosen else cell)
      print(f"| {mesh.size} | {batch:,} | {' | '.join(cells)} |", flush=True)
  reached = [(peaks[(*AIM[:2], form)], form) for form in options.forms if (*AIM[:2], form) in peaks]
  if reached:
    (peak, fits), form = min(reached, key=lambda entry: entry[0][0])
    verdict = "met" if fits and peak < AIM[2] else "missed"
    print(f"\nBatch {AIM[1]:,} on {AIM[0]} devices, {form}: {peak / GIB:.2f} GiB (aim: below 1 GiB) – {verdict}")
  if options.plot:
    draw(peaks, options)
    print(f"\nwrote {options.plot}")
  return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The options."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topologies", nargs="+", default=["v5e:2x2", "v5e:8x8", "v5e:16x16"], help="%(default)s")
  parser.add_argument(
    "--batches", nargs="+", type=int, default=[32_768, 61_440, 262_144, 1_048_576], help="rows (default: %(default)s)"
  )
  parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
  parser.add_argument("--width", type=int, default=512, help="of the embeddings (default: %(default)s)")
  parser.add_argument("--chunk", type=int, default=Objective.chunk, help="columns at a time (default: %(default)s)")
  parser.add_argument("--plot", default="", metavar="FILE.svg", help="also draw the table")
  options = parser.parse_args(argv)
  for name in ("width", "chunk"):
    if getattr(options, name) < 1:
      parser.error(f"--{name} must be at least 1")
  return options


def mesh_of(topology: str) -> jax.sharding.Mesh:
  """A mesh of a TPU slice that need not be there, e.g. `v5e:16x16`: its first side is `data`, the others `fsdp`."""
  devices = hardware.describe(topology).devices
  first = int(topology.partition(":")[2].partition("x")[0])
  return make_mesh({"data": first, "fsdp": len(devices) // first}, devices)


def compiled_peak(mesh: jax.sharding.Mesh, batch: int, width: int, form: str, chunk: int) -> tuple[int, bool]:
  """Bytes of one device at the peak of the contrast with its gradients, and whether they fit."""
  objective = Objective(global_long=0.0, regional=0.0, hard_negative=0.0, form=form, chunk=chunk)

  def loss(image, text, temperature):
    return objective_terms(Embeddings(image=image, short=text), {"global": temperature}, objective, mesh)["total"]

  def array(shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

  rows = array((batch, width), ("data", "fsdp"))
  lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(rows, rows, array(()))
  try:
    return lowered.compile().memory_analysis().peak_memory_in_bytes, True
  except jax.errors.JaxRuntimeError as error:
    used = needed_bytes(str(error))
    if used is None:
      raise
    return used, False


def draw(peaks: dict[tuple[int, int, str], tuple[int, bool]], options: argparse.Namespace) -> None:
  """One panel per mesh: peak against batch, a line per form; hollow points do not fit."""
  import matplotlib

  matplotlib.use("svg")
  matplotlib.rcParams["svg.hashsalt"] = "loss_memory"  # the same file for the same numbers
  from matplotlib import pyplot

  panels = collections.defaultdict(lambda: collections.defaultdict(list))
  for (devices, batch, form), (peak, fits) in peaks.items():
    panels[devices][form].append((batch, peak / GIB, fits))
  figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True, squeeze=False)
  for axis, (devices, lines) in zip(axes[0], panels.items(), strict=True):
    for number, (form, points) in enumerate(lines.items()):
      batches, gib, fits = zip(*points, strict=True)
      axis.loglog(batches, gib, color=f"C{number}", label=form)
      for batch, value, does in points:
        axis.plot(batch, value, "o", color=f"C{number}", markerfacecolor=f"C{number}" if does else "white")
    axis.axhline(AIM[2] / GIB, color="grey", linewidth=0.8, linestyle="--")
    axis.set(title=f"{devices} devices", xlabel="batch", xticks=options.batches)
    axis.set_xticklabels([f"{batch // 1024}k" for batch in options.batches])
    axis.minorticks_off()
  axes[0][0].set_ylabel("peak of one device, GiB")
  axes[0][0].legend()
  figure.tight_layout()
  figure.savefig(options.plot, metadata={"Date": None})


if __name__ == "__main__":
  sys.exit(main())
