"""Reads a benchmark's images in order, decoded ahead by threads; those that cannot be used are counted and named."""

import dataclasses
import errno
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm
from jaxtyping import Int, UInt8

from fgclip_jax.data import image as images
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.threads import in_threads

Source = images.Picture | Callable[[], images.Picture]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Images of one size.

  Attributes:
    pixels: RGB levels; the last of several batches is filled up by repeating its last image.
    numbers: the places of the images among all pictures, without those repeated.
  """

  pixels: UInt8[np.ndarray, "B S S 3"]
  numbers: Int[np.ndarray, "n"]


def read_pictures(
  pictures: Iterable[Source], size: int, mode: str, skips: SkipReport, pixels: PixelSpec = CLIP_PIXELS
) -> Iterator[tuple[int, UInt8[np.ndarray, "{size} {size} 3"]]]:
  """Yields the number and the pixels of each picture that can be used, in order.

  Args:
    pictures: paths (local or in object storage), PIL images, bytes, uint8 arrays [H, W, 3], or functions
      without arguments that return one of these and are called by the threads.
    size: the side of the pixels that are returned.
    mode: `squash` (FG-CLIP's protocol) or `center_crop` (plain CLIP's).
    skips: counts missing and broken pictures. Kinds: those of `ImageError`, `image_missing`, `image_not_permitted`.
    pixels: the model's.
  """
  read = functools.partial(_read, size=size, mode=mode, pixels=pixels)
  for number, found in in_threads(read, enumerate(pictures)):
    if isinstance(found, RecordError):
      skips.add(Skip.of(found))
    else:
      yield number, found


def read_batches(
  model: FGCLIP, pictures: Sequence[Source], skips: SkipReport, mode: images.Mode | None = None, progress: bool = False
) -> Iterator[Batch]:
  """Yields the pictures that can be used in batches of `model.batch_size`; a single batch is as short as it is.

  Args:
    model: the model, for its image and batch size.
    pictures, skips: see `read_pictures`.
    mode: None is the model's own, see `ModelConfig.resize`.
    progress: shows a progress bar.
  """
  config = model.config
  rows = read_pictures(pictures, config.vision.image_size, mode or config.resize, skips, config.vision.pixels)
  with tqdm.tqdm(total=len(pictures), desc="images", unit="image", disable=not progress) as bar:
    for place in itertools.count():
      batch = list(itertools.islice(rows, model.batch_size))
      if not batch:
        break
      numbers, pixels = zip(*batch, strict=True)
      missing = model.batch_size - len(pixels) if place else 0
      yield Batch(np.stack(pixels + pixels[-1:] * missing), np.asarray(numbers, np.int64))
      bar.update(numbers[-1] + 1 - bar.n)
    bar.update(len(pictures) - bar.n)


def _read(
  numbered: tuple[int, Source], size: int, mode: str, pixels: PixelSpec
) -> tuple[int, np.ndarray | RecordError]:
  number, picture = numbered
  name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else f"image {number}"
  try:
    if callable(picture):
      picture = picture()
    if isinstance(picture, str | os.PathLike):
      name = os.fspath(picture)
      picture = paths.read(name)
    return number, images.to_levels(picture, size, mode, str(name), pixels)
  except RecordError as error:
    return number, error
  except PermissionError:
    return number, RecordError("image_not_permitted", str(name), "may not be read")
  except OSError as error:
    if (
      isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG
    ):
      return number, RecordError("image_missing", str(name), "there is no such file")
    raise  # the disk or the network failed, and not the picture
