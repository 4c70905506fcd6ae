"""Encoded image files to what a model takes: square RGB arrays, normalised as its `PixelSpec` says.

FG-CLIP squashes an image to a square without keeping its aspect ratio (`to_square`); plain CLIP cuts out the middle
(`center_crop`). Both give the published implementations' pixels exactly.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from fgclip_jax.models.pixel_spec import CLIP_PIXELS, RESIZE_MODES, PixelSpec
from fgclip_jax.storage.errors import RecordError

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs; half a gigabyte once decoded
MAX_SIDE = 1 << 18  # between rows and columns, resizing holds a picture of the new width and the old height
MIN_SIDE = 2

# Named, since Pillow can do more than is safe with files from the web: it runs Ghostscript on EPS, for one.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


@runtime_checkable
class OpenFile(Protocol):
  """A file opened for reading bytes: on disk, in memory, in a zip file, or one that was uploaded."""

  def read(self) -> Any: ...


Picture = Image.Image | bytes | bytearray | memoryview | str | os.PathLike | np.ndarray | OpenFile
Mode = Literal["squash", "center_crop", "pad"]  # see `PixelSpec.resize`

# Once here and not around each call: warnings.catch_warnings is not safe in the threads that decode images.
for _category in (UserWarning, Image.DecompressionBombWarning):
  warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


class ImageError(RecordError):
  """An image that cannot be used. Kinds:

  `image_empty` (no bytes), `image_unreadable` (not an image, or a damaged or unsupported one), `image_truncated`
  (the file ends too early), `image_too_large` (more than `MAX_PIXELS`, or a side above `MAX_SIDE`), `image_too_thin`
  (a side below `MIN_SIDE`, or for `center_crop` one so long beside the other that the scaled image has more than
  `MAX_PIXELS`).
  """


def open_image(data: bytes) -> Image.Image:
  """Decodes an image file to RGB, or raises `ImageError`.

  Of an animation the first frame is taken. Transparency is dropped and EXIF orientation not applied, as in the
  reference. Gray levels of 16 bits are scaled to 8.
  """
  if not data:
    raise ImageError("image_empty", "image", "has no bytes")
  with _decoding():
    try:
      image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
      message = f"is no image in a known format ({', '.join(FORMATS)}); it begins with {data[:16]!r}"
      raise ImageError("image_unreadable", "image", message) from error
    _check_size(image)
    image.load()
    return _to_rgb(image)


def read_size(data: bytes) -> tuple[int, int] | None:
  """Width and height of an image file, from its header alone; None: it has none that can be read."""
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      return image.size
  except Exception:  # Pillow raises many types; whoever decodes the image says what is wrong with it
    return None


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
  """Turns whatever Pillow raises into an `ImageError`."""
  try:
    yield
  except ImageError:
    raise
  except Image.DecompressionBombError as error:
    raise ImageError("image_too_large", "image", str(error)) from error
  except Exception as error:  # Pillow's decoders raise many types; the cause is chained
    kind = "image_truncated" if "truncated" in str(error).lower() else "image_unreadable"
    raise ImageError(kind, "image", f"cannot be decoded ({type(error).__name__}: {error})") from error


def fit(image_size: tuple[int, int], size: int, mode: str) -> tuple[int, int, int, int]:
  """How an image becomes a square of side `size`.

  Args:
    image_size: its width and height.
    size: the side of the square, in pixels.
    mode: see `PixelSpec.resize`.

  Returns:
    The width and the height that it is scaled to, and where in the scaled image the square begins: left and top,
    negative where the square is larger.

  Raises:
    ImageError: it is so thin that the scaled image has more than `MAX_PIXELS`.
    ValueError: there is no such mode.
  """
  if mode not in RESIZE_MODES:
    raise ValueError(f"mode must be one of {', '.join(RESIZE_MODES)}, got {mode!r}")
  if mode == "squash":
    return size, size, 0, 0
  if mode == "center_crop":
    width, height = (int(size * side / min(image_size)) for side in image_size)  # rounded down, as in transformers
    if width * height > MAX_PIXELS:
      sides = f"{image_size[0]} x {image_size[1]}"
      raise ImageError("image_too_thin", "image", f"has {sides} pixels: too long to crop; squash it")
    return width, height, (width - size) // 2, (height - size) // 2
  width, height = (max(round(side / (max(image_size) / size)), 1) for side in image_size)  # as in open_clip
  return width, height, -((size - width) // 2), -((size - height) // 2)


def make_square(
  image: Image.Image, size: int, mode: str = "squash", pixels: PixelSpec = CLIP_PIXELS
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Scales an RGB image and cuts or pads it to size x size; see `fit` for arguments and errors."""
  width, height, left, top = fit(image.size, size, mode)
  scaled = resize(image, width, height, pixels.interpolation)
  if left < 0 or top < 0 or min(width, height) < size:
    square = Image.new("RGB", (size, size), tuple(pixels.fill))
    square.paste(scaled, (-left, -top))
    return np.asarray(square)
  return np.asarray(scaled.crop((left, top, left + size, top + size)))


def to_square(image: Image.Image, size: int, pixels: PixelSpec = CLIP_PIXELS) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Squashes or stretches an RGB image to size x size."""
  return make_square(image, size, "squash", pixels)


def center_crop(image: Image.Image, size: int, pixels: PixelSpec = CLIP_PIXELS) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Scales an RGB image so that its shorter side is `size`, and cuts the middle size x size out."""
  return make_square(image, size, "center_crop", pixels)


