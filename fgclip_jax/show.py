"""Draws heat maps: where in a picture texts fit.

python -m fgclip_jax.show --model runs/stage2 --image photo.jpg --text "a red cup" "a blue cup" --output heat.png
python -m fgclip_jax.show --model runs/stage2 --image photo.jpg --text "a red cup" "a blue cup" --boxes 4x3
python -m fgclip_jax.show --model runs/stage2 --data data/scenes --index 3 --output heat.png

--boxes adds a table of scores, each caption with each box of a grid or a file. A file has x1 y1 x2 y2 as fractions of
width and height: JSON [[x1, y1, x2, y2], ...] or [{"box": [...]}, ...], or CSV with the columns x1, y1, x2, y2.
"""

import argparse
import os
import re
import sys
from typing import Any

from PIL import Image

from fgclip_jax.cli import add_max_patches, print_error
from fgclip_jax.data import image as images
from fgclip_jax.data import record
from fgclip_jax.evals.datasets.records import Examples
from fgclip_jax.inference.model import FGCLIP, load
from fgclip_jax.inference.programs import use_compilation_cache
from fgclip_jax.storage import atomic, paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.viz import box_scores, drawing, heatmap
from fgclip_jax.viz.drawing import Box

_NUMBER = re.compile(r"\s*-?\d*\.?\d+(e-?\d+)?\s*")
MAX_REGIONS = 3  # shown of a record if none is chosen


def show(
  model: FGCLIP,
  picture: Image.Image,
  texts: list[str],
  boxes: list[list[Box]],
  output: str,
  table: list[Box] | None = None,
  attention: bool = False,
) -> tuple[list[heatmap.Heat], box_scores.Scores | None, str]:
  """Draws a map for each text, and a table of scores for `table`, and writes them as one picture.

  Args:
    model: the model.
    picture: RGB, of any size.
    texts: short descriptions, as of regions.
    boxes: for each text, boxes x1 y1 x2 y2 in 0..1 to draw with their own similarity.
    output: the picture to write; its suffix decides the format.
    table: boxes to compare with every text.
    attention: maps of where each text looks, by text-conditioned pooling, instead of similarities.

  Returns:
    The maps, the scores, and the characters that no installed font has.
  """
  heats = heatmap.measure(model, picture, texts, boxes, attention)
  found = box_scores.measure(model, picture, texts, table) if table else None
  font, missing = drawing.find_font(texts, drawing.FONT_SIZE)
  below = [box_scores.draw(picture, found, font)] if found else []
  paths.make_folder(paths.parent(output))
  with atomic.file(output) as temporary:
    heatmap.draw(picture, heats, font, below).save(temporary)
  return heats, found, missing


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", metavar="DIR", required=True, help="a PyTorch-format, model or run folder")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--image", metavar="FILE", help="the picture")
  source.add_argument("--data", metavar="DIR", help="a record folder; shows the regions of one of its records")
  parser.add_argument("--split", default="validation", help="with --data: the split (default: %(default)s)")
  parser.add_argument("--index", type=int, default=0, help="with --data: the record's number (default: %(default)s)")
  parser.add_argument("--region", type=int, help=f"with --data: only this region (default: the first {MAX_REGIONS})")
  parser.add_argument(
    "--text", "--captions", nargs="+", metavar="TEXT",
    help="captions to look for (with --data default: the regions' own)",
  )  # fmt: skip
  parser.add_argument(
    "--box", nargs=4, type=float, action="append", default=[], metavar=("X1", "Y1", "X2", "Y2"),
    help="with --image: a box to draw with its similarity, as fractions of width and height; can be repeated",
  )  # fmt: skip
  parser.add_argument(
    "--boxes", metavar="FILE|NxM", help="with --image: score every caption with every box of a file or a grid, e.g. 4x3"
  )
  parser.add_argument(
    "--output", metavar="FILE", default="heat.png", help="the picture to write (default: %(default)s)"
  )
  parser.add_argument(
    "--attention", action="store_true",
    help="draw where each text looks, by the text-conditioned pooling of models that have it",
  )  # fmt: skip
  add_max_patches(parser)
  args = parser.parse_args(argv)
  if args.image and not args.text:
    parser.error("--image needs --text")
  if args.image and args.region is not None:
    parser.error("--region belongs to --data; with --image, give --box")
  if args.data and (args.box or args.boxes):
    parser.error("--box and --boxes belong to --image; with --data, the regions' own boxes are drawn")
  try:
    _run(args)
  except (OSError, ValueError, IndexError) as error:
    print_error(error)
    return 1
  return 0


