"""Stores images: unchanged, or as JPEGs of a limited size."""

import dataclasses
import io

from PIL import Image

from fgclip_jax.data import image
from fgclip_jax.data.record import Record
from fgclip_jax.storage.errors import RecordError


@dataclasses.dataclass(frozen=True)
class Storing:
  """How images are checked and stored.

  With `max_side`, an image that is larger or is no plain JPEG is stored as a JPEG, so that training decodes all images
  equally fast; a JPEG that is small enough keeps its bytes. Images are shrunk (bicubic with antialiasing) and never
  enlarged. EXIF orientation is never applied, and is lost in images that are encoded again.

  Attributes:
    check: decode every image, to find broken ones.
    max_side: the longest side in pixels; None stores all images unchanged.
    quality: Pillow's quality of the JPEGs that are made, 1 to 100.

  Raises:
    ValueError: a quality or side is out of range, or `max_side` is given without `check`.
  """

  check: bool = True
  max_side: int | None = None
  quality: int = 90

  def __post_init__(self):
    if not 1 <= self.quality <= 100:
      raise ValueError(f"--quality must lie in 1..100, got {self.quality}")
    if self.max_side is not None and self.max_side < image.MIN_SIDE:
      raise ValueError(f"--max_side must be at least {image.MIN_SIDE}, got {self.max_side}")
    if self.max_side is not None and not self.check:
      raise ValueError("--max_side decodes every image: leave out --skip_image_check")


def store(record: Record, storing: Storing) -> tuple[Record, tuple[int, int] | None]:
  """Decodes a record's image once, if at all.

  Returns:
    The record with its image as it is stored, and with the width and height of that; and the width and height of the
    image as it came (None if they cannot be found without decoding).

  Raises:
    RecordError: the image cannot be used; for the kinds see `image.ImageError`.
  """
  try:
    if not storing.check:
      came = _read_size(record.image)
      return _with_size(record, came), came
    picture = image.open_image(record.image)
    came = picture.size
    if storing.max_side is not None and not _fits(record.image, storing.max_side):
      record, picture = _encode(record, picture, storing.max_side, storing.quality)
    return _with_size(record, picture.size), came
  except RecordError as error:
    raise RecordError(error.kind, error.field, f"{record.id!r} {error.message}") from error


def _read_size(data: bytes) -> tuple[int, int] | None:
  """Reads width and height from a file's header; None if it has none."""
  if not data:
    raise RecordError("image_empty", "image", "has no bytes")
  try:
    with Image.open(io.BytesIO(data), formats=image.FORMATS) as picture:
      return picture.size
  except Exception:  # Pillow raises many types; a header without a size is found when the image is decoded
    return None


def _fits(data: bytes, max_side: int) -> bool:
  with Image.open(io.BytesIO(data), formats=image.FORMATS) as picture:
    return picture.format == "JPEG" and picture.mode in ("RGB", "L") and max(picture.size) <= max_side


def _encode(record: Record, picture: Image.Image, max_side: int, quality: int) -> tuple[Record, Image.Image]:
  scale = min(1.0, max_side / max(picture.size))
  if scale < 1:
    width, height = (max(image.MIN_SIDE, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=quality)
  return dataclasses.replace(record, image=file.getvalue()), picture


def _with_size(record: Record, size: tuple[int, int] | None) -> Record:
  width, height = size or (0, 0)
  return dataclasses.replace(record, width=width, height=height)
