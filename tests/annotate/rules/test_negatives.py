"""Hard negatives drawn by rules."""

import hashlib

import pytest

from fgclip_jax.annotate.rules import negative_checks, negatives
from fgclip_jax.annotate.rules.negatives import Drawer, draw


def test_one_attribute_is_exchanged_and_the_rest_stays():
  drawn = draw("A dark brown leather sofa with a white cushion.", seed=3)
  assert len(drawn) == len({negative.text for negative in drawn}) == 10
  assert {negative.attribute for negative in drawn} == {"colour", "material", "brightness"}
  for negative in drawn:
    assert negative.new in negative.text
    assert "sofa" in negative.text and "cushion" in negative.text
    assert negative_checks.check("A dark brown leather sofa with a white cushion.", negative.text) is None


def test_the_seed_decides():
  texts = [tuple(negative.text for negative in draw("a red wooden chair", seed=seed)) for seed in (1, 1, 2)]
  assert texts[0] == texts[1] != texts[2]


def test_the_same_on_every_python():
  phrases = (
    "A light grey plastic pipe.",
    "a striped green cucumber",
    "two small round tables made of wood",
    "a man in red",
  )
  drawn = repr([draw(phrase, seed=number) for number, phrase in enumerate(phrases)])
  assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "b8b439363069cb1c"


@pytest.mark.parametrize(
  ("phrase", "old", "values"),
  [
    ("the dog is wet", "wet", {"dry"}),
    ("an old man", "old", {"young"}),
    ("an old chair", "old", {"new"}),
    ("a light brown box", "light", {"dark"}),
    ("a tall man", "tall", {"short"}),
    ("a short man", "short", {"tall"}),
    ("a short rope", "short", {"long"}),
  ],
)
def test_what_fits_the_thing(phrase, old, values):
  drawn = {negative.new for negative in draw(phrase, count=100) if negative.old == old}
  assert values <= drawn
  assert not drawn & {"wooden", "red"}
  if old == "old":
    assert drawn & {"new", "young"} == values


@pytest.mark.parametrize(
  ("phrase", "classes", "wrong"),
  [
    ("a young boy", ("state",), {"old", "elderly", "aged"}),
    ("her short dark hair", ("size",), {"tall"}),
    ("her short dark hair", ("brightness",), {"bright"}),
    ("a wooden spoon", ("material",), {"straw", "wood"}),
    ("a straight bill", ("shape",), {"curly", "wavy"}),
    ("a smooth fruit", ("state",), {"fluffy", "hairy"}),
    ("a slate-coloured heron", ("colour",), {"reddish", "bluish"}),
    ("a striped panel", ("pattern",), {"text"}),
  ],
)
def test_what_no_person_would_say(phrase, classes, wrong):
  frequencies = dict.fromkeys(wrong, 5)
  drawn = {each.new for each in draw(phrase, 100, classes=classes, frequencies=frequencies)}
  assert not drawn & wrong


def test_hyphens_of_any_kind():
  assert len(draw("a red‑brown fox", 10)) == 10


def test_what_says_the_same_is_drawn_last():
  sizes = {"large": 9, "huge": 9, "big": 9}
  drawn = [each.new for each in draw("a small red cup", 6, frequencies=sizes | {"blue": 1, "green": 1})]
  assert len({"large", "huge", "big"} & set(drawn[:3])) == 1
  materials = {each.new for each in draw("a wooden bench", 100, classes=("material",), frequencies={"metallic": 1})}
  assert "metallic" in materials and "metal" not in materials


def test_articles_and_case():
  texts = {negative.text for negative in draw("Red car", count=100)}
  assert "Orange car" in texts
  texts = {negative.text for negative in draw("a red car", count=100)}
  assert "an orange car" in texts and not any(text.startswith("a orange") for text in texts)
  assert negatives.replace("an ORANGE car", 3, 9, "blue") == "a BLUE car"
  assert [
    negatives.starts_with_vowel(word) for word in ("hour", "unicorn", "unlit", "one-eyed", "owl", "european")
  ] == [
    True,
    False,
    True,
    False,
    True,
    False,
  ]


def test_what_is_true_is_not_drawn():
  texts = {negative.text for negative in draw("a black and white dog", count=200)}
  assert not texts & {"a white and white dog", "a cream and white dog", "a black and black dog"}
  caption = "A red car with blue doors. The car is covered by stickers."
  texts = {negative.text for negative in draw("a green car", count=200, context=caption)}
  assert "a red car" not in texts and "a blue car" in texts


def test_a_tone_is_no_gloss():
  assert {negative.new for negative in draw("dull maroon bars", classes=("brightness",))} == {"bright", "light"}
  assert not [each for each in draw("a glossy black nose", count=100) if each.new == "dull"]


def test_nothing_to_exchange():
  assert draw("a dog") == ()
  assert draw("a glass of orange juice") == ()
  assert draw("") == ()


def test_values_follow_the_positives():
  positives = ["a red cup"] * 60 + ["a blue cup"] * 30 + ["a light brown cup"] * 9 + ["a wooden spoon"]
  frequencies = negatives.count_values(positives)
  assert frequencies == {"red": 60, "blue": 30, "light brown": 9, "light": 9, "wooden": 1}
  drawer = Drawer(frequencies=frequencies)
  first = [drawer.draw("a green cup", 1, seed)[0].new for seed in range(300)]
  assert set(first) == {"red", "blue", "light brown"}
  assert 0.5 < first.count("red") / 300 < 0.7
  # Other values only fill up.
  assert {negative.new for negative in drawer.draw("a green cup", 3, 0)} == {"red", "blue", "light brown"}
  assert len(drawer.draw("a green cup", 10, 0)) == 10


def test_classes_on_request():
  assert draw("two cats", classes=("count",))[0].attribute == "count"
  assert {negative.new for negative in draw("the left shoe", classes=("position",))} == {"right"}
  assert draw("two cats") == ()


def test_chinese():
  texts = {negative.text for negative in draw("两只黑猫", count=50, language="zh")}
  assert "两只白猫" in texts and all(text.startswith("两只") and text.endswith("猫") for text in texts)
  assert [each.text for each in draw("厚厚的雪", language="zh")] == ["薄薄的雪"]
  drawn = draw("一张深棕色的木制桌子。", language="zh", seed=5)
  assert len(drawn) == 10
  assert not [each for each in drawn if negative_checks.check("一张深棕色的木制桌子。", each.text, "zh")]
