"""The probe that tells negatives from positives by words alone."""

import random

import pytest

from fgclip_jax.annotate.rules import probe
from fgclip_jax.annotate.rules.negatives import Drawer, count_values


def test_a_giveaway_is_found():
  pairs = [(f"a {colour} cup", ["a maroon cup", "a teal cup"]) for colour in ("red", "blue") * 20]
  found = probe.measure(pairs)
  assert found.auc == 1.0
  assert (found.positives, found.negatives) == (40, 80)
  assert {word for word, _ in found.telling[:2]} == {"maroon", "teal"}


def test_words_that_say_nothing():
  random.seed(1)
  colours = ("red", "blue", "green", "black", "white", "grey")
  drawn = [random.sample(colours, 4) for _ in range(400)]
  pairs = [(f"a {one} cup", [f"a {other} cup" for other in others]) for one, *others in drawn]
  assert 0.45 < probe.measure(pairs).auc < 0.55


def test_negatives_drawn_by_frequency_give_less_away():
  random.seed(0)
  colours = random.choices(["red", "blue", "green", "black", "white", "grey", "brown"], [5, 4, 3, 8, 8, 5, 6], k=300)
  things = random.choices(["cup", "car", "door", "dog"], k=300)
  positives = [f"a {colour} {thing}" for colour, thing in zip(colours, things, strict=True)]
  areas = []
  for frequencies in (None, count_values(positives)):
    drawer = Drawer(frequencies=frequencies)
    pairs = [(text, [each.text for each in drawer.draw(text, 3, seed)]) for seed, text in enumerate(positives)]
    areas.append(probe.measure(pairs).auc)
  assert areas[0] > 0.7
  assert 0.4 < areas[1] < 0.6


def test_too_few_regions():
  with pytest.raises(ValueError, match="needs two regions with negatives, got 1"):
    probe.measure([("a red cup", ["a blue cup"]), ("a dog", [])])
