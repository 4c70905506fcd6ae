"""Packs the captions of a batch into rows of fixed length, and builds the batch that the step takes.

The text tower is causal and a caption is read at its first end-of-text token, so nothing after that token matters:
captions are cut there and several share a row. (A SigLIP text tower reads padding too, and a caption at its last
position: captions are padded to their full length, and share rows all the same.) Each slot of a row has a segment id
(which caption it belongs to; the attention mask compares these, so that each caption attends to itself alone) and a
position (its row in the position table, counted from the caption's own start). The padded form is the same with one
caption per row.

XLA compiles one program for each shape, so the number of rows is rounded up to one of a few sizes, the row buckets.
The largest bucket holds any batch.
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fgclip_jax.data.patch_rows import pack_patches
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.data.record import MAX_NEGATIVES
from fgclip_jax.data.rows import NONE, best_fit, choose_bucket, common, count_rows, geometric
from fgclip_jax.data.tokenizers import DEFAULT_TOKENIZER

_OF_SETS = {"weight": np.float32, "id": np.int32, "long": np.bool_}  # arrays of captions of sets, beside their ends


@dataclasses.dataclass(frozen=True)
class Caption:
  """One caption as token ids, from start-of-text to its first end-of-text token, and its position table."""

  ids: tuple[int, ...]
  long: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
  """One decoded training example.

  Attributes:
    image: uint8 [S, S, 3]; of a model that takes patches these, uint8 [h * w, 3 * patch_size²], row-major.
    short, long: its captions; `long` is None where the model has no long path.
    boxes: float32 [n, 4], xyxy in 0..1.
    regions: the caption of each box.
    negatives: the hard negatives of each box, none for most.
    record: the record's number in its data set.
    grid: h and w of its patches.
    captions: those of its set that are read, for the terms over sets.
    caption_weights: how much each of them counts.
  """

  image: np.ndarray
  short: Caption
  long: Caption | None = None
  boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4), np.float32))
  regions: tuple[Caption, ...] = ()
  negatives: tuple[tuple[Caption, tuple[Caption, ...]] | None, ...] = ()
  record: int = 0
  grid: tuple[int, int] = (0, 0)
  captions: tuple[Caption, ...] = ()
  caption_weights: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static shapes of a batch.

  Attributes:
    boxes: K, boxes per image; 0 leaves regions out.
    row_length: L, tokens per row; captions are cut to it.
    short_length, long_length: rows of the two position tables; no long one: no long captions.
    row_buckets: the numbers of rows per data shard that a batch may have, ascending; empty: as many as needed, so that
      shapes are not static.
    packed: False gives every caption a row of its own.
    tokenizer: the name of the tokenizer that makes the ids.
    pad_id: of a model that reads padding too: each caption is filled with it up to the rows of its position table,
      exactly, and read at the last of them; None: captions end at their first end-of-text token.
    patches: of a model that takes patches: how pictures become rows of them; None: pictures are squares.
    set_size: k, captions of each picture's set; 0 leaves sets out.
    long_per_image: False where the long table is for captions of sets alone.
    caption_ids: True adds numbers of the short and long captions, equal where these are equal.
  """

  boxes: int = 4
  row_length: int = 256
  short_length: int = 77
  long_length: int | None = 248
  row_buckets: tuple[int, ...] = ()
  packed: bool = True
  tokenizer: str = DEFAULT_TOKENIZER
  pad_id: int | None = None
  patches: PatchLayout | None = None
  set_size: int = 0
  long_per_image: bool = True
  caption_ids: bool = False

  def __post_init__(self):
    if self.row_length < 2:
      raise ValueError(f"row_length must be at least 2 (start and end of text), got {self.row_length}")
    longest = max(self.short_length, self.long_length or 0)
    if self.pad_id is not None and self.row_length < longest:
      raise ValueError(
        f"row_length {self.row_length} cannot hold a caption of {longest} tokens, which this model reads with its "
        "padding: set data.row_length to at least that, or 0"
      )

  def max_length(self, long: bool) -> int:
    """The most tokens of a caption: its position table's rows, or the row's length if that is less."""
    return min((self.long_length or 0) if long else self.short_length, self.row_length)

  @property
  def reads_long(self) -> bool:
    """Whether each picture has a long caption of its own."""
    return self.long_length is not None and self.long_per_image


