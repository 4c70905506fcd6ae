"""Counts and histograms: sums over parts are those of the whole, and JSON keeps them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.record import Record, Region, Tokens
from fgclip_jax.prepare.stats import EDGES, TITLES, DatasetStats, Histogram, Histograms
from fgclip_jax.storage.errors import RecordError

VALUES = st.lists(st.floats(0, 1e6) | st.integers(0, 300).map(float))
KINDS = st.sampled_from(
  [("record", "caption_empty"), ("region", "box_outside"), ("note", "regions_none"), ("", "image_duplicate")]
)


def fill(values, edges=EDGES["long_caption_tokens"]):
  histogram = Histogram(edges)
  for value in values:
    histogram.add(value)
  return histogram


def make_record(regions=0, negatives=0):
  box = Region((0.0, 0.25, 0.5, 1.0), "a dog", "", tuple(f"a cat {index}" for index in range(negatives)))
  ids = (1, 2, 3, 4)
  tokens = Tokens(ids, (), (ids,) * regions, ((),) * regions, (((1, 2),) * negatives,) * regions)
  return Record("a", bytes(2500), "a dog", "", (box,) * regions, 640, 320, tokens)


@given(VALUES, VALUES)
def test_a_histogram_of_parts_is_that_of_the_whole(first, second):
  merged, whole = fill(first), fill(first + second)
  merged.merge(fill(second))
  assert (merged.counts, merged.low, merged.high) == (whole.counts, whole.low, whole.high)
  assert math.isclose(merged.total, whole.total, abs_tol=1e-6)
  assert merged.count == len(first + second)
  assert sum(count for _, count in merged.bins()) == merged.count
  assert Histogram.from_json(json.loads(json.dumps(merged.to_json(), allow_nan=False))) == merged


@given(st.sampled_from(sorted(EDGES)), st.floats(0, 1e9))
def test_every_value_lies_in_the_bin_that_holds_it(name, value):
  edges = EDGES[name]
  counts = fill([value], edges).counts
  index = counts.index(1)
  assert sum(counts) == 1
  assert value >= edges[index] or index == 0
  assert value < edges[index + 1] or index == len(edges) - 2


def test_every_histogram_has_rising_edges_and_a_title():
  assert TITLES.keys() == EDGES.keys()
  for edges in EDGES.values():
    assert list(edges) == sorted(set(edges))
  # what the text towers read ends a bin
  assert 78 in EDGES["short_caption_tokens"]
  assert 249 in EDGES["long_caption_tokens"]


def test_labels_of_bins():
  assert fill([1, 2.0, 24, 25, 2000]).bins()[:2] == [("0 to 24", 3), ("25 to 49", 1)]
  assert fill([1, 2000]).bins()[-1] == ("1000 and more", 1)
  assert fill([3], EDGES["negatives_per_box"]).bins() == [("3", 1)]
  assert fill([0.03, 0.7], EDGES["box_width"]).bins()[0] == ("0.02 to 0.05", 1)
  assert fill([]).bins() == []


def test_histograms_of_other_edges_are_not_added():
  with pytest.raises(ValueError, match="different edges"):
    fill([1]).merge(fill([1], EDGES["box_width"]))


def test_histograms_of_earlier_versions_are_added():
  # negatives were at most ten then
  stored = Histograms().to_json()
  del stored["captions_per_image"]
  stored["negatives_per_box"] = {"edges": [*range(12)], "counts": [0] * 10 + [3], "total": 30, "low": 10, "high": 10}
  total = Histograms()
  total.merge(Histograms.from_json(stored))
  total["negatives_per_box"].add(12)
  assert total["negatives_per_box"].bins() == [("10", 3), ("11 to 12", 1)]


def test_sets_are_counted_by_source():
  stats = DatasetStats()
  stats.add_record(make_record(regions=1, negatives=2))
  assert not stats.has_sets and "captions" not in stats.counts and "sources" not in stats.to_json()
  captions = (Caption("a dog"), Caption("dog 7", source="alt_text"), Caption("A dog.", "long", source="model"))
  region = Region((0.0, 0.0, 1.0, 1.0), "a dog", captions=captions[:2])
  stats.add_record(Record("b", b"", "a dog", "A dog.", (region,), captions=captions))
  assert (stats.counts["captions"], stats.counts["region_captions"]) == (3, 2)
  assert stats.sources == {"alt_text": 2, "model": 1} and stats.has_sets
  assert stats.histograms["captions_per_image"].bins() == [("3", 1)]
  assert stats.histograms["captions_per_box"].bins() == [("2", 1)]
  again = DatasetStats.from_json(json.loads(json.dumps(stats.to_json())))
  assert again == stats
  again.merge(stats)
  assert again.sources == {"alt_text": 4, "model": 2}
  more = DatasetStats()
  more.add_record(make_record(regions=1, negatives=11))
  assert more.has_sets  # of records of version 1, no region has more than ten


def test_sources_without_end_are_counted_together():
  stats = DatasetStats()
  captions = tuple(Caption("a dog", source=f"model {number}") for number in range(150))
  stats.add_record(Record("b", b"", "a dog", captions=captions))
  assert len(stats.sources) == 101 and stats.sources["others"] == 50


def test_what_a_record_adds():
  histograms = Histograms()
  histograms.add_record(make_record(regions=2, negatives=10))
  histograms.add_record(Record("b", b"", "a dog"))
  found = {name: (histogram.count, histogram.low, histogram.high) for name, histogram in histograms.items()}
  nothing = (0, math.inf, -math.inf)
  assert found == {
    "short_caption_tokens": (1, 4, 4),
    "long_caption_tokens": nothing,
    "region_short_caption_tokens": (2, 4, 4),
    "region_long_caption_tokens": nothing,
    "negative_tokens": (20, 2, 2),
    "boxes_per_image": (2, 0, 2),
    "negatives_per_box": (2, 10, 10),
    "captions_per_image": nothing,
    "captions_per_box": nothing,
    "box_area": (2, 0.375, 0.375),
    "box_width": (2, 0.5, 0.5),
    "box_height": (2, 0.75, 0.75),
    "image_width": (1, 640, 640),
    "image_height": (1, 320, 320),
    "image_aspect": (1, 2, 2),
    "image_kilobytes": (2, 0, 2),
  }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10)) | KINDS, max_size=20), st.integers(0, 20))
def test_the_stats_of_parts_is_that_of_the_whole(events, cut):
  def count(events, start):
    stats = DatasetStats()
    for index, event in enumerate(events, start):
      stats.read += 1
      if isinstance(event[0], int):
        stats.add_record(make_record(*event))
      elif event[1] == "image_duplicate":
        stats.add_duplicates(3, RecordError(event[1], "image", "is there"), "a.json", index)
      else:
        stats.add_finding(event[0], RecordError(event[1], "field", "is wrong"), "a.json", index)
    return stats

  whole, merged = count(events, 0), count(events[:cut], 0)
  merged.merge(count(events[cut:], min(cut, len(events))))
  assert merged == whole
  assert DatasetStats.from_json(json.loads(json.dumps(whole.to_json(), allow_nan=False))) == whole
  assert whole.counts["read"] == len(events)
