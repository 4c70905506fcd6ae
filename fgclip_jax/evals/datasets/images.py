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
from fgclip_jax.inference.pictures import Image, PatchedImage, Reader
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport
from fgclip_jax.storage.threads import in_threads

Source = images.Picture | Callable[[], images.Picture]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Images as the model reads them.

  Attributes:
    pixels: RGB levels of squares, of which the last of several batches is filled up by repeating its last image; or a
      list of the patches of pictures of any shape.
    numbers: the places of the images among all pictures, without those repeated.
  """

  pixels: UInt8[np.ndarray, "B S S 3"] | list[PatchedImage]
  numbers: Int[np.ndarray, "n"]


def read_pictures(pictures: Iterable[Source], reader: Reader, skips: SkipReport) -> Iterator[tuple[int, Image]]:
  """Yields the number of each picture that can be used, and what the model reads of it, in order.

  Args:
    pictures: paths (local or in object storage), PIL images, bytes, uint8 arrays [H, W, 3], or functions
      without arguments that return one of these and are called by the threads.
    reader: the model's, see `FGCLIP.reader`.
    skips: counts missing and broken pictures. Kinds: those of `ImageError` and of `read_file`.
  """
  read = functools.partial(_read, reader=reader)
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
  rows = read_pictures(pictures, model.reader(mode), skips)
  with tqdm.tqdm(total=len(pictures), desc="images", unit="image", disable=not progress) as bar:
    for place in itertools.count():
      batch = list(itertools.islice(rows, model.batch_size))
      if not batch:
        break
      numbers, pixels = zip(*batch, strict=True)
      if not model.config.vision.takes_patches:
        missing = model.batch_size - len(pixels) if place else 0
        pixels = np.stack(pixels + pixels[-1:] * missing)
      yield Batch(pixels if isinstance(pixels, np.ndarray) else list(pixels), np.asarray(numbers, np.int64))
      bar.update(numbers[-1] + 1 - bar.n)
    bar.update(len(pictures) - bar.n)


def _read(numbered: tuple[int, Source], reader: Reader) -> tuple[int, Image | RecordError]:
  number, picture = numbered
  name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else f"image {number}"
  try:
    if callable(picture):
      picture = picture()
    if isinstance(picture, str | os.PathLike):
      name = os.fspath(picture)
      picture = read_file(name)
    return number, reader.read(picture, str(name))
  except RecordError as error:
    return number, error


def read_file(path: str, what: str = "image") -> bytes:
  """The bytes of a picture's or label map's file.

  Raises:
    RecordError: the file cannot be used: `WHAT_missing`, `WHAT_not_permitted`, or `WHAT_not_a_file` (a pipe, a device).
    OSError: the disk or the network failed, and not the file.
  """
  try:
    return paths.read(path)
  except PermissionError as error:
    raise RecordError(f"{what}_not_permitted", path, "may not be read") from error
  except paths.NotRegularFileError as error:
    raise RecordError(f"{what}_not_a_file", path, str(error.strerror)) from error
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
    raise RecordError(f"{what}_missing", path, "there is no such file") from error
  except OSError as error:
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
      raise RecordError(f"{what}_missing", path, f"there is no such file ({error.strerror})") from error
    raise
  except ValueError as error:  # a name that no file can have, as with a zero byte
    raise RecordError(f"{what}_missing", path, f"there is no such file ({error})") from error
