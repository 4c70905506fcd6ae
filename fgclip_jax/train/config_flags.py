"""The command line of a run: `--config=FILE` and `--config.KEY=VALUE`, with each mistake reported in one line.

A config is a path or a name of a config that comes with the package: `--config=stage2:vit_l14_336`.
"""

import importlib.machinery
import importlib.util
import os
import runpy
import sys
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fgclip_jax.cli import WRONG_USAGE, print_error, shipped
from fgclip_jax.storage.errors import first_line

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A config file, or the name of one that comes with the package; an argument may follow a colon."
)


def wrong_usage(argv: list[str], needed: dict[str, object], usage: str | None) -> str:
  """What is wrong about a command: an argument that is no flag, or a flag without a value; empty if nothing is."""
  if len(argv) > 1:
    return f"error: unknown argument {argv[1]!r}; config keys are set with --config.KEY=VALUE"
  return next((f"error: --{flag} is missing\n{usage}" for flag, value in needed.items() if not value), "")


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with a mistake in the command or the config file as an error of one line; `--help` ends with 0."""
  if _asks_for_help(argv):
    print(help_text())
    sys.exit(0)
  try:
    # without the config: its file imports JAX, and a mistyped flag should be found before
    flags.FLAGS(_without_config(argv))
    flags.FLAGS.unparse_flags()
  except flags.Error as error:
    _stop(first_line(error))
  place = _flag_place(argv, "config")
  given, colon, argument = flag_value(argv, "config").partition(":")
  path = _find_config(given) if given else ""
  if path != given:
    flag = "--config=" if argv[place].startswith("-") else ""
    argv = [*argv[:place], f"{flag}{path}{colon}{argument}", *argv[place + 1 :]]
  _let_configs_import(os.path.dirname(os.path.abspath(path)))
  logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is an error below
  try:
    left = flags.FLAGS(argv)
  except (AttributeError, KeyError, TypeError) as error:  # a TypeError: a key of a text
    _stop(_unknown_key(argv, path, argument) or f"{path}: {error}".splitlines()[-1])
  except (ImportError, OSError, SyntaxError, ValueError, flags.Error) as error:
    # ml_collections puts a whole traceback before a message of the config file
    message = (str(error).strip() or type(error).__name__).splitlines()[-1].removeprefix("ValueError: ")
    named = isinstance(error, flags.Error) or "config." in message or os.path.basename(path) in message
    _stop(message if named else f"{path}: {message}")
  except (Exception, SystemExit) as error:  # a config file is a program, and may do anything
    _stop(f"{path}: {type(error).__name__}: {first_line(error)}")
  if given and not isinstance(CONFIG.value, ConfigDict):
    _stop(f"{path}: get_config() must return a ConfigDict, got {type(CONFIG.value).__name__}")
  return left


def help_text() -> str:
  """The command's docstring, and its flags with their defaults, one a line."""
  own = flags.FLAGS.get_flags_for_module(sys.argv[0])
  lines = []
  for flag in [flags.FLAGS["config"], *own]:
    default = "" if flag.default is None else f" (default: {flag.default})"
    lines.append(f"  --{flag.name:<20}{flag.help}{default}")
  lines.append(f"  --{'config.KEY=VALUE':<20}Changes a key of the config; configs/common.py lists them.")
  return f"{(sys.modules['__main__'].__doc__ or '').strip()}\n\nflags:\n" + "\n".join(lines)


def _asks_for_help(argv: list[str]) -> bool:
  own = argv[: argv.index("--")] if "--" in argv else argv
  return any(arg in ("-h", "-help", "--help", "--helpshort", "--helpfull") for arg in own[1:])


def _without_config(argv: list[str]) -> list[str]:
  """The arguments without those that name the config or change a key of it."""
  left, takes_next = [], False
  for arg in argv:
    is_flag = arg[:1] == "-" and arg.lstrip("-")[:1].isalpha()  # -3 is a value
    name, equals, _ = arg.lstrip("-").partition("=")
    if is_flag and (name == "config" or name.startswith(("config.", "noconfig."))):
      takes_next = not equals
      continue
    if is_flag or not takes_next:
      left.append(arg)
    takes_next = False
  return left


def _stop(message: str) -> NoReturn:
  print_error(message)
  sys.exit(WRONG_USAGE)


def _find_config(given: str) -> str:
  """The path of a config: a file as given, or one of the package's by its name."""
  named = shipped("configs") / f"{given}.py"
  if os.path.isfile(given):
    return given
  if named.is_file() and named.parent == shipped("configs"):
    return str(named)
  names = sorted(path.stem for path in shipped("configs").glob("*.py"))
  _stop(f"no config file at {given!r}, and no config has this name; there are {', '.join(names)}")


def _let_configs_import(folder: str) -> None:
  """Lets a config import its neighbours, and the package's configs, as `configs.NAME` from any folder."""
  sys.path.append(os.path.dirname(folder))  # and as FOLDER.NAME
  spec = importlib.machinery.ModuleSpec("configs", None, is_package=True)
  spec.submodule_search_locations = [folder, str(shipped("configs"))]
  sys.modules["configs"] = importlib.util.module_from_spec(spec)


def _flag_place(argv: list[str], name: str) -> int:
  """The index of the argument that holds a flag's value; that of no argument if the flag is not given."""
  for place, flag in enumerate(argv):
    found, equals, _ = flag.lstrip("-").partition("=")
    if flag.startswith("-") and found == name:
      return place if equals else place + 1
  return len(argv)


def flag_value(argv: list[str], name: str) -> str:
  """The value of a flag before flags are parsed, in either of its forms; empty if it is not given."""
  value = "".join(argv[(place := _flag_place(argv, name)) : place + 1])
  return value.partition("=")[2] if value.startswith("-") else value


def _unknown_key(argv: list[str], path: str, argument: str) -> str | None:
  """Says which of the keys set on the command line the config has not."""
  try:
    functions = runpy.run_path(path)
    if "get_config" not in functions:
      return f"{path} is no config file: it has no function get_config"
    config = functions["get_config"](*filter(None, [argument]))
  except (Exception, SystemExit):  # the error is the file's own
    return None
  for flag in argv:
    if not flag.lstrip("-").startswith("config."):
      continue
    section, before = config, "config"  # a section, or at the end a value
    for key in flag.lstrip("-").partition("=")[0].split(".")[1:]:
      if not isinstance(section, ConfigDict) or key not in section:
        keys = list(section) if isinstance(section, ConfigDict) else []
        has = f"it has {', '.join(sorted(keys))}" if keys else "it is a value, not a section"
        return f"{before} has no key {key!r}: {has}"
      section, before = section[key], f"{before}.{key}"
  return None
