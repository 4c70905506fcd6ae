"""What the server computes: embeddings and searches of a model, in batches across callers."""

import asyncio
import concurrent.futures
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from fgclip_jax.index.build import check_model
from fgclip_jax.index.search import Index
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.inference.pictures import Image
from fgclip_jax.inference.programs import CHUNKS, ROW_LENGTHS, row_length, split
from fgclip_jax.serve.batching import Batcher

Boxes = Float32[np.ndarray, "K 4"]


class Service:
  """A model, and perhaps an index, for many callers at once.

  Args:
    model: what embeds.
    index: what is searched; None: there is nothing to search.
    options: of every `Batcher`.

  Attributes:
    kinds: the kinds of texts that the model reads.
    batchers: by what they compute: `images`, `regions`, and `texts:KIND`.

  Raises:
    ValueError: the index is of another model.
  """

  def __init__(self, model: FGCLIP, index: Index | None = None, **options: Any):
    if index is not None:
      check_model(model, index.settings, index.folder)
    self.model, self.index = model, index
    self._device = concurrent.futures.ThreadPoolExecutor(1, "device")
    self._decoders = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "decode")
    self._whole, self._squashed = model.reader(), model.reader("squash")
    self.kinds = tuple(model.config.text.kinds)
    computes = {
      "images": self._compute_images,
      "regions": self._compute_regions,
      **{f"texts:{kind}": lambda texts, kind=kind: self._compute_texts(texts, kind) for kind in self.kinds},
    }
    self.batchers = {name: Batcher(compute, self._device, **options) for name, compute in computes.items()}

  def warm_up(self, sizes: Sequence[int]) -> None:
    """Compiles what answers batches of these sizes, so that no caller waits for that.

    Texts have a program for each length of rows, and those of the longest one for each number of rows; regions one for
    each number of boxes, of which the smallest is made here.
    """
    picture = np.zeros((64, 64, 3), np.uint8)
    whole, squashed = self._whole.read(picture, "picture"), self._squashed.read(picture, "picture")
    box = np.asarray([[0.0, 0.0, 1.0, 1.0]], np.float32)
    chunks = sorted({chunk for size in sizes for chunk in split(size, CHUNKS)})  # of which each has a program
    for size in chunks:
      self._compute_images([whole] * size)
      self._compute_regions([(squashed, box)] * size)
    for kind in self.kinds:
      longest = self.model.config.text.kinds[kind].length
      for length in ROW_LENGTHS:
        if row_length(length, longest) == length:  # other rows are as long as the longest
          self._compute_texts([" ".join("a" * (length - 3))], kind)
      for size in chunks:
        self._compute_texts([" ".join("a" * (longest - 3))] * size, kind)

  async def embed_texts(self, texts: Sequence[str], kind: str) -> Float32[np.ndarray, "N D"]:
    """Embeddings of texts of a kind in `kinds`."""
    return self._stack(await self.batchers[f"texts:{kind}"].submit(texts))

  async def embed_images(self, images: Sequence[bytes]) -> Float32[np.ndarray, "N D"]:
    """Embeddings of the files of pictures; raises `ImageError` for one that cannot be used."""
    pixels = await asyncio.gather(*(self._decode(each, f"images[{n}]", False) for n, each in enumerate(images)))
    return self._stack(await self.batchers["images"].submit(pixels))

  async def embed_regions(self, image: bytes, boxes: Boxes) -> Float32[np.ndarray, "K D"]:
    """Embeddings of regions of a picture."""
    pixels = await self._decode(image, "image", True)
    (regions,) = await self.batchers["regions"].submit([(pixels, boxes)])
    return regions

  async def close(self) -> None:
    """Ends all work."""
    await asyncio.gather(*(batcher.close() for batcher in self.batchers.values()))
    self._device.shutdown(cancel_futures=True)
    self._decoders.shutdown(cancel_futures=True)

  async def _decode(self, data: bytes, name: str, squash: bool) -> Image:
    reader = self._squashed if squash else self._whole
    return await asyncio.get_running_loop().run_in_executor(self._decoders, reader.read, data, name)

  def _stack(self, rows: list[np.ndarray]) -> Float32[np.ndarray, "N D"]:
    return np.stack(rows) if rows else np.zeros((0, self.model.config.embedding_width), np.float32)

  def _compute_images(self, pixels: list[Image]) -> Sequence[np.ndarray]:
    return list(self.model.encode_image(pixels))

  def _compute_regions(self, asked: list[tuple[Image, Boxes]]) -> Sequence[np.ndarray]:
    return list(self.model.encode_regions([pixels for pixels, _ in asked], [boxes for _, boxes in asked]))

  def _compute_texts(self, texts: list[str], kind: str) -> Sequence[np.ndarray]:
    return list(self.model.encode_text(texts, kind))
