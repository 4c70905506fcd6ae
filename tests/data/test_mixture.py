"""Several data sets as one: shares, orders, and what is told apart."""

import collections
import dataclasses
import itertools
from fractions import Fraction

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data import mixture as module
from fgclip_jax.data.loader import DataConfig, Repeats
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import Layout
from tests.helpers.toy import COUNT, RECORDS, assert_same, concatenate, examples, make_loader, take, write_shards

PLAIN = 11  # records of the second data set


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
  """Records without regions and long captions."""
  folder = tmp_path_factory.mktemp("plain")
  records = [
    dataclasses.replace(RECORDS[number], short=f"plain {number}", long="", regions=()) for number in range(PLAIN)
  ]
  write_shards(folder, records, shards=2)
  return str(folder)


def make_mixed(toy: str, plain: str, **options):
  return make_loader("", mixture=((toy, 3.0), (plain, 1.0)), **options)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10**12))
def test_every_stretch_holds_the_shares(weights, begin):
  """And of each data set every example follows the one before it."""
  shares = [Fraction(weight, sum(weights)) for weight in weights]
  sources = [grain.MapDataset.range(index, index + 1) for index in range(len(weights))]
  mixed = module._Mixed([_Numbered(index) for index in range(len(sources))], shares)
  seen = [mixed[index] for index in range(begin, begin + 200)]
  for which, share in enumerate(shares):
    places = [place for index, place in seen if index == which]
    assert places == list(range(places[0], places[0] + len(places))) if places else True
    slack = 0.5 * len(shares)
    assert abs(len(places) - 200 * share) <= 2 * slack
    if places:
      first = begin + next(number for number, (index, _) in enumerate(seen) if index == which)
      assert abs(places[0] - first * share) <= slack


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10**12), st.integers(0, 40))
def test_the_examples_of_a_stretch_are_counted_without_making_them(weights, begin, length):
  shares = [Fraction(weight, sum(weights)) for weight in weights]
  mixed = module._Mixed([_Numbered(index) for index in range(len(weights))], shares)
  counted = collections.Counter(mixed[index][0] for index in range(begin, begin + length))
  first, last = (module.count_until(end, shares) for end in (begin, begin + length))
  assert [b - a for a, b in zip(first, last, strict=True)] == [counted[index] for index in range(len(weights))]


def test_repeats_in_a_mixture(toy, plain):
  """A data set that is passed at its end gives records again; the other does not count."""
  loader = make_loader("", mixture=((toy, 1.0), (plain, 1.0)), batch_size=20)  # ten of the second one's eleven
  for _ in range(12):
    records = next(loader)["record"].ravel()
    again = len(records) - len(set(records.tolist()))
    assert loader.repeats == (Repeats.SOME if again else Repeats.NONE)
  assert loader.repeated > 0
  loader.close()


def test_a_data_set_with_less_than_its_share_of_a_batch(toy, plain):
  wanted = r"data set '.*' has 11 records, fewer than the 12 .* data.batch_size to at most 14, or data.repeat_in_batch"
  with pytest.raises(ValueError, match=wanted):
    make_loader("", mixture=((toy, 1.0), (plain, 3.0)), batch_size=16)
  loader = make_loader("", mixture=((toy, 1.0), (plain, 3.0)), batch_size=16, repeat_in_batch=True)
  next(loader)
  assert loader.repeats == Repeats.SOME
  loader.close()


class _Numbered(grain.MapDataset):
  """What gives its own number and the place asked for."""

  def __init__(self, number: int):
    super().__init__()
    self._number = number

  def __len__(self):
    return 2**62

  def __getitem__(self, index):
    return self._number, index


def test_three_to_one(toy, plain):
  loader = make_mixed(toy, plain)
  assert loader.records == COUNT + PLAIN
  assert loader.epoch_steps == pytest.approx(PLAIN * 4 / 8)  # the other one is passed sooner, in 23 / 0.75 examples
  numbers = np.concatenate([batch["record"].ravel() for batch in take(loader, 24)])
  assert collections.Counter(numbers < COUNT) == {True: 144, False: 48}
  assert list(loader.examples.values()) == [144, 48]
  for stretch in numbers.reshape(-1, 4):
    assert (stretch < COUNT).sum() == 3
  for own, size in ((numbers[numbers < COUNT], COUNT), (numbers[numbers >= COUNT] - COUNT, PLAIN)):
    epochs = own[: len(own) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))
    assert len(set(map(tuple, epochs))) == len(epochs) > 1, "each epoch has an order of its own"


def test_a_batch_of_a_mixture_holds_records_with_regions_and_without(toy, plain):
  for batch in take(make_mixed(toy, plain), 4):
    for example in examples(batch):
      regions = RECORDS[example["record"]].regions[:4] if example["record"] < COUNT else ()
      assert len(example["boxes"]) == len(example["regions"]) == len(regions)
      assert example["long"]


