"""Label maps of segmentation benchmarks: image files with the number of a class for each pixel."""

import io
import os

import numpy as np
from jaxtyping import UInt
from PIL import Image

from fgclip_jax.data.image import ImageError
from fgclip_jax.evals.datasets.images import read_file
from fgclip_jax.storage import folders, paths, text
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip, SkipReport

LEVELS = 1 << 16  # of a label map of 16 bits
MAX_PIXELS = 1 << 26  # of a label map, whose pixels take some 20 bytes each while they are compared
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find(
  images: str,
  labels: str,
  label_suffix: str = ".png",
  split: str | None = None,
  limit: int | None = None,
  skips: SkipReport | None = None,
) -> list[tuple[str, str]]:
  """The paths of images and their label maps, which may be in sub-folders of the same names.

  Args:
    images, labels: their folders; hidden files and folders are left out (see `storage.folders`).
    label_suffix: the end of a label map's name, after the name of its image.
    split: a text file with the name of an image on each line (its suffix may be missing); None: all label maps, by
      name.
    limit: the number to read, from the first; None for all.
    skips: counts what the listings leave out, and `listed_twice`.

  Raises:
    OSError, ValueError: a folder or file is missing or cannot be read, or there are no label maps.
  """
  skips = SkipReport() if skips is None else skips
  by_stem: dict[str, list[str]] = {}
  for name in folders.walk(images, skips, _SUFFIXES):
    by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
  same = not paths.is_remote(images) and os.path.realpath(images) == os.path.realpath(labels)
  if split:
    stems = []
    for line in filter(None, map(str.strip, text.lines(split))):
      stem, suffix = os.path.splitext(line)
      stems.append(stem if line not in by_stem and suffix.lower() in _SUFFIXES else line)
  else:
    names = folders.walk(labels, SkipReport() if same else skips)
    stems = [name.removesuffix(label_suffix) for name in names if name.endswith(label_suffix)]
  if not stems:
    raise ValueError(f"there are no label maps ({split or f'{labels}: no file ends with {label_suffix!r}'})")
  if len(set(stems)) < len(stems):
    twice = Skip("listed_twice", "some images are on several lines; each counts once", place=split or labels)
    skips.add(twice, len(stems) - len(set(stems)))
  found = []
  for stem in list(dict.fromkeys(stems))[:limit]:
    files = [name for name in by_stem.get(stem, ()) if not (same and name == f"{stem}{label_suffix}")]
    # of several the one by the order of suffixes; an image that is missing is counted when it is read
    image = min(files, key=lambda name: _SUFFIXES.index(os.path.splitext(name)[1].lower()), default=f"{stem}.jpg")
    if len(files) > 1:
      skips.add(
        Skip("image_twice", f"is there as {', '.join(sorted(files))}: {image} was taken", place=images, scope="note")
      )
    found.append((paths.join(images, image), paths.join(labels, f"{stem}{label_suffix}")))
  return found


def read(path: str, skips: SkipReport) -> UInt[np.ndarray, "H W"] | None:
  """A label map; one that cannot be used is counted, and gives None."""
  try:
    return decode(read_file(path, "labels"))
  except ImageError as error:
    skips.add(Skip("labels_unreadable", str(error), place=path))
  except RecordError as error:
    skips.add(Skip.of(error))
  return None


def decode(data: bytes) -> UInt[np.ndarray, "H W"]:
  """The levels of a PNG or TIFF file with one number for each pixel, as uint8 or uint16.

  Raises:
    ImageError: the file is anything else.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
    if image.width * image.height > MAX_PIXELS:
      raise ValueError(f"{image.width} x {image.height} pixels are too many")
    image.load()
  except Exception as error:  # Pillow's decoders raise many types; the cause is chained
    message = f"is no readable PNG or TIFF: {error or type(error).__name__}"
    raise ImageError("image_unreadable", "label map", message) from error
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
