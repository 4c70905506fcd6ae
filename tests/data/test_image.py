"""Decoding of good and bad image files, and preprocessing against the recorded reference."""

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data import decode
from fgclip_jax.data import image as module
from fgclip_jax.data.image import ImageError, center_crop, normalize, open_image, preprocess, to_square
from fgclip_jax.storage.errors import RecordError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def save(image: Image.Image, file_format: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def as_reference(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
  "mode, name", [("squash", "square224"), ("squash", "square336"), ("center_crop", "centercrop224")]
)
@pytest.mark.parametrize("picture", ["cat_dfclor.jpg", "df_cups.png", "part.jpg"])
def test_equal_to_the_recorded_pixels(shared, oracle, picture, mode, name):
  with np.load(oracle / "common" / "preprocess.npz") as recorded:
    expected = recorded[f"{picture.split('.')[0]}_{name}"]  # fp16, NCHW
  pixels = preprocess(shared / "data" / "pictures" / picture, expected.shape[-1], mode)
  np.testing.assert_array_equal(pixels[0].transpose(2, 0, 1).astype(np.float16), expected)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_formats(file_format):
  data = save(Image.fromarray(NOISE), file_format)
  image = open_image(data)
  assert image.mode == "RGB" and image.size == (60, 40)
  np.testing.assert_array_equal(np.asarray(image), as_reference(data))


def color_modes():
  rgb = Image.fromarray(NOISE)
  alpha = Image.fromarray(RNG.integers(0, 256, (40, 60), np.uint8))
  rgba = rgb.copy()
  rgba.putalpha(alpha)
  palette = rgb.quantize(16)
  return {
    "cmyk": save(rgb.convert("CMYK"), "JPEG"),
    "gray": save(rgb.convert("L"), "PNG"),
    "gray_alpha": save(rgba.convert("LA"), "PNG"),
    "bilevel": save(rgb.convert("1"), "PNG"),
    "rgba": save(rgba, "PNG"),
    "rgba_webp": save(rgba, "WEBP", lossless=True),
    "palette": save(palette, "PNG"),
    "palette_one_transparent": save(palette, "PNG", transparency=3),
    "palette_alpha": save(palette, "PNG", transparency=bytes(range(0, 256, 16))),
    "rgb_transparent_color": save(rgb, "PNG", transparency=tuple(int(level) for level in NOISE[0, 0])),
    "exif_rotated": save(rgb, "JPEG", exif=_rotated()),
    "animated_gif": save(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)]),
    "animated_png": save(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
    "animated_webp": save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)]),
  }


def _rotated() -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


COLOR_MODES = color_modes()


@pytest.mark.filterwarnings("ignore:Palette images")  # from the plain conversion that is compared with
@pytest.mark.parametrize("name", COLOR_MODES)
def test_color_modes_equal_the_reference(name):
  data = COLOR_MODES[name]
  image = open_image(data)
  assert image.mode == "RGB" and image.size == (60, 40)
  np.testing.assert_array_equal(np.asarray(image), as_reference(data))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(file_format):
  levels = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
  pixels = np.asarray(open_image(save(Image.fromarray(levels), file_format)))
  expected = np.round(levels / 257).astype(np.uint8)
  np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def empty_png(width: int, height: int) -> bytes:
  """A PNG file that announces a size and holds no pixel."""
  chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
  )


