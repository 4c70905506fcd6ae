"""Colours, boxes with labels, wrapped text, fonts."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fgclip_jax.viz import drawing

FONT = drawing.default_font(drawing.FONT_SIZE)


def test_colours_run_from_dark_to_light_and_stay_within_the_ends():
  ramp = drawing.colours(np.linspace(0, 1, 200))
  light = ramp.astype(float) @ (0.299, 0.587, 0.114)
  assert ramp.dtype == np.uint8 and (np.diff(light) > -1).all() and light[-1] - light[0] > 180
  np.testing.assert_array_equal(drawing.colours(np.asarray([-5.0, 7.0])), ramp[[0, -1]])


def test_texts_wrap_at_words():
  text = "a big red striped circle beside a " + "W" * 80 + " and more"
  lines = drawing.wrap(text, 200, FONT)
  assert " ".join(lines) == text and "W" * 80 in lines
  assert all(FONT.getlength(line) <= 200 for line in lines if "W" not in line)
  assert drawing.wrap("", 200, FONT) == []


def test_text_without_spaces_wraps_anywhere():
  lines = drawing.wrap("一只灰色的猫睡在窗边的椅子上 and a dog", 60, FONT)
  assert "".join(lines).replace(" ", "") == "一只灰色的猫睡在窗边的椅子上andadog"
  assert len(lines) > 2 and all(FONT.getlength(line) <= 60 for line in lines)


def test_a_font_is_looked_for_where_pillows_own_is_not_enough():
  assert drawing.find_font(["a cat", "two dogs, 3 + 4!"], 16, names=())[1] == ""
  font, missing = drawing.find_font(["a 猫", "狗"], 16, names=("no-such-font.ttf",))
  assert missing == "狗猫" and font.getname() == FONT.getname()
  font, missing = drawing.find_font(["кот"], 16)
  if missing:
    pytest.skip("there is no font with Cyrillic letters here")
  assert font.getname() != FONT.getname() and font.size == 16


def test_lines_beyond_the_most_are_cut():
  lines = drawing.wrap("W" * 80 + " and some more words than fit into two lines of this width", 200, FONT, 2)
  assert len(lines) == 2 and lines[0] == "W" * len(lines[0]) and lines[1].endswith(" ...")
  assert all(FONT.getlength(line) <= 200 for line in lines)
  assert drawing.wrap("two words", 200, FONT, 2) == ["two words"]


def test_labels_are_drawn_over_all_boxes():
  picture = Image.new("RGB", (100, 80), "white")
  boxes = [(0.0, 0.0, 0.6, 0.9), (0.05, 0.0, 1.0, 1.0)]
  drawing.draw_boxes(
    ImageDraw.Draw(picture), picture.size, boxes, ["1", ""], FONT, inside=True, colours=("#ff0000", "#0000ff")
  )
  pixels = np.asarray(picture)
  assert tuple(pixels[0, 5]) == (255, 0, 0), "the label of the first box covers the second box"
  assert tuple(pixels[-1, -1]) == (0, 0, 255) and tuple(pixels[40, 0]) == (255, 0, 0)
