"""Options that the commands of `prepare` share, and the conversion of a source into a data set.

Heavy modules are imported inside functions, so that `--help` comes at once.
"""

import argparse
import re

from fgclip_jax.cli import add_workers, positive, shipped_file
from fgclip_jax.prepare.source import Source
from fgclip_jax.prepare.stats import DatasetStats
from fgclip_jax.storage import paths
from fgclip_jax.storage.workers import Engine

# The end of the help of every command that converts a source.
IMAGE_CHECK = """
Every image is decoded once to find broken ones, which takes most of the time. Its bytes are stored unchanged, or, with
--max_side, as a JPEG with sides of at most that many pixels. Captions are stored as text and as token ids.
What cannot be used is left out, counted by class, and reported with an example in a table and in
OUTPUT/report-SPLIT.json; report-SPLIT.html also shows histograms and samples. After a stop, a crash or the end, the
same command run again keeps the finished shards.
"""

JOINED = "annotations.json"  # in the folder of tables: marks joined annotations as whole


def language_code(text: str) -> str:
  """A language's code, such as `zh` or `pt-BR`, as argparse's type."""
  if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", text):
    raise argparse.ArgumentTypeError(f"must be the code of a language, such as zh, got {text!r}")
  return text


def add_output(parser: argparse.ArgumentParser) -> None:
  """Adds `--output`."""
  parser.add_argument("--output", required=True, metavar="DIR", help="the folder of the data set to write")


def add_images(parser: argparse.ArgumentParser) -> None:
  """Adds `--images`."""
  parser.add_argument("--images", required=True, metavar="DIR", help="the folder of the images")


def add_fields(parser: argparse.ArgumentParser) -> None:
  """Adds the names of the fields of files of captions."""
  for option, what in (
    ("image", "image's path, or of its bytes"),
    ("short", "short caption"),
    ("long", "long caption"),
  ):
    parser.add_argument(f"--{option}_field", metavar="NAME", help=f"the field of the {what} (default: by the form)")


