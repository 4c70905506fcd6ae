"""Indexes one's own pictures, and finds them by text or by example, each with the region that fits best.

python -m fgclip_jax.index build --model runs/stage2 --images photos --output photos.index
python -m fgclip_jax.index search photos.index --text "a green aphid on a leaf"
python -m fgclip_jax.index search photos.index --image cup.jpg --box 0.2 0.1 0.5 0.6 --sheet found.png
python -m fgclip_jax.index add photos.index --images more_photos
python -m fgclip_jax.index info photos.index

IMAGES are folders, patterns, .txt lists of paths, .tar files of img2dataset, record folders, or a .parquet file of
`embed`, whose rows are found by their ids. Of every picture its overlapping windows are indexed, too, so that small
things are found. `build` and `add`, given again, take in what is new or has changed and forget what is gone; stopped,
they go on where they were. `add` without --images looks at all sources again. The index stays on disk; a search reads
what it needs.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from fgclip_jax.cli import add_max_patches, positive, print_error
from fgclip_jax.data import image as images
from fgclip_jax.data.record import Record, Region, check_box
from fgclip_jax.index import build, sources
from fgclip_jax.index.folder import PRECISIONS
from fgclip_jax.index.search import Index, Match
from fgclip_jax.inference import programs
from fgclip_jax.inference.model import DTYPES, FGCLIP, load
from fgclip_jax.storage import atomic
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.viz import contact_sheet

_SUFFIXES = (".json", ".csv")


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  args = _parser().parse_args(argv)
  try:
    args.run(args)
  except KeyboardInterrupt:
    print("\nStopped. Run the same command again to continue.", file=sys.stderr)
    return 1
  except (OSError, ValueError, ModuleNotFoundError) as error:
    print_error(error)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, metavar="build|add|search|info")

  made = commands.add_parser("build", help="index pictures, or bring an index up to date")
  made.add_argument("--model", metavar="DIR", required=True, help="a model in any format, or a run folder")
  made.add_argument("--images", nargs="+", required=True, metavar="IMAGES", help="what to index")
  made.add_argument("--output", metavar="DIR", required=True, help="the index")
  made.add_argument(
    "--regions",
    choices=build.REGIONS,
    default="windows",
    help="of each picture: overlapping windows, the regions of a record folder, or none (default: %(default)s)",
  )
  made.add_argument(
    "--scales",
    nargs="+",
    type=positive,
    default=[2, 3],
    metavar="N",
    help="windows of 1/N of a picture's sides, (2N-1)² of each (default: 2 3, which is 34 windows)",
  )
  made.add_argument(
    "--precision", choices=PRECISIONS, default="bfloat16", help="of the stored vectors (default: %(default)s)"
  )
  made.add_argument("--split", default="train", help="of record folders (default: %(default)s)")
  made.set_defaults(run=_build)

  more = commands.add_parser("add", help="index further pictures, or look again at those of an index")
  more.add_argument("index", metavar="INDEX")
  more.add_argument("--images", nargs="+", default=[], metavar="IMAGES", help="default: all sources of the index")
  more.set_defaults(run=_add)

  found = commands.add_parser("search", help="find pictures by a text or a picture")
  found.add_argument("index", metavar="INDEX")
  asked = found.add_mutually_exclusive_group(required=True)
  asked.add_argument("--text", help="what is looked for")
  asked.add_argument("--image", metavar="FILE", help="a picture like those looked for")
  found.add_argument("--box", nargs=4, type=float, metavar="F", help="x1 y1 x2 y2 of the thing in --image, in 0..1")
  found.add_argument("--count", type=positive, default=10, metavar="N", help="how many (default: %(default)s)")
  found.add_argument("--whole", action="store_true", help="compare whole pictures, not their regions")
  found.add_argument("--only", default="", metavar="PATTERN", help="names that match this, such as '2024/*.jpg'")
  found.add_argument("--exact", action="store_true", help="compare with every vector")
  found.add_argument("--output", metavar="FILE", help="also write the list, .json or .csv")
  found.add_argument("--sheet", metavar="FILE", help="also draw the pictures with their regions")
  found.set_defaults(run=_search)

  told = commands.add_parser("info", help="what an index holds; --recall compares it with exact search")
  told.add_argument("index", metavar="INDEX")
  told.add_argument("--recall", type=positive, metavar="N", help="for N vectors of its own as queries")
  told.set_defaults(run=_info)

  for each in (more, found):
    each.add_argument("--model", metavar="DIR", help="the index's model, where it has moved")
  for each in (made, more, found):
    each.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="compute in this type (default: %(default)s)")
    add_max_patches(each)
  return parser


def _load(args: argparse.Namespace, path: str) -> FGCLIP:
  programs.use_compilation_cache()
  return load(path, args.dtype, max_patches=args.max_patches)


def _build(args: argparse.Namespace) -> None:
  model = _load(args, args.model)
  report = build.build(
    model,
    args.model,
    args.images,
    args.output,
    regions=args.regions,
    scales=args.scales,
    precision=args.precision,
    split=args.split,
    progress=True,
  )
  _print(report, args.output)


def _add(args: argparse.Namespace) -> None:
  index = Index(args.index, check=False)
  _print(build.add(_model_of(index, args), args.images, args.index, progress=True), args.index)


def _model_of(index: Index, args: argparse.Namespace) -> FGCLIP:
  path = args.model or index.settings["model"]
  try:
    return _load(args, path)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{error}: the index's model; say with --model where it is") from error


def _print(report: build.Report, output: str) -> None:
  print(
    f"{report.added:,} pictures added, {report.changed:,} changed, {report.removed:,} removed, {report.kept:,} kept: "
    f"{report.pictures:,} pictures with {report.regions:,} regions"
  )
  for skip, count in report.left_out.firsts():
    print(f"note: left out {count:,} x {skip.kind}, the first: {printable(str(skip))}")
  print(f'next: python -m fgclip_jax.index search {printable(output)} --text "a red cup"')


def _search(args: argparse.Namespace) -> None:
  if args.output and not args.output.lower().endswith(_SUFFIXES):
    raise ValueError(f"--output {args.output!r} must end in {' or '.join(_SUFFIXES)}")
  if args.box and not args.image:
    raise ValueError("--box is of --image: give both")
  index = Index(args.index)
  model = _model_of(index, args)
  build.check_model(model, index.settings, args.index)
  regions = index.has_regions and not args.whole
  if args.text is not None:
    vector = model.encode_text(args.text, "region" if regions else "short")[0]
  elif args.box or regions:
    box = check_box(args.box or [0.0, 0.0, 1.0, 1.0], "--box")
    vector = model.encode_regions(args.image, [[box]])[0][0]
  else:
    vector = model.encode_image(args.image)[0]
  matches = index.search(vector, args.count, regions=regions, exact=args.exact, only=args.only)
  for place, match in enumerate(matches, 1):
    box = "  " + " ".join(f"{value:.2f}" for value in match.box) if match.box else ""
    print(f"{place:3}  {match.score:.3f}  {printable(match.path)}{box}")
  if not matches:
    print("nothing is found")
  if args.output:
    _write(args.output, matches)
    print(f"wrote {printable(args.output)}")
  if args.sheet:
    _draw(args.sheet, matches, index.settings["split"])
    print(f"wrote {printable(args.sheet)}")


def _write(path: str, matches: Sequence[Match]) -> None:
  """The list as JSON or CSV."""
  rows: list[dict[str, Any]] = [
    {"source": each.source, "name": each.name, "path": each.path, "score": round(each.score, 6), "box": each.box}
    for each in matches
  ]
  with atomic.file(path) as made, open(made, "w", encoding="utf-8", newline="") as file:
    if path.lower().endswith(".json"):
      json.dump(rows, file, indent=2, ensure_ascii=False)
      return
    table = csv.writer(file)
    table.writerow(["source", "name", "path", "score", "x1", "y1", "x2", "y2"])
    table.writerows([*list(row.values())[:4], *(row["box"] or [""] * 4)] for row in rows)


def _draw(path: str, matches: Sequence[Match], split: str) -> None:
  """The pictures with their regions, as one picture."""
  samples = []
  for place, match in enumerate(matches, 1):
    name = f"{place}  {match.score:.3f}  {match.name}"
    regions = (Region(match.box, ""),) if match.box else ()
    found = Record(id=name, image=b"", width=1, height=1, short="", long="", regions=regions)
    try:
      picture = images.open_image(sources.read(match.source, match.name, split))
      samples.append(contact_sheet.Sample(name, found, contact_sheet.draw_boxes(picture, regions)))
    except (OSError, RecordError) as error:
      samples.append(contact_sheet.Sample(name, found, None, str(error)))
  if not samples:
    raise ValueError("nothing is found that could be drawn")
  with atomic.file(path) as made:
    contact_sheet.draw(samples).save(made)


def _info(args: argparse.Namespace) -> None:
  index = Index(args.index)
  settings, state = index.settings, index.state
  windows = f" of scales {' '.join(map(str, settings['scales']))}" if settings["scales"] else ""
  print(f"{len(index):,} pictures with {state['live_regions']:,} regions ({settings['regions']}{windows})")
  print(f"model   {printable(settings['model'])}, vectors of {settings['width']} in {settings['precision']}")
  for source in state["sources"]:
    print(f"source  {printable(source)}")
  print(
    f"size    {sum(noted['bytes'] for noted in state['files'].values()) / 1e6:,.1f} MB in {os.path.abspath(args.index)}"
  )
  if args.recall:
    print(f"recall  {index.recall(args.recall):.1%} of the 10 nearest, for {args.recall:,} vectors of its own")


if __name__ == "__main__":
  sys.exit(main())
