"""What users give to the model: pictures and texts in any form, and what is refused."""

import collections
import io
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgclip_jax.data import image as images
from fgclip_jax.inference import model as api
from fgclip_jax.models import config as presets
from tests.helpers.toy_models import init

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def model():
  return api.FGCLIP(TINY, init(TINY, 0))


def pictures(count, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_an_open_file_is_one_picture_and_so_are_bytes_of_any_type(model, photo, tmp_path):
  picture, path = photo
  expected, data = model.encode_image(picture), path.read_bytes()
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    archive.writestr("a.png", data)
  with (
    open(path, "rb") as file,
    zipfile.ZipFile(tmp_path / "a.zip") as archive,
    archive.open("a.png") as member,
    os.scandir(path.parent) as entries,
  ):
    (entry,) = entries  # a path, though no Path
    for form in (file, member, entry, io.BytesIO(data), bytearray(data), memoryview(data)):
      np.testing.assert_array_equal(model.encode_image(form), expected)
    several = [io.BytesIO(data), bytearray(data), picture]
    np.testing.assert_allclose(model.encode_image(several), np.repeat(expected, 3, 0), atol=1e-6)
    np.testing.assert_array_equal(model.preprocess(io.BytesIO(data)), model.preprocess(picture))
    with pytest.raises(ValueError, match=r"images\[0\]: is an open file with no bytes left: .*seek\(0\)"):
      model.encode_image(file)
    with pytest.raises(TypeError, match="opened as text: open it with mode 'rb'"):
      model.encode_image(io.StringIO("a"))


def test_pictures_of_pillow_in_every_mode(model, photo, tmp_path):
  picture, _ = photo
  gray = picture.convert("L")
  sixteen = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
  for given, expected in (
    (gray, gray),
    (gray.convert("LA"), gray),
    (gray.convert("1"), gray.convert("1")),
    (sixteen, gray),
    (picture.convert("P", palette=Image.Palette.ADAPTIVE), picture.convert("P", palette=Image.Palette.ADAPTIVE)),
    (picture.convert("CMYK"), picture.convert("CMYK")),
    (picture.convert("RGBA"), picture),
  ):
    found = model.encode_image(np.asarray(expected.convert("RGB")))
    np.testing.assert_allclose(model.encode_image([given, given])[1:], found, atol=1e-6)
  with pytest.raises(ValueError, match=r"images\[0\]: holds floating-point levels"):
    model.encode_image(gray.convert("F"))
  cut = tmp_path / "cut.png"
  cut.write_bytes(photo[1].read_bytes()[:-2000])
  with Image.open(cut) as opened, pytest.raises(images.ImageError, match=r"images\[0\]: cannot be decoded"):
    model.encode_image(opened)


def test_arrays_of_pytorch(model, torch):
  levels = torch.from_numpy(pictures(2))
  expected = model.encode_image(pictures(2))
  np.testing.assert_array_equal(model.encode_image(levels), expected)
  np.testing.assert_allclose(model.encode_image(list(levels)), expected, atol=1e-6)
  normalised = torch.from_numpy(images.normalize(pictures(2)))
  np.testing.assert_allclose(model.encode_image(normalised.requires_grad_()), expected, atol=1e-5)
  assert model.encode_image(normalised.to(torch.bfloat16)).shape == (2, 16)
  boxes = torch.tensor([[[0.0, 0, 1, 1]]] * 2, requires_grad=True)
  np.testing.assert_array_equal(model.encode_regions(levels, boxes), model.encode_regions(levels, boxes.tolist()))
  with pytest.raises(ValueError, match=r"channels come last, pixels.transpose\(0, 2, 3, 1\)"):
    model.encode_image(normalised.permute(0, 3, 1, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(model, value):
  pixels = images.normalize(pictures(3))
  pixels[2, 5, 6, 1] = value
  for given in (pixels, pixels.astype(np.float64), list(pixels), iter(pixels)):
    with pytest.raises(ValueError, match=r"the pixels of images\[2\] hold NaN or infinity"):
      model.encode_image(given)


def test_floats_in_0_to_1_are_levels_that_nobody_normalised(model):
  message = r"about -1.8 to 2.1\), and these all lie in 0..1: use model.preprocess"
  scaled = pictures(2) / np.float32(255)
  noise = np.random.default_rng(0).random((1, 32, 32, 3))
  for given in (scaled, scaled.astype(np.float16), jnp.asarray(scaled), list(scaled), noise, (pictures(1) > 99) * 1.0):
    with pytest.raises(ValueError, match=message):
      model.encode_image(given)
  # what is normalised and lies there is taken: a uniform picture, a pale one, one of a batch
  pale = images.normalize(pictures(2) // 6 + 124)
  assert pale.min() >= 0 and pale.max() <= 1
  for given in (pale, np.full((1, 32, 32, 3), 0.5), np.zeros((1, 32, 32, 3))):
    assert model.encode_image(given).shape == (len(given), 16)
  pale[1] = images.normalize(pictures(1))[0]
  pale[0] += np.float32(0.001)
  assert model.encode_image(pale).shape == (2, 16)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5)])
def test_what_lies_in_0_to_1_is_as_the_models_pixels_say(mean, std):
  config = TINY.replace(vision={"pixels": presets.PixelSpec((mean,) * 3, (std,) * 3)})
  model = api.FGCLIP(config, init(config, 0))
  scaled = pictures(2) / np.float32(255)
  if mean:
    with pytest.raises(ValueError, match=r"about -1.0 to 1.0\), and these all lie in 0..1"):
      model.encode_image(scaled)
    bright = pictures(2) // 2 + 128
    np.testing.assert_allclose(
      model.encode_image(bright / np.float32(127.5) - 1), model.encode_image(bright), atol=1e-5
    )
  else:
    np.testing.assert_allclose(model.encode_image(scaled), model.encode_image(pictures(2)), atol=1e-5)


class Table:
  """Stands in for a DataFrame: iterating gives the names of its columns."""

  ndim, columns = 2, ("image", "text")

  def __iter__(self):
    return iter(self.columns)


class Series:
  """Stands in for a Series of pandas."""

  ndim = 1

  def __init__(self, values):
    self.values = values

  def __array__(self, dtype=None, copy=None):
    array = np.empty(len(self.values), object)
    array[:] = self.values
    return array

  def __iter__(self):
    return iter(self.values)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"image": "a.png", "text": "a cat"}, "got a dict with the fields 'image', 'text': give one of them"),
    (collections.UserDict(pixel_values=1), "got a UserDict with the fields 'pixel_values'"),
    (Table(), "got a Table with the fields 'image', 'text'"),
    ({"a", "b"}, "got a set, which has no order"),
    (frozenset(["a"]), "got a frozenset, which has no order"),
  ],
)
def test_what_has_no_order_is_no_list(model, given, message):
  for encode, what in (
    (model.encode_image, "images"),
    (model.preprocess, "images"),
    (model.encode_text, "texts"),
    (lambda boxes: model.encode_regions(pictures(1), boxes), "boxes"),
  ):
    with pytest.raises(TypeError, match=f"{what} must be a list, {message}"):
      encode(given)


