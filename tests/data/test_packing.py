"""Packing loses nothing, overlaps nothing, always fits its row buckets, and the ends point at the captions' ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data import packing
from fgclip_jax.data.packing import Caption, Example, Layout, assemble, best_fit, cut, geometric_row_buckets
from fgclip_jax.data.record import MAX_NEGATIVES

START, END = 97, 98
LAYOUT = Layout(boxes=3, row_length=24, short_length=10, long_length=20)
IMAGE = np.zeros((2, 2, 3), np.uint8)


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_best_fit_overlaps_nothing_and_stays_within_rows(lengths, row_length):
  places = best_fit(lengths, row_length)
  assert len(places) == len(lengths)
  taken = set()
  for (row, offset), length in zip(places, lengths, strict=True):
    assert 0 <= offset and offset + length <= row_length
    slots = {(row, offset + i) for i in range(length)}
    assert not slots & taken
    taken |= slots
  assert {row for row, _ in places} == set(range(len({row for row, _ in places})))  # no row is skipped
  assert best_fit(lengths, row_length) == places


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_opens_a_row_only_where_a_piece_fits_in_no_other(lengths):
  rows = max(row for row, _ in best_fit(lengths, 20)) + 1
  # any two rows hold more than one row's length together, so that less than twice the least number is used
  assert rows <= max(1, -(-2 * sum(lengths) // 20))


def test_best_fit_fills_the_fullest_row_that_has_room():
  assert best_fit([5, 6, 4], 10) == [(1, 0), (0, 0), (0, 6)]


def _words(most):
  return st.lists(st.integers(0, 90), max_size=most - 2)


# one example as plain values: short, long, [(region caption, its negatives or None)], record
_short = _words(LAYOUT.short_length)
_regions = st.lists(st.tuples(_short, st.none() | st.lists(_short, max_size=6)), max_size=4)
_plain = st.tuples(_short, _words(LAYOUT.long_length), _regions, st.integers(0, 2**40))
_four = st.lists(_plain, min_size=4, max_size=4)


def example_of(short, long, regions, record):
  """The example that the strategy's plain values stand for."""

  def caption(words, long=False):
    return Caption((START, *words, END), long)

  captions = tuple(caption(words) for words, _ in regions)
  negatives = tuple(
    None if wrong is None else (truth, tuple(caption(words) for words in wrong))
    for truth, (_, wrong) in zip(captions, regions, strict=True)
  )
  boxes = np.arange(len(regions) * 4, dtype=np.float32).reshape(-1, 4) / 16
  return Example(IMAGE, caption(short), caption(long, True), boxes, captions, negatives, record)


def read(batch, shard, end, layout=LAYOUT):
  """The caption that ends at `end` of a shard's rows, from the batch's arrays alone."""
  row, last = divmod(int(end), layout.row_length)
  tokens, segment, position = (batch[key][shard, row] for key in ("tokens", "segment", "position"))
  own = np.flatnonzero(segment == segment[last])
  assert segment[last] > 0 and own[-1] == last and np.array_equal(own, np.arange(own[0], last + 1))
  long = bool(position[last] >= layout.short_length)
  first = layout.short_length if long else 0
  assert np.array_equal(position[own], np.arange(first, first + len(own)))
  return Caption(tuple(int(i) for i in tokens[own]), long)


def check(batch, examples, shards, layout):
  """Everything in the batch says what the examples say."""
  per_shard = len(examples) // shards
  for g in range(shards):
    hard = 0
    for b, example in enumerate(examples[g * per_shard : (g + 1) * per_shard]):
      count = min(len(example.regions), layout.boxes)
      assert batch["record"][g, b] == example.record and batch["box_count"][g, b] == count
      np.testing.assert_array_equal(batch["image"][g, b], example.image)
      np.testing.assert_array_equal(batch["boxes"][g, b, :count], example.boxes[:count])
      assert not batch["boxes"][g, b, count:].any()
      assert read(batch, g, batch["short_eot"][g, b], layout) == example.short
      assert read(batch, g, batch["long_eot"][g, b], layout) == example.long
      assert (batch["region_eot"][g, b, count:] == -1).all()
      for k in range(count):
        assert read(batch, g, batch["region_eot"][g, b, k], layout) == example.regions[k]
        if example.negatives[k] is None:
          continue
        truth, wrong = example.negatives[k]
        assert batch["hard_box"][g, hard] == b * layout.boxes + k
        ends = batch["hard_eot"][g, hard]
        assert [read(batch, g, end, layout) for end in ends[: 1 + len(wrong)]] == [truth, *wrong]
        assert (ends[1 + len(wrong) :] == -1).all()
        hard += 1
    assert (batch["hard_box"][g, hard:] == -1).all() and (batch["hard_eot"][g, hard:] == -1).all()
    used = {int(end) for key in ("short_eot", "long_eot", "region_eot", "hard_eot") for end in batch[key][g].flat}
    segments = sum(len(set(row[row > 0].tolist())) for row in batch["segment"][g])
    assert segments == len(used - {-1})  # no caption is in the rows that nothing reads
    empty = batch["segment"][g] == 0
    assert not batch["tokens"][g][empty].any() and not batch["position"][g][empty].any()


