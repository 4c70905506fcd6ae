"""Carries weights between PyTorch-format folders and ours.

python -m fgclip_jax.convert path/to/fg-clip-base models/fg-clip-base     # PyTorch -> ours
python -m fgclip_jax.convert runs/stage2 exported                         # a run -> PyTorch
python -m fgclip_jax.convert path/to/clip models/start --as fgclip        # plain CLIP -> FG-CLIP
"""

import argparse
import os
import sys

from fgclip_jax.weights import folder as folders
from fgclip_jax.weights import huggingface


def convert(
  source: str,
  output: str,
  to: str | None = None,
  kind: str | None = None,
  overwrite: bool = False,
  ema: bool = True,
) -> list[str]:
  """Converts a model folder.

  Args:
    source: a folder in PyTorch format, one of our model folders, or a run folder (its newest checkpoint).
    output: the folder to write.
    to: `pytorch` or `jax`; by default the other one than `source` has.
    kind: `fgclip` makes FG-CLIP from a plain CLIP (an FG-CLIP stays as it is); None keeps what it is.
    overwrite: a model that `output` holds already is replaced; other files in it stay.
    ema: takes the weights that a run has averaged over its steps, if it has; otherwise those of its last step.

  Returns:
    The paths written.

  Raises:
    FileNotFoundError, ValueError: `source` is no model folder, or a broken one; see `weights.folder.read`.
    FileExistsError: `output` holds files, and not `overwrite`.
  """
  found = folders.detect(source)
  to = to or {"pytorch": "jax", "jax": "pytorch"}[found]
  if os.path.isdir(output) and os.path.realpath(output) == os.path.realpath(source):
    raise ValueError(f"output {output!r} is the input folder; name another")
  if os.path.isdir(output) and os.listdir(output) and not overwrite:
    raise FileExistsError(f"{output!r} holds files already; name another folder, or replace its model by --overwrite")
  config, flat, origin = folders.read(source, ema)
  if ema and folders.is_averaged(source):
    print("the weights that the run has averaged over its steps (--raw_weights: those of its last step)")
  if kind == "fgclip" and not config.fine_grained:
    (config, flat), origin = huggingface.to_fgclip(config, flat), None
    print("made FG-CLIP from plain CLIP: positions stretched to 248, projection and temperature copied")
  if os.path.isdir(output):
    folders.remove_model(output)
  paths = folders.FORMATS[to].write(output, config, flat, origin)
  kind = "FG-CLIP" if config.fine_grained else "CLIP"
  print(f"{kind}, {sum(leaf.size for leaf in flat.values()) / 1e6:.1f} M parameters: {found} -> {to}")
  return paths


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("input", metavar="INPUT", help="a PyTorch-format, model or run folder")
  parser.add_argument("output", metavar="OUTPUT", help="the folder to write")
  parser.add_argument("--to", choices=sorted(folders.FORMATS), help="the format to write (default: the other one)")
  parser.add_argument("--as", dest="kind", choices=["fgclip"], help="make FG-CLIP from a plain CLIP")
  parser.add_argument("--overwrite", action="store_true", help="replace a model that OUTPUT holds already")
  parser.add_argument("--raw_weights", action="store_true", help="of a run, the last step's weights, not their average")
  args = parser.parse_args(argv)
  try:
    paths = convert(args.input, args.output, args.to, args.kind, args.overwrite, not args.raw_weights)
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  for path in paths:
    print(f"wrote {path}")
  print(f"next: python -c \"import fgclip_jax; print(fgclip_jax.load('{args.output}'))\"")
  return 0


if __name__ == "__main__":
  sys.exit(main())
