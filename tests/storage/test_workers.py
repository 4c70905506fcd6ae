"""Tasks in processes: every result arrives, the bar moves within tasks, and an error stops the others."""

import functools
import time

import pytest
import tqdm

from fgclip_jax.storage import workers as pool


def _add(number, other):
  pool.tick(other)
  return number + other


def _fail_or_work(folder, number):
  if number == 0:
    raise ValueError("no nought")
  for _ in range(600):
    pool.tick(1)
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

  monkeypatch.setattr(pool.tqdm, "tqdm", Bar)
  return made


@pytest.mark.parametrize("workers", [1, 2])
def test_every_result_arrives_and_the_bar_ends_at_its_total(workers, bars):
  results = pool.run(functools.partial(_add, 10), [1, 2, 3], workers, total=6, label="adding", unit="")
  assert sorted(results) == [11, 12, 13]
  ((bar),) = bars
  assert bar.n == bar.total == 6


def test_an_engine_gets_the_tasks_and_the_bar_counts_them(bars):
  engine = Elsewhere()
  assert list(pool.run(functools.partial(_add, 10), [1, 2, 3], engine, total=6, label="adding", unit="")) == [
    13,
    12,
    11,
  ]
  assert engine.label == "adding"
  assert bars[0].n == bars[0].total == 3


def test_an_error_stops_the_other_tasks(tmp_path):
  with pytest.raises(ValueError, match="no nought"):
    list(pool.run(functools.partial(_fail_or_work, tmp_path), [0, 1, 2], 2, total=0, label="working", unit=""))
  assert not list(tmp_path.iterdir())  # all tasks have ended by now, none to its end


def test_without_tasks_nothing_runs(bars):
  assert list(pool.run(_add, [], 4, total=0, label="", unit="")) == []
  assert not bars
