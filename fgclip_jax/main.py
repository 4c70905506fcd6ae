"""Trains a model.

  python -m fgclip_jax.main --config=configs/stage2.py --workdir=runs/stage2 --config.data.path=data/finehard

Any key of the config can be changed on the command line: `--config.optimizer.learning_rate=3e-6`.
The same command again continues from the newest checkpoint in the workdir.

Several processes find each other under Slurm, Open MPI and on TPUs; elsewhere each is told with --coordinator=HOST:PORT
(of process 0), --processes=N and --process=I. They need a --workdir and data that all of them see.
"""

import os
import runpy
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file; an argument may follow a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run: checkpoints, metrics, config.")

_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, in a run of several processes.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
_HEARTBEAT_TIMEOUT = flags.DEFINE_float(
  "heartbeat_timeout", 100.0, "Seconds within which the run ends when one of its processes is gone."
)


def main(argv: list[str]) -> int:
  """The command; returns its exit code: 75 where the run was told to end and has saved."""
  logging.set_verbosity(logging.WARNING)  # Orbax reports every file it opens
  if wrong := wrong_usage(argv, {"config": _CONFIG.value, "workdir": _WORKDIR.value}, __doc__):
    print(wrong, file=sys.stderr)
    return 1
  # imported here: data workers import this module again, and need no model
  from fgclip_jax.train import distributed
  from fgclip_jax.train.config import read_config
  from fgclip_jax.train.loop import train
  from fgclip_jax.train.preemption import EXIT_CODE, Preempted

  workdir, peers = _WORKDIR.value, None
  try:
    peers = distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _HEARTBEAT_TIMEOUT.value)
    train(read_config(_CONFIG.value), workdir)
  except Preempted as preempted:
    print(preempted)
    if peers:
      peers.close()
    return EXIT_CODE
  except (OSError, ValueError, FloatingPointError) as error:
    print(f"error: {error}", file=sys.stderr)
    if peers:
      peers.fail(error)
    return 1
  except (Exception, KeyboardInterrupt) as error:
    if peers:
      traceback.print_exc()
      peers.fail(error)
    raise
  if peers:
    peers.close()
  if peers is None or peers.index == 0:
    print(f"wrote {workdir}/checkpoints (the model), {workdir}/metrics.jsonl, {workdir}/tensorboard")
    first = _CONFIG.value.data.path or _CONFIG.value.data.mixture[0][0]
    print(f"next: python -m fgclip_jax.evaluate --model {workdir} --data {first}")
  return 0


def wrong_usage(argv: list[str], needed: dict[str, object], usage: str) -> str:
  """What is wrong about a command: an argument that is no flag, or a flag without a value; empty if nothing is."""
  if len(argv) > 1:
    return f"error: unknown argument {argv[1]!r}; config keys are set with --config.KEY=VALUE"
  return next((f"error: --{flag} is missing\n{usage}" for flag, value in needed.items() if not value), "")


def _parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with a mistake in the command or the config file as an error of one line."""
  path, _, argument = _config_argument(argv).partition(":")
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


def _config_argument(argv: list[str]) -> str:
  """The value of --config, in either of its forms; empty if it is not given."""
  for place, flag in enumerate(argv):
    name, equals, value = flag.lstrip("-").partition("=")
    if flag.startswith("-") and name == "config":
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


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)
