"""Packs the patches of a batch's pictures into rows, as `packing.py` does its captions.

Attention is within a picture, so pictures of different sizes share rows and nothing is computed for padding. Each slot
of a row has a segment (which picture it belongs to) and a place (where in the picture's grid it is). The padded form is
the same with one picture per row.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.data.rows import NONE, best_fit, choose_bucket, common, count_rows, geometric

Grid = tuple[int, int]  # rows and columns of a picture's patches
_FILLED = 0.92  # the share of its slots that rows should fill in samples, so that batches fill nine tenths
EMPTY_PLACE = (0, 0, 1, 1)  # of an empty slot: the first patch of a picture of one


def pack_patches(
  patches: Sequence[np.ndarray], grids: Sequence[Grid], shards: int, layout: PatchLayout, packed: bool = True
) -> dict[str, np.ndarray]:
  """The pictures of a batch in rows of N patches, split evenly over data shards.

  Args:
    patches: of each picture, uint8 [h * w, 3 * patch_size²], row-major; consecutive ones share a shard.
    grids: (h, w) of each picture.
    shards: G, the data shards that this process feeds; divides the pictures.
    layout: the static shapes.
    packed: False gives each picture a row of its own, N being its budget.

  Returns:
    `patches`, `patch_segment`, `patch_place`, `patch_slot` and `image_grid`, see docs/design.md.

  Raises:
    ValueError: a picture has more patches than its budget allows, or than its grid has cells.
  """
  per_shard = len(grids) // shards
  budget = largest_budget(grids, layout)
  for number, (values, (height, width)) in enumerate(zip(patches, grids, strict=True)):
    if values.shape != (height * width, layout.patch_values):
      expected = f"{height} x {width} patches of {layout.patch_values} values"
      raise ValueError(f"picture {number} must be {expected}, got {list(values.shape)}")
  parts = [grids[start : start + per_shard] for start in range(0, len(grids), per_shard)] if per_shard else []
  if packed:
    places = [best_fit([height * width for height, width in part], layout.length) for part in parts]
    rows = choose_bucket(max(map(count_rows, places), default=0), layout.row_buckets, f"{layout.length} patches")
    length = layout.length
  else:
    places = [[(row, 0) for row in range(per_shard)] for _ in parts]
    rows, length = per_shard, budget
  batch = {
    "patches": np.zeros((shards, rows, length, layout.patch_values), np.uint8),
    "patch_segment": np.zeros((shards, rows, length), np.int32),
    "patch_place": np.empty((shards, rows, length, 4), np.int32),
    "patch_slot": np.full((shards, per_shard, budget), NONE, np.int32),
    "image_grid": np.asarray(grids, np.int32).reshape(shards, per_shard, 2),
  }
  batch["patch_place"][...] = EMPTY_PLACE
  for number, (height, width) in enumerate(grids):
    shard, image = divmod(number, per_shard)
    row, offset = places[shard][image]
    count = height * width
    slots = slice(offset, offset + count)
    batch["patches"][shard, row, slots] = patches[number]
    batch["patch_segment"][shard, row, slots] = image + 1
    batch["patch_place"][shard, row, slots] = patch_places(height, width)
    batch["patch_slot"][shard, image, :count] = row * length + offset + np.arange(count)
  return batch


def patch_places(height: int, width: int) -> Int32[np.ndarray, "n 4"]:
  """(row, column, height, width) of each patch of a picture of that grid, row-major."""
  places = np.empty((height, width, 4), np.int32)
  places[..., 0] = np.arange(height)[:, None]
  places[..., 1] = np.arange(width)
  places[..., 2:] = height, width
  return places.reshape(-1, 4)


def largest_budget(grids: Sequence[Grid], layout: PatchLayout) -> int:
  """P, the smallest budget that holds each of these pictures.

  Raises:
    ValueError: none does.
  """
  most = max((height * width for height, width in grids), default=0)
  for budget in layout.budgets:
    if most <= budget:
      return budget
  raise ValueError(f"a picture has {most} patches, more than its budget of {layout.budgets[-1]}")


def pad_patch_rows(batch: dict[str, np.ndarray], rows: int, length: int, budget: int) -> dict[str, np.ndarray]:
  """The batch with its patches in `rows` rows of `length` per shard, and `budget` patches per picture.

  Each is at least what the batch has; what is added is empty.
  """
  shards, has_rows, has_length = batch["patches"].shape[:3]
  if (rows, length, budget) == (has_rows, has_length, batch["patch_slot"].shape[2]):
    return batch
  added = ((0, 0), (0, rows - has_rows), (0, length - has_length))
  slot = batch["patch_slot"]
  slot = np.where(slot < 0, slot, slot // has_length * length + slot % has_length).astype(np.int32)
  place = np.empty((shards, rows, length, 4), np.int32)
  place[...] = EMPTY_PLACE
  place[:, :has_rows, :has_length] = batch["patch_place"]
  return batch | {
    "patches": np.pad(batch["patches"], (*added, (0, 0))),
    "patch_segment": np.pad(batch["patch_segment"], added),
    "patch_place": place,
    "patch_slot": np.pad(slot, ((0, 0), (0, 0), (0, budget - slot.shape[2])), constant_values=NONE),
  }


def fit_rows(samples: Sequence[Sequence[Grid]], layout: PatchLayout) -> PatchLayout:
  """The layout with row buckets for batches like these, and with a row length unless it has one.

  Of a row of the largest budget much stays empty where pictures have a little more than half of it: then longer rows,
  which cost more attention, hold more of them. The shortest multiple of 128 is taken, on which kernels work best, that
  fills enough (`_FILLED`), or the shortest multiple of 16; else what fills most.

  Args:
    samples: the grids of the pictures of a data shard, in some batches.
    layout: as it was asked for.
  """
  lengths = [[height * width for height, width in sample] for sample in samples]
  useful = sum(map(sum, lengths))
  best, most = layout, 0.0
  least = layout.budgets[-1]
  wide, fine = (range(-(-least // step) * step, 2 * least + step, step) for step in (128, 16))
  for row_length in [layout.row_length] if layout.row_length else dict.fromkeys((least, *wide, *fine)):
    needed = [count_rows(best_fit(sample, row_length)) for sample in lengths]
    buckets = _row_buckets(len(samples[0]), needed)
    share = useful / (row_length * sum(choose_bucket(rows, buckets, "") for rows in needed))
    if share > most:
      best, most = dataclasses.replace(layout, row_length=row_length, row_buckets=buckets), share
    if share >= _FILLED:
      break
  return best


def _row_buckets(images: int, needed: Sequence[int]) -> tuple[int, ...]:
  """Row buckets for `images` pictures per shard, from the rows that sample batches needed.

  Fewer than there are of text: each of these meets each of those, and a pair that occurs costs a compilation. The last
  has a row for each picture, which holds any batch.
  """
  kept = common(needed, (0.3, 0.7, 1.0))
  above = geometric(math.ceil(kept[-1] * 1.04) + 1, images, growth=1.25)
  return (*(rows for rows in (*kept, *above) if rows < images), images)


def patch_efficiency(batch: dict[str, np.ndarray]) -> float:
  """The share of patch slots that hold a picture's patch."""
  return float(np.mean(batch["patch_segment"] > 0))
