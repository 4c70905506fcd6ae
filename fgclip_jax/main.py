"""Trains a model.

  python -m fgclip_jax.main --config=configs/stage2.py --workdir=runs/stage2 --config.data.path=data/finehard

Any key of the config can be changed on the command line: `--config.optimizer.learning_rate=3e-6`.
The same command again continues from the newest checkpoint in the workdir.

Several processes find each other under Slurm, Open MPI and on TPUs; elsewhere give each --coordinator=HOST:PORT (of
process 0), --processes=N and --process=I. All of them must see the --workdir and the data.
"""

import sys
import traceback

from absl import app, flags, logging

from fgclip_jax import cli
from fgclip_jax.storage import paths
from fgclip_jax.train.config_flags import CONFIG, parse_flags, wrong_usage

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run: checkpoints, metrics, config.")

_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, in a run of several processes.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this process, from 0.")
_HEARTBEAT_TIMEOUT = flags.DEFINE_float(
  "heartbeat_timeout", 100.0, "Seconds within which the run ends when one of its processes is lost."
)

_PROFILER_PORT = flags.DEFINE_integer("profiler_port", None, "Where XProf may ask for profiles of this process.")


def main(argv: list[str]) -> int:
  """The command; returns its exit code.

  0: trained to the last step. `cli.WRONG_USAGE`: something about flags, config, data or weights cannot work, found
  before the first step. `cli.FAILED`: any other error. 75: the run was asked to end and has saved.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax reports every file it opens
  if wrong := wrong_usage(argv, {"config": CONFIG.value, "workdir": _WORKDIR.value}, str(__doc__)):
    print(wrong, file=sys.stderr)
    return cli.WRONG_USAGE
  # imported here: data workers import this module again, and must start without JAX
  from fgclip_jax.train import distributed
  from fgclip_jax.train.config import read_config
  from fgclip_jax.train.goodput.timeline import process_start
  from fgclip_jax.train.loop import open_run, train_steps
  from fgclip_jax.train.preemption import EXIT_CODE, PreemptedError
  from fgclip_jax.train.profile import start_server

  workdir, peers, started = _WORKDIR.value or "", None, False
  try:
    paths.check(workdir, "--workdir", write=True)
    peers = distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _HEARTBEAT_TIMEOUT.value)
    if _PROFILER_PORT.value is not None:
      start_server(_PROFILER_PORT.value)
    opened = open_run(read_config(CONFIG.value), workdir, process_start())
    started = True
    train_steps(*opened)
  except PreemptedError as preempted:
    print(preempted)
    if peers:
      peers.close()
    return EXIT_CODE
  except (OSError, ValueError, FloatingPointError) as error:
    cli.print_error(error)
    code = cli.FAILED if started else cli.exit_code(error)
    if peers:
      peers.fail(error, code)
    return code
  except (Exception, KeyboardInterrupt) as error:
    if peers:
      traceback.print_exc()
      peers.fail(error, cli.FAILED)
    raise
  if peers:
    peers.close()
  if peers is None or peers.index == 0:
    print(f"wrote {workdir}/checkpoints (the model), {workdir}/metrics.jsonl, {workdir}/tensorboard")
    first = CONFIG.value.data.path or CONFIG.value.data.mixture[0][0]
    print(f"next: python -m fgclip_jax.evaluate --model {workdir} --data {first}")
  return 0


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
