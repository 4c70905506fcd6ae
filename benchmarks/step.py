"""Measures stage 2's forward and backward pass: ours packed, ours padded, and PyTorch on the padded batch.

  python benchmarks/step.py --output tables.md

Prints tables in Markdown. One run, the same machine, weights and batches: every engine runs in a process of its own
and is timed only after its loss terms and gradient norm have been found equal to PyTorch's. Mixes of data: `paper`,
the statistics of FG-CLIP's paper, and `real`, photographs in FineHARD's form. A small trial:
`python benchmarks/step.py --model tiny --steps 2`. Needs Linux and the packages of requirements-dev.txt.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fgclip_jax.models.config import PRESETS  # imports no JAX

ENGINES, MIXES, TABLES = ("pytorch", "packed", "padded"), ("paper", "real"), ("step", "packing")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  options = parse(argv)
  # not above: PyTorch's process imports this file, and its memory is counted
  import step_tables

  return step_tables.make(options)


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The options."""
  shared = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", choices=PRESETS, default="vit_b16", help="default: %(default)s")
  parser.add_argument("--batch", type=int, default=8, help="images per batch (default: %(default)s)")
  parser.add_argument("--batches", type=int, default=2, help="different batches per mix (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=3, help="timed steps per batch (default: %(default)s)")
  parser.add_argument("--mix", nargs="+", choices=MIXES, default=list(MIXES))
  parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
  parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
  parser.add_argument("--cores", type=int, default=2, help="cores and threads of an engine (default: %(default)s)")
  parser.add_argument(
    "--limit", type=float, default=300, help="seconds of timed steps per engine (default: %(default)s)"
  )
  parser.add_argument("--unroll", type=int, default=1, help="blocks of ours unrolled; 0: all (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="of weights and examples (default: %(default)s)")
  parser.add_argument("--fgovd", default=str(shared / "fgovd"), help="FG-OVD's .jsonl files (default: %(default)s)")
  parser.add_argument("--real", default=str(shared / "real_mini"), help="jsonfiles/, images/ (default: %(default)s)")
  parser.add_argument("--trace", default="", metavar="DIR", help="also write a profile of each engine here")
  parser.add_argument("--output", default="", metavar="FILE.md", help="write the tables to this file, too")
  options = parser.parse_args(argv)
  for name in ("batch", "batches", "steps", "cores"):
    if getattr(options, name) < 1:
      parser.error(f"--{name} must be at least 1")
  return options


if __name__ == "__main__":
  sys.exit(main())
