"""Runs of two processes in one folder, of which one is killed."""

import signal
import sys

from faulting.bench import Bench, result
from faulting.runs import Attempt, Run
from tests.helpers import buckets

DEVICES = "2"  # of each process


def one_of_two(bench: Bench) -> None:
  """SIGKILL of the second process, then of the first; the result is that of any other run of two processes."""
  whole, run = (bench.run(f"two-processes-{part}", "--config.steps=16") for part in ("undisturbed", "killed"))
  end(start(whole))
  said = []
  for victim in (1, 0):
    attempts = start(run)
    attempts[0].wait_for(f"step {bench.rng.randrange(5, 9) + 4 * len(said)}")
    attempts[victim].signal(signal.SIGKILL)
    end(attempts)
    said.append(attempts[1 - victim].find("error:", "leader task"))
  end(start(run))
  bench.report("two processes; SIGKILL of the second, then of the first", run, " / ".join(said), wanted=result(whole))


def start(run: Run) -> list[Attempt]:
  """Starts a run's processes; the first counts as the run's attempt."""
  place = [f"--coordinator=localhost:{buckets.free_port()}", "--processes=2", "--heartbeat_timeout=20"]
  command = [sys.executable, "-m", "fgclip_jax.main", *run.flags, *place]
  environment = run.environment | {"JAX_NUM_CPU_DEVICES": DEVICES}
  attempts = [Attempt([*command, f"--process={index}"], environment) for index in range(2)]
  run.attempts.append(attempts[0])
  return attempts


def end(attempts: list[Attempt]) -> None:
  """Waits until all have ended."""
  for attempt in attempts:
    attempt.end()