@pytest.mark.parametrize("packed", [True, False])
@given(plain=_four, shards=st.sampled_from([1, 2, 4]))
def test_a_batch_says_what_its_examples_say(packed, plain, shards):
  examples = [example_of(*values) for values in plain]
  layout = Layout(**{**vars(LAYOUT), "packed": packed})
  batch = assemble(examples, shards, layout)
  check(batch, examples, shards, layout)
  assert packed or all(len(set(row[row > 0])) <= 1 for row in batch["segment"].reshape(-1, layout.row_length))


@given(_four)
def test_shards_are_independent(plain):
  examples = [example_of(*values) for values in plain]
  together = assemble(examples, 2, LAYOUT)
  for g in range(2):
    alone = assemble(examples[2 * g : 2 * g + 2], 1, LAYOUT)
    for key, value in alone.items():
      whole = together[key][g]
      if key in ("tokens", "segment", "position"):
        assert not whole[value.shape[1] :].any()
        whole = whole[: value.shape[1]]
      np.testing.assert_array_equal(whole, value[0], err_msg=key)


@given(
  packed=st.booleans(),
  row_length=st.integers(10, 45),
  images=st.integers(1, 3),
  growth=st.floats(1.0, 2.0),
  data=st.data(),
)
def test_the_row_buckets_hold_any_batch(packed, row_length, images, growth, data):
  """The worst case: all boxes and negatives, no two captions alike, of adversarial lengths."""
  layout = Layout(boxes=2, row_length=row_length, short_length=10, long_length=20, packed=packed)
  buckets = geometric_row_buckets(layout, images, growth, start=data.draw(st.integers(1, 5)))
  assert list(buckets) == sorted(set(buckets))
  # short enough lists of lengths, repeated, so that whole batches are of one or two lengths
  most = {long: layout.max_length(long) for long in (False, True)}
  lengths = {long: data.draw(st.lists(st.integers(2, most[long]), min_size=1, max_size=4)) for long in (False, True)}
  made = [0]

  def distinct(long=False):
    length = lengths[long][(made[0] + 1) % len(lengths[long])]
    made[0] += 1
    return Caption((made[0], *[0] * (length - 2), END), long)

  examples = []
  for _ in range(images):
    regions = tuple(distinct() for _ in range(2))
    negatives = tuple((distinct(), tuple(distinct() for _ in range(MAX_NEGATIVES))) for _ in range(2))
    examples.append(Example(IMAGE, distinct(), distinct(True), np.zeros((2, 4), np.float32), regions, negatives))
  batch = assemble(examples, 1, Layout(**{**vars(layout), "row_buckets": buckets}))
  assert batch["tokens"].shape == (1, next(r for r in buckets if r >= _rows(examples, layout)), row_length)


def _rows(examples, layout):
  return assemble(examples, 1, layout)["tokens"].shape[1]


def test_the_smallest_bucket_that_holds_the_batch_is_taken():
  examples = [Example(IMAGE, Caption((START, i, END)), Caption((START, i, END), long=True)) for i in range(8)]
  needed = _rows(examples, LAYOUT)  # 16 captions of 3 tokens, 8 in a row of 24
  assert needed == 2
  for buckets, rows in (((1, 2, 3), 2), ((1, 3, 9), 3), ((2,), 2)):
    batch = assemble(examples, 1, Layout(**{**vars(LAYOUT), "row_buckets": buckets}))
    assert batch["tokens"].shape == (1, rows, 24)
  with pytest.raises(ValueError, match="needs 2 rows of 24 tokens, the largest row bucket has 1"):
    assemble(examples, 1, Layout(**{**vars(LAYOUT), "row_buckets": (1,)}))


