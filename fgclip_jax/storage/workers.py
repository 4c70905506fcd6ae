"""Runs tasks in processes, or by an engine that has machines of its own.

The one way in which work is spread: a function of a module, tasks and results that can be pickled and are small. Data
pass through files.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

import tqdm

Task, Result = TypeVar("Task"), TypeVar("Result")


def count_processors() -> int:
  """How many processors this process may use, which are fewer than the machine's in many containers."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@runtime_checkable
class Engine(Protocol):
  """Runs tasks elsewhere, see `beam.Beam`."""

  def run(self, function: Callable[[Task], Result], tasks: list[Task], *, label: str) -> Iterator[Result]:
    """Yields the results of `function`, in any order; an error in a task stops the others and is raised."""


class Stopped(Exception):
  """Raised inside a task once the run was stopped."""


def _ignore(amount: int) -> None:
  del amount


_advance: Callable[[int], object] = _ignore


def tick(amount: int) -> None:
  """Moves the progress bar; a task calls it often, for it is also where a stopped task ends."""
  _advance(amount)


def run(
  function: Callable[[Task], Result], tasks: list[Task], workers: int | Engine, *, total: int, label: str, unit: str
) -> Iterator[Result]:
  """Yields the results of `function` in the order in which tasks end.

  Args:
    function: a module's own, or a `functools.partial` of one.
    tasks: what it is called with.
    workers: the number of processes (one worker, or one task, runs in this process), or an engine.
    total: how far the progress bar goes, which `tick` moves; with an engine, it goes from task to task.
    label, unit: of the progress bar.

  Raises:
    BaseException: an error in a task stops the others and is raised here.
  """
  global _advance
  if not tasks:
    return
  if not isinstance(workers, int):
    with tqdm.tqdm(total=len(tasks), desc=label, unit=" tasks") as bar:
      for result in workers.run(function, tasks, label=label):
        bar.update(1)
        yield result
    return
  workers = min(workers, len(tasks))
  with tqdm.tqdm(total=total, desc=label, unit=unit, unit_scale=True) as bar:
    if workers <= 1:
      _advance = bar.update
      try:
        yield from map(function, tasks)
      finally:
        _advance = _ignore
      return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    count, stop = context.Value("q", 0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (count, stop)) as executor:
      waiting = {executor.submit(function, task) for task in tasks}
      try:
        while waiting:
          done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
          bar.update(count.value - bar.n)
          for future in done:
            yield future.result()
      except BaseException:
        stop.set()
        executor.shutdown(wait=False, cancel_futures=True)
        raise


def _start_worker(count, stop) -> None:
  global _advance
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and stops its workers
  threading.Thread(target=_follow_parent, daemon=True).start()

  def advance(amount: int) -> None:
    if stop.is_set():
      raise Stopped
    with count.get_lock():
      count.value += amount

  _advance = advance


def _follow_parent() -> None:
  """Ends this process when its parent is gone: a killed parent cannot tell its workers to stop."""
  multiprocessing.parent_process().join()
  os._exit(1)
