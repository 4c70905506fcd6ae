"""The batch that a plan assumes: its shapes, and captions and patches of the assumed lengths."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fgclip_jax.data.packing import Layout
from fgclip_jax.data.record import MAX_NEGATIVES
from fgclip_jax.data.rows import best_fit, count_rows

PATCH_FILL = 0.95  # the share of its patch budget that a picture is assumed to have


@dataclasses.dataclass(frozen=True)
class Captions:
  """What is assumed about the texts; the defaults are FG-CLIP's published data (arXiv 2505.05071).

  Attributes:
    long, short, region: mean tokens of a caption, with both ends.
    boxes: mean boxes per image, of which a run takes at most its `data.boxes`.
    hard_share: the share of boxes with hard negatives, ten each.
    fill: the share of a packed row that holds tokens.
    set: mean tokens of a caption of a picture's set.
  """

  long: int = 130
  short: int = 15
  region: int = 15
  boxes: float = 3.3
  hard_share: float = 0.025
  fill: float = 0.95
  set: int = 30

  def __post_init__(self):
    for name in ("long", "short", "region", "set"):
      if not 2 <= getattr(self, name) <= 2**20:
        raise ValueError(
          f"--{name}_tokens must lie in 2..{2**20} (start and end of text count), got {getattr(self, name)}"
        )
    if not 0 <= self.boxes <= 2**10:
      raise ValueError(f"--boxes_per_image must lie in 0..{2**10}, got {self.boxes}")
    if not 0 <= self.hard_share <= 1:
      raise ValueError(f"--hard_share must lie in 0..1, got {self.hard_share}")


ASSUMED = Captions()


def caption_lengths(layout: Layout, images: int, captions: Captions) -> tuple[list[int], list[int]]:
  """The tokens of each short-table and each long-table caption of a shard, by the assumed means.

  Where padding is read (`layout.pad_id`) all captions are as long as their tables.
  """
  most = {long: layout.max_length(long) for long in (False, True)}
  short, region, long, of_set = captions.short, captions.region, captions.long, captions.set
  if layout.pad_id is not None:
    short, region, long, of_set = most[False], most[False], most[True], most[False]
  regions, hard = region_counts(layout, images, captions)
  lengths = [min(short, most[False])] * images + [min(region, most[False])] * (regions + hard * (1 + MAX_NEGATIVES))
  long_lengths = [min(long, most[True])] * (images if layout.reads_long else 0)
  if layout.long_length is not None and of_set > most[False]:
    return lengths, long_lengths + [min(of_set, most[True])] * (images * layout.set_size)
  return lengths + [min(of_set, most[False])] * (images * layout.set_size), long_lengths


def region_counts(layout: Layout, images: int, captions: Captions) -> tuple[int, int]:
  """The boxes of a shard, and those with hard negatives."""
  boxes = round(images * min(captions.boxes, layout.boxes))
  return boxes, round(boxes * captions.hard_share)


def row_budget(layout: Layout, images: int, captions: Captions) -> int:
  """Rows of text for a shard of `images`: its tokens over the assumed fill, or a row for each caption."""
  short, long = caption_lengths(layout, images, captions)
  if not layout.packed:
    return len(short) + len(long)
  if layout.pad_id is not None:
    return count_rows(best_fit(short + long, layout.row_length))
  return math.ceil((sum(short) + sum(long)) / (captions.fill * layout.row_length))


def abstract_batch(
  layout: Layout, shards: int, images: int, rows: int, image_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch's shapes and dtypes on the devices; `images` and `rows` are per shard. Keys as in docs/design.md."""
  boxes, text = layout.boxes, (rows, layout.row_length)
  shapes = {
    "image": ((images, image_size, image_size, 3), jnp.uint8),
    "boxes": ((images, boxes, 4), jnp.float32),
    **{key: (text, jnp.int32) for key in ("tokens", "segment", "position")},
    **{key: ((images,), jnp.int32) for key in ("box_count", "short_eot", "long_eot", "record")},
    **{key: ((images, boxes), jnp.int32) for key in ("region_eot", "region_caption")},
    "hard_box": ((images * boxes,), jnp.int32),
    "hard_eot": ((images * boxes, 1 + MAX_NEGATIVES), jnp.int32),
  }
  if layout.set_size:
    kinds = {"eot": jnp.int32, "weight": jnp.float32, "id": jnp.int32, "long": jnp.bool_}
    shapes |= {f"caption_{name}": ((images, layout.set_size), kind) for name, kind in kinds.items()}
  if layout.caption_ids:
    shapes |= {key: ((images,), jnp.int32) for key in ("short_caption", "long_caption")}
  if layout.patches:
    del shapes["image"]
    slots, values, most = patch_slots(layout, images), layout.patches.patch_values, layout.patches.budgets[-1]
    shapes |= {
      "patches": ((*slots, values), jnp.uint8),
      "patch_segment": (slots, jnp.int32),
      "patch_place": ((*slots, 4), jnp.int32),
      "patch_slot": ((images, most), jnp.int32),
      "image_grid": ((images, 2), jnp.int32),
    }
  return {key: jax.ShapeDtypeStruct((shards, *shape), dtype) for key, (shape, dtype) in shapes.items()}


def assumed_batch(
  layout: Layout, shards: int, images: int, rows: int, image_size: int, captions: Captions
) -> dict[str, np.ndarray]:
  """A batch with captions of the assumed lengths, for counting operations: every shard alike, without contents."""
  short, long = caption_lengths(layout, images, captions)
  lengths = np.asarray(short + long)
  within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  table = np.repeat([0] * len(short) + [layout.short_length] * len(long), lengths)
  regions, hard = region_counts(layout, images, captions)

  def lay(values, shape, free):  # the first places are taken, the others are free
    flat = np.full(math.prod(shape), free, np.int32)
    flat[: len(values)] = values
    return flat.reshape(shape)

  text = (rows, layout.row_length)  # in which row a caption stands is not counted
  shard = {
    "segment": lay(np.repeat(np.arange(1, len(lengths) + 1), lengths), text, 0),
    "position": lay(within + table, text, 0),
    "short_eot": np.zeros(images, np.int32),
    "long_eot": np.zeros(images if layout.reads_long else 0, np.int32),
    "region_eot": lay([0] * regions, (images, layout.boxes), -1),
    "hard_eot": lay([0] * (hard * (1 + MAX_NEGATIVES)), (images * layout.boxes, 1 + MAX_NEGATIVES), -1),
    "boxes": np.broadcast_to(np.float32(0), (images, layout.boxes, 4)),
    "image": np.broadcast_to(np.uint8(0), (images, image_size, image_size, 3)),
  }
  if layout.set_size:
    shard["caption_eot"] = np.zeros((images, layout.set_size), np.int32)
  if layout.patches:
    most, slots = layout.patches.budgets[-1], patch_slots(layout, images)
    mine = min(round(PATCH_FILL * most), math.prod(slots) // images)
    del shard["image"]
    shard["patch_segment"] = lay(np.repeat(np.arange(1, images + 1), mine), slots, 0)
    shard["patch_slot"] = np.where(np.arange(most) < mine, 0, -1)[None].repeat(images, 0)
  return {key: np.broadcast_to(value, (shards, *value.shape)) for key, value in shard.items()}


def patch_slots(layout: Layout, images: int) -> tuple[int, int]:
  """Rows of patches for a shard of `images`, and the patches of a row: as many slots as they may have patches."""
  assert layout.patches is not None
  most, length = layout.patches.budgets[-1], layout.patches.length
  return (math.ceil(images * most / length), length) if layout.packed else (images, most)
