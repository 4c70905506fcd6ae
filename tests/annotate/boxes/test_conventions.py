"""Boxes of all conventions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.annotate.boxes.conventions import FRAMES, ORDERS, UNITS, Convention
from fgclip_jax.storage.errors import RecordError

SIZES = st.sampled_from([(1080, 1920), (8000, 20), (64, 64), (640, 480)])
NUMBERS = st.floats(0, 1)


@st.composite
def boxes(draw):
  (x1, x2), (y1, y2) = (sorted((draw(NUMBERS), draw(NUMBERS))) for _ in range(2))
  return x1, y1, x2, y2


@pytest.mark.parametrize(
  "convention", [Convention(*each) for each in itertools.product(ORDERS, UNITS, FRAMES)], ids=str
)
@given(box=boxes(), size=SIZES, seen=SIZES)
def test_a_box_comes_back_within_half_a_pixel(convention, box, size, seen):
  found = convention.to_box(convention.from_box(box, size, seen), size, seen)
  difference = np.abs(np.subtract(found, box)) * (*size, *size)
  assert difference.max() < 0.5
  assert 0 <= min(found) and max(found) <= 1


def test_known_boxes():
  size = (200, 100)
  left_half = (0.0, 0.0, 0.5, 1.0)
  for text, values in {
    "xyxy,pixels": (0, 0, 100, 100),
    "xywh,pixels": (0, 0, 100, 100),
    "cxcywh,fraction": (0.25, 0.5, 0.5, 1.0),
    "yxyx,thousandths": (0, 0, 1000, 500),
    "xyxy,percent": (0, 0, 50, 100),
    "xyxy,fraction,padded": (0, 0, 0.5, 0.5),
    "xyxy,pixels,padded": (0, 0, 100, 100),
  }.items():
    assert Convention.parse(text).to_box(values, size) == pytest.approx(left_half), text
  assert Convention("xyxy", "pixels", "input").to_box((0, 0, 32, 64), size, (64, 64)) == pytest.approx(left_half)


@pytest.mark.parametrize(
  ("values", "kind"),
  [
    ((0.5, 0.1, 0.2, 0.9), "box_swapped"),
    ((0.1, 0.1, 1.2, 0.9), "box_outside"),
    ((-0.1, 0.1, 0.2, 0.9), "box_outside"),
    ((0.1, 0.1, float("nan"), 0.9), "box_not_finite"),
    ((0.1, 0.1, 0.9), "box_not_four_numbers"),
    (("a", 0.1, 0.2, 0.9), "box_not_four_numbers"),
    (None, "box_not_four_numbers"),
  ],
)
def test_what_is_no_box(values, kind):
  with pytest.raises(RecordError) as caught:
    Convention().to_box(values, (10, 10))
  assert caught.value.kind == kind


def test_corners_a_little_outside_are_cut():
  assert Convention().to_box((-0.01, 0.0, 1.01, 1.0), (10, 10)) == (0, 0, 1, 1)


@pytest.mark.parametrize("text", ["xxyy", "xyxy,inches", "xyxy,pixels,window"])
def test_unknown_conventions(text):
  with pytest.raises(ValueError, match="is one of"):
    Convention.parse(text)
