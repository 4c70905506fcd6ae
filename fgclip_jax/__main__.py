"""The console command `fgclip`: `fgclip train ...` is `python -m fgclip_jax.main ...`, and so on."""

import runpy
import sys

import fgclip_jax

COMMANDS = {
  "prepare": ("prepare", "turns data sets into ArrayRecord shards for training"),
  "train": ("main", "trains a model"),
  "annotate": ("annotate", "makes captions, regions and hard negatives of pictures"),
  "goodput": ("goodput", "shows where a run's hours went, over all its starts"),
  "plan": ("plan", "estimates a run's memory and time on devices that need not be there"),
  "evaluate": ("evaluate", "measures a model at a benchmark, and compares results"),
  "embed": ("embed", "embeds images, texts or regions into one file"),
  "index": ("index", "finds one's own pictures, and places in them, by text or example"),
  "serve": ("serve", "answers other programs over HTTP"),
  "show": ("show", "draws where in a picture texts fit"),
  "convert": ("convert", "carries weights between formats"),
  "export": ("export", "writes a model as graphs that run without this package"),
}
HELP = """usage: fgclip COMMAND ...

FG-CLIP in JAX: a CLIP that sees detail. `fgclip COMMAND --help` describes a command.

{commands}
"""


def main() -> int:
  """Runs a command as `python -m` does; returns the exit code: 2 if there is no such command."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name == "--version":
    print(f"fgclip {fgclip_jax.__version__}")
    return 0
  if name in COMMANDS:
    module = f"fgclip_jax.{COMMANDS[name][0]}"
    sys.argv = [f"fgclip {name}", *sys.argv[2:]]
    # as __main__, which the worker processes that a command starts look for
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0  # a command that ends without an exit code of its own
  text = HELP.format(commands="\n".join(f"  {each:<10}{line}" for each, (_, line) in COMMANDS.items()))
  if name in ("-h", "--help"):
    print(text, end="")
    return 0
  wrong = f"error: no command {name!r}: there are {', '.join(COMMANDS)}\n" if name else text
  print(wrong, end="", file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main())
