"""The command line of a run: `--config=FILE` and `--config.KEY=VALUE`, with mistakes told in a line."""

import os
import runpy
import sys
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file; an argument may follow a colon.")


def wrong_usage(argv: list[str], needed: dict[str, object], usage: str) -> str:
  """What is wrong about a command: an argument that is no flag, or a flag without a value; empty if nothing is."""
  if len(argv) > 1:
    return f"error: unknown argument {argv[1]!r}; config keys are set with --config.KEY=VALUE"
  return next((f"error: --{flag} is missing\n{usage}" for flag, value in needed.items() if not value), "")


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with a mistake in the command or the config file as an error of one line."""
  path, _, argument = flag_value(argv, "config").partition(":")
  if path and not os.path.isfile(path):
    _stop(f"no config file at {path!r}")
  # a config imports its neighbours, wherever the command is typed
  sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(path))))
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    _stop(_unknown_key(argv, path, argument) or f"{path}: {error}")
  except (ImportError, OSError, SyntaxError, TypeError, ValueError, flags.Error) as error:
    # ml_collections puts a whole traceback before a message of the config file
    _stop(str(error).strip().splitlines()[-1].removeprefix("ValueError: "))


def _stop(message: str) -> NoReturn:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(1)


def flag_value(argv: list[str], name: str) -> str:
  """The value of a flag before flags are parsed, in either of its forms; empty if it is not given."""
  for place, flag in enumerate(argv):
    found, equals, value = flag.lstrip("-").partition("=")
    if flag.startswith("-") and found == name:
      return value if equals else "".join(argv[place + 1 : place + 2])
  return ""


def _unknown_key(argv: list[str], path: str, argument: str) -> str | None:
  """Says which of the keys set on the command line the config has not."""
  functions = runpy.run_path(path)
  if "get_config" not in functions:
    return f"{path} is no config file: it has no function get_config"
  config = functions["get_config"](*filter(None, [argument]))
  for flag in argv:
    if not flag.lstrip("-").startswith("config."):
      continue
    section, before = config, "config"
    for key in flag.lstrip("-").partition("=")[0].split(".")[1:]:
      keys = list(section) if isinstance(section, ConfigDict) else []
      if key not in keys:
        has = f"it has {', '.join(sorted(keys))}" if keys else "it is a value, not a section"
        return f"{before} has no key {key!r}: {has}"
      section, before = section[key], f"{before}.{key}"
  return None
