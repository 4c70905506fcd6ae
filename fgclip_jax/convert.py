"""Carries weights between this library's folders and those of others. The input's format is recognised.

python -m fgclip_jax.convert path/to/fg-clip-base models/fg-clip-base     # PyTorch -> ours
python -m fgclip_jax.convert ViT-B-32.pt models/b32                       # OpenAI's file -> ours
python -m fgclip_jax.convert runs/stage2 exported                         # a run -> PyTorch
python -m fgclip_jax.convert runs/stage2 encoder --to clip_vision         # its image tower, for LLaVA
python -m fgclip_jax.convert path/to/clip models/start --as fgclip        # plain CLIP -> FG-CLIP
python -m fgclip_jax.convert path/to/siglip2-naflex models/start --as fgclip    # SigLIP 2 -> FG-CLIP 2
python -m fgclip_jax.convert siglip2_l16_256.npz models/l16 --as naflex   # for pictures of any shape
"""

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

from fgclip_jax.cli import print_error
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.params import flatten, is_statistic, unflatten
from fgclip_jax.models.positions import resize
from fgclip_jax.storage import atomic, paths
from fgclip_jax.weights import clip_to_fgclip, formats, naflex, native
from fgclip_jax.weights.huggingface_processor import OWN_TOKENIZER_FILES

_FORMATS = """formats: jax (ours); pytorch (the published layout of either FG-CLIP; of a plain model the same as clip
or siglip); clip (transformers' CLIPModel); clip_vision (transformers' CLIPVisionModel, the image tower alone); siglip
(transformers' SiglipModel or Siglip2Model); open_clip; big_vision (SigLIP's .npz). Of an FG-CLIP, those for plain
models get the path for short texts."""
Flat = dict[str, np.ndarray]
_KINDS = ("fgclip", "naflex", "squares")


def convert(
  source: str,
  output: str,
  to: str | None = None,
  kind: str | Sequence[str] | None = None,
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
    kind: what to make of the model, one or several of these; None keeps what it is. `fgclip`: FG-CLIP from a plain
      CLIP, FG-CLIP 2 from SigLIP (an FG-CLIP stays as it is). `naflex`: a SigLIP for pictures of any shape from one for
      squares; `squares`: the other way.
    overwrite: a model that `output` holds already is replaced; other files in it stay.
    ema: takes the weights that a run has averaged over its steps, if it has; otherwise those of its last step.
    allow_pickle: `source` may be a pickle; nothing in it is executed.
    activation, heads: what OpenAI's layout does not tell by itself; see `weights.open_clip.infer_config`.
    image_size: the side of the images in pixels, to which the image tower's positions are interpolated; with `squares`
      as NaFlex does.

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
  kinds = [kind] if isinstance(kind, str) else list(kind or ())
  if unknown := sorted(set(kinds) - set(_KINDS)):
    raise ValueError(f"kind must be of {', '.join(_KINDS)}, got {', '.join(unknown)}")
  if {"naflex", "squares"} & set(kinds):
    if len({"naflex", "squares"} & set(kinds)) > 1:
      raise ValueError("a model is for pictures of any shape (naflex) or for squares, not for both")
    if ("naflex" in kinds) == config.vision.takes_patches:
      print(f"the model is {_name(config)} already")
    else:
      (config, flat), origin = _change_shapes(config, flat, image_size), None
  if "fgclip" in kinds and not config.fine_grained:
    print(_made_of(config))
    (config, flat), origin = clip_to_fgclip.to_fgclip(config, flat), None
  if image_size and image_size != config.vision.image_size:
    params, config = resize(unflatten(flat), config, image_size)
    flat, origin = flatten(params), None
    print(f"image positions interpolated for {image_size} px")
  if config.fine_grained and to in ("clip", "siglip", "open_clip", "big_vision"):
    print(f"{to} has no place for FG-CLIP's long texts and regions: its path for short texts is written")
  written = formats.write(output, to, config, flat, origin, tokenizer_from=source)
  size = sum(leaf.size for name, leaf in flat.items() if not is_statistic(name))
  print(f"{_name(config)}, {size / 1e6:.1f} M parameters: {found} -> {to}")
  own = [name for name in map(paths.base_name, written) if name in OWN_TOKENIZER_FILES]
  if config.text.tokenizer in ("gemma", "siglip") and not own:
    print(f"no tokenizer beside the input: put the model's own (tokenizer.json or spiece.model) into {output}")
  return written


def _name(config: ModelConfig) -> str:
  if config.text.type != "siglip":
    return "FG-CLIP" if config.fine_grained else "CLIP"
  shapes = "pictures of any shape" if config.vision.takes_patches else f"squares of {config.vision.image_size} px"
  return f"{'FG-CLIP 2' if config.fine_grained else 'SigLIP'} for {shapes}"


def _made_of(config: ModelConfig) -> str:
  """What making an FG-CLIP of this model does."""
  length = clip_to_fgclip.fgclip_config(config).text.long_length
  if config.text.type == "siglip":
    return (
      f"made FG-CLIP 2 from SigLIP: positions stretched to {length}, the text head copied for long texts and regions, "
      "the pooling head for dense features, two temperatures of ln 100"
    )
  return f"made FG-CLIP from plain CLIP: positions stretched to {length}, projection and temperature copied"


def _change_shapes(config: ModelConfig, flat: Flat, image_size: int | None) -> tuple[ModelConfig, Flat]:
  """A SigLIP for squares as one for pictures of any shape, or the other way; prints what was done."""
  before = config.vision
  if before.takes_patches:
    config, flat = naflex.to_squares(config, flat, image_size)
    grid = config.vision.grid
    fits = "fit as they are" if before.grid == grid else f"are resized from {before.grid} x {before.grid}"
    print(f"made for squares of {config.vision.image_size} px: the {grid} x {grid} positions {fits}")
    return config, flat
  config, flat = naflex.to_naflex(config, flat)
  print(
    f"made for pictures of any shape: the patch convolution is the linear layer, the {before.grid} x {before.grid} "
    f"positions are resized for each picture; squares of {config.vision.image_size} px have the same features"
  )
  return config, flat


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
  parser.add_argument(
    "--as",
    dest="kind",
    choices=_KINDS,
    action="append",
    help="fgclip: make FG-CLIP from a plain CLIP, FG-CLIP 2 from SigLIP; naflex: make a SigLIP for squares one for "
    "pictures of any shape; squares: the other way. May be given twice",
  )
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
