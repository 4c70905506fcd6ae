"""Turns data sets into ArrayRecord shards: `python -m fgclip_jax.prepare COMMAND`.

The same command typed again continues where it was stopped. The commands lie in `data/commands`, a module each.
"""

import argparse
import sys

from fgclip_jax.prepare import inspect, verify
from fgclip_jax.prepare.commands import (
  benchmark,
  coco,
  finehard,
  flickr30k,
  pairs,
  scenes,
  tfds,
  visual_genome,
  webdataset,
)

COMMANDS = (finehard, webdataset, pairs, coco, visual_genome, flickr30k, tfds, scenes, inspect, verify, benchmark)


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code: 0 if something was written, 1 if not."""
  options = _parse(argv)
  try:
    options.run(options)
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
  for module in COMMANDS:
    name = module.__name__.rpartition(".")[2]
    command = commands.add_parser(
      name,
      help=module.SHORT,
      description=module.TEXT,
      epilog=f"example:\n  python -m fgclip_jax.prepare {name} {module.EXAMPLE}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,  # what is not known may be a flag of Apache Beam
    )
    module.add_options(command)
    command.set_defaults(run=module.run)
  options, flags = parser.parse_known_args(argv)
  options.flags = flags
  if options.flags and getattr(options, "engine", None) != "beam":
    parser.error(f"unrecognized arguments: {' '.join(options.flags)}")
  return options


if __name__ == "__main__":
  sys.exit(main())