@given(st.integers(1, 8), st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_row_buckets_are_close_where_batches_lie_and_end_where_any_fits(images, needed):
  worst = geometric_row_buckets(LAYOUT, images)[-1]
  needed = [min(rows, worst) for rows in needed]
  buckets = packing.row_buckets_from_samples(LAYOUT, images, needed)
  assert list(buckets) == sorted(set(buckets)) and buckets[-1] == worst
  for rows in needed:  # no sample is given more rows than the largest needs
    assert min(bucket for bucket in buckets if bucket >= rows) <= max(needed)


def test_equal_captions_are_encoded_once_in_the_packed_form_alone():
  same = Caption((START, 5, END))
  examples = [
    Example(IMAGE, same, Caption(same.ids, long=True), np.zeros((1, 4), np.float32), (same,), ((same, (same,)),))
    for _ in range(2)
  ]
  packed = assemble(examples, 1, LAYOUT)
  assert np.count_nonzero(packed["segment"]) == 2 * 3 and packed["tokens"].shape == (1, 1, 24)  # a short and a long one
  assert len(set(packed["short_eot"].flat) | set(packed["region_eot"].flat)) == 2  # one end, and -1
  padded = assemble(examples, 1, Layout(**{**vars(LAYOUT), "packed": False}))
  assert padded["tokens"].shape == (1, 2 * 5, 24)


def test_regions_with_equal_captions_have_equal_numbers():
  a, b = Caption((START, 5, END)), Caption((START, 6, END))
  boxes = np.zeros((3, 4), np.float32)
  long = Caption((START, END), long=True)
  batch = assemble([Example(IMAGE, a, long, boxes, (a, b, a), (None,) * 3) for _ in range(2)], 2, LAYOUT)
  caption = batch["region_caption"]
  assert caption.dtype == np.int32 and (caption >= 0).all()
  assert caption[0, 0, 0] == caption[0, 0, 2] == caption[1, 0, 0] != caption[0, 0, 1]


def test_dtypes_and_shapes_are_static():
  long = Caption((START, END), long=True)
  batch = assemble([Example(IMAGE, Caption((START, END)), long) for _ in range(6)], 2, LAYOUT)
  shapes = {
    "image": ((2, 3, 2, 2, 3), np.uint8),
    "boxes": ((2, 3, 3, 4), np.float32),
    "box_count": ((2, 3), np.int32),
    "region_caption": ((2, 3, 3), np.int32),
    "short_eot": ((2, 3), np.int32),
    "long_eot": ((2, 3), np.int32),
    "region_eot": ((2, 3, 3), np.int32),
    "hard_box": ((2, 9), np.int32),
    "hard_eot": ((2, 9, 1 + MAX_NEGATIVES), np.int32),
    "record": ((2, 3), np.int64),
  }
  rows = {key: ((2, 1, 24), np.int32) for key in ("tokens", "segment", "position")}
  assert {key: (value.shape, value.dtype.type) for key, value in batch.items()} == shapes | rows


def test_images_that_lie_in_one_array_are_not_copied():
  images = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
  examples = [Example(image, Caption((START, END)), Caption((START, END), long=True)) for image in images]
  found = assemble(examples, 2, LAYOUT, images)["image"]
  assert np.shares_memory(found, images)
  np.testing.assert_array_equal(found, assemble(examples, 2, LAYOUT)["image"])


def test_more_boxes_and_negatives_than_there_is_room_for_are_left_out():
  regions = tuple(Caption((START, i, END)) for i in range(5))
  wrong = tuple(Caption((START, i, END)) for i in range(20, 33))
  negatives = tuple((region, wrong) for region in regions)
  boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
  example = Example(IMAGE, regions[0], Caption((START, END), long=True), boxes, regions, negatives)
  batch = assemble([example], 1, LAYOUT)
  assert batch["box_count"][0, 0] == 3
  assert (batch["hard_box"][0] == [0, 1, 2]).all() and (batch["hard_eot"] >= 0).all()


def test_a_plain_clip_has_no_regions_and_no_long_captions():
  layout = Layout(boxes=0, row_length=24, short_length=10, long_length=None)
  batch = assemble([Example(IMAGE, Caption((START, 3, END)))], 1, layout)
  assert batch["boxes"].shape == (1, 1, 0, 4) and batch["hard_eot"].shape == (1, 0, 1 + MAX_NEGATIVES)
  assert (batch["long_eot"] == -1).all()
  assert geometric_row_buckets(layout, 4) == (1, 2, 3)  # two captions in a row, and one row more


def test_captions_are_cut_at_the_first_end_of_text_or_at_the_largest_id():
  ids = np.array([97, 5, 98, 7, 98, 0])
  assert cut(ids, 98) == Caption((97, 5, 98))
  assert cut(ids, 98, long=True) == Caption((97, 5, 98), long=True)
  assert cut(np.array([97, 5, 98, 0, 0]), 2) == Caption((97, 5, 98))
  assert packing.end_position(np.array([97, 2, 98, 2, 98]), 2) == 2  # the rule's name, 2, is no token


@pytest.mark.parametrize(
  ("example", "message"),
  [
    (Example(IMAGE, Caption((1,) * 11)), "a short caption has 11 tokens"),
    (Example(IMAGE, Caption((1,)), Caption((1,) * 21, long=True)), "a long caption has 21 tokens"),
    (Example(IMAGE, Caption(())), "a short caption has 0 tokens"),
  ],
)
def test_captions_that_do_not_fit(example, message):
  with pytest.raises(ValueError, match=message):
    assemble([example], 1, LAYOUT)


def test_a_long_caption_for_a_model_without_a_long_path():
  with pytest.raises(ValueError, match="a long caption has 2 tokens"):
    assemble([Example(IMAGE, Caption((1,)), Caption((1, 2), long=True))], 1, Layout(row_length=77, long_length=None))


@pytest.mark.parametrize(("count", "shards"), [(3, 2), (0, 1), (0, 2)])
def test_examples_that_do_not_divide(count, shards):
  with pytest.raises(ValueError, match=f"{count} examples do not divide over {shards} data shards"):
    assemble([Example(IMAGE, Caption((1,)))] * count, shards, LAYOUT)


def test_a_row_holds_at_least_start_and_end():
  with pytest.raises(ValueError, match="row_length must be at least 2"):
    Layout(row_length=1)


def test_packing_efficiency():
  segment = np.array([[[1, 1, 2, 0], [0, 0, 0, 0]]])
  assert packing.packing_efficiency({"segment": segment}) == 3 / 8
