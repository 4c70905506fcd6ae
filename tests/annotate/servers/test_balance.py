"""Limits of endpoints, and the choice among them."""

import threading
import time

import pytest

from fgclip_jax.annotate.servers import balance
from fgclip_jax.annotate.servers.endpoints import Endpoint, parse_address
from fgclip_jax.annotate.servers.faults import ServerError


def make(count=1, in_flight=64, patience=60.0):
  log = []
  endpoints = [Endpoint(parse_address(f"http://h{number}/v1"), 1.0) for number in range(count)]
  return balance.Balancer(endpoints, in_flight, patience, log.append), log


def test_many_busy_answers_halve_the_limit_and_good_ones_raise_it_again():
  balancer, _ = make()
  (lane,) = balancer.lanes
  for _ in range(64):
    balancer.record_busy(lane, True, "429")
  assert lane.limit == 32
  for _ in range(32 + 16 + 16 + 16 + 16 + 16):
    balancer.record_busy(lane, True, "429")
  assert lane.limit == 1 and lane.has_room() and not lane.off
  for _ in range(3000):
    balancer.record_answer(lane)
  assert lane.limit == 64


def test_a_few_busy_answers_change_nothing():
  balancer, _ = make()
  (lane,) = balancer.lanes
  for number in range(2000):
    balancer.record_busy(lane, True, "429") if number % 10 == 0 else balancer.record_answer(lane)
  assert lane.limit == 64


def test_a_server_that_loads_is_asked_one_request_at_a_time():
  balancer, log = make(in_flight=8)
  (lane,) = balancer.lanes
  for _ in range(16):
    balancer.record_busy(lane, False, "HTTP 503: Loading model")
  assert lane.off and lane.closed_until <= time.monotonic() + 0.5
  lane.in_flight = 1
  assert not lane.has_room()
  balancer.record_answer(lane)
  lane.in_flight = 7
  assert lane.has_room() and lane.limit == 8
  assert log == [
    "http://h0/v1 is off (HTTP 503: Loading model); trying again until it answers",
    "http://h0/v1 answers again",
  ]


def test_failures_at_the_same_time_are_one(monkeypatch):
  monkeypatch.setattr(balance, "draw_wait", lambda failures: 10.0 * (failures + 1))
  balancer, log = make()
  (lane,) = balancer.lanes
  before = time.monotonic()
  for _ in range(64):
    balancer.turn_off(lane, "refused")
  assert before + 9 < lane.closed_until < before + 12
  assert len(log) == 1


def test_the_endpoint_with_the_least_in_flight_is_taken():
  balancer, _ = make(3, in_flight=2)
  stopped = threading.Event()
  first, second, third = balancer.lanes
  second.in_flight = 1
  third.off, third.closed_until = True, time.monotonic() + 60
  with balancer.lease({}, stopped) as a, balancer.lease({}, stopped) as b, balancer.lease({}, stopped) as c:
    assert [a, b, c] == [first, first, second] or [a, b, c] == [first, second, first]
    threading.Timer(0.05, stopped.set).start()
    with pytest.raises(balance.StoppedError), balancer.lease({}, stopped):
      pass
  waits = {first: (first.outages, time.monotonic() + 60)}
  with balancer.lease(waits, threading.Event()) as lane:
    assert lane is second
  first.outages += 1  # it was off and is back: what it asked for before is void
  with balancer.lease(waits, threading.Event()) as lane:
    assert lane is first


def test_servers_that_never_answer_end_the_run():
  balancer, _ = make(patience=0.05)
  (lane,) = balancer.lanes
  balancer.turn_off(lane, "cannot be reached (refused)")
  lane.closed_until = time.monotonic() + 60
  with pytest.raises(ServerError, match="no model server has answered for 0 s .*http://h0/v1: cannot be reached"):
    with balancer.lease({}, threading.Event()):
      pass


def test_waits_are_random_and_have_a_limit():
  assert all(0 <= balance.draw_wait(0) <= 0.5 for _ in range(100))
  waits = [balance.draw_wait(1000) for _ in range(200)]
  assert max(waits) <= 60 and max(waits) - min(waits) > 30
