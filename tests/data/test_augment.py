"""Random crops: they keep to their limits, and boxes stay on what they enclose."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data.augment import choose_part, move_boxes
from fgclip_jax.data.decode import MODES, decode_square

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(2, 300)
SHARES = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted).map(tuple)


def draw(crop: str, width: int, height: int, seed: int, area=(0.6, 1.0)) -> tuple[int, int, int, int]:
  return choose_part(crop, area, np.random.default_rng(seed))(width, height)


@given(SIDES, SIDES, SEEDS, SHARES)
def test_a_random_part_lies_in_the_image_and_has_a_share_of_the_wanted_size(width, height, seed, area):
  left, top, right, bottom = draw("random", width, height, seed, area)
  assert 0 <= left < right <= width and 0 <= top < bottom <= height
  across, down = right - left, bottom - top
  if min(across, down) > 1:  # a part is a pixel at least; above that its sides are rounded
    assert (across - 0.5) * (down - 0.5) <= area[1] * width * height + 1e-6
    assert (across - 0.5) / (down + 0.5) <= 4 / 3 * width / height
    assert (down - 0.5) / (across + 0.5) <= 4 / 3 * height / width
  assert (across + 0.5) * (down + 0.5) >= area[0] * width * height - 1e-6


@given(SIDES, SIDES, SEEDS)
def test_a_random_square_has_the_shorter_side(width, height, seed):
  left, top, right, bottom = draw("random_square", width, height, seed)
  assert right - left == bottom - top == min(width, height)
  assert 0 <= left and right <= width and 0 <= top and bottom <= height


def test_every_place_is_drawn():
  squares = {draw("random_square", 12, 10, seed) for seed in range(40)}
  assert squares == {(0, 0, 10, 10), (1, 0, 11, 10), (2, 0, 12, 10)}
  parts = np.asarray([draw("random", 100, 100, seed) for seed in range(300)])
  assert (parts[:, :2].min(0) == 0).all() and (parts[:, 2:].max(0) == 100).all()
  shares = (parts[:, 2] - parts[:, 0]) * (parts[:, 3] - parts[:, 1]) / 1e4
  assert shares.min() < 0.62 and shares.max() > 0.98


def test_no_crop_is_the_whole_image():
  assert choose_part("none", (0.6, 1.0), np.random.default_rng(0)) is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crop", ["random", "random_square"])
@given(data=st.data(), seed=SEEDS, size=st.integers(24, 64))
def test_a_marked_block_stays_inside_its_box(mode, crop, data, seed, size):
  width, height = (data.draw(st.integers(20, 120)) for _ in range(2))
  x1, y1 = (data.draw(st.integers(0, side - 4)) for side in (width, height))
  x2, y2 = (data.draw(st.integers(low + 4, side)) for low, side in ((x1, width), (y1, height)))
  picture = np.zeros((height, width, 3), np.uint8)
  picture[y1:y2, x1:x2] = 255
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  choose = choose_part(crop, (0.1, 1.0), np.random.default_rng(seed))
  pixels, part = decode_square(file.getvalue(), size, mode, choose)
  boxes, kept = move_boxes(np.asarray([[x1 / width, y1 / height, x2 / width, y2 / height]], np.float32), part, 0.0)
  marked = np.argwhere(pixels[..., 0] > 127)[:, ::-1]  # x, y
  if len(kept) == 0:
    assert len(marked) == 0
    return
  centers = (marked + 0.5) / size
  seen = np.asarray([(part[2] - part[0]) * width, (part[3] - part[1]) * height])  # pixels of the image
  blur = 1 / size + 1 / seen  # bicubic: a pixel of the result, or one of the image where that is larger
  assert (centers >= boxes[0, :2] - blur).all() and (centers <= boxes[0, 2:] + blur).all()
  sides = boxes[0, 2:] - boxes[0, :2]
  if (sides > 2 * blur).all():  # and the box holds nothing but the block
    assert len(marked) and (np.ptp(centers, axis=0) > sides - 2 * blur - 1 / size).all()


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=6), SIDES, SIDES, SEEDS, st.floats(0, 1))
def test_moved_boxes(corners, width, height, seed, keep):
  boxes = np.asarray([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners], np.float64).reshape(
    -1, 4
  )
  left, top, right, bottom = draw("random", width, height, seed, (0.1, 1.0))
  part = (left / width, top / height, right / width, bottom / height)
  moved, kept = move_boxes(boxes, part, keep)
  assert moved.shape == (len(kept), 4) and ((moved >= 0) & (moved <= 1)).all()
  assert (moved[:, :2] <= moved[:, 2:]).all() and sorted(set(kept)) == list(kept)
  back = moved * np.tile([part[2] - part[0], part[3] - part[1]], 2) + np.tile(part[:2], 2)
  np.testing.assert_allclose(back, np.clip(boxes[kept], np.tile(part[:2], 2), np.tile(part[2:], 2)), atol=1e-9)
  area = np.prod(back[:, 2:] - back[:, :2], axis=1)
  whole = np.prod(boxes[kept][:, 2:] - boxes[kept][:, :2], axis=1)
  assert (area >= keep * whole - 1e-9).all()


def test_boxes_of_which_too_little_is_left_are_dropped():
  part = (0.5, 0.0, 1.0, 1.0)
  boxes = np.asarray(
    [
      [0.5, 0, 1, 1],  # the part itself
      [0.4, 0.2, 0.6, 0.4],  # half of it is left
      [0.39, 0.2, 0.6, 0.4],  # a little less
      [0.0, 0.0, 0.4, 1.0],  # outside
      [0.7, 0.1, 0.7, 0.9],  # no area, but inside
      [0.2, 0.1, 0.2, 0.9],  # no area, outside
    ],
    np.float32,
  )
  moved, kept = move_boxes(boxes, part, 0.5)
  assert kept.tolist() == [0, 1, 4] and moved.dtype == np.float32
  np.testing.assert_allclose(moved, [[0, 0, 1, 1], [0, 0.2, 0.2, 0.4], [0.4, 0.1, 0.4, 0.9]], atol=1e-6)


def test_the_whole_image_changes_no_box():
  boxes = np.random.default_rng(0).random((5, 2, 2)).astype(np.float32)
  boxes = np.sort(boxes, axis=1).reshape(-1, 4)
  moved, kept = move_boxes(boxes, (0.0, 0.0, 1.0, 1.0), 1.0)
  np.testing.assert_array_equal(moved, boxes)
  assert kept.tolist() == [0, 1, 2, 3, 4]