def normalize(levels: UInt8[np.ndarray, "*B 3"], pixels: PixelSpec = CLIP_PIXELS) -> Float32[np.ndarray, "*B 3"]:
  """RGB levels 0..255 to the values that an image tower reads: about -1.8 to 2.1 in CLIP.

  On devices, `models.pixels.normalize` does the same.
  """
  scaled = levels.astype(np.float32) / np.float32(255)
  return (scaled - np.asarray(pixels.mean, np.float32)) / np.asarray(pixels.std, np.float32)


def preprocess(
  images: Picture | Sequence[Picture], size: int, mode: str = "squash", pixels: PixelSpec = CLIP_PIXELS
) -> Float32[np.ndarray, "B {size} {size} 3"]:
  """Images as the model takes them.

  Args:
    images: a PIL image, the path or the bytes of an image file, an open one, a uint8 array [H, W, 3], or a sequence
      of those. A single image makes a batch of one.
    size: the side S of the model's input, in pixels.
    mode: how an image becomes a square: `squash` (FG-CLIP), `center_crop` (plain CLIP), or `pad`.
    pixels: the model's; its own `resize` is not looked at.

  Raises:
    ImageError: an image cannot be used; its field names the path or the place in the sequence.
    FileNotFoundError: no file at a path.
    TypeError, ValueError: something that is none of those, an array of another dtype or shape, an unknown mode.
  """
  single = isinstance(images, Picture) and not (isinstance(images, np.ndarray) and images.ndim == 4)
  rows, listed = [], cast(Iterable[Any], [images] if single else images)
  for index, picture in enumerate(listed):
    name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else "image" if single else f"images[{index}]"
    rows.append(to_levels(picture, size, mode, name, pixels))
  return normalize(np.stack(rows) if rows else np.zeros((0, size, size, 3), np.uint8), pixels)


def to_levels(
  picture: Picture, size: int, mode: str = "squash", name: str = "image", pixels: PixelSpec = CLIP_PIXELS
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """One image as `preprocess` takes it, not yet normalised; errors call it `name`."""
  try:
    return make_square(to_image(picture, name), size, mode, pixels)
  except ImageError as error:
    raise ImageError(error.kind, name, error.message) from error


def resize(image: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
  """Resizes to rows of `width` first, then to columns of `height`, rounding to 8 bits between the two.

  So did Pillow until version 13, with which the published numbers were made; it takes tall images the other way
  round, which differs by some levels.
  """
  filter = Image.Resampling[interpolation.upper()]
  if width * image.height <= MAX_PIXELS:  # the image between the two steps is large for very tall images
    image = image.resize((width, image.height), filter)
  return image.resize((width, height), filter)


def to_image(picture: Picture, name: str) -> Image.Image:
  """A picture as Pillow has it, decoded, RGB; errors as of `preprocess`."""
  if isinstance(picture, np.ndarray):
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
      found = f"{picture.dtype} {list(picture.shape)}"
      raise ValueError(f"{name}: an array must be uint8 [H, W, 3], got {found}{_advise(picture)}")
    picture = Image.fromarray(picture)
  if isinstance(picture, Image.Image):
    _check_size(picture)
    with _decoding():
      picture.load()  # Pillow reads a file only now
      return _to_rgb(picture)
  if isinstance(picture, str | os.PathLike):
    with open(picture, "rb") as file:
      picture = file.read()
  elif isinstance(picture, OpenFile):
    picture = picture.read()
    if isinstance(picture, str):
      raise TypeError(f"{name} is a file opened as text: open it with mode 'rb'")
    if not picture:
      raise ImageError("image_empty", "image", "is an open file with no bytes left: if it was read before, seek(0)")
  if not isinstance(picture, bytes | bytearray | memoryview):
    raise TypeError(f"{name} must be a PIL image, a path, bytes or a uint8 array, got {type(picture).__name__}")
  return open_image(bytes(picture))


def _advise(array: np.ndarray) -> str:
  """What to do with an array that is no picture."""
  if array.dtype.kind == "f":
    return ": multiply values in 0..1 by 255, round them and use astype(np.uint8)"
  if array.dtype != np.uint8:
    return ": scale its values to 0..255 and use astype(np.uint8)"
  if array.ndim == 2 or array.shape[-1:] == (1,):
    return ": repeat a gray one, np.repeat(x.reshape(*x.shape[:2], 1), 3, axis=2)"
  if array.ndim == 3 and array.shape[0] == 3:
    return ": the channels come last, x.transpose(1, 2, 0)"
  return ": leave the fourth channel out, x[..., :3]" if array.shape[-1] == 4 else ""


def _check_size(image: Image.Image) -> None:
  width, height = image.size
  if min(width, height) < MIN_SIDE:
    raise ImageError("image_too_thin", "image", f"has {width} x {height} pixels; each side needs {MIN_SIDE}")
  if width * height > MAX_PIXELS:
    raise ImageError("image_too_large", "image", f"has {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")
  if max(width, height) > MAX_SIDE:
    raise ImageError("image_too_large", "image", f"has {width} x {height} pixels, a side at most {MAX_SIDE:,}")


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode == "RGB":
    return image
  if image.mode == "F":
    raise ImageError("image_unreadable", "image", "holds floating-point levels of unknown range; save it with 8 bits")
  if image.mode == "I" or image.mode.startswith("I;16"):
    # Pillow clips these at 255, which makes a white picture of most.
    levels = np.asarray(image).astype(np.int32)
    if levels.min() < 0 or levels.max() > 65535:
      raise ImageError("image_unreadable", "image", "holds levels outside 0..65535; save it with 8 or 16 bits")
    image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
  return image.convert("RGB")
