"""Prompts: fields, hashes, messages, and the notes of further attempts."""

import re

import pytest

from fgclip_jax.annotate.rules import caption_checks, negative_checks
from fgclip_jax.annotate.servers import prompts


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_prompt_fills(language):
  caption = prompts.make_caption_prompt(language)
  (message,) = prompts.caption_messages(caption, "data:,x", existing="A {cup} «of» tea\n")
  picture, text = message["content"]
  assert picture == {"type": "image_url", "image_url": {"url": "data:,x"}}
  assert "«A {cup} of tea»" in text["text"]
  assert prompts.caption_messages(caption, "data:,x")[0]["content"][1]["text"] == caption.text

  region = prompts.make_region_prompt(language)
  (message,) = prompts.region_messages(region, "data:,1", "data:,2", "a red cup")
  assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
  assert "«a red cup»" in message["content"][2]["text"]

  for order, unit, padded in (("xyxy", "thousandths", False), ("cxcywh", "pixels", False), ("yxyx", "percent", True)):
    boxes = prompts.name_coordinates(prompts.make_boxes_prompt(language), order, unit, padded)
    (message,) = prompts.boxes_messages(boxes, "data:,x", ["a red cup", "a plate"], (64, 48))
    text = message["content"][1]["text"]
    assert "a red cup" in text and "{" not in text and ("64" in text) == (unit == "pixels")

  negatives = prompts.make_negatives_prompt(language, count=3)
  (message,) = prompts.negatives_messages(
    negatives, "a red metal cup", "cup", [("colour", "red"), ("material", "metal")], 3
  )
  assert "«a red metal cup»" in message["content"] and "3" in message["content"]
  assert "red" in message["content"].split("metal cup»", 1)[1]
  assert negatives.schema["properties"]["negatives"]["minItems"] == 3


def test_the_hash_names_text_and_schema():
  hashes = {
    prompt.hash
    for language in ("en", "zh")
    for prompt in (
      prompts.make_caption_prompt(language),
      prompts.make_region_prompt(language),
      prompts.make_negatives_prompt(language),
      prompts.make_negatives_prompt(language, count=3),
    )
  }
  assert len(hashes) == 8
  assert prompts.make_caption_prompt().hash == prompts.make_caption_prompt().hash


def test_a_prompt_of_ones_own(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("Describe {phrase} and {colour}.\n")
  prompt = prompts.read_prompt(str(path), prompts.make_region_prompt())
  assert prompt.schema == prompts.REGION_SCHEMA
  with pytest.raises(ValueError, match=r"mine.txt': field {colour} is unknown; known: phrase"):
    prompts.region_messages(prompt, "data:,1", "data:,2", "a cup")
  path.write_text("\n")
  with pytest.raises(ValueError, match="is empty"):
    prompts.read_prompt(str(path), prompts.make_region_prompt())


def test_one_of_several_by_the_key():
  several = [prompts.make_caption_prompt("en"), prompts.make_caption_prompt("zh")]
  chosen = [prompts.choose(several, f"key {number}") for number in range(100)]
  assert chosen == [prompts.choose(several, f"key {number}") for number in range(100)]
  assert 30 < sum(prompt is several[0] for prompt in chosen) < 70


def test_the_broken_rule_is_named():
  assert "more than one attribute" in prompts.describe_rule("many_changed")
  assert "不止一处" in prompts.describe_rule("many_changed", language="zh")
  assert "answer has no 'long'. Answer" in prompts.describe_rule("answer_schema", "answer has no 'long'.")
  assert "some new rule" in prompts.describe_rule("some_new_rule")


def test_every_rule_has_a_sentence_in_every_language():
  tables = f"{caption_checks.__doc__}{negative_checks.__doc__}"
  names = {name for row in re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
  assert len(names) > 20
  for module in prompts.LANGUAGES.values():
    assert not names - set(module.RULES)
