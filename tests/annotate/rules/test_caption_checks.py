"""What is wrong with captions that models write, against a list labelled by hand."""

import pathlib

import pytest

from fgclip_jax.annotate.rules import caption_checks
from fgclip_jax.annotate.rules.caption_checks import check, clean

PROMPT = (
  "You describe one picture for someone who cannot see it. Write a single paragraph of 80 to 150 words. Start with the "
  "main subject itself, not with words about the picture."
)
GOOD = (
  "A red bicycle leans against a white brick wall beside a green door. Its basket holds a bunch of yellow tulips "
  "wrapped in brown paper"
)


def labelled() -> list[tuple[str, str]]:
  lines = (pathlib.Path(__file__).parent / "labelled_captions.txt").read_text(encoding="utf-8").splitlines()
  rows = [line.split(" | ", 1) for line in lines if not line.startswith("#")]
  return [(kind, text.replace("\\n", "\n")) for kind, text in rows]


def test_labelled_captions():
  rows = [(kind, check(clean(text).text, [PROMPT], at_limit=True) or "good", text) for kind, text in labelled()]
  wrong = [row for row in rows if row[0] != row[1]]
  good = sum(kind == "good" for kind, *_ in rows)
  lost = sum(kind == "good" for kind, *_ in wrong)
  bad, missed = len(rows) - good, len(wrong) - lost
  print(f"{bad - missed} of {bad} bad ones have their class, {lost} of {good} good ones are rejected", *wrong, sep="\n")
  assert missed <= 0.01 * bad and lost <= 0.02 * good


def test_a_caption_that_was_cut():
  assert check(GOOD, finished=False) == "caption_cut"
  assert check(GOOD, at_limit=True) == "caption_cut"
  assert check(GOOD + ".", at_limit=True) is None
  assert check(GOOD) is None
  assert check("word " * 401) == "caption_repeats"
  assert (
    check(" ".join(f"word{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(401))) == "caption_long"
  )


@pytest.mark.parametrize(
  ("caption", "text", "notes"),
  [
    ("```\nA red cup.\n```", "A red cup.", ("caption_markup",)),
    ("**Caption:** A red cup.", "A red cup.", ("caption_markup",)),
    ("# A red cup\n\non a table.", "A red cup on a table.", ("caption_markup",)),
    ("The image shows a red cup.", "A red cup.", ("caption_meta",)),
    ("In this picture, we can see a red cup.", "A red cup.", ("caption_meta",)),
    ("A photo of a red cup.", "A red cup.", ("caption_meta",)),
    ("Sure! Here is a caption: a red cup.", "A red cup.", ("caption_meta",)),
    ("这张图片展示了一个红色的杯子。", "一个红色的杯子。", ("caption_meta",)),
    ("A cup that is probably red.", "A cup that is probably red.", ("caption_speculates",)),
    ('"A red cup."', "A red cup.", ("caption_markup",)),
    ("A red cup.\n\nIt is empty.", "A red cup. It is empty.", ()),
    ("A picture frame hangs on the wall.", "A picture frame hangs on the wall.", ()),
    ("", "", ()),
  ],
)
def test_cleaning(caption, text, notes):
  assert clean(caption) == caption_checks.Cleaned(text, notes)


def test_one_text_for_many_pictures():
  same = caption_checks.SameText()
  assert [same.add(text) for text in ("A red cup.", "a red cup", "A  red cup.", "A blue cup.")] == [False] * 4
  assert same.add("A red cup.")
  assert not same.add("A blue cup.")
