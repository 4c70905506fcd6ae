"""Shows where a run's hours went, over all its starts.

python -m fgclip_jax.goodput runs/stage2
python -m fgclip_jax.goodput runs/stage2 --json

From the run's own records in WORKDIR/timeline.jsonl, also while it trains. Time in which the devices compute a step is
productive, unless the run was stopped and had to make that step again.
"""

import argparse
import json
import sys

from fgclip_jax.cli import print_error
from fgclip_jax.train.goodput import report


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.goodput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdir", metavar="WORKDIR", help="the folder of the run")
  parser.add_argument("--json", action="store_true", help="print one JSON object, in seconds")
  args = parser.parse_args(argv)
  try:
    found = report.read(args.workdir)
  except (OSError, ValueError) as error:
    print_error(error)
    return 1
  if args.json:
    print(json.dumps(found.as_json()))
    return 0
  print(f"{args.workdir}: {found.microseconds['productive'] / max(found.total, 1):.1%} goodput\n\n{found.table()}")
  if found.left_out:
    print(f"note: {found.left_out} damaged lines of timeline.jsonl are left out; their time is missing above")
  return 0


if __name__ == "__main__":
  sys.exit(main())
