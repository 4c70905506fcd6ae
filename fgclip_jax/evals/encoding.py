"""Embeds a benchmark's images, boxes and patches as a stream; images that cannot be used are counted and left out."""

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.data.image import Mode
from fgclip_jax.evals import guards
from fgclip_jax.evals.datasets.images import Source, read_batches
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.inference.pictures import Image
from fgclip_jax.storage.skip_report import SkipReport

# Images of a call times the most boxes of one image. With padding, features of width 512 take at most 256 MiB.
_MAX_BOXES = 1 << 16
_NO_BOX = np.zeros((0, 4), np.float32)
_Item = TypeVar("_Item")


def encode_images(
  model: FGCLIP,
  images: Sequence[Source],
  skips: SkipReport,
  mode: Mode | None = None,
  progress: bool = False,
  normalize: bool = True,
) -> tuple[Float32[np.ndarray, "n D"], Int[np.ndarray, "n"]]:
  """Embeds whole images; returns the embeddings of those that can be used, and their numbers.

  Args:
    model, images, skips, mode, progress: see `datasets.images.read_batches`.
    normalize: makes embeddings unit-length.

  Raises:
    ValueError: an embedding is not finite.
  """
  numbers: list[int] = []

  def rows() -> Iterator[Image]:
    for batch in read_batches(model, images, skips, mode, progress):
      numbers.extend(batch.numbers.tolist())
      yield from batch.pixels

  iterator = rows()
  first = next(iterator, None)
  if first is None:
    return np.zeros((0, model.config.embedding_width), np.float32), np.zeros(0, np.int64)
  # a single call for all images keeps several batches on the device
  embeddings = model.encode_image(itertools.chain([first], iterator), normalize=normalize)
  guards.check_finite(embeddings, "pictures")
  return embeddings[: len(numbers)], np.asarray(numbers, np.int64)


def encode_boxes(
  model: FGCLIP,
  images: Sequence[Source],
  boxes: Sequence[Float32[np.ndarray, "_ 4"]],
  skips: SkipReport,
  progress: bool = False,
) -> Iterator[tuple[int, Float32[np.ndarray, "K D"]]]:
  """Yields the number and the boxes' unit-length embeddings of each image that can be used, in order.

  An image is encoded once, however many boxes it has: squashed, or in about its shape where the model takes any. The
  next batch is computed while the caller works with this one.

  Args:
    model: the model.
    images: the images.
    boxes: the boxes of each image [K, 4], x1 y1 x2 y2 as fractions of its width and height.
    skips: counts images that cannot be used.
    progress: shows a progress bar.

  Raises:
    ValueError: an embedding is not finite.
  """

  def batches():
    for batch in read_batches(model, images, skips, "squash", progress):
      rows = [boxes[number] for number in batch.numbers]
      rows += [_NO_BOX] * (len(batch.pixels) - len(rows))
      size, longest = model.batch_size, max(map(len, rows))
      while size > 1 and size * longest > _MAX_BOXES:
        size = max(size // 4, 1)  # near the sizes that programs are compiled for
      for first in range(0, len(batch.numbers), size):
        some = slice(first, first + size)
        found = model.encode_regions(batch.pixels[some], rows[some])
        yield list(zip(batch.numbers[some].tolist(), found, strict=False))

  for batch in compute_ahead(batches()):
    for number, found in batch:
      guards.check_finite(found, "boxes")
      yield number, found


def encode_patches(
  model: FGCLIP, images: Sequence[Source], skips: SkipReport, progress: bool = False
) -> Iterator[tuple[int, Float32[np.ndarray, "h w D"]]]:
  """Yields the number and the patches' unit-length embeddings of each image that can be used, in order.

  Arguments and errors as of `encode_boxes`.
  """

  def batches():
    for batch in read_batches(model, images, skips, "squash", progress):
      yield list(zip(batch.numbers.tolist(), model.encode_dense(batch.pixels), strict=False))

  for batch in compute_ahead(batches()):
    for number, dense in batch:
      guards.check_finite(dense.reshape(-1, dense.shape[-1]), "patches")
      yield number, dense


def compute_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
  """Yields the items; a thread computes the next one meanwhile."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pending = pool.submit(next, items, None)
    while (item := pending.result()) is not None:
      pending = pool.submit(next, items, None)
      yield item
