"""The command `python -m fgclip_jax.annotate`: pictures become what FG-CLIP's second stage trains on."""

import argparse
import glob
import json
import os
import shlex
import sys
import time

from fgclip_jax.annotate import audit, chain, items, plan, report
from fgclip_jax.annotate.chain import Job
from fgclip_jax.annotate.options import make_input, make_job, make_parser, read_price
from fgclip_jax.annotate.servers import batch_files
from fgclip_jax.cli import exit_code, print_error
from fgclip_jax.prepare import cli
from fgclip_jax.storage import locks, paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.lookup_table import Table
from fgclip_jax.storage.skip_report import Scope, Skip, SkipReport

_MOST_PARTS = 4_000_000  # two billion pictures


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code: 0 if it succeeded."""
  args = cli.parse(make_parser(), argv)
  try:
    job = make_job(args)
    paths.check(job.output, "--output", write=True)
    _refuse_links(job)
    paths.make_folder(job.folder())
    with locks.hold(job.folder("lock"), f"annotating into {job.output}"):
      _run(job, args)
  except KeyboardInterrupt:
    print("\nStopped. Run the same command again to continue.", file=sys.stderr)
    return 1
  except (OSError, ValueError, ModuleNotFoundError) as error:
    print_error(error)
    return exit_code(error)
  return 0


def _refuse_links(job: Job) -> None:
  """Raises `ValueError` for a link in the place of what is written: what it leads to may be any file of the user's."""
  if paths.is_remote(job.output):
    return
  places = [job.folder()]
  for folder in (job.folder(), *(paths.join(job.output, name) for name in (chain.ANNOTATIONS, chain.PROVENANCE))):
    places += [os.path.join(base, name) for base, *found in os.walk(folder) for names in found for name in names]
  for place in places:
    if os.path.islink(place):
      raise ValueError(f"{place!r} is to be written, and is a link, which is not followed: remove it")


def _run(job: Job, args: argparse.Namespace) -> None:
  if args.verdicts:
    print(audit.format_verdicts(audit.read_verdicts(args.verdicts)))
    return
  if args.audit:
    page = audit.write_page(job, _known_parts(job) or 0, args.audit)
    print(f"wrote {page}: judge, save verdicts.jsonl, and read them by the same command with --verdicts verdicts.jsonl")
    return
  begin, left_out = time.perf_counter(), SkipReport(limit=3)

  def note(scope: Scope, error: RecordError) -> None:
    left_out.add(Skip.of(error, scope=scope))

  counts = items.write_parts(job.folder("items"), make_input(args).scan(note), note, _known_parts(job))
  if not sum(counts):
    raise ValueError(f"no picture in {', '.join(args.images)}: {left_out.summary(len(left_out)) or 'it is empty'}")
  if args.plan:
    lanes = args.in_flight * max(len(list(filter(None, args.endpoint.split(",")))), 1)
    print(f"{sum(counts):,} pictures")
    print(plan.format_rows(plan.estimate(job, counts), lanes, args.seconds, read_price(args.price)))
    return
  if args.answers:
    job = make_job(args, _read_answers(job, args.answers))
  if args.requests:
    batch_files.clear(args.requests)
  paths.write(job.folder("parts.json"), json.dumps({"parts": len(counts)}).encode())
  print(f"Annotating {sum(counts):,} pictures in {len(counts)} parts into {job.output}")
  done = chain.run(job, counts, cli.make_engine(args, job.folder()))
  for skip, count in left_out.firsts():
    done.stats.findings.add(skip, count)
  page = report.write(job, done, counts, {"seconds": round(time.perf_counter() - begin, 1)})
  print(report.format_table(done))
  written = done.tally["items.written"]
  print(f"\nwrote {written:,} annotations to {paths.join(job.output, chain.ANNOTATIONS)}; report: {page}")
  if args.requests:
    made = batch_files.gather(args.requests)
    print(f"wrote {made['requests']:,} requests into {made['files']} files in {args.requests}")
    if made["requests"]:
      print("next: have them answered; then the same command, with --answers FILE ... in place of --requests")
    return
  if not written:
    raise ValueError("nothing was written: no picture has a caption. Give --known captions, or --captions http")
  print(f"next: {_next(job, args)}")


def _read_answers(job: Job, files: list[str]) -> Table:
  """The answers of batch files, in a table for all parts."""
  table = batch_files.make_table(files, job.folder("answers"))
  lines, first = table.skipped
  print(f"{table.entries:,} answers" + (f"; {lines} lines or files are none, the first: {first}" if lines else ""))
  return table


def _known_parts(job: Job) -> int | None:
  """The number of parts of an earlier run, so that items stay where their answers are."""
  path = job.folder("parts.json")
  if not paths.exists(path):
    return None
  try:
    parts = json.loads(paths.read(path))["parts"]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: give another --output") from error
  if type(parts) is not int or not 1 <= parts <= _MOST_PARTS:
    raise ValueError(f"{path} is damaged, parts is {parts!r:.40}: give another --output")
  return parts


def _next(job: Job, args: argparse.Namespace) -> str:
  files = paths.join(job.output, chain.ANNOTATIONS)
  name = paths.base_name(job.output.rstrip("/"))
  images = shlex.quote(args.images[0])
  if job.form == "finehard":
    return f"python -m fgclip_jax.prepare finehard --annotations {files} --images {images} --output data/{name}"
  given = files if paths.is_remote(files) else glob.escape(files)
  return f"python -m fgclip_jax.prepare pairs --captions {given}/*.jsonl --images {images} --output data/{name}"


if __name__ == "__main__":
  sys.exit(main())