def add_conversion(parser: argparse.ArgumentParser, name: str) -> None:
  """Adds the options of every command that converts a source; `name` is the default of `--name`."""
  parser.add_argument("--name", default=name, help="the data set's name, in the shards' names (default: %(default)s)")
  parser.add_argument("--split", default="train", help="the split to write (default: %(default)s)")
  parser.add_argument(
    "--shards", type=positive, metavar="N", help="number of shards (default: one per 8192 records, at most 1000)"
  )
  parser.add_argument("--strict", action="store_true", help="stop at the first thing that would be left out")
  parser.add_argument(
    "--max_side", type=positive, metavar="N", help="shrink images to at most N pixels a side and store them as JPEG"
  )
  parser.add_argument(
    "--quality", type=positive, default=90, metavar="N", help="quality of these JPEGs, 1 to 100 (default: %(default)s)"
  )
  parser.add_argument(
    "--tokenizer", default="clip", metavar="NAME",
    help="what makes the token ids that are stored: clip, or the folder of a SigLIP or FG-CLIP 2 model, which has a "
    "tokenizer.json or spiece.model; a model with another tokenizer makes its ids itself (default: %(default)s)",
  )  # fmt: skip
  parser.add_argument(
    "--record_language", metavar="CODE", type=language_code,
    help="the language of captions whose files do not name it, e.g. zh; English if it is not given",
  )  # fmt: skip
  parser.add_argument("--skip_image_check", action="store_true", help="do not decode the images: fast, finds less")
  checks = parser.add_argument_group("checks")
  checks.add_argument(
    "--min_side",
    type=positive,
    default=8,
    metavar="N",
    help="leave out images with a shorter side (default: %(default)s)",
  )
  checks.add_argument(
    "--max_aspect", type=float, default=20.0, metavar="X",
    help="leave out images whose longer side is more than X times the shorter side (default: %(default)g)",
  )  # fmt: skip
  checks.add_argument(
    "--language", default="", metavar="CODE", help="leave out captions in other languages, e.g. en (needs py3langid)"
  )
  checks.add_argument(
    "--duplicates", choices=("keep", "drop"), default="keep",
    help="keep: count images that come twice; drop: leave out the later records, which takes a second pass over the "
    "images (default: %(default)s)",
  )  # fmt: skip
  checks.add_argument(
    "--near_duplicates", type=int, metavar="BITS",
    help="also count nearly equal images as the same: their hashes differ in at most BITS of 64 bits; 4 finds copies "
    "that were encoded again or scaled",
  )  # fmt: skip
  parser.add_argument("--overwrite", action="store_true", help="discard what was written for this split and start over")
  add_engine(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
  """Adds `--workers` and `--engine`; for a parser whose options `parse` reads."""
  add_workers(parser)
  parser.add_argument(
    "--engine",
    choices=("processes", "beam"),
    default="processes",
    help="beam: Apache Beam, which has flags of its own: --runner=DataflowRunner --project=... (default: %(default)s)",
  )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
  """Parses options; those that are unknown become `flags`, Apache Beam's, and are an error without `--engine beam`."""
  options, flags = parser.parse_known_args(argv)
  options.flags = flags
  if flags and getattr(options, "engine", None) != "beam":
    parser.error(f"unrecognized arguments: {' '.join(flags)}")
  return options


def make_engine(options: argparse.Namespace, folder: str | None = None) -> int | Engine:
  """Returns the `workers` of `run_tasks`: the number of processes, or Apache Beam with its flags.

  Beam's tasks and results are files in `folder`; None: that of the split's state.
  """
  if options.engine == "processes":
    return options.workers
  from fgclip_jax.prepare import beam

  return beam.Beam(tuple(options.flags), folder or paths.join(options.output, ".prepare", options.split))


def tables_folder(options: argparse.Namespace) -> str:
  """Returns the folder of a split's lookup tables; with --overwrite, annotations are joined again."""
  folder = paths.join(options.output, ".prepare", f"{options.split}-tables")
  if options.overwrite:  # an earlier version may have joined less
    paths.remove(paths.join(folder, JOINED))
  return folder


def convert(options: argparse.Namespace, source: Source) -> None:
  """Converts a source according to the options, and prints what was written and what to do next."""
  from fgclip_jax.data.tokenizers import files
  from fgclip_jax.prepare import image_storage, pipeline
  from fgclip_jax.prepare.checks import Checks
  from fgclip_jax.prepare.job import Job

  job = Job(
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
    tokenizer=files.locate_any(options.tokenizer),
    language=options.record_language or "",
  )
  print(f"Converting {len(source.files)} input files of the form {source.form!r} into {job.output}")
  stats = pipeline.write(job, make_engine(options), options.overwrite)
  if table := stats.format_table():
    print(f"Found on the way:\n{table}")
  left_out = stats.read - stats.records
  print(
    f"Wrote split {job.split!r} to {job.output}: {stats.records:,} of {stats.read:,} records ({left_out:,} left out), "
    f"{stats.image_bytes / 1e6:,.1f} MB of images, {stats.long_captions:,} long captions, {stats.regions:,} regions, "
    f"{stats.regions_with_negatives:,} of them with hard negatives ({stats.negatives:,})"
    + (
      f", {stats.captions + stats.region_captions:,} captions in sets"
      if stats.captions or stats.region_captions
      else ""
    )
  )
  print(f"Report: {paths.join(job.output, f'report-{job.split}.html')} (and .json; samples: .jpg)")
  if left_out:
    print("After repairing the input, run the command again with --overwrite.")
  print_next(choose_config(stats), job.output)


def choose_config(stats: DatasetStats) -> str:
  """Returns the name of the config that uses everything that a data set holds."""
  return "stage2" if stats.regions else "stage1" if stats.long_captions else "clip"


def print_next(config: str, output: str) -> None:
  """Prints the command that trains on a data set."""
  name, colon, argument = config.partition(":")
  file = shipped_file("configs", f"{name}.py")
  command = f"python -m fgclip_jax.main --config={file}{colon}{argument} --config.data.path={output}"
  print(f"Next: {command} --workdir=runs/{config.replace(':', '/')}")
