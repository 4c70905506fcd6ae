"""Turns data sets into ArrayRecord shards: `python -m fgclip_jax.prepare {finehard,pairs,scenes}`.

The same command typed again continues where it was stopped.
"""

import argparse
import os
import sys

_IMAGE_CHECK = """
Every image is decoded once, which finds broken ones and takes most of the time; its bytes are stored as they came.
What cannot be used is left out, counted by class, and reported with an example in a table and in
OUTPUT/report-SPLIT.json. Stopped, killed or finished: the same command typed again keeps the finished shards.
"""

_FINEHARD = """
Converts FineHARD's annotations and images.

ANNOTATIONS is the folder of JSON files (the data set's `jsonfiles`), one JSON or JSON-lines file, or a .txt file that
lists such files, one a line. An f_path `grit-20m/data-12m/coyo_image_0/00069/000699825.jpg` (or, in older
annotations, `data/down-grit-12m/coyo_image_0/...`) is looked up as IMAGES/coyo_image_0/....
"""

_PAIRS = """
Converts images with captions of your own: a JSON-lines file (.jsonl), a JSON list (.json), or CSV (.csv, .tsv).

Fields: `image` (a path under IMAGES), `short` (or `caption`), optionally `long`, and in JSON optionally `regions`:
  {"image": "a/1.jpg", "short": "two dogs", "long": "two dogs play on ...", "regions": [
    {"box": [0.1, 0.2, 0.6, 0.9], "short": "a brown dog", "long": "...", "negatives": ["a white dog", ...]}]}
A box is x1, y1, x2, y2 as fractions of the image's width and height.
"""

_SCENES = """
Renders the embedded data set, which needs no download: scenes of three objects that differ in size, colour, pattern
and shape, with boxes, captions and hard negatives. Validation scenes show combinations that are never trained on.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code: 0 if something was written, 1 if not."""
  options = _parse(argv)
  try:
    options.function(options)
  except KeyboardInterrupt:
    print("\nStopped. Type the same command again to continue.", file=sys.stderr)
    return 1
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.prepare", description="Turns data sets into ArrayRecord shards for training."
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def add(name: str, function, short: str, text: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
      name,
      help=short,
      description=text,
      epilog=f"example:\n  python -m fgclip_jax.prepare {name} {example}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(function=function)
    command.add_argument("--output", required=True, metavar="DIR", help="the folder of the data set to write")
    return command

  example = "--annotations FineHARD/jsonfiles --images FineHARD/data-12m --output data/finehard"
  finehard = add("finehard", _finehard, "FineHARD's annotations and images", _FINEHARD + _IMAGE_CHECK, example)
  finehard.add_argument("--annotations", required=True, metavar="PATH", help="a folder, a JSON file, or a .txt list")
  example = "--captions captions.jsonl --images photos --output data/photos"
  pairs = add("pairs", _pairs, "images with captions of your own", _PAIRS + _IMAGE_CHECK, example)
  pairs.add_argument("--captions", required=True, metavar="FILE", help="JSON lines, a JSON list, or CSV")
  for command, name in ((finehard, "finehard"), (pairs, "pairs")):
    command.add_argument("--images", required=True, metavar="DIR", help="the folder of the images")
    command.add_argument(
      "--name", default=name, help="the data set's name, in the shards' names (default: %(default)s)"
    )
    command.add_argument("--split", default="train", help="the split to write (default: %(default)s)")
    command.add_argument(
      "--shards", type=_positive, metavar="N", help="how many shards (default: one per 8192 records, at most 1000)"
    )
    command.add_argument("--strict", action="store_true", help="stop at the first thing that would be left out")
    command.add_argument("--skip_image_check", action="store_true", help="do not decode the images: fast, finds less")
    command.add_argument(
      "--overwrite", action="store_true", help="discard what was written for this split and start over"
    )
  example = "--output data/scenes --train 20000 --validation 256"
  scenes = add("scenes", _scenes, "rendered scenes; needs no download", _SCENES, example)
  scenes.add_argument(
    "--train", type=_positive, default=20000, metavar="N", help="training scenes (default: %(default)s)"
  )
  scenes.add_argument(
    "--validation", type=_positive, default=256, metavar="N", help="validation scenes (default: %(default)s)"
  )
  scenes.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
  for command in (finehard, pairs, scenes):
    command.add_argument(
      "--workers",
      type=_positive,
      default=_count_processors(),
      metavar="N",
      help="processes; the result does not depend on it (default: one per processor, %(default)s here)",
    )
  return parser.parse_args(argv)


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
  return value


def _count_processors() -> int:
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _finehard(options: argparse.Namespace) -> None:
  from fgclip_jax.data import finehard

  _convert(options, finehard.parse, finehard.find_annotations(options.annotations))


def _pairs(options: argparse.Namespace) -> None:
  from fgclip_jax.data import pairs

  _convert(options, pairs.parse, (pairs.check_captions(options.captions),))


def _convert(options: argparse.Namespace, parse, files: tuple[str, ...]) -> None:
  from fgclip_jax.data import plans, writer

  job = plans.Job(
    form=parse.__module__.rpartition(".")[2],
    parse=parse,
    files=files,
    images=options.images,
    output=options.output,
    name=options.name,
    split=options.split,
    shards=options.shards,
    check_images=not options.skip_image_check,
    strict=options.strict,
  )
  print(f"Converting {len(files)} annotation files with images from {job.images} into {job.output}")
  tally = writer.write(job, options.workers, options.overwrite)
  if table := tally.format_table():
    print(f"Found on the way:\n{table}")
  left_out = tally.read - tally.records
  print(
    f"Wrote split {job.split!r} to {job.output}: {tally.records:,} of {tally.read:,} records ({left_out:,} left out), "
    f"{tally.image_bytes / 1e6:,.1f} MB of images, {tally.long_captions:,} long captions, {tally.regions:,} regions, "
    f"{tally.regions_with_negatives:,} of them with hard negatives ({tally.negatives:,})"
  )
  print(f"Report: {os.path.join(job.output, f'report-{job.split}.json')}")
  if left_out:
    print("After repairing the input, run the command again with --overwrite.")
  config = "stage2" if tally.regions else "stage1" if tally.long_captions else "clip"
  _print_next(config, job.output)


def _scenes(options: argparse.Namespace) -> None:
  from fgclip_jax.data import scenes

  scenes.write(options.output, options.train, options.validation, options.seed, options.workers)
  _print_next("quickstart", options.output)


def _print_next(config: str, output: str) -> None:
  command = f"python -m fgclip_jax.main --config=configs/{config}.py --config.data.path={output}"
  print(f"Next: {command} --workdir=runs/{config}")


if __name__ == "__main__":
  sys.exit(main())
