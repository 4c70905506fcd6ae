"""Images as they are stored: as they came, or as JPEGs of a chosen size."""

import io

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data import image
from fgclip_jax.data.record import Record
from fgclip_jax.prepare import image_storage
from fgclip_jax.prepare.image_storage import Storing
from fgclip_jax.storage.errors import RecordError


def make(size, form="JPEG", mode="RGB", **options):
  across, down = np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1])
  pixels = np.stack(np.broadcast_arrays(across[None], down[:, None], 99.0), -1).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, form, **options)
  return file.getvalue()


def store(data, storing):
  stored, came = image_storage.store(Record("a/1", data, "a dog"), storing)
  return stored, came


@pytest.mark.parametrize("data", [make((90, 40)), make((90, 40), "PNG"), make((90, 40), mode="CMYK")])
def test_by_default_an_image_keeps_its_bytes(data):
  for storing in (Storing(), Storing(check=False)):
    stored, came = store(data, storing)
    assert stored.image == data
    assert came == (stored.width, stored.height) == (90, 40)


@pytest.mark.parametrize(
  ("size", "side", "expected"), [((90, 40), 45, (45, 20)), ((40, 90), 30, (13, 30)), ((900, 3), 30, (30, 2))]
)
def test_a_large_image_is_shrunk_to_the_longest_side(size, side, expected):
  stored, came = store(make(size), Storing(max_side=side))
  assert came == size
  assert (stored.width, stored.height) == expected
  with Image.open(io.BytesIO(stored.image)) as picture:
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", expected)


def test_a_shrunk_image_shows_the_same():
  before = image.to_square(image.open_image(make((400, 300), quality=95)), 32)
  stored, _ = store(make((400, 300), quality=95), Storing(max_side=100, quality=95))
  after = image.to_square(image.open_image(stored.image), 32)
  assert np.abs(before.astype(int) - after).max() <= 6


def test_a_small_jpeg_keeps_its_bytes_and_anything_else_becomes_one():
  exact = make((64, 32))
  assert store(exact, Storing(max_side=64))[0].image == exact
  grey = make((64, 32), mode="L")
  assert store(grey, Storing(max_side=64))[0].image == grey
  for data in (make((20, 10), "PNG"), make((20, 10), "WEBP"), make((20, 10), mode="CMYK"), make((20, 10), "GIF")):
    stored, came = store(data, Storing(max_side=64))
    assert came == (stored.width, stored.height) == (20, 10)
    with Image.open(io.BytesIO(stored.image)) as picture:
      assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (20, 10))


def test_quality_decides_the_size_of_the_file():
  sizes = [len(store(make((300, 300)), Storing(max_side=200, quality=q))[0].image) for q in (30, 60, 90)]
  assert sizes == sorted(set(sizes))


def test_a_broken_image_is_named_and_its_header_is_enough_without_the_check():
  cut = make((90, 40))[:-30]
  for storing in (Storing(), Storing(max_side=20)):
    with pytest.raises(RecordError, match="'a/1'") as caught:
      store(cut, storing)
    assert caught.value.kind == "image_truncated"
  assert store(cut, Storing(check=False))[1] == (90, 40)
  stored, came = store(b"<html>", Storing(check=False))
  assert (stored.image, stored.width, stored.height, came) == (b"<html>", 0, 0, None)
  with pytest.raises(RecordError) as caught:
    store(b"", Storing(check=False))
  assert caught.value.kind == "image_empty"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"quality": 0}, "--quality"),
    ({"quality": 101}, "--quality"),
    ({"max_side": 1}, "--max_side"),
    ({"max_side": 64, "check": False}, "--skip_image_check"),
  ],
)
def test_impossible_settings(options, message):
  with pytest.raises(ValueError, match=message):
    Storing(**options)