JPEG = save(Image.fromarray(NOISE), "JPEG")
PNG = save(Image.fromarray(NOISE), "PNG")
BAD = {
  "empty": (b"", "image_empty"),
  "text": (b"<html>404 Not Found</html>", "image_unreadable"),
  "zeros": (bytes(1000), "image_unreadable"),
  "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "image_unreadable"),
  "jpeg_head": (JPEG[:200], "image_truncated"),
  "jpeg_half": (JPEG[: len(JPEG) // 2], "image_truncated"),
  "png_half": (PNG[: len(PNG) // 2], "image_truncated"),
  "gif_half": (COLOR_MODES["animated_gif"][:1500], "image_truncated"),
  "png_damaged": (PNG[:100] + b"damage" + PNG[106:], "image_unreadable"),
  "one_wide": (save(Image.new("RGB", (1, 300)), "PNG"), "image_too_thin"),
  "one_high": (save(Image.new("RGB", (300, 1)), "JPEG"), "image_too_thin"),
  "bomb": (empty_png(60_000, 60_000), "image_too_large"),
  "a_little_too_large": (empty_png(17_895_698, 10), "image_too_large"),
  "floating_point": (save(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "image_unreadable"),
  "signed": (save(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF"), "image_unreadable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name):
  data, kind = BAD[name]
  with pytest.raises(ImageError) as caught:
    open_image(data)
  assert (caught.value.kind, caught.value.field) == (kind, "image")
  assert str(caught.value).startswith("image: ")
  assert isinstance(caught.value, RecordError)
  copy = pickle.loads(pickle.dumps(caught.value))
  assert (type(copy), copy.kind, str(copy)) == (ImageError, kind, str(caught.value))


@given(cut=st.integers(0, len(PNG)), place=st.integers(0, len(PNG) - 1), value=st.integers(0, 255), jpeg=st.booleans())
def test_damage_gives_an_image_or_an_image_error(cut, place, value, jpeg):
  data = bytearray(JPEG if jpeg else PNG)
  data[place % len(data)] = value
  try:
    image = open_image(bytes(data[:cut]))
  except ImageError as error:
    assert error.kind.startswith("image_")
  else:
    assert image.mode == "RGB" and min(image.size) >= module.MIN_SIDE


def test_a_very_wide_picture():
  image = open_image(save(Image.fromarray(NOISE).resize((20_000, 30)), "JPEG"))
  assert image.size == (20_000, 30)
  assert to_square(image, 224).shape == (224, 224, 3)
  assert center_crop(image, 224).shape == (224, 224, 3)
  with pytest.raises(ImageError, match="squash it") as caught:
    center_crop(Image.new("RGB", (20_000, 2)), 224)
  assert caught.value.kind == "image_too_thin"


@pytest.mark.slow
def test_no_warning_comes_through(root):
  """In a process of its own, since pytest sets warning filters anew for each test."""
  code = """if True:
    import io, sys
    from PIL import Image
    from fgclip_jax.data.image import open_image
    Image.MAX_IMAGE_PIXELS = 1500  # 40 x 60 pixels lie between this and twice this, where Pillow warns
    open_image(sys.stdin.buffer.read())
  """
  for name in ("palette_alpha", "rgba"):
    result = subprocess.run(
      [sys.executable, "-W", "error", "-c", code], input=COLOR_MODES[name], capture_output=True, cwd=root
    )
    assert (result.returncode, result.stderr) == (0, b"")


def test_squash_does_not_keep_the_aspect_ratio():
  halves = np.zeros((100, 400, 3), np.uint8)
  halves[:, 200:] = 255
  square = to_square(Image.fromarray(halves), 50)
  assert square.shape == (50, 50, 3) and square.dtype == np.uint8
  assert (square[:, :24] == 0).all() and (square[:, 26:] == 255).all()


@given(width=st.integers(2, 300), height=st.integers(2, 300), size=st.integers(1, 64))
def test_shapes(width, height, size):
  image = Image.new("RGB", (width, height), (255, 128, 0))
  for shape in (to_square, center_crop):
    pixels = shape(image, size)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert (pixels == (255, 128, 0)).all()


def test_center_crop_cuts_the_middle():
  gradient = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
  np.testing.assert_array_equal(center_crop(Image.fromarray(gradient), 100), gradient[:, 50:150])


def test_normalize():
  pixels = np.array([[0, 128, 255]], np.uint8)
  expected = (np.array([[0, 128, 255]]) / 255 - module.CLIP_PIXELS.mean) / module.CLIP_PIXELS.std
  values = normalize(pixels)
  assert values.dtype == np.float32
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_preprocess_takes_paths_bytes_arrays_and_pictures(tmp_path):
  path = tmp_path / "noise.png"
  path.write_bytes(PNG)
  mixed = [path, str(path), PNG, NOISE, Image.fromarray(NOISE)]
  batch = preprocess(mixed, 32)
  assert batch.shape == (5, 32, 32, 3) and batch.dtype == np.float32
  for row, single in zip(batch, mixed, strict=True):
    np.testing.assert_array_equal(row, batch[0])
    np.testing.assert_array_equal(preprocess(single, 32), batch[:1])
  np.testing.assert_array_equal(preprocess(np.stack([NOISE, NOISE]), 32), batch[:2])
  np.testing.assert_array_equal(batch[0], normalize(to_square(Image.fromarray(NOISE), 32)))
  np.testing.assert_array_equal(preprocess(PNG, 32, "center_crop")[0], normalize(center_crop(Image.open(path), 32)))
  assert preprocess([], 32).shape == (0, 32, 32, 3)


def test_preprocess_names_what_is_wrong(tmp_path):
  path = tmp_path / "cut.jpg"
  path.write_bytes(BAD["jpeg_half"][0])
  with pytest.raises(ImageError, match=r"cut\.jpg: .*truncated"):
    preprocess(path, 32)
  with pytest.raises(ImageError, match=r"images\[1\]: has no bytes"):
    preprocess([PNG, b""], 32)
  with pytest.raises(ImageError, match=r"^image: has 1 x 9 pixels"):
    preprocess(Image.new("RGB", (1, 9)), 32)
  with pytest.raises(FileNotFoundError, match="nowhere"):
    preprocess(tmp_path / "nowhere.jpg", 32)


@pytest.mark.usefixtures("unchecked")
def test_preprocess_refuses_other_types():
  with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float32 \[3, 8, 8\]"):
    preprocess(np.zeros((3, 8, 8), np.float32), 32)
  with pytest.raises(TypeError, match=r"images\[1\] must be .* got int"):
    preprocess([PNG, 5], 32)
  with pytest.raises(ValueError, match="squash, center_crop"):
    preprocess(PNG, 32, "stretch")


def _chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("width", "height"), [(2, 80_000_000), (80_000_000, 2), (1 << 19, 16), (100_000, 100_000)])
def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded(width, height):
  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", b"never read") + _chunk(b"IEND", b"")
  for read in (open_image, lambda data: decode.decode_square(data, 64, "fast")):
    with pytest.raises(ImageError) as caught:
      read(data)
    assert caught.value.kind == "image_too_large"


def test_the_longest_picture_that_is_decoded_takes_little_memory():
  picture = Image.new("RGB", (2, module.MAX_SIDE))
  assert module.make_square(picture, 448).shape == (448, 448, 3)