@pytest.mark.usefixtures("unchecked")
def test_a_series_an_array_and_views_of_a_dict_are_lists(model, photo):
  picture, path = photo
  texts = ["a cat", "two dogs"]
  expected = model.encode_text(texts)
  for given in (
    Series(texts),
    np.asarray(texts),
    np.asarray(texts, object),
    dict.fromkeys(texts).keys(),
    {1: "a cat", 2: "two dogs"}.values(),
    (text for text in texts),
  ):
    np.testing.assert_allclose(model.encode_text(given), expected, atol=1e-6)
  np.testing.assert_allclose(model.encode_text(np.asarray("a cat")), expected[:1], atol=1e-6)
  two = np.repeat(model.encode_image(picture), 2, 0)
  for given in (Series([str(path)] * 2), Series([picture] * 2), {1: path, 2: picture}.values()):
    np.testing.assert_allclose(model.encode_image(given), two, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
  ("given", "error", "message"),
  [
    (np.zeros((40, 30), np.uint8), ValueError, r"got \[40, 30\]"),
    ([np.zeros((40, 30), np.uint8)], ValueError, "repeat a gray one"),
    ([np.zeros((40, 30, 1), np.uint8)], ValueError, "repeat a gray one"),
    ([np.zeros((40, 30, 4), np.uint8)], ValueError, "leave the fourth channel out"),
    ([np.zeros((3, 40, 30), np.uint8)], ValueError, r"the channels come last, x.transpose\(1, 2, 0\)"),
    (np.zeros((3, 32, 32), np.uint8), ValueError, r"the channels come last, pixels.transpose\(1, 2, 0\)\[None\]"),
    (np.zeros((1, 32, 32, 3), np.uint16), ValueError, "got uint16: give levels 0..255 as uint8"),
    (np.zeros((1, 32, 32, 3), bool), ValueError, "got bool"),
    (np.zeros((1, 32, 32, 3), complex), ValueError, "got complex128"),
    (np.uint8(3), ValueError, r"got \[\]"),
    (3, TypeError, "images must be arrays"),
    (None, TypeError, "images must be arrays"),
    ([None], TypeError, r"images\[0\] must be"),
    ([[0, 1]], TypeError, r"images\[0\] must be"),
    ([{"bytes": b""}], TypeError, r"images\[0\] must be"),
    ("/", OSError, "directory"),
  ],
)
def test_what_is_no_picture_is_refused(model, given, error, message):
  with pytest.raises(error, match=message):
    model.encode_image(given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("texts", [b"a cat", bytearray(b"a"), [b"a cat"], np.asarray([b"a"]), np.zeros(2), [None], 3.5])
def test_what_is_no_text_is_refused(model, texts):
  with pytest.raises(TypeError, match="must be"):
    model.encode_text(texts)


def test_an_array_of_texts_has_one_axis(model):
  with pytest.raises(ValueError, match=r"must have one axis, got \[1, 2\]"):
    model.encode_text(np.asarray([["a", "b"]]))