def choose_row_length(text: Any, long: int | None) -> int:
  """A row length for the captions of a text tower, by its config: 256, or what holds its longest caption.

  Captions of a tower that reads padding are all of one length, or of two with `long` ones: rows are what these fill.
  """
  if not text.reads_padding:
    return max(256, *text.position_tables.values())
  return text.short_length + long if long else max(256 // text.short_length, 1) * text.short_length


def captions_per_image(layout: Layout) -> tuple[int, int]:
  """The most short-table and long-table captions that one image can bring, those of its set counted as long ones."""
  short, long = 1 + layout.boxes * (2 + MAX_NEGATIVES), int(layout.reads_long)
  return (short + layout.set_size, long) if layout.long_length is None else (short, long + layout.set_size)


def geometric_row_buckets(layout: Layout, images: int, growth: float = 1.125, start: int = 1) -> tuple[int, ...]:
  """Row buckets for `images` per shard: from `start`, each `growth` times the one before, up to one for any batch."""
  short, long = captions_per_image(layout)
  if layout.packed:
    # A bound for best fit: at most one row for each long caption, plus the rows of short captions alone. A caption
    # opens a row only where no other has room for it, so all of these but the last hold at least `per_row` captions.
    per_row = layout.row_length // layout.max_length(long=False)
    worst = images * long + math.ceil(images * short / per_row) + 1
  else:
    worst = images * (short + long)
  return geometric(start, worst, growth)


def row_buckets_from_samples(layout: Layout, images: int, needed: Sequence[int]) -> tuple[int, ...]:
  """Row buckets from the rows that sample batches needed: close together where most lie, coarse up to the worst case.

  Rows beyond those needed are computed for nothing, and each bucket that occurs costs a compilation. With quantiles as
  buckets, most batches pad little and three or four programs serve a run; the coarse ones are rarely compiled.
  """
  kept = common(needed, (0.3, 0.6, 0.85, 1.0))
  above = geometric_row_buckets(layout, images, growth=1.25, start=math.ceil(kept[-1] * 1.04) + 1)
  worst = above[-1]
  return (*(rows for rows in (*kept, *above) if rows < worst), worst)


def end_position(ids: np.ndarray, end_id: int) -> int:
  """Where a padded row of ids is read: at its first `end_id`; with 2 (CLIP's first checkpoints), at its largest id."""
  return int(np.argmax(ids)) if end_id == 2 else int(np.argmax(np.asarray(ids) == end_id))


def cut(ids: np.ndarray, end_id: int, long: bool = False) -> Caption:
  """A caption from a padded row of ids: everything after the position it is read at is dropped."""
  return Caption(tuple(int(i) for i in ids[: end_position(ids, end_id) + 1]), long)


class _Captions:
  """The captions of one shard, numbered; equal ones get one number (in the padded form each its own).

  A caption that occurs twice in a shard, such as a region's short text that is also the first of its hard negatives'
  texts, is embedded once and read by all who refer to it. Its feature is the same, and its gradients add up.
  """

  def __init__(self, distinct: bool):
    self.all: list[Caption] = []
    self._number: dict[tuple[tuple[int, ...], bool], int] = {}
    self._distinct = distinct

  def add(self, caption: Caption) -> int:
    """The caption's number."""
    number = len(self.all)
    if self._distinct:
      number = self._number.setdefault((caption.ids, caption.long), number)
    if number == len(self.all):
      self.all.append(caption)
    return number


def assemble(
  examples: Sequence[Example], shards: int, layout: Layout, images: UInt8[np.ndarray, "n S S 3"] | None = None
) -> dict[str, np.ndarray]:
  """Makes a batch of examples, split evenly over data shards.

  Args:
    examples: a multiple of `shards`; consecutive ones share a shard.
    shards: G, the data shards that this process feeds.
    layout: the static shapes.
    images: those of the examples, where they are in one array already, which then becomes the batch's.

  Returns:
    The batch: see docs/design.md for its keys.

  Raises:
    ValueError: the batch does not divide, or a caption is longer than its table.
  """
  if not examples or len(examples) % shards:
    raise ValueError(f"{len(examples)} examples do not divide over {shards} data shards")
  per_shard = len(examples) // shards
  parts = [_shard(examples[g * per_shard : (g + 1) * per_shard], layout) for g in range(shards)]
  needed = max(rows for _, rows in parts)
  rows = choose_bucket(needed, layout.row_buckets, f"{layout.row_length} tokens")
  batch = {key: np.stack([part[key] for part, _ in parts]) for key in parts[0][0] if key not in ("captions", "places")}
  text = [
    fill_rows(part["captions"], part["places"], rows, layout.row_length, layout.short_length) for part, _ in parts
  ]
  batch |= {key: np.stack([arrays[key] for arrays in text]) for key in text[0]}
  if layout.patches:
    grids = [example.grid for example in examples]
    return batch | pack_patches([example.image for example in examples], grids, shards, layout.patches, layout.packed)
  if images is None:
    images = np.stack([example.image for example in examples])
  return batch | {"image": images.reshape(shards, per_shard, *images.shape[1:])}


def fill_rows(
  captions: Sequence[Caption], places: Sequence[Sequence[int]], rows: int, row_length: int, short_length: int
) -> dict[str, np.ndarray]:
  """Lays captions out: `tokens`, `segment` and `position`, int32 [rows, row_length].

  Args:
    captions: what to lay out.
    places: (row, offset) of each.
    rows, row_length: the shape.
    short_length: rows of the short position table; a long caption's positions begin after it.
  """
  lengths = np.asarray([len(caption.ids) for caption in captions], np.int64)
  # `within` is each token's place in its caption: 0, 1, 2, ..., 0, 1, ... for all captions one after the other
  within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  starts = np.asarray([row * row_length + offset for row, offset in places], np.int64)
  first = np.asarray([short_length if caption.long else 0 for caption in captions], np.int64)
  slots = np.repeat(starts, lengths) + within
  values = {
    "tokens": list(itertools.chain.from_iterable(caption.ids for caption in captions)),
    # 0 marks empty slots; otherwise only equality within a row matters, so that the captions' numbers serve
    "segment": np.repeat(np.arange(1, len(captions) + 1), lengths),
    "position": np.repeat(first, lengths) + within,
  }
  arrays = {}
  for key, value in values.items():
    arrays[key] = np.zeros((rows, row_length), np.int32)
    arrays[key].reshape(-1)[slots] = value
  return arrays


def _shard(examples: Sequence[Example], layout: Layout) -> tuple[dict, int]:
  """One shard's arrays without images and text rows; its captions with their places; and the rows they need."""
  images, boxes = len(examples), layout.boxes
  captions = _Captions(distinct=layout.packed)
  numbers = {
    "short_eot": np.full(images, NONE, np.int32),
    "long_eot": np.full(images, NONE, np.int32),
    "region_eot": np.full((images, boxes), NONE, np.int32),
    "hard_eot": np.full((images * boxes, 1 + MAX_NEGATIVES), NONE, np.int32),
  }
  more: dict[str, np.ndarray] = {}
  if layout.set_size:
    shape = (images, layout.set_size)
    numbers["caption_eot"] = np.full(shape, NONE, np.int32)
    more = {f"caption_{name}": np.zeros(shape, kind) for name, kind in _OF_SETS.items()}
  if layout.caption_ids:
    more |= {f"{name}_caption": np.zeros(images, np.int32) for name in ("short", "long")}
  box_array = np.zeros((images, boxes, 4), np.float32)
  box_count = np.zeros(images, np.int32)
  region_caption = np.zeros((images, boxes), np.int32)
  hard_box = np.full(images * boxes, NONE, np.int32)
  hard = 0
  for i, example in enumerate(examples):
    numbers["short_eot"][i] = captions.add(example.short)
    if example.long is not None:
      numbers["long_eot"][i] = captions.add(example.long)
    if layout.caption_ids:
      more["short_caption"][i] = caption_number(example.short)
      more["long_caption"][i] = caption_number(example.long) if example.long else 0
    for j, caption in enumerate(example.captions[: layout.set_size]):
      numbers["caption_eot"][i, j] = captions.add(caption)
      more["caption_weight"][i, j] = example.caption_weights[j]
      more["caption_id"][i, j] = caption_number(caption)
      more["caption_long"][i, j] = caption.long
    count = min(len(example.regions), boxes)
    box_count[i] = count
    box_array[i, :count] = example.boxes[:count]
    for k in range(count):
      numbers["region_eot"][i, k] = captions.add(example.regions[k])
      region_caption[i, k] = caption_number(example.regions[k])
      negatives = example.negatives[k] if k < len(example.negatives) else None
      if negatives:
        truth, wrong = negatives
        hard_box[hard] = i * boxes + k
        for column, caption in enumerate((truth, *wrong[:MAX_NEGATIVES])):
          numbers["hard_eot"][hard, column] = captions.add(caption)
        hard += 1
  _check_lengths(captions.all, layout)
  if layout.packed:
    places = best_fit([len(caption.ids) for caption in captions.all], layout.row_length)
  else:
    places = [(row, 0) for row in range(len(captions.all))]
  last = np.asarray(
    [row * layout.row_length + at + len(c.ids) - 1 for c, (row, at) in zip(captions.all, places, strict=True)] + [NONE],
    np.int32,
  )
  part = {
    "boxes": box_array,
    "box_count": box_count,
    "region_caption": region_caption,
    "hard_box": hard_box,
    "record": np.asarray([example.record for example in examples], np.int64),
    **more,
    **{key: last[number] for key, number in numbers.items()},  # NONE picks the last, which is NONE
    "captions": captions.all,
    "places": places,
  }
  return part, count_rows(places)


def caption_number(caption: Caption) -> int:
  """A number that equal captions have in common on every device, so that no texts are compared."""
  return zlib.crc32(np.asarray(caption.ids, np.int32).tobytes()) >> 1  # a CRC without its last bit fits int32


def _check_lengths(captions: Sequence[Caption], layout: Layout) -> None:
  lengths = {long: layout.max_length(long) for long in (False, True)}
  for caption in captions:
    longest = lengths[caption.long]
    kind = "long" if caption.long else "short"
    if layout.pad_id is not None and len(caption.ids) != longest:
      raise ValueError(
        f"a {kind} caption has {len(caption.ids)} tokens: this model reads captions at their last position, so that "
        f"each must be padded to exactly {longest}"
      )
    if not 0 < len(caption.ids) <= longest:
      raise ValueError(
        f"a {kind} caption has {len(caption.ids)} tokens, its position table {longest}: truncate it first"
      )


def describe_rows(layout: Layout) -> list[str]:
  """What shapes batches have: a line for captions, and one for patches."""
  buckets = layout.row_buckets
  lines = [
    f"text in rows of {layout.row_length} tokens, {', '.join(map(str, buckets))} a data shard: "
    f"{len(buckets)} shapes, each compiled when a batch first needs it (most need the first few)"
  ]
  if patches := layout.patches:
    how = f" ({patches.budget})" if isinstance(patches.budget, str) else ""
    rows = ", ".join(map(str, patches.row_buckets)) if layout.packed else "one for each"
    lines.append(
      f"pictures of at most {patches.budgets[-1]} patches{how} in rows of {patches.length}, {rows} a data shard"
    )
  return lines


def packing_efficiency(batch: dict[str, np.ndarray]) -> float:
  """The share of token slots that hold a caption's token."""
  return float(np.mean(batch["segment"] > 0))
