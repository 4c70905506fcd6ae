"""Image files of a benchmark, decoded ahead by threads, in order; those that cannot be used are counted and named."""

import collections
import dataclasses
import errno
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm
from jaxtyping import Float32, Int, UInt8

from fgclip_jax.data import image as images
from fgclip_jax.evals import guards
from fgclip_jax.inference import inputs
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.threads import in_threads

Source = images.Picture | Callable[[], images.Picture]


class Faults:
  """What could not be used, by kind.

  Attributes:
    skipped: how often each kind was met.
    first: the first of each kind, in words.
  """

  def __init__(self):
    self.skipped: collections.Counter = collections.Counter()
    self.first: dict[str, str] = {}

  def add(self, kind: str, message: str) -> None:
    """Counts a fault; `kind` in snake_case, `message` names the file or record."""
    self.skipped[kind] += 1
    self.first.setdefault(kind, message)

  def notes(self, of: int, things: str = "images") -> list[str]:
    """A note for a result: how many `of` all `things` were left out, and the first of each kind; none if none was."""
    if not self.skipped:
      return []
    kinds = "; ".join(f"{kind} {count}, the first: {self.first[kind]}" for kind, count in self.skipped.most_common())
    return [f"{sum(self.skipped.values()):,} of {of:,} {things} could not be used and were skipped ({kinds})"]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Images of one size.

  Attributes:
    pixels: the images; a last batch is filled up with its last image.
    numbers: the places of the images among all pictures, without the filling.
  """

  pixels: UInt8[np.ndarray, "B S S 3"]
  numbers: Int[np.ndarray, "n"]


def read_pictures(
  pictures: Iterable[Source], size: int, mode: images.Mode, faults: Faults
) -> Iterator[tuple[int, UInt8[np.ndarray, "{size} {size} 3"]]]:
  """Yields the number and the pixels of each picture that can be used, in order.

  Args:
    pictures: paths (local or in object storage), PIL images, bytes, uint8 arrays [H, W, 3], or functions of no
      argument that give one of these and are called by the threads.
    size: the side that is wanted, in pixels.
    mode: `squash` (FG-CLIP's protocol) or `center_crop` (plain CLIP's).
    faults: where a missing or broken picture is counted. Kinds: those of `ImageError`, `image_missing`,
      `image_not_permitted`.
  """
  read = functools.partial(_read, size=size, mode=mode)
  for number, found in in_threads(read, enumerate(pictures)):
    if isinstance(found, RecordError):
      faults.add(found.kind, str(found))
    else:
      yield number, found


def read_batches(
  model: FGCLIP, pictures: Sequence[Source], faults: Faults, mode: images.Mode | None = None, progress: bool = False
) -> Iterator[Batch]:
  """Yields all pictures that can be used in batches of `model.batch_size`; a single batch is as long as it is.

  Args:
    model: the model, for its image and batch size.
    pictures, faults: see `read_pictures`.
    mode: None is the model's own: `squash` for an FG-CLIP, `center_crop` for a plain CLIP.
    progress: shows a progress bar.
  """
  rows = read_pictures(pictures, model.config.vision.image_size, mode or inputs.default_mode(model.config), faults)
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


def encode_pictures(
  model: FGCLIP,
  pictures: Sequence[Source],
  faults: Faults,
  mode: images.Mode | None = None,
  progress: bool = False,
  normalize: bool = True,
) -> tuple[Float32[np.ndarray, "n D"], Int[np.ndarray, "n"]]:
  """Embeds whole pictures; returns the embeddings of those that can be used, and their numbers.

  Arguments as for `read_batches`; `normalize=False` gives the features as they are, of any length.
  """
  numbers: list[int] = []

  def rows() -> Iterator[np.ndarray]:  # one call for all of them keeps several batches under way
    for batch in read_batches(model, pictures, faults, mode, progress):
      numbers.extend(batch.numbers.tolist())
      yield from batch.pixels

  iterator = rows()
  first = next(iterator, None)
  if first is None:
    return np.zeros((0, model.config.embedding_width), np.float32), np.zeros(0, np.int64)
  embeddings = model.encode_image(itertools.chain([first], iterator), normalize=normalize)
  guards.check_finite(embeddings, "pictures")
  return embeddings[: len(numbers)], np.asarray(numbers, np.int64)


def _read(numbered: tuple[int, Source], size: int, mode: images.Mode) -> tuple[int, np.ndarray | RecordError]:
  number, picture = numbered
  name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else f"image {number}"
  try:
    if callable(picture):
      picture = picture()
    if isinstance(picture, str | os.PathLike):
      name = os.fspath(picture)
      picture = paths.read(name)
    return number, images.to_levels(picture, size, mode, str(name))
  except RecordError as error:
    return number, error
  except PermissionError:
    return number, RecordError("image_not_permitted", str(name), "may not be read")
  except OSError as error:
    if (
      isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG
    ):
      return number, RecordError("image_missing", str(name), "there is no such file")
    raise  # a fault of the disk or the network, not of the picture
