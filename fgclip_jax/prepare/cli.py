"""What the commands of `prepare` share: options, and the conversion of a source into a data set."""

import argparse

from fgclip_jax.cli import add_workers, positive

IMAGE_CHECK = """
Every image is decoded once, which finds broken ones and takes most of the time. Its bytes are stored as they came, or,
with --max_side, as a JPEG of at most that many pixels. Captions are stored as text and as token ids.
What cannot be used is left out, counted by class, and reported with an example in a table and in
OUTPUT/report-SPLIT.json; report-SPLIT.html also shows histograms and samples. Stopped, killed or finished: the same
command typed again keeps the finished shards.
"""


def add_output(parser: argparse.ArgumentParser) -> None:
  """Adds `--output`."""
  parser.add_argument("--output", required=True, metavar="DIR", help="the folder of the data set to write")


def add_images(parser: argparse.ArgumentParser) -> None:
  """Adds `--images`."""
  parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the images")


def add_conversion(parser: argparse.ArgumentParser, name: str) -> None:
  """Adds the options of every command that converts a source; `name` is the data set's name by default."""
  parser.add_argument("--name", default=name, help="the data set's name, in the shards' names (default: %(default)s)")
  parser.add_argument("--split", default="train", help="the split to write (default: %(default)s)")
  parser.add_argument(
    "--shards", type=positive, metavar="N", help="how many shards (default: one per 8192 records, at most 1000)"
  )
  parser.add_argument("--strict", action="store_true", help="stop at the first thing that would be left out")
  parser.add_argument(
    "--max_side", type=positive, metavar="N", help="shrink images to at most N pixels a side and store them as JPEG"
  )
  parser.add_argument(
    "--quality", type=positive, default=90, metavar="N", help="of these JPEGs, 1 to 100 (default: %(default)s)"
  )
  parser.add_argument("--skip_image_check", action="store_true", help="do not decode the images: fast, finds less")
  checks = parser.add_argument_group("checks")
  checks.add_argument(
    "--min_side",
    type=positive,
    default=8,
    metavar="N",
    help="leave out images of a smaller side (default: %(default)s)",
  )
  checks.add_argument(
    "--max_aspect", type=float, default=20.0, metavar="X",
    help="leave out images whose longer side is more than X times the shorter one (default: %(default)g)",
  )  # fmt: skip
  checks.add_argument(
    "--language", default="", metavar="CODE", help="leave out captions in other languages, e.g. en (needs py3langid)"
  )
  checks.add_argument(
    "--duplicates", choices=("keep", "drop"), default="keep",
    help="keep: count images that come twice; drop: leave out the later records, which reads images twice "
    "(default: %(default)s)",
  )  # fmt: skip
  checks.add_argument(
    "--near_duplicates", type=int, metavar="BITS",
    help="count nearly equal images as the same, too: hashes that differ in at most so many of 64 bits; 4 finds copies "
    "that were encoded again or scaled",
  )  # fmt: skip
  parser.add_argument("--overwrite", action="store_true", help="discard what was written for this split and start over")
  add_workers(parser)
  parser.add_argument(
    "--engine",
    choices=("processes", "beam"),
    default="processes",
    help="beam: Apache Beam, which takes further flags: --runner=DataflowRunner --project=... (default: %(default)s)",
  )


def make_engine(options: argparse.Namespace):
  """What `pool.run` takes as its `workers`: the number of processes, or Apache Beam with its flags."""
  if options.engine == "processes":
    return options.workers
  from fgclip_jax.prepare import beam
  from fgclip_jax.storage import paths

  return beam.Beam(tuple(options.flags), paths.join(options.output, ".prepare", options.split))


def tables_folder(options: argparse.Namespace) -> str:
  """Where a split's tables on disk are kept."""
  from fgclip_jax.storage import paths

  return paths.join(options.output, ".prepare", f"{options.split}-tables")


def convert(options: argparse.Namespace, source) -> None:
  """Converts a `source.Source` as the options say, and prints what was written and what to do next."""
  from fgclip_jax.prepare import image_storage, pipeline
  from fgclip_jax.prepare import job as plans
  from fgclip_jax.prepare.checks import Checks
  from fgclip_jax.storage import paths

  job = plans.Job(
    source=source,
    output=options.output,
    name=options.name,
    split=options.split,
    shards=options.shards,
    storing=image_storage.Storing(not options.skip_image_check, options.max_side, options.quality),
    checks=Checks(
      min_side=options.min_side,
      max_aspect=options.max_aspect,
      language=options.language,
      duplicates=options.duplicates,
      near_duplicates=options.near_duplicates,
    ),
    strict=options.strict,
  )
  print(f"Converting {len(source.files)} input files of the form {source.form!r} into {job.output}")
  tally = pipeline.write(job, make_engine(options), options.overwrite)
  if table := tally.format_table():
    print(f"Found on the way:\n{table}")
  left_out = tally.read - tally.records
  print(
    f"Wrote split {job.split!r} to {job.output}: {tally.records:,} of {tally.read:,} records ({left_out:,} left out), "
    f"{tally.image_bytes / 1e6:,.1f} MB of images, {tally.long_captions:,} long captions, {tally.regions:,} regions, "
    f"{tally.regions_with_negatives:,} of them with hard negatives ({tally.negatives:,})"
  )
  print(f"Report: {paths.join(job.output, f'report-{job.split}.html')} (and .json; samples: .jpg)")
  if left_out:
    print("After repairing the input, run the command again with --overwrite.")
  print_next(choose_config(tally), job.output)


def choose_config(tally) -> str:
  """The config that uses all that was counted."""
  return "stage2" if tally.regions else "stage1" if tally.long_captions else "clip"


def print_next(config: str, output: str) -> None:
  """Prints the command that trains on what was written."""
  command = f"python -m fgclip_jax.main --config=configs/{config}.py --config.data.path={output}"
  print(f"Next: {command} --workdir=runs/{config}")
