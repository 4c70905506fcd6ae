"""Carries weights between this library's folders and those of others. The input's format is recognised.

python -m fgclip_jax.convert path/to/fg-clip-base models/fg-clip-base     # PyTorch -> ours
python -m fgclip_jax.convert ViT-B-32.pt models/b32                       # OpenAI's file -> ours
python -m fgclip_jax.convert runs/stage2 exported                         # a run -> PyTorch
python -m fgclip_jax.convert runs/stage2 encoder --to clip_vision         # its image tower, for LLaVA
python -m fgclip_jax.convert path/to/clip models/start --as fgclip        # plain CLIP -> FG-CLIP
"""

import argparse
import os
import sys

from fgclip_jax.cli import print_error
from fgclip_jax.models.params import flatten, is_statistic, unflatten
from fgclip_jax.models.positions import resize
from fgclip_jax.storage import atomic, paths
from fgclip_jax.weights import clip_to_fgclip, formats, native

_FORMATS = """formats: jax (ours); pytorch (FG-CLIP's published layout; of a plain CLIP the same as clip); clip
(transformers' CLIPModel); clip_vision (transformers' CLIPVisionModel, the image tower alone); open_clip. Of an
FG-CLIP, clip and open_clip get the path for short texts."""


def convert(
  source: str,
  output: str,
  to: str | None = None,
  kind: str | None = None,
  overwrite: bool = False,
  ema: bool = True,
  *,
  allow_pickle: bool = False,
  activation: str | None = None,
  heads: tuple[int, int] | None = None,
  image_size: int | None = None,
) -> list[str]:
  """Converts a model.

  Args:
    source: a folder or file of weights in any format that `weights.formats.detect` knows, or a run folder (its newest
      checkpoint).
    output: the folder to write.
    to: a name of `weights.formats.FORMATS`; by default `pytorch` for our own folders and `jax` for all others.
    kind: `fgclip` makes FG-CLIP from a plain CLIP (an FG-CLIP stays as it is); None keeps what it is.
    overwrite: a model that `output` holds already is replaced; other files in it stay.
    ema: takes the weights that a run has averaged over its steps, if it has; otherwise those of its last step.
    allow_pickle: `source` may be a pickle; nothing in it is executed.
    activation, heads: what OpenAI's layout does not tell by itself; see `weights.open_clip.infer_config`.
    image_size: the side of the images in pixels, to which the image tower's positions are interpolated.

  Returns:
    The paths written.

  Raises:
    FileNotFoundError, ValueError: `source` is no model, or a broken one; see `weights.formats.read`.
      Also: writing `output` would change the input: they are one folder, lie in each other, or are linked.
    FileExistsError: `output` holds files, and not `overwrite`.
  """
  found = formats.detect(source, allow_pickle)
  to = to or ("pytorch" if found == "jax" else "jax")
  _check_output(source, output, overwrite)
  config, flat, origin = formats.read(source, ema, allow_pickle, activation, heads)
  if ema and formats.is_averaged(source):
    print("the weights that the run has averaged over its steps (--raw_weights: those of its last step)")
  if kind == "fgclip" and not config.fine_grained:
    (config, flat), origin = clip_to_fgclip.to_fgclip(config, flat), None
    print(
      f"made FG-CLIP from plain CLIP: positions stretched to {config.text.long_length}, projection and temperature "
      "copied"
    )
  if image_size and image_size != config.vision.image_size:
    params, config = resize(unflatten(flat), config, image_size)
    flat, origin = flatten(params), None
    print(f"image positions interpolated for {image_size} px")
  if config.fine_grained and to in ("clip", "open_clip"):
    print(f"{to} has no place for FG-CLIP's long texts and regions: its path for short texts is written")
  written = formats.write(output, to, config, flat, origin)
  kind = "FG-CLIP" if config.fine_grained else "CLIP"
  size = sum(leaf.size for name, leaf in flat.items() if not is_statistic(name))
  print(f"{kind}, {size / 1e6:.1f} M parameters: {found} -> {to}")
  return written


def _check_output(source: str, output: str, overwrite: bool) -> None:
  """Refuses an output that would replace what it must not, before anything is read or written."""
  paths.check(output, "output", write=True)
  if paths.is_remote(output):
    taken, folder = paths.exists(output), paths.is_folder(output)
  else:
    taken, folder = os.path.lexists(output), os.path.isdir(output)
  if taken and not folder:
    raise NotADirectoryError(f"{output!r} is no folder; name one, which may be a new one")
  atomic.check_apart(source, formats.input_files(source), output, formats.model_files())
  if not folder:
    return
  if paths.list_folder(output) and not overwrite:
    raise FileExistsError(f"{output!r} holds files already; name another folder, or replace its model by --overwrite")
  if native.is_run(output):  # its checkpoints are of no use without its model.json
    raise ValueError(f"{output!r} is a run folder; name another one")


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.convert",
    description=__doc__,
    epilog=_FORMATS,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("input", metavar="INPUT", help="a folder or a file of weights, or a run folder")
  parser.add_argument("output", metavar="OUTPUT", help="the folder to write")
  parser.add_argument("--to", choices=list(formats.FORMATS), help="the format to write (default: jax, of ours pytorch)")
  parser.add_argument("--as", dest="kind", choices=["fgclip"], help="make FG-CLIP from a plain CLIP")
  parser.add_argument("--image_size", type=int, metavar="PIXELS", help="interpolate the image positions to this side")
  parser.add_argument("--overwrite", action="store_true", help="replace a model that OUTPUT holds already")
  parser.add_argument("--raw_weights", action="store_true", help="of a run, the last step's weights, not their average")
  parser.add_argument("--allow_pickle", action="store_true", help="read a pickle (.bin, .pt), without executing it")
  parser.add_argument(
    "--activation", choices=["quick_gelu", "gelu"], help="of a state dict without a config (default: quick_gelu)"
  )
  parser.add_argument(
    "--heads", nargs=2, type=int, metavar=("IMAGE", "TEXT"), help="of the same (default: of 64 channels each)"
  )
  args = parser.parse_args(argv)
  try:
    written = convert(
      args.input,
      args.output,
      args.to,
      args.kind,
      args.overwrite,
      not args.raw_weights,
      allow_pickle=args.allow_pickle,
      activation=args.activation,
      heads=args.heads and tuple(args.heads),
      image_size=args.image_size,
    )
    to = args.to or ("jax" if paths.base_name(written[0]) == "model.json" else "pytorch")
  except (OSError, ValueError) as error:
    print_error(error)
    return 1
  for path in written:
    print(f"wrote {path}")
  print(f"next: python -c '{formats.FORMATS[to].loads.format(args.output)}'")
  return 0


if __name__ == "__main__":
  sys.exit(main())
