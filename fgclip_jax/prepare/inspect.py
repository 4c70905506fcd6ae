"""`prepare inspect`: shows what a data set holds."""

import argparse
import dataclasses

from fgclip_jax.cli import add_workers, positive
from fgclip_jax.prepare import cli

SHORT = "what a data set holds: counts, histograms, samples"
TEXT = """
Reads a split of a data set, prints counts and histograms, and writes a page that needs no other file, with samples,
their boxes and captions, and a contact sheet of the same samples beside it. What was left out when the data set was
made is read from DIR/report-SPLIT.json, if that file exists.
"""
EXAMPLE = "data/finehard --split train --samples 24"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  parser.add_argument("folder", metavar="DIR", help="the folder of the data set")
  parser.add_argument("--split", default="train", help="the split to read (default: %(default)s)")
  parser.add_argument(
    "--output", metavar="FILE", help="the page to write (default: inspect-SPLIT.html in the current folder)"
  )
  parser.add_argument(
    "--samples", type=positive, default=12, metavar="N", help="how many samples to show (default: %(default)s)"
  )
  parser.add_argument("--seed", type=int, default=0, help="chooses the samples (default: %(default)s)")
  add_workers(parser)


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.data import dataset_folder, shards
  from fgclip_jax.prepare import job, report
  from fgclip_jax.prepare.stats import DatasetStats
  from fgclip_jax.storage import paths
  from fgclip_jax.storage.skip_report import printable

  records = shards.Records(options.folder, options.split)
  for damage in records.damage:
    print(f"warning: {damage}")
  print(f"Reading {len(records):,} records of split {options.split!r} of {options.folder}")
  found = report.count_split(records, options.workers)
  path = paths.join(options.folder, f"report-{options.split}.json")
  facts = {}
  try:
    if made := job.load_json(path):
      facts = made["arguments"] | made["created_with"] | {"files": len(made["arguments"]["files"])}
      fields = {field.name for field in dataclasses.fields(DatasetStats)}
      before = DatasetStats.from_json({key: value for key, value in made.items() if key in fields})
      found = dataclasses.replace(found, duplicates=before.duplicates)
      for skip, count in before.findings.firsts():
        if skip.kind not in found.findings.counts:
          found.findings.add(skip, count)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    print(f"warning: {path} is no report of `prepare`, and is not read ({error!r})")
  if not found.records:
    table = found.format_table()
    raise ValueError(f"none of {len(records):,} records of split {options.split!r} can be read:\n{table}")
  print(f"\n{report.format_histograms(found.histograms)}\n")
  if table := found.format_table():
    print(f"Left out when it was made, or cannot be read now:\n{table}")
  print(
    "Holds " + ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in found.counts.items() if key != "read")
  )
  if found.sources:
    named = sorted(found.sources.items(), key=lambda item: (-item[1], item[0]))
    print("Captions by source: " + ", ".join(f"{printable(source)} {count:,}" for source, count in named))
  name = dataset_folder.read_name(options.folder) or options.folder
  page = options.output or f"inspect-{options.split}.html"
  sheet = report.write_page(page, records, name, options.split, found, facts, options.samples, options.seed)
  print(f"Page: {page}\nContact sheet: {sheet}")
  cli.print_next(cli.choose_config(found), options.folder)
