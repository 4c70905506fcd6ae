"""Rows of patches: every picture is found again, whatever the shapes, and little of a row stays empty."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data.image import read_size
from fgclip_jax.data.patch_rows import (
  EMPTY_PLACE,
  fit_rows,
  largest_budget,
  pack_patches,
  pad_patch_rows,
  patch_efficiency,
)
from fgclip_jax.data.patches import PatchLayout, fit_grid
from fgclip_jax.data.rows import NONE

LAYOUT = PatchLayout(12, patch_size=2, row_length=20)
grids = st.tuples(st.integers(1, 4), st.integers(1, 3))


def make(found):
  """Patches of which each names its picture, its row and its column."""
  return [
    np.stack([np.r_[number + 1, row, column, np.zeros(9)] for row in range(height) for column in range(width)])
    for number, (height, width) in enumerate(found)
  ]


def check(batch, found, shards, budget):
  """Every picture lies where the batch says, and nothing else is there."""
  per_shard = len(found) // shards
  rows, length = batch["patches"].shape[1:3]
  assert {key: value.dtype for key, value in batch.items()} == {
    "patches": np.uint8, "patch_segment": np.int32, "patch_place": np.int32, "patch_slot": np.int32,
    "image_grid": np.int32,
  }  # fmt: skip
  assert batch["patch_slot"].shape == (shards, per_shard, budget)
  for shard in range(shards):
    patches = batch["patches"][shard].reshape(rows * length, -1)
    segment, place = batch["patch_segment"][shard].reshape(-1), batch["patch_place"][shard].reshape(-1, 4)
    empty = np.ones(rows * length, bool)
    for image in range(per_shard):
      height, width = found[shard * per_shard + image]
      assert batch["image_grid"][shard, image].tolist() == [height, width]
      slots, beyond = np.split(batch["patch_slot"][shard, image], [height * width])
      assert (beyond == NONE).all() and empty[slots].all()
      assert len(set(slots // length)) == 1  # attention is within a row
      empty[slots] = False
      assert (segment[slots] == image + 1).all()
      cells = np.stack(np.divmod(np.arange(height * width), width), 1)
      np.testing.assert_array_equal(place[slots, :2], cells)
      assert (place[slots, 2:] == (height, width)).all()
      number = np.full(len(cells), shard * per_shard + image + 1)
      np.testing.assert_array_equal(patches[slots, :3], np.c_[number, cells])
    assert not patches[empty].any() and not segment[empty].any() and (place[empty] == EMPTY_PLACE).all()


@given(st.lists(grids, min_size=1, max_size=5), st.integers(1, 2), st.booleans())
def test_every_picture_is_found_where_the_batch_says(found, shards, packed):
  found = found * shards
  batch = pack_patches(make(found), found, shards, LAYOUT, packed)
  check(batch, found, shards, 12)
  if not packed:
    assert batch["patches"].shape[1:3] == (len(found) // shards, 12)
  # what other processes need is added without moving anything
  rows, length = batch["patches"].shape[1:3]
  check(pad_patch_rows(batch, rows + 1, length + 3, 15), found, shards, 15)
  assert pad_patch_rows(batch, rows, length, 12) is batch


def test_budgets_are_rounded_up_to_those_there_are():
  layout = PatchLayout("dynamic_each")
  found = [[(9, 14)], [(9, 14), (16, 16)], [(25, 40)]]
  assert [largest_budget(each, layout) for each in found] == [128, 256, 1024]
  assert [largest_budget(each, PatchLayout(1024)) for each in found] == [1024] * 3


def test_pictures_that_do_not_fit_are_errors():
  with pytest.raises(ValueError, match="a picture has 15 patches, more than its budget of 12"):
    pack_patches(make([(5, 3)]), [(5, 3)], 1, LAYOUT)
  with pytest.raises(ValueError, match=r"picture 1 must be 2 x 2 patches of 12 values, got \[3, 12\]"):
    pack_patches(make([(2, 2), (1, 3)]), [(2, 2), (2, 2)], 1, LAYOUT)
  layout = dataclasses.replace(LAYOUT, row_buckets=(1,))
  with pytest.raises(ValueError, match="needs 2 rows of 20 patches, the largest row bucket has 1"):
    pack_patches(make([(4, 3)] * 2), [(4, 3)] * 2, 1, layout)


def mixed_sizes(count: int) -> list[tuple[int, int]]:
  """Aspect ratios from 1:4 to 4:1 and areas of 160² to 800² pixels, both log-uniform."""
  rng = np.random.default_rng(0)
  aspect, side = np.exp(rng.uniform(-np.log(4), np.log(4), count)), np.exp(rng.uniform(np.log(160), np.log(800), count))
  return [(int(w), int(h)) for w, h in zip(side * np.sqrt(aspect), side / np.sqrt(aspect), strict=True)]


def photograph_sizes(shared) -> list[tuple[int, int]]:
  files = sorted((shared / "data" / "real_mini" / "images").rglob("*.*g"))
  if not files:
    pytest.skip("no photographs in shared/data/real_mini")
  return [read_size(file.read_bytes()) for file in files]


@pytest.mark.parametrize("budget", [128, 256, 576, 784, 1024, "dynamic", "dynamic_each"])
@pytest.mark.parametrize("kind", ["photographs", "mixed"])
def test_nine_tenths_of_the_slots_hold_a_patch(shared, kind, budget):
  sizes = photograph_sizes(shared) if kind == "photographs" else mixed_sizes(2048)
  layout, rng, images = PatchLayout(budget), np.random.default_rng(1), 64

  def draw(images: int = images) -> list[tuple[int, int]]:
    chosen = [sizes[i] for i in rng.choice(len(sizes), images, replace=images > len(sizes))]
    return [fit_grid(*size, patches) for size, patches in zip(chosen, layout.choose_budgets(chosen), strict=True)]

  layout = fit_rows([draw() for _ in range(12)], layout)
  assert layout.length % 16 == 0 and layout.row_buckets[-1] == images
  totals = collections.Counter()
  for _ in range(6):  # other batches than those that the rows were fitted to
    found = draw()
    # values of one byte in place of 768, so that it is quick
    small = dataclasses.replace(layout, patch_size=1)
    batch = pack_patches([np.zeros((h * w, 3), np.uint8) for h, w in found], found, 1, small)
    totals["useful"] += sum(h * w for h, w in found)
    totals["executed"] += batch["patch_segment"].size
    assert patch_efficiency(batch) == sum(h * w for h, w in found) / batch["patch_segment"].size
  assert totals["useful"] / totals["executed"] >= 0.9


def test_a_row_length_that_is_given_stays():
  layout = PatchLayout("dynamic_each", row_length=2048)
  assert fit_rows([[(20, 30)] * 8] * 3, layout).length == 2048
