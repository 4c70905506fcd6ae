"""Turns data sets into ArrayRecord shards: `python -m fgclip_jax.prepare COMMAND`.

The same command run again continues where it was stopped. Every source under `sources/` is a command of its own name;
a new file there is a new command. `source.py` says what the file needs.
"""

import argparse
import importlib
import pkgutil
import sys
from typing import Any

from fgclip_jax.cli import print_error
from fgclip_jax.prepare import benchmark, cli, inspect, sources, verify

TOOLS = (inspect, verify, benchmark)
# Help lists these sources first; others follow by name.
FIRST = ("finehard", "webdataset", "pairs", "coco", "karpathy", "visual_genome", "flickr30k", "yolo", "tfds", "scenes")
PARTS = ("SHORT", "TEXT", "EXAMPLE", "add_options", "run")  # what makes a module a command


def find_commands() -> dict[str, Any]:
  """Returns the modules of all commands by name: the sources, and then the tools for data sets that exist."""
  names = [entry.name for entry in pkgutil.iter_modules(sources.__path__)]
  names.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
  found = {name: importlib.import_module(f"{sources.__name__}.{name}") for name in names}
  found |= {module.__name__.rpartition(".")[2]: module for module in TOOLS}
  return {name: module for name, module in found.items() if all(hasattr(module, part) for part in PARTS)}


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code: 0 if it succeeded, 1 if not."""
  options = _parse(argv)
  try:
    options.run(options)
  except KeyboardInterrupt:
    print("\nStopped. Run the same command again to continue.", file=sys.stderr)
    return 1
  except (OSError, ValueError) as error:
    print_error(error)
    return 1
  return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.prepare", description="Turns data sets into ArrayRecord shards for training."
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for name, module in find_commands().items():
    command = commands.add_parser(
      name,
      help=module.SHORT,
      description=module.TEXT,
      epilog=f"example:\n  python -m fgclip_jax.prepare {name} {module.EXAMPLE}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,  # an unknown option may be a flag of Apache Beam
    )
    module.add_options(command)
    command.set_defaults(run=module.run)
  return cli.parse(parser, argv)


if __name__ == "__main__":
  sys.exit(main())
