"""What an English text says of things."""

import pytest

from fgclip_jax.annotate.rules.english_attributes import find


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a brown leather collar with white stitching", "brown/collar leather/collar white/stitching"),
    ("A knife that is made entirely out of plastic and is white in color.", "plastic/knife white/knife"),
    ("a black and white dog with a black head", "black/dog white/dog black/head"),
    ("an orange cat on an orange", "orange/cat"),
    ("a glass of orange juice", ""),
    ("a light bulb and a hot dog", ""),
    ("a light wooden table", "light/table wooden/table"),
    ("a dark red wine glass", ""),
    ("a woman in red", "red/woman"),
    ("a black-feathered ostrich", "black/ostrich"),
    ("a grey-coloured metal knife", "grey/knife metal/knife"),
    ("a half-closed brown eye", "brown/eye"),
    ("the door is open", "open/door"),
    ("a two year old boy", ""),
    ("scissors made of metal and plastic", "metal/scissors plastic/scissors"),
    ("a red-orange bird", "red-orange/bird"),
    ("a man holding a dark red glass", "dark red/glass"),
    ("a bench with a black back and seat", "black/back"),
    ("white clouds drift over tall towers", "white/clouds tall/towers"),
    ("a bundle of dry sticks", "dry/sticks"),
    ("a woman in red holds a cup", "red/woman"),
    ("a small, rusty, yellow tractor", "small/tractor yellow/tractor"),
    ("a dark-brown, wooden, old-fashioned chair", "dark-brown/chair wooden/chair"),
    ("a straw hat and a straw-coloured lawn", "straw/hat straw-coloured/lawn"),
    ("the man on the left wears a hat", "left/man"),
    ("a pillow with a dark blue, black and grey color", "dark blue/color black/color grey/color"),
  ],
)
def test_attributes_and_what_they_describe(text, expected):
  found = find(text)
  assert " ".join(f"{each.value}/{each.noun}" for each in found) == expected
  assert all(text[each.start : each.end].lower() == each.value for each in found)
