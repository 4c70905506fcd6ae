"""Tasks in processes: every result arrives, the bar moves within tasks, and an error stops the others."""

import functools
import time

import pytest
import tqdm

from fgclip_jax.storage.workers import run_tasks, tick


def _add(number, other):
  tick(other)
  return number + other


def _fail_or_work(folder, number):
  if number == 0:
    raise ValueError("no nought")
  for _ in range(600):
    tick(1)
    time.sleep(0.1)
  (folder / str(number)).touch()


class Elsewhere:
  """An engine that notes what it was given."""

  def run(self, function, tasks, *, label):
    self.label = label
    yield from (function(task) for task in reversed(tasks))


@pytest.fixture
def bars(monkeypatch):
  made = []

  class Bar(tqdm.tqdm):
    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      made.append(self)

  monkeypatch.setattr(tqdm, "tqdm", Bar)
  return made


@pytest.mark.parametrize("workers", [1, 2])
def test_every_result_arrives_and_the_bar_ends_at_its_total(workers, bars):
  results = run_tasks(functools.partial(_add, 10), [1, 2, 3], workers, total=6, label="adding", unit="")
  assert sorted(results) == [11, 12, 13]
  ((bar),) = bars
  assert bar.n == bar.total == 6


def test_an_engine_gets_the_tasks_and_the_bar_counts_them(bars):
  engine = Elsewhere()
  assert list(run_tasks(functools.partial(_add, 10), [1, 2, 3], engine, total=6, label="adding", unit="")) == [
    13,
    12,
    11,
  ]
  assert engine.label == "adding"
  assert bars[0].n == bars[0].total == 3


def test_an_error_stops_the_other_tasks(tmp_path):
  with pytest.raises(ValueError, match="no nought"):
    list(run_tasks(functools.partial(_fail_or_work, tmp_path), [0, 1, 2], 2, total=0, label="working", unit=""))
  assert not list(tmp_path.iterdir())  # all tasks have ended by now, none to its end


def test_without_tasks_nothing_runs(bars):
  assert list(run_tasks(_add, [], 4, total=0, label="", unit="")) == []
  assert not bars