@pytest.mark.parametrize("workers", [0, 1])
def test_any_number_of_processes_and_workers_and_any_start(toy, plain, workers):
  whole = [concatenate([batch]) for batch in take(make_mixed(toy, plain, shards=4), 5)][2:]
  parts = [
    take(make_mixed(toy, plain, shards=4, local_shards=local, start=2, workers=workers), 3)
    for local in ((0, 1), (2, 3))
  ]
  assert_same(whole, [concatenate(list(group)) for group in zip(*parts, strict=True)])


def test_a_mixture_of_one_is_that_data_set(toy):
  assert_same(take(make_loader(toy), 4), take(make_loader("", mixture=((toy, "train", 0.3),)), 4))


def test_data_sets_of_equal_size_have_different_orders(toy, tmp_path):
  write_shards(tmp_path, RECORDS)
  order = Mixture([DataSet(toy, "train"), DataSet(str(tmp_path), "train")]).order(0, shuffle=True)
  numbers = np.asarray([order[index] for index in range(6 * COUNT)])
  one, two = numbers[numbers < COUNT], numbers[numbers >= COUNT] - COUNT
  epochs = {tuple(epoch) for epoch in (*one.reshape(3, COUNT), *two.reshape(3, COUNT))}
  assert len(epochs) == 6


def test_messages_name_the_file_and_the_data_set(toy, tmp_path, capsys):
  damaged = tmp_path / "damaged"
  (path,) = write_shards(damaged, [RECORDS[0], b"bad", RECORDS[2], RECORDS[3]])
  loader = make_loader("", mixture=((toy, 1), (str(damaged), 1)), shuffle=False, max_bad_share=0.0)
  assert loader.where(COUNT + 1) == f"{path}, record 1"
  assert loader.where(COUNT - 1).startswith(toy)
  with pytest.raises(ValueError, match=r"1 of 8 records were bad .*by data set \{'toy0': 0, 'damaged': 1\}"):
    next(loader)
  assert f"{path}, record 1: " in capsys.readouterr().out
  loader.close()


def test_a_bad_record_is_replaced_by_one_of_its_own_data_set(toy, tmp_path):
  write_shards(tmp_path, [RECORDS[0], RECORDS[1], b"bad"])
  loader = make_loader("", mixture=((str(tmp_path), 1), (toy, 1)), batch_size=6, shuffle=False)
  (batch,) = take(loader, 1)
  numbers = batch["record"].ravel()
  assert numbers[numbers < 3].tolist() == [0, 1, 0]


def test_names(tmp_path):
  folders = [tmp_path / place for place in ("a/finehard", "b/finehard", "b/pairs")]
  for folder in folders:
    write_shards(folder, RECORDS[:2])
    write_shards(folder, RECORDS[:2], split="val")

  def names(*sets):
    return Mixture([DataSet(str(folders[index]), split) for index, split in sets]).names

  assert names((0, "train"), (2, "train")) == ["finehard", "pairs"]
  assert names((0, "train"), (0, "val")) == ["finehard-train", "finehard-val"]
  assert names((0, "train"), (1, "train")) == [f"{folder}-train" for folder in folders[:2]]
  with pytest.raises(ValueError, match="data.mixture names a split twice"):
    names((0, "train"), (0, "train"))


def test_an_entry_may_name_its_split(toy):
  config = DataConfig(mixture=((toy, 2), ("other", "val", 0.5)), split="test")
  assert config.sets() == [DataSet(toy, "test", 2.0), DataSet("other", "val", 0.5)]


@pytest.mark.parametrize(
  "entry",
  [("a",), ("a", 0.0), ("a", -1), ("a", "b"), ("", 1.0), ("a", "b", 1.0, 2), (1, 2), ("a", True), ("a", np.inf)],
)
def test_what_is_no_entry(entry):
  with pytest.raises(ValueError, match=r"data.mixture: .* is neither \(folder, weight\) nor"):
    DataConfig(mixture=(entry,))


def test_a_path_beside_a_mixture():
  with pytest.raises(ValueError, match="data.path 'a' and data.mixture are both given"):
    DataConfig(path="a", mixture=(("b", 1),))


def test_lines_about_the_data_sets(toy, plain):
  loader = make_mixed(toy, plain, layout=Layout(boxes=4, row_buckets=(200,)))
  loader.close()
  one, two = loader.sources
  assert one.endswith(": 23 records, 75.0% of the examples, passed every 3.8 steps")
  assert two.endswith(": 11 records, 25.0% of the examples, passed every 5.5 steps")


def test_counts_by_data_set(toy, plain):
  mixture = Mixture([DataSet(toy, "train"), DataSet(plain, "train")])
  assert len(mixture) == COUNT + PLAIN
  assert mixture.count(np.asarray([[0, COUNT - 1], [COUNT, COUNT + PLAIN - 1]])) == [2, 2]
  assert [mixture.which(number) for number in (0, COUNT - 1, COUNT, COUNT + PLAIN - 1)] == [0, 0, 1, 1]
  assert mixture.step_from(COUNT + PLAIN - 1, 1) == COUNT
  assert len(set(itertools.starmap(mixture.step_from, zip([0] * COUNT, range(COUNT), strict=True)))) == COUNT
