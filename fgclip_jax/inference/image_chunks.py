"""Images as arrays of few sizes, for the compiled programs: squares in batches, or patches packed into rows."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fgclip_jax.data import patch_rows
from fgclip_jax.data.patches import BUDGETS, PatchLayout
from fgclip_jax.data.rows import best_fit, count_rows
from fgclip_jax.inference import inputs, programs
from fgclip_jax.inference.pictures import Budget, PatchedImage
from fgclip_jax.models.config import ModelConfig

# Patches of a chunk: what 64 pictures of 256 have. Longer rows make chunks of fewer.
MOST_PATCHES = 64 * 256
_PICTURES = 4  # of a row, where a chunk has more pictures than rows
_STEP = 1024  # pictures with more patches than any budget are counted as a multiple of it


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Some images of a call.

  Attributes:
    numbers: which ones; results have these rows first, and then others that fill the chunk up.
    arrays: pixels [B, S, S, 3]; or `patches`, `segment`, `place` and `slot`, as `DualEncoder.patch_features` reads them
      for B pictures in R rows of N slots.
    grids: [B, 2], rows and columns of each picture's patches; None for squares.
    boxes: float32 [B, K, 4], see `inputs.pad_boxes`; None: not asked for.
    box_counts: how many of them are the image's own.
  """

  numbers: list[int]
  arrays: tuple[np.ndarray, ...]
  grids: np.ndarray | None = None
  boxes: np.ndarray | None = None
  box_counts: tuple[int, ...] = ()


def make_chunks(
  config: ModelConfig, images: Iterable[Any], boxes: Iterable | None, budget: Budget | None, sizes: Sequence[int]
) -> Iterator[Chunk]:
  """Divides images into chunks; a batch of up to the largest size is held at once.

  Args:
    config: the model's.
    images: as `inputs.to_pixels` gives them.
    boxes: those of each image, [K, 4]; None: not asked for.
    budget: of pictures of any shape, see `pictures.choose_budget`.
    sizes: what programs are compiled for, images or rows of patches, ascending.

  Raises:
    ValueError: there is no image, or not as many of one as of the other.
  """
  rows = ((image, None) for image in images) if boxes is None else _pairs(images, boxes)
  first = 0
  for batch in inputs.batches(inputs.not_empty(rows), sizes[-1]):
    listed, each = zip(*batch, strict=True)
    if config.vision.takes_patches:
      assert budget is not None
      found = _patch_chunks(listed, budget, config.vision.patch_size, sizes)
    else:
      found = _square_chunks(listed, config, sizes)
    for chunk in found:
      if boxes is not None:
        chunk = _with_boxes(chunk, [each[number] for number in chunk.numbers])
      yield dataclasses.replace(chunk, numbers=[first + number for number in chunk.numbers])
    first += len(batch)


def _square_chunks(images: Sequence[np.ndarray], config: ModelConfig, sizes: Sequence[int]) -> Iterator[Chunk]:
  start = 0
  for size in programs.split(len(images), sizes):
    chosen = list(images[start : start + size])
    filled = chosen + [chosen[-1]] * (size - len(chosen))
    yield Chunk([*range(start, start + len(chosen))], (inputs.stack_pixels(filled, config.vision.pixels),))
    start += size


def _patch_chunks(
  images: Sequence[PatchedImage], budget: Budget, patch_size: int, sizes: Sequence[int]
) -> Iterator[Chunk]:
  """Rows are as long as the largest image may be, so that an image shares its row with others where there is room."""
  counts = [len(each.patches) for each in images]
  length = count_slots(max(counts), budget)
  places = best_fit(counts, length)
  # rows are long, so that an empty one costs much: sizes lie close together, and no chunk is filled up by rows
  fitting = sorted({size for each in sizes for size in (each, 2 * each) if size * length <= MOST_PATCHES}) or sizes[:1]
  start, rows = 0, count_rows(places)
  while start < rows:
    size = max((size for size in fitting if size <= rows - start), default=fitting[0])
    numbers = [number for number, (row, _) in enumerate(places) if start <= row < start + size]
    start += size
    # where rows hold many small images, some rows are divided: programs for still more images would be compiled rarely
    most = size if len(numbers) <= size else size * _PICTURES
    for first in range(0, len(numbers), most):
      yield _pack(images, numbers[first : first + most], PatchLayout(length, patch_size, row_buckets=(size,)), most)


def _pack(images: Sequence[PatchedImage], numbers: list[int], layout: PatchLayout, most: int) -> Chunk:
  chosen = [images[number] for number in numbers]
  packed = patch_rows.pack_patches([each.patches for each in chosen], [each.grid for each in chosen], 1, layout)
  missing = ((0, most - len(chosen)), (0, 0))
  slot = np.pad(packed["patch_slot"][0], missing, constant_values=patch_rows.NONE)
  arrays = (packed["patches"][0], packed["patch_segment"][0], packed["patch_place"][0], slot)
  return Chunk(numbers, arrays, np.pad(packed["image_grid"][0], missing, constant_values=1))


def count_slots(most: int, budget: Budget) -> int:
  """P of a batch in which a picture has at most so many patches: the budget, or the least of a few numbers."""
  if isinstance(budget, int) and most <= budget:
    return budget
  return next((each for each in BUDGETS if most <= each), -(-most // _STEP) * _STEP)


def _with_boxes(chunk: Chunk, boxes: list[np.ndarray]) -> Chunk:
  rows = len(chunk.arrays[-1])  # of pixels, or of slots: one for each image
  padded = inputs.pad_boxes([*boxes, *[boxes[-1]] * (rows - len(boxes))])
  return dataclasses.replace(chunk, boxes=padded, box_counts=tuple(map(len, boxes)))


def _pairs(images: Iterable, boxes: Iterable) -> Iterator[tuple[Any, np.ndarray]]:
  """Each image with its boxes; an error if one of them ends before the other."""
  try:
    yield from zip(images, boxes, strict=True)
  except ValueError as error:
    if "zip()" not in str(error):
      raise
    raise ValueError("there must be boxes for each image, and no more: an empty list for one without") from error
