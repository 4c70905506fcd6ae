"""Runs whose bucket is behind a bad network: slow, with lost connections, a busy server, cut bodies, outages."""

import signal
import time
from collections.abc import Callable, Iterable

from faulting.bench import TRIES, Bench, kill
from faulting.proxy import Conditions
from faulting.runs import STEPS, Attempt

SAVES = ("--config.checkpoint_every=8",)  # each takes long on such a network
OUTAGE = 75.0  # seconds; gcsfs gives up after 36
_COMPLAINTS = ("could not", "cannot", "trying again", "error:", "damaged")


def bad_network(injected: str, conditions: Conditions) -> Callable[[Bench], None]:
  """A whole run, killed once on the way, so that it is also restored under these conditions."""

  def fault(bench: Bench) -> None:
    assert bench.network
    run = bench.run("".join(char for char in injected if char.isalnum())[:24], *SAVES)
    with bench.network.conditions(conditions) as met:
      moment = kill(bench, run, bench.rng.randrange(8, 30), "step")
      run.finish(TRIES)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(met.items()))
    bench.report(f"{injected} ({counts}); SIGKILL: {moment}", run, complaints(run.attempts))

  return fault


def outage(bench: Bench, kind: str) -> None:
  """Nothing passes for longer than gcsfs tries again; the steps go on for longer."""
  assert bench.network
  run = bench.run(f"outage-{kind}", *SAVES, pause=2.5 * OUTAGE / STEPS)
  attempt = run.start()
  attempt.wait_for("step 10")
  with bench.network.conditions(Conditions(dark=kind)) as met:
    attempt.pause(OUTAGE)
  made = attempt.step()
  attempt.end()
  injected = f"no network for {OUTAGE:.0f} s ({kind}; {met['dark']} requests) from step 10 to step {made}"
  bench.report(injected, run, complaints(run.attempts))


def outage_at_start(bench: Bench, kind: str) -> None:
  """Nothing passes while a run wants to go on: its checkpoints are as good as ever."""
  assert bench.network
  run = bench.run(f"outage-at-start-{kind}")
  attempt = run.start()
  attempt.wait_for(f"step {bench.rng.randrange(14, 30)}")
  attempt.signal(signal.SIGKILL)
  attempt.end()
  attempt = run.start()
  attempt.pause(2.0)
  with bench.network.conditions(Conditions(dark=kind)) as met:
    end = time.monotonic() + OUTAGE
    while time.monotonic() < end:
      attempt.pause(min(end - time.monotonic(), 5.0))
      if not attempt.running():
        attempt.end()
        attempt = run.start()
  attempt.end()
  injected = f"SIGKILL, then no network for {OUTAGE:.0f} s ({kind}; {met['dark']} requests) while it starts again"
  bench.report(injected, run, complaints(run.attempts))


def complaints(attempts: Iterable[Attempt]) -> str:
  """What runs have said of trouble, each line once."""
  lines = [line for attempt in attempts for line in attempt.lines if any(word in line for word in _COMPLAINTS)]
  return " / ".join(dict.fromkeys(lines)) or "–"


_RESETS = "10 % of connections reset, half of them after the request was done"
FAULTS: dict[str, Callable[[Bench], None]] = {
  "slow": bad_network("each request delayed by 50 to 250 ms", Conditions(delay=(0.05, 0.25))),
  "reset": bad_network(_RESETS, Conditions(reset=0.05, reset_after=0.05)),
  "busy": bad_network("20 % of requests answered with 429 or 503", Conditions(busy=0.2)),
  "cut": bad_network("10 % of bodies cut to a half", Conditions(cut=0.1)),
  "all-of-it": bad_network("all of these", Conditions((0.02, 0.2), reset=0.03, reset_after=0.03, busy=0.06, cut=0.03)),
  "outage": lambda bench: outage(bench, "silent"),
  "outage-refused": lambda bench: outage(bench, "refused"),
  "outage-at-start": lambda bench: outage_at_start(bench, "silent"),
  "outage-at-start-refused": lambda bench: outage_at_start(bench, "refused"),
}
