"""Runs tasks in processes of this machine, or by an engine that has machines of its own.

All parallel work of `prepare` takes this one form: a function at the top of a module, with small tasks and results that
can be pickled. Data pass through files.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")


def count_processors() -> int:
  """Counts the processors that this process may use; in a container they are often fewer than the machine's."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@runtime_checkable
class Engine(Protocol):
  """Runs tasks on other machines, as `prepare.beam.Beam` does."""

  def run(self, function: Callable[[Task], Result], tasks: list[Task], *, label: str) -> Iterator[Result]:
    """Yields the results of `function` in any order; an error in a task stops the others and is raised."""
    ...


class StoppedError(Exception):
  """Raised inside a task once the run was stopped."""


def _ignore(amount: int) -> None:
  del amount


_advance: Callable[[int], object] = _ignore


def tick(amount: int) -> None:
  """Moves the progress bar. A task calls it often, for a task of a stopped run ends here."""
  _advance(amount)


def run_tasks(
  function: Callable[[Task], Result], tasks: list[Task], workers: int | Engine, *, total: int, label: str, unit: str
) -> Iterator[Result]:
  """Yields the results of `function` in the order in which tasks end.

  Args:
    function: a function at the top of a module, or a `functools.partial` of one.
    tasks: the arguments of its calls.
    workers: the number of processes (one worker, or one task, runs in this process), or an engine.
    total: the length of the progress bar, which `tick` moves; with an engine, the bar counts tasks.
    label, unit: the texts of the progress bar.

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
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the same signal, and stops its workers
  threading.Thread(target=_follow_parent, daemon=True).start()

  def advance(amount: int) -> None:
    if stop.is_set():
      raise StoppedError
    with count.get_lock():
      count.value += amount

  _advance = advance


def _follow_parent() -> None:
  """Ends this process when its parent has ended: a killed parent cannot stop its workers."""
  parent = multiprocessing.parent_process()
  assert parent is not None  # only worker processes run this
  parent.join()
  os._exit(1)
