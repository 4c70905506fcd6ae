"""Trains a model.

  python -m fgclip_jax.main --config=configs/stage2.py --workdir=runs/stage2 --config.data.path=data/finehard

Any key of the config can be changed on the command line: `--config.optimizer.learning_rate=3e-6`.
The same command again continues from the newest checkpoint in the workdir.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file; an argument may follow a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run: checkpoints, metrics, config.")


def main(argv: list[str]) -> int:
  """The command; returns its exit code."""
  logging.set_verbosity(logging.WARNING)  # Orbax reports every file it opens
  # imported here: data workers import this module again, and must not load JAX
  from fgclip_jax.train.config import read_config
  from fgclip_jax.train.loop import train

  if len(argv) > 1:
    print(f"error: unknown argument {argv[1]!r}; config keys are set with --config.KEY=VALUE", file=sys.stderr)
    return 1
  for flag, value in (("config", _CONFIG.value), ("workdir", _WORKDIR.value)):
    if not value:
      print(f"error: --{flag} is missing\n{__doc__}", file=sys.stderr)
      return 1
  workdir = _WORKDIR.value
  try:
    train(read_config(_CONFIG.value), workdir)
  except (OSError, ValueError, FloatingPointError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"wrote {workdir}/checkpoints (the model), {workdir}/metrics.jsonl, {workdir}/tensorboard")
  print(f"next: python -m fgclip_jax.evaluate --model {workdir} --data {_CONFIG.value.data.path}")
  return 0


def _parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with an unknown config key as an error of one line."""
  for argument in argv:
    if argument.startswith("--config="):  # a config imports its neighbours, wherever the command is typed
      path = argument.removeprefix("--config=").split(":")[0]
      sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(path))))
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError, OSError, TypeError, ValueError, flags.Error) as error:
    print(f"error: {error}", file=sys.stderr)
    keys = [key for key in argv if key.startswith("--config.")]
    if isinstance(error, (AttributeError, KeyError)):
      print(f"one of these is no key of the config: {' '.join(keys)}; see configs/common.py", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)
