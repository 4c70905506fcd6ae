"""The two modes of decoding: how far they may differ, and that they accept and refuse the same files."""

import io
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data import decode as module
from fgclip_jax.data.decode import decode_square, resize_fast
from fgclip_jax.data.image import ImageError, open_image, to_square

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)
SIDES = st.integers(2, 90)


def save(pixels: np.ndarray | Image.Image, file_format: str = "JPEG", **options) -> bytes:
  file = io.BytesIO()
  (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, file_format, **options)
  return file.getvalue()


def difference(data: bytes, size: int, choose=None) -> np.ndarray:
  (exact, part), (fast, same) = (decode_square(data, size, mode, choose) for mode in ("exact", "fast"))
  assert part == same
  return np.abs(exact.astype(int) - fast)


@given(SIDES, SIDES, SIDES, st.booleans(), st.integers(0, 2**32 - 1))
@example(60, 40, 40, True, 0)  # one side stays as it is
@example(2, 90, 30, True, 0)
def test_fast_resizing_differs_by_two_levels(width, height, size, extreme, seed):
  """Noise and black against white are the worst that there is."""
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  pixels = np.where(pixels < 128, 0, 255).astype(np.uint8) if extreme else pixels
  fast, exact = resize_fast(pixels, size), to_square(Image.fromarray(pixels), size)
  assert fast.shape == (size, size, 3) and fast.dtype == np.uint8
  assert np.abs(fast.astype(int) - exact).max() <= 2


@pytest.mark.parametrize("size", [224, 336])
def test_fast_on_photographs(shared, size):
  files = [*sorted((shared / "data" / "real_mini").rglob("*.jpg"))[::4], *(shared / "data" / "pictures").glob("*.*g")]
  differences = [difference(path.read_bytes(), size) for path in files]
  assert max(difference.max() for difference in differences) <= 2
  assert np.mean([difference.mean() for difference in differences]) < 0.01


FILES = {
  "gray": save(Image.fromarray(NOISE).convert("L")),
  "cmyk": save(Image.fromarray(NOISE).convert("CMYK")),
  "progressive": save(NOISE, progressive=True, quality=95),
  "whole_colors": save(NOISE, subsampling=0),
  "rgb_inside": save(NOISE, keep_rgb=True),
  "png": save(NOISE, "PNG"),
  "palette": save(Image.fromarray(NOISE).quantize(16), "PNG"),
  "sixteen_bits": save(Image.fromarray(np.arange(0, 64000, 10, np.uint16).reshape(80, 80)), "PNG"),
  "webp": save(NOISE, "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
def test_fast_reads_what_exact_reads(name):
  assert difference(FILES[name], 32).max() <= 2


@pytest.mark.parametrize(
  "data, kind",
  [
    (b"", "image_empty"),
    (b"\xff\xd8", "image_unreadable"),
    (b"\xff\xd8\xff" + bytes(100), "image_unreadable"),
    (save(NOISE)[:-400], "image_truncated"),
    (save(Image.new("RGB", (300, 1))), "image_too_thin"),
  ],
)
@pytest.mark.parametrize("mode", module.MODES)
def test_faults_are_of_the_same_class(data, kind, mode):
  with pytest.raises(ImageError) as caught:
    decode_square(data, 16, mode)
  assert caught.value.kind == kind


def test_too_many_pixels(monkeypatch):
  monkeypatch.setattr(module, "MAX_PIXELS", 2000)
  monkeypatch.setattr("fgclip_jax.data.image.MAX_PIXELS", 2000)
  with pytest.raises(ImageError) as caught:
    decode_square(save(NOISE), 16, "fast")
  assert caught.value.kind == "image_too_large"


JPEG = save(NOISE)


@given(st.integers(0, len(JPEG)), st.lists(st.tuples(st.integers(0, len(JPEG) - 1), st.integers(0, 255)), max_size=3))
@example(len(JPEG) - 2, [])  # all pixels are there, but not the end
@example(len(JPEG) - 1, [])
def test_damaged_files_are_judged_alike(length, changes):
  """No half-gray picture: whatever is cut or changed, both modes give the same picture, or refuse it alike."""
  data = bytearray(JPEG)
  for place, value in changes:
    data[place] = value
  data = bytes(data[:length])
  try:
    open_image(data)
  except ImageError as error:
    with pytest.raises(ImageError) as caught:
      decode_square(data, 16, "fast")
    assert (caught.value.kind, caught.value.message) == (error.kind, error.message)
  else:
    assert difference(data, 16).max() <= 2


@pytest.mark.parametrize("mode", module.MODES)
def test_a_part_is_what_is_cut_out_and_squashed(mode):
  data = save(NOISE, "PNG")
  seen = []
  pixels, part = decode_square(data, 20, mode, lambda *size: seen.append(size) or (10, 4, 40, 36))
  assert seen == [(60, 40)] and part == (10 / 60, 4 / 40, 40 / 60, 36 / 40)
  expected = to_square(Image.fromarray(NOISE[4:36, 10:40]), 20)
  assert np.abs(pixels.astype(int) - expected).max() <= (0 if mode == "exact" else 2)


def test_threads_resize_at_once():
  pictures = [RNG.integers(0, 256, (50 + 7 * index, 80, 3), np.uint8) for index in range(8)]
  found: dict[int, np.ndarray] = {}

  def work(index: int):
    for _ in range(20):
      found[index] = resize_fast(pictures[index], 32)

  threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for index, picture in enumerate(pictures):
    np.testing.assert_array_equal(found[index], resize_fast(picture, 32))


def test_without_the_package_pillow_resizes(monkeypatch):
  monkeypatch.setattr(module, "cykooz_resizer", None)
  assert difference(FILES["progressive"], 24).max() == 0


def test_rows_go_before_columns_whatever_the_shape():
  """The order decides some levels, and Pillow has changed it; a picture wider than high has the same in all of them."""
  wide = NOISE
  np.testing.assert_array_equal(
    to_square(Image.fromarray(wide), 32), np.asarray(Image.fromarray(wide).resize((32, 32), Image.Resampling.BICUBIC))
  )
  tall = Image.fromarray(NOISE.transpose(1, 0, 2).copy())
  rows_first = tall.resize((32, 60), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(to_square(tall, 32), np.asarray(rows_first))
