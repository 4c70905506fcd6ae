"""Batches of what many callers ask for at the same time.

A device computes a batch nearly as fast as one picture. So requests wait a few milliseconds for others, and while a
batch is computed the next one gathers. The queue is bounded: a caller that would wait too long is refused at once.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any


class BusyError(Exception):
  """The queue is full.

  Attributes:
    seconds: after which it is worth asking again, by the time that a batch has taken lately.
  """

  def __init__(self, seconds: float):
    super().__init__("the server has as many requests as it can answer in time")
    self.seconds = seconds


class LateError(Exception):
  """The request was not answered before its deadline."""


@dataclasses.dataclass(eq=False)
class _Request:
  items: Sequence[Any]
  answer: asyncio.Future
  deadline: float
  done: list[Any] = dataclasses.field(default_factory=list)
  taken: int = 0  # of its items, those that are in a batch already


class Batcher:
  """Gathers the items of requests to batches, in the order in which they came; one batch is computed at a time.

  A request with more items than a batch holds is spread over several. One that is cancelled, as where its client has
  gone, gives its place in the queue to others.

  Args:
    compute: gives a result for each item of a batch; called in `executor`.
    executor: of one thread; several batchers may share it, and so the device.
    max_batch: items of a batch.
    max_wait: seconds that the first item of a batch waits for others.
    max_queue: items that may wait.
    timeout: seconds after which a request that is not answered ends by `LateError`.

  Attributes:
    waiting: items in the queue.
    on_batch: called after each batch with its number of items and its seconds.
  """

  def __init__(
    self,
    compute: Callable[[list[Any]], Sequence[Any]],
    executor: concurrent.futures.Executor,
    max_batch: int = 32,
    max_wait: float = 0.005,
    max_queue: int = 256,
    timeout: float = 30.0,
  ):
    self._compute, self._executor = compute, executor
    self._max_batch, self._max_wait, self._max_queue, self._timeout = max_batch, max_wait, max_queue, timeout
    self._queue: collections.deque[_Request] = collections.deque()
    self._arrived = asyncio.Event()
    self._seconds = 0.1  # that a batch takes, as a moving average
    self._worker: asyncio.Task | None = None
    self.waiting = 0
    self.on_batch: Callable[[int, float], object] = lambda items, seconds: None

  async def submit(self, items: Sequence[Any]) -> list[Any]:
    """The results of some items, in their order.

    Raises:
      BusyError: the queue is full.
      LateError: they were not computed in time.
      Exception: what `compute` has raised, for all requests of that batch.
    """
    if not items:
      return []
    if self.waiting + len(items) > self._max_queue and self.waiting:
      raise BusyError(max(1.0, self.waiting / self._max_batch * self._seconds))
    if self._worker is None:
      self._worker = asyncio.get_running_loop().create_task(self._work())
    request = _Request(items, asyncio.get_running_loop().create_future(), time.monotonic() + self._timeout)
    self._queue.append(request)
    self.waiting += len(items)
    self._arrived.set()
    try:
      return await asyncio.wait_for(request.answer, self._timeout)
    except TimeoutError:
      raise LateError(f"not answered within {self._timeout:g} s") from None
    finally:
      self._forget(request)

  def _forget(self, request: _Request) -> None:
    """What is left of a request in the queue gives its place to others."""
    if request in self._queue:
      self._queue.remove(request)
      self.waiting -= len(request.items) - request.taken

  async def close(self) -> None:
    """Ends the work; requests that wait are cancelled."""
    if self._worker is not None:
      self._worker.cancel()
      await asyncio.gather(self._worker, return_exceptions=True)
    for request in list(self._queue):
      request.answer.cancel()

  async def _work(self) -> None:
    loop = asyncio.get_running_loop()
    while True:
      await self._arrived.wait()
      first = loop.time()
      while 0 < self.waiting < self._max_batch and (left := first + self._max_wait - loop.time()) > 0:
        self._arrived.clear()
        try:
          await asyncio.wait_for(self._arrived.wait(), left)
        except TimeoutError:
          break
      batch = self._take()
      if not self._queue:
        self._arrived.clear()
      else:
        self._arrived.set()
      if batch:
        await self._answer(batch)

  def _take(self) -> list[tuple[_Request, int]]:
    """The next items: each with its request."""
    batch: list[tuple[_Request, int]] = []
    while self._queue and len(batch) < self._max_batch:
      request = self._queue[0]
      count = min(len(request.items) - request.taken, self._max_batch - len(batch))
      batch += [(request, request.taken + number) for number in range(count)]
      request.taken += count
      self.waiting -= count
      if request.taken == len(request.items):
        self._queue.popleft()
    return batch

  async def _answer(self, batch: list[tuple[_Request, int]]) -> None:
    begin = time.monotonic()
    items = [request.items[number] for request, number in batch]
    try:
      results = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, items)
      if len(results) != len(items):
        raise RuntimeError(f"{len(items)} items gave {len(results)} results")
    except Exception as error:  # the callers get it; the server goes on
      for request in dict.fromkeys(request for request, _ in batch):
        if not request.answer.done():
          request.answer.set_exception(error)
      return
    finally:
      seconds = time.monotonic() - begin
      self._seconds = 0.8 * self._seconds + 0.2 * seconds
      self.on_batch(len(batch), seconds)
    for (request, _), result in zip(batch, results, strict=True):
      request.done.append(result)
      if len(request.done) == len(request.items) and not request.answer.done():
        request.answer.set_result(request.done)
