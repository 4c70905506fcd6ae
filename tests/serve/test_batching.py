"""Batches across callers: each gets its own results, the queue is bounded, and who has gone costs nothing."""

import asyncio
import concurrent.futures
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgclip_jax.serve.batching import Batcher, BusyError, LateError


class Counting:
  """Squares numbers, and notes the batches; `gate` holds the first one back."""

  def __init__(self):
    self.batches: list[list[int]] = []
    self.gate = threading.Event()
    self.gate.set()

  def __call__(self, items):
    assert self.gate.wait(10)
    self.batches.append(list(items))
    if -1 in items:
      raise ValueError("minus one")
    return [item * item for item in items]


def run(scenario, **options):
  """Runs `scenario(batcher, compute)` on an event loop."""
  compute = Counting()

  async def together():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
      batcher = Batcher(compute, executor, **options)
      try:
        return await scenario(batcher, compute)
      finally:
        compute.gate.set()
        await batcher.close()

  return asyncio.run(together()), compute


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 99), max_size=7), min_size=1, max_size=12), st.integers(1, 5))
def test_each_caller_gets_its_own_results(asked, max_batch):
  async def scenario(batcher, compute):
    return await asyncio.gather(*(batcher.submit(items) for items in asked))

  results, compute = run(scenario, max_batch=max_batch, max_wait=0.001, max_queue=10_000)
  assert results == [[item * item for item in items] for items in asked]
  assert [item for batch in compute.batches for item in batch] == [item for items in asked for item in items]
  full = compute.batches[:-1]
  assert all(len(batch) == max_batch for batch in full)


def test_a_full_queue_refuses_at_once_and_says_when():
  async def scenario(batcher, compute):
    compute.gate.clear()
    first = asyncio.ensure_future(batcher.submit([0]))
    await asyncio.sleep(0.05)  # it is being computed
    waiting = [asyncio.ensure_future(batcher.submit([number])) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError) as refused:
      await batcher.submit([9])
    assert refused.value.seconds >= 1 and batcher.waiting == 4
    compute.gate.set()
    return await asyncio.gather(first, *waiting)

  results, _ = run(scenario, max_batch=2, max_queue=4, max_wait=0.0)
  assert results == [[0], [0], [1], [4], [9]]


def test_a_request_larger_than_the_queue_is_answered_where_nobody_waits():
  async def scenario(batcher, compute):
    return await batcher.submit(list(range(20)))

  results, compute = run(scenario, max_batch=3, max_queue=4)
  assert results == [n * n for n in range(20)] and len(compute.batches) == 7


def test_who_has_gone_gives_the_place_to_others():
  async def scenario(batcher, compute):
    compute.gate.clear()
    first = asyncio.ensure_future(batcher.submit([1]))
    await asyncio.sleep(0.05)
    gone = asyncio.ensure_future(batcher.submit([2, 3, 4]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert batcher.waiting == 0
    last = asyncio.ensure_future(batcher.submit([5]))
    await asyncio.sleep(0)
    compute.gate.set()
    return await asyncio.gather(first, last)

  results, compute = run(scenario, max_batch=4, max_queue=3)
  assert results == [[1], [25]] and compute.batches == [[1], [5]]


def test_what_is_not_answered_in_time_ends_and_the_rest_goes_on():
  async def scenario(batcher, compute):
    compute.gate.clear()
    first = asyncio.ensure_future(batcher.submit([1]))
    await asyncio.sleep(0.02)
    with pytest.raises(LateError, match=r"0\.1 s"):
      await batcher.submit([2])
    await asyncio.gather(first, return_exceptions=True)
    compute.gate.set()
    return await batcher.submit([3])

  results, compute = run(scenario, max_batch=1, timeout=0.1)
  assert results == [9] and [2] not in compute.batches


def test_a_batch_that_fails_ends_its_own_requests_alone():
  async def scenario(batcher, compute):
    failed = await asyncio.gather(batcher.submit([1]), batcher.submit([-1]), return_exceptions=True)
    return failed, await batcher.submit([2])

  (failed, after), _ = run(scenario, max_batch=2, max_wait=0.05)
  assert all(isinstance(error, ValueError) for error in failed) and after == [4]
