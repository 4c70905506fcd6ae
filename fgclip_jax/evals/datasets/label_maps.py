"""Label maps of segmentation benchmarks: image files with the number of a class for each pixel."""

import io
import os

import numpy as np
from jaxtyping import UInt
from PIL import Image

from fgclip_jax.data.image import ImageError
from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import Skip, SkipReport

LEVELS = 1 << 16  # of a label map of 16 bits
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find(
  images: str, labels: str, label_suffix: str = ".png", split: str | None = None, limit: int | None = None
) -> list[tuple[str, str]]:
  """The paths of images and their label maps.

  Args:
    images, labels: their folders.
    label_suffix: the end of a label map's name, after the name of its image.
    split: a text file with the name (without suffix) of an image on each line; None: all label maps, by name.
    limit: the number to read, from the first; None for all.

  Raises:
    FileNotFoundError, ValueError: a folder or file is missing, or there are no label maps.
  """
  by_stem = {}
  for name in paths.list_folder(images):
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in _SUFFIXES:
      by_stem[stem] = name
  if split:
    lines = paths.read(split).decode("utf-8").splitlines()
    stems = [line.strip() for line in lines if line.strip()]
  else:
    names = paths.list_folder(labels)
    stems = [name.removesuffix(label_suffix) for name in names if name.endswith(label_suffix)]
  if not stems:
    raise ValueError(f"there are no label maps ({split or f'{labels}: no file ends with {label_suffix!r}'})")
  # an image that is missing is counted when it is read
  return [
    (paths.join(images, by_stem.get(stem, f"{stem}.jpg")), paths.join(labels, f"{stem}{label_suffix}"))
    for stem in stems[:limit]
  ]


def read(path: str, skips: SkipReport) -> UInt[np.ndarray, "H W"] | None:
  """A label map; one that cannot be used is counted, and gives None."""
  try:
    return decode(paths.read(path))
  except FileNotFoundError:
    skips.add(Skip("labels_missing", "there is no such file", place=path))
  except ImageError as error:
    skips.add(Skip("labels_unreadable", str(error), place=path))
  return None


def decode(data: bytes) -> UInt[np.ndarray, "H W"]:
  """The levels of a PNG or TIFF file with one number for each pixel, as uint8 or uint16.

  Raises:
    ImageError: the file is anything else.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
    image.load()
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise ImageError("image_unreadable", "label map", f"is no readable PNG or TIFF: {error}") from error
  if image.mode in ("P", "L"):
    return np.asarray(image)
  if image.mode in ("I;16", "I;16B", "I"):
    levels = np.asarray(image)
    if 0 <= levels.min() and levels.max() < LEVELS:
      return levels.astype(np.uint16)
    message = f"has numbers from {levels.min()} to {levels.max()}, and needs 0 to {LEVELS - 1}"
  else:
    message = f"has colours ({image.mode}), and needs one number of a class for each pixel"
  raise ImageError("image_unreadable", "label map", message)
