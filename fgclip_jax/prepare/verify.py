"""`prepare verify`: whether shards are as they were written."""

import argparse
import functools

from fgclip_jax.cli import add_workers

SHORT = "compare shards with their checksums"
TEXT = """
Reads every shard of a data set and compares it with the checksum that was taken when it was written, which finds what
was cut off, lost or damaged in copying. To repair, remove such shards and run the command that made the data set
again: it writes what is missing.
"""
EXAMPLE = "data/finehard"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  parser.add_argument("folder", metavar="DIR", help="the folder of a data set")
  add_workers(parser)


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  from fgclip_jax.data import dataset_folder
  from fgclip_jax.storage import workers

  version = dataset_folder.check_version(options.folder)
  sums = dataset_folder.read_checksums(options.folder)
  if not sums:
    raise FileNotFoundError(
      f"{options.folder!r} holds no {dataset_folder.CHECKSUMS}: give the folder of a prepared data set"
    )
  size = sum(entry["bytes"] for entry in sums.values())
  function = functools.partial(dataset_folder.verify_shard, options.folder)
  tasks = list(sums.items())
  results = workers.run_tasks(function, tasks, options.workers, total=size, label="verifying", unit="B")
  faults = sorted(fault for fault in results if fault)
  if faults:
    raise ValueError("\n".join([f"{len(faults)} of {len(sums)} shards are not as they were written:", *faults]))
  print(f"All {len(sums)} shards of {options.folder} ({size / 1e6:,.1f} MB) are as they were written.")
  if version > 1:
    print(f"Records are of version {version}: they may hold sets of captions.{_describe_sets(options.folder)}")


def _describe_sets(folder: str) -> str:
  """What is known of each split's sets."""
  from fgclip_jax.data import dataset_folder

  sources = dataset_folder.read_info(folder).get("sources")
  found = []
  for split, facts in sources.items() if isinstance(sources, dict) else ():
    counts = facts.get("counts") if isinstance(facts, dict) else None
    counts = counts if isinstance(counts, dict) else {}
    of_images, of_regions = (counts.get(name, 0) for name in ("captions", "region_captions"))
    if of_images or of_regions:
      found.append(f"{split} has {of_images:,} captions of images and {of_regions:,} of regions in sets")
  return f" {'; '.join(found)}." if found else ""
