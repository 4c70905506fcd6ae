"""Pictures as they are sent: pixels, frames, and no metadata."""

import io

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.annotate.servers import images
from fgclip_jax.data.image import ImageError


def make_file(size, form="JPEG", mode="RGB", **options) -> bytes:
  values = np.random.default_rng(0).integers(0, 255, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
  Image.fromarray(values).resize(size).convert(mode).save(file := io.BytesIO(), form, **options)
  return file.getvalue()


def test_exif_is_dropped_and_not_applied():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = make_file((60, 40), exif=exif, comment=b"private")
  sent = Image.open(io.BytesIO(images.encode(data)))
  assert sent.size == (60, 40) and sent.format == "JPEG"
  assert not sent.getexif() and "comment" not in sent.info
  assert np.abs(np.asarray(sent, int) - np.asarray(Image.open(io.BytesIO(data)), int)).mean() < 8


@pytest.mark.parametrize(
  ("size", "expected"),
  [((2048, 1024), (1024, 512)), ((500, 1024), (500, 1024)), ((1080, 1920), (576, 1024)), ((8000, 20), (1024, 3))],
)
def test_the_longest_side(size, expected):
  assert images.fit_size(size) == expected
  sent = Image.open(io.BytesIO(images.encode(Image.new("RGB", size))))
  assert sent.size == expected


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode):
  data = make_file((20, 10), "TIFF" if mode == "CMYK" else "PNG", mode)
  assert Image.open(io.BytesIO(images.encode(data))).mode == "RGB"


def test_a_data_url():
  assert images.data_url(b"\xff\xd8") == "data:image/jpeg;base64,/9g="


@pytest.mark.parametrize(
  ("data", "kind"),
  [
    (make_file((64, 64))[:-400], "image_truncated"),
    (make_file((64, 1), "PNG"), "image_too_thin"),
    (b"", "image_empty"),
  ],
)
def test_a_damaged_picture_is_found_before_it_is_sent(data, kind):
  with pytest.raises(ImageError) as caught:
    images.encode(data)
  assert caught.value.kind == kind


def test_the_frame_stands_around_the_box():
  picture = Image.new("RGB", (2000, 1000), (0, 0, 255))
  framed = np.asarray(images.draw_frame(picture, (0.25, 0.25, 0.75, 0.75), max_side=500))
  assert framed.shape == (250, 500, 3)
  red = framed[..., 0] > 200
  assert red[:, 124].sum() > 100 and red[62:188, 126:374].sum() < 20
  assert np.asarray(images.draw_frame(picture, (0, 0, 1, 1), max_side=500))[..., 0][0].all()
  assert picture.getpixel((500, 500)) == (0, 0, 255)


def test_the_crop_has_a_margin():
  picture = Image.new("RGB", (1000, 1000))
  assert images.crop(picture, (0.2, 0.2, 0.4, 0.6)).size == (240, 480)
  assert images.crop(picture, (0.9, 0.9, 1.0, 1.0)).size == (110, 110)
  assert images.crop(picture, (0.5, 0.5, 0.501, 0.501)).size == (28, 28)
