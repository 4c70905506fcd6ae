"""The watchdog speaks where nothing moves, and only there."""

import threading
import time

from fgclip_jax.train.watchdog import Watchdog


def wait_for(condition) -> None:
  end = time.monotonic() + 20
  while not condition() and time.monotonic() < end:
    time.sleep(0.01)


def test_it_says_what_it_waits_for(capsys):
  said = ""

  def lines():
    nonlocal said
    said += capsys.readouterr().out
    return said.splitlines()

  dog = Watchdog(0.05)
  dog.heartbeat("data for step 7")
  wait_for(lambda: len(lines()) >= 2)  # and says so again
  dog.heartbeat("step 7")
  wait_for(lambda: lines()[-1].endswith("step 7") and not lines()[-1].endswith("data for step 7"))
  dog.close()
  assert all(line.startswith("waiting for ") for line in lines())
  assert lines()[0].endswith(" s now: data for step 7") and lines()[-1].endswith(" s now: step 7")


def test_it_is_silent_while_things_move(capsys):
  dog = Watchdog(100.0)
  for step in range(100):
    dog.heartbeat(f"step {step}")
  dog.close()
  assert capsys.readouterr().out == ""


def test_it_can_be_off(capsys):
  before = threading.active_count()
  dog = Watchdog(0.0)
  assert threading.active_count() == before
  dog.heartbeat("anything")
  dog.close()
