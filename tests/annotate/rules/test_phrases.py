"""Phrases of captions: what is found, what is left out and why."""

import json
import pathlib

import pytest

from fgclip_jax.annotate.rules import phrases

SHARED = pathlib.Path(__file__).resolve().parents[4] / "shared"
CAPTION = (
  "A man in a red jacket holds a small brown dog beside the wooden fence. He looks at the camera, and the dog wears a "
  "blue collar with white stitching. In the background, tall pine trees rise from a grassy slope."
)


def test_phrases_of_a_caption():
  result = phrases.split_counted(CAPTION)
  assert [phrase.text for phrase in result.kept] == [
    "A man",
    "a red jacket",
    "a small brown dog",
    "the wooden fence",
    "a blue collar",
    "white stitching",
    "tall pine trees",
    "a grassy slope",
  ]
  assert [phrase.head for phrase in result.kept] == [
    "man",
    "jacket",
    "dog",
    "fence",
    "collar",
    "stitching",
    "trees",
    "slope",
  ]
  assert result.left_out == {"contained": 1, "pronoun": 1, "stop_head": 2}
  man, *_, collar, _, _, _ = result.kept
  assert (man.long, collar.long) == ("A man in a red jacket", "a blue collar with white stitching")
  for phrase in result.kept:
    assert CAPTION[phrase.start : phrase.end] == phrase.text
    for attribute in phrase.attributes:
      assert phrase.text[attribute.start : attribute.end].lower() == attribute.value
  assert phrases.split(CAPTION) == result.kept


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("A close-up of a pair of small pinkish buds.", ["a pair of small pinkish buds"]),
    ("A peacock perches on a wall.", ["A peacock", "a wall"]),
    ("Leaning forward, a man demonstrates an upright vacuum cleaner.", ["a man", "an upright vacuum cleaner"]),
    ("Two white pages carry headings that show English words.", ["Two white pages", "headings"]),
    ("a smooth, rounded white handle", ["a smooth, rounded white handle"]),
    ("It is red.", []),
    ("A blue sky with white clouds over three brown bears.", ["A blue sky", "white clouds", "three brown bears"]),
    ("A woman in red holds a cup.", ["A woman", "a cup"]),
    ("", []),
    ("Wet leaves cover the stone steps.", ["Wet leaves", "the stone steps"]),
    ("The dog is wearing sunglasses and is very happy.", ["The dog", "sunglasses"]),
  ],
)
def test_splitting(caption, expected):
  assert [phrase.text for phrase in phrases.split(caption)] == expected


def test_attributes_of_a_phrase_are_those_of_its_noun():
  (band,) = phrases.split("a green band joined along the middle")
  assert [(each.value, each.noun) for each in band.attributes] == [("green", "band")]
  (plank,) = phrases.split("raw wood")
  assert [each.value for each in plank.attributes] == ["raw"]


def test_the_counts_add_up():
  caption = (
    "A red cup, a red cup, a cup, the left side, it, " + ", ".join(f"a box{number}" for number in range(30)) + "."
  )
  result = phrases.split_counted(caption, limit=10)
  assert len(result.kept) == 10
  assert result.left_out == {"contained": 1, "over_limit": 21, "pronoun": 1, "stop_head": 1, "twice": 1}
  long = "a " + " ".join(["big"] * 12) + " house"
  assert phrases.split_counted(long).left_out == {"too_long": 1}


def test_chinese():
  result = phrases.split_counted("一只棕色的狗坐在绿色的草地上，旁边有一个红色的球。背景是几棵树。", "zh")
  assert [phrase.text for phrase in result.kept] == ["一只棕色的狗", "绿色的草地", "一个红色的球", "几棵树"]
  assert [phrase.head for phrase in result.kept] == ["狗", "草地", "球", "树"]
  assert result.kept[0].long == "一只棕色的狗坐在绿色的草地上"
  assert result.left_out == {"stop_head": 1}


def test_a_whole_text_is_one_phrase():
  phrase = phrases.whole("A lamp with a brown pipe.")
  assert (phrase.text, phrase.head, [each.value for each in phrase.attributes]) == (
    "A lamp with a brown pipe.",
    "lamp",
    ["brown"],
  )


def test_a_language_without_rules():
  with pytest.raises(ValueError, match="en and zh, not 'fr'"):
    phrases.split("un chat", "fr")


def test_real_captions():
  files = sorted((SHARED / "data/real_mini/jsonfiles").glob("*.json"))
  if not files:
    pytest.skip("../shared/data is absent")
  captions = [row["caption"] for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
  results = [phrases.split_counted(caption) for caption in captions]
  assert all(8 <= len(result.kept) <= phrases.LIMIT for result in results)


@pytest.mark.parametrize(
  ("caption", "kept"),
  [
    ("a big red circle bottom right, two cups top left", ["a big red circle", "two cups"]),
    ("A red car left, an old tree in the middle", ["A red car", "an old tree"]),
    ("at the bottom left, at the very top", []),
    ("a left turn", ["a left turn"]),
  ],
)
def test_a_place_after_a_thing_is_no_part_of_it(caption, kept):
  assert [phrase.text for phrase in phrases.split(caption)] == kept