def _run(args: argparse.Namespace) -> None:
  ending = os.path.splitext(args.output)[1].lower()
  if Image.registered_extensions().get(ending) not in Image.SAVE:
    raise ValueError(f"output {args.output!r} must end in .png, .jpg or .webp, which decides the format")
  paths.check(args.output, "--output", write=True)
  for given in (args.image, args.boxes):
    if given and paths.identity(given) == paths.identity(args.output):
      raise ValueError(f"output {args.output!r} would replace its own input: name another file by --output")
  picture, texts, boxes = _from_record(args) if args.data else _from_file(args)
  table = _read_boxes(args.boxes) if args.boxes else None
  use_compilation_cache()
  model = load(args.model, max_patches=args.max_patches)
  print(f"{args.model}: {model}")
  heats, found, missing = show(model, picture, texts, boxes, args.output, table, args.attention)
  for heat in heats:
    in_boxes = ", ".join(f"{score:.3f}" for _, score in heat.boxes)
    low, high = heat.similarity.min(), heat.similarity.max()
    what = "of its attention in a patch" if args.attention else "over the picture"
    print(f"{heat.text}: {low:.3f} to {high:.3f} {what}" + (f"; in the box {in_boxes}" if in_boxes else ""))
  if found:
    print(f"\n{box_scores.table(found)}\n")
  if missing:
    print(f"note: no font here can draw {missing}: install one that can, e.g. Noto Sans CJK for Chinese and Japanese")
  print(f"wrote {args.output}")
  source = f"--data {args.data} --split {args.split} --index {args.index}" if args.data else f"--image {args.image}"
  print(f'next: python -m fgclip_jax.show --model {args.model} {source} --text "something else" --output {args.output}')


def _from_file(args: argparse.Namespace) -> tuple[Image.Image, list[str], list[list[Box]]]:
  picture = _open(paths.read(args.image), args.image)
  boxes = [record.check_box(box, f"--box {i + 1}") for i, box in enumerate(args.box)]
  return picture, args.text, [boxes] * len(args.text)


def _read_boxes(given: str) -> list[Box]:
  """The boxes of a file, or of a grid such as 4x3 (columns x rows)."""
  if size := re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", given):
    return box_scores.grid(*map(int, size.groups()))
  if not given.lower().endswith(streams.SUFFIXES):
    raise ValueError(f"--boxes {given!r} must be a grid such as 4x3, or end in one of {', '.join(streams.SUFFIXES)}")
  boxes = []
  for number, (_, raw) in enumerate(streams.scan(given), 1):
    value: Any = streams.load(raw)
    if isinstance(value, dict):
      value = value["box"] if "box" in value else [value.get(name) for name in ("x1", "y1", "x2", "y2")]
    if isinstance(raw, tuple):  # of CSV, where all values are texts
      value = [float(part) if part and _NUMBER.fullmatch(part) else part for part in value]
    boxes.append(record.check_box(value, f"{given}, box {number}"))
  if not boxes:
    raise ValueError(f"{given!r} holds no box")
  return boxes


def _from_record(args: argparse.Namespace) -> tuple[Image.Image, list[str], list[list[Box]]]:
  """The picture of a record and its region captions, each with its own box; texts of the user get all boxes."""
  name = f"record {args.index} of split {args.split!r} of {args.data!r}"
  try:
    found = Examples(args.data, args.split).read(args.index)
  except RecordError as error:
    raise RecordError(error.kind, f"{name}: {error.field}", error.message) from error
  regions = found.regions
  if args.region is not None:
    if not 0 <= args.region < len(regions):
      raise IndexError(f"{name} has {len(regions)} regions, there is no region {args.region}")
    regions = regions[args.region : args.region + 1]
  regions = regions[: MAX_REGIONS if args.text is None else None]
  if args.text is None and not regions:
    raise ValueError(f"{name} has no region: give --text")
  picture = _open(found.image, name)
  print(f"{name}: {found.short}")
  if args.text is None:
    return picture, [region.short for region in regions], [[region.box] for region in regions]
  return picture, args.text, [[region.box for region in regions]] * len(args.text)


def _open(data: bytes, name: str) -> Image.Image:
  try:
    return images.open_image(data)
  except images.ImageError as error:
    raise images.ImageError(error.kind, name, error.message) from error


if __name__ == "__main__":
  sys.exit(main())
