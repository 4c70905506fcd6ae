"""Measures `python -m fgclip_jax.annotate` and its parts; prints tables in Markdown.

  python benchmarks/annotate.py requests            # the client of model servers: about two minutes
  python benchmarks/annotate.py batches             # requests and answers as files
  python benchmarks/annotate.py kills               # a run that is killed again and again
  python benchmarks/annotate.py scale --items 20000     # memory, files and restart with very many pictures
  python benchmarks/annotate.py engines             # one process, four, and Beam on 500 rendered scenes
  python benchmarks/annotate.py rules               # phrases and negatives by rules, in one process
  python benchmarks/annotate.py scenes              # the embedded stages on 500 rendered scenes
  python benchmarks/annotate.py margins --model RUN # what --check finds on scenes
  python benchmarks/annotate.py loop --workdir runs/loop        # what stage 2 learns from them: about half an hour

Each subcommand has a file of its own in `annotating`, which says what it needs.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.annotating import batches, engines, kills, loop, margins, requests, rules, scale, scenes

COMMANDS = {
  "requests": requests, "batches": batches, "kills": kills, "scale": scale, "engines": engines, "rules": rules,
  "scenes": scenes, "margins": margins, "loop": loop,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for name, module in COMMANDS.items():
    about = (module.__doc__ or "").partition("\n")[0]
    command = commands.add_parser(name, help=about, description=module.__doc__)
    module.add_options(command)
    command.set_defaults(run=module.run)
  options = parser.parse_args(argv)
  return options.run(options)


if __name__ == "__main__":
  sys.exit(main())
