"""The order of the loader's batches, whatever the number of processes and workers."""

import collections
import multiprocessing

import numpy as np
import pytest

from fgclip_jax.data.loader import DataConfig, Repeats, choose_workers
from fgclip_jax.data.packing import Layout, geometric_row_buckets
from tests.helpers.toy import BOXES, COUNT, assert_same, concatenate, make_loader, take


def test_an_epoch_is_a_permutation_and_epochs_differ(toy):
  loader = make_loader(toy, batch_size=4)
  assert loader.epoch_steps == COUNT / 4
  numbers = np.concatenate([batch["record"].ravel() for batch in take(loader, 3 * COUNT // 4 + 1)])
  epochs = numbers[: 3 * COUNT].reshape(3, COUNT)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(COUNT), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs} | {tuple(range(COUNT))}) == 4


def test_the_seed_decides_the_order_and_the_choices(toy):
  first = take(make_loader(toy, seed=1), 3)
  assert_same(first, take(make_loader(toy, seed=1), 3))
  other = take(make_loader(toy, seed=2), 3)
  assert not np.array_equal(first[0]["record"], other[0]["record"])


def test_without_shuffle_the_shards_order_is_kept(toy):
  batches = take(make_loader(toy, shuffle=False), 6)
  np.testing.assert_array_equal(
    np.concatenate([batch["record"].ravel() for batch in batches]), np.arange(6 * 8) % COUNT
  )


def test_a_data_set_smaller_than_a_batch_repeats_within_it_if_asked(toy):
  with pytest.raises(
    ValueError, match=r"has 23 records, fewer than the 46 .* set data.batch_size to at most 23, or data.r"
  ):
    make_loader(toy, batch_size=2 * COUNT)
  loader = make_loader(toy, batch_size=2 * COUNT, repeat_in_batch=True)
  batch = next(loader)
  assert collections.Counter(batch["record"].ravel().tolist()) == dict.fromkeys(range(COUNT), 2)
  assert loader.repeats == Repeats.SOME and loader.repeated == COUNT
  loader.close()


@pytest.mark.parametrize("batch_size, local", [(1, [0]), (8, [0]), (22, [0]), (22, [1]), (22, [0, 1]), (COUNT, [0])])
def test_repeats_where_two_epochs_meet_are_known_to_every_process(toy, batch_size, local):
  shards = 1 if batch_size % 2 else 2
  whole = make_loader(toy, batch_size=batch_size, shards=shards)
  loader = make_loader(toy, batch_size=batch_size, shards=shards, local_shards=local)
  total = 0
  for _ in range(3 * COUNT // batch_size + 2):
    next(loader)
    records = next(whole)["record"].ravel()
    again = len(records) - len(set(records.tolist()))
    total += again
    assert loader.repeats == (Repeats.SOME if again else Repeats.NONE)
    assert loader.repeated == total
  assert total > 0 or batch_size != 22
  whole.close(), loader.close()


@pytest.mark.parametrize("processes", [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(3,), (1,), (0,), (2,)]], ids=str)
def test_global_batches_are_the_same_for_any_number_of_processes(toy, processes):
  """And whichever data shards each of them feeds: on a torus they need not be neighbours."""
  whole = take(make_loader(toy, shards=4), 4)
  parts = [take(make_loader(toy, shards=4, local_shards=local), 4) for local in processes]
  order = np.argsort(np.concatenate(processes))
  joined = [concatenate(list(group)) for group in zip(*parts, strict=True)]
  assert_same(
    [concatenate([batch]) for batch in whole], [{key: value[order] for key, value in b.items()} for b in joined]
  )


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_at_a_step_equals_skipping_to_it(toy, start):
  skipped = take(make_loader(toy), start + 3)[start:]
  assert_same(skipped, take(make_loader(toy, start=start), 3))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(toy, workers):
  expected = take(make_loader(toy), 8)[3:]
  loader = make_loader(toy, workers=workers, start=3)
  batches = take(loader, 5)
  assert_same(expected, batches)
  assert loader.waited > 0
  # their memory is their own: what workers share may be gone when the process ends
  assert all(type(value) is np.ndarray for batch in batches for value in batch.values())
  assert not multiprocessing.active_children()


def test_row_buckets_make_shapes_static(toy):
  layout = Layout(boxes=BOXES)
  layout = Layout(boxes=BOXES, row_buckets=geometric_row_buckets(layout, 8))
  batches = take(make_loader(toy, layout=layout), 6)
  assert {batch["tokens"].shape[1] for batch in batches} <= set(layout.row_buckets)


@pytest.mark.parametrize("cores, expected", [(1, (0, 1)), (2, (0, 2)), (8, (2, 2)), (64, (16, 2)), (256, (32, 2))])
def test_workers_and_threads_go_by_the_cores(monkeypatch, cores, expected):
  monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
  assert choose_workers(DataConfig()) == expected
  assert choose_workers(DataConfig(workers=3)) == (3, min(cores, 2))
  assert choose_workers(DataConfig(workers=0, threads=5)) == (0, 5)
