"""Maps a function over an iterable with threads: in order, and a few items ahead."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

LOOK_AHEAD = 128  # items that are computed before they are asked for
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
  """Yields `function` of each item, in order; threads work up to `LOOK_AHEAD` items ahead of the reader."""
  workers = min(os.cpu_count() or 1, 16)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > LOOK_AHEAD:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()
