"""How a step grows: operations and bytes per image, as the batch and the devices grow.

  python benchmarks/growth.py                           # each row is a compilation, of minutes
  python benchmarks/growth.py --model tiny --slices v5e:2x2 v5e:4x4

Compiles stage 1's step ahead of time (no accelerator) for slices of TPUs, for the same number of images on each device
and for more of them, and prints a table in Markdown. What does not grow with the batch is flat in it; the contrast
compares every image with every caption, so its operations per image grow with the batch.
"""

import argparse
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fgclip_jax.models.config import PRESETS  # imports no JAX
from fgclip_jax.plan import hardware


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", choices=PRESETS, default="vit_b32", help="default: %(default)s")
  parser.add_argument("--slices", nargs="+", default=["v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16"], metavar="NAME")
  parser.add_argument("--images", type=int, default=64, help="of each device (default: %(default)s)")
  parser.add_argument(
    "--more", nargs="*", type=int, default=[256, 1024, 4096],
    help="images of each device of the last slice, in micro-batches of --images (default: %(default)s)",
  )  # fmt: skip
  options = parser.parse_args(argv)
  hardware.prepare_environment(options.slices[0])
  import jax

  from configs import stage1
  from fgclip_jax.train.config import read_config

  jax.config.update("jax_enable_compilation_cache", False)
  run = read_config(stage1.get_config(options.model), check_data=False)
  print(
    f"{options.model}, stage 1, jax {jax.__version__}. `contrast`: operations in full float32, which are the losses'."
    "\n`memory`, `network`: bytes that a device moves to and from its memory, and sends, for each of its images.\n"
  )
  print("| devices | batch | images a device | executed GFLOP/image | contrast GFLOP/image | memory MB/image | "
        "network kB/image | peak GiB |")  # fmt: skip
  print("|--:|--:|--:|--:|--:|--:|--:|--:|")
  for name in options.slices:
    _row(run, name, options.images, 1)
  for images in options.more:
    _row(run, options.slices[-1], images, images // options.images)
  return 0


def _row(run, name: str, images: int, parts: int) -> None:
  from fgclip_jax.plan.estimate import estimate_step
  from fgclip_jax.train.mesh import make_mesh

  topology = hardware.describe(name)
  devices = len(topology.devices)
  batch = images * devices
  grown = dataclasses.replace(
    run,
    data=dataclasses.replace(run.data, batch_size=batch),
    runtime=dataclasses.replace(run.runtime, micro_batches=parts),
  )
  mesh = make_mesh({"data": devices // 4, "fsdp": 4}, topology.devices)
  plan = estimate_step(grown, topology, mesh)
  head = f"| {devices} | {batch:,} | {images:,}{f' ({parts} parts)' if parts > 1 else ''} |"
  operations = plan.operations
  head += f" {operations['executed'] / batch / 1e9:.1f} | {operations['float32'] / batch / 1e9:.3f} |"
  if not plan.fits:
    print(f"{head} {plan.problem} | | |", flush=True)
    return
  sent = sum(row["sent"] for row in plan.collectives.values())
  print(
    f"{head} {plan.estimate['memory_bytes'] / images / 1e6:.0f} | {sent / images / 1e3:.0f} | "
    f"{plan.memory['peak'] / 2**30:.2f} |",
    flush=True,
  )


if __name__ == "__main__":
  sys.exit(main())
