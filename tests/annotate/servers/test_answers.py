"""From responses to values: inputs 1 to 3 of what servers do with status 200, and the forms that are accepted."""

import json

import pytest

from fgclip_jax.annotate.servers import answers
from fgclip_jax.annotate.servers.prompts import CAPTION_SCHEMA

GOOD = {"long": 'A red cup {sic} on a "table".', "short": "a red cup", "unusable": False}


def completion(content, finish="stop", **message) -> dict:
  return {
    "model": "m-1",
    "choices": [{"message": {"role": "assistant", "content": content} | message, "finish_reason": finish}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "details": {"cached": 1}},
  }


@pytest.mark.parametrize(
  "content",
  [
    json.dumps(GOOD),
    "```json\n" + json.dumps(GOOD, indent=2) + "\n```",
    "Here it is:\n" + json.dumps(GOOD) + "\nIs that all right? {}",
    '<think>perhaps {"long": 1}</think>\n' + json.dumps(GOOD),
    "{as you like} " + json.dumps(GOOD),
    [{"type": "text", "text": json.dumps(GOOD)[:9]}, {"type": "text", "text": json.dumps(GOOD)[9:]}],
  ],
)
def test_a_value_is_found(content):
  reply = answers.read(completion(content, reasoning_content='{"long": "thought"}'), CAPTION_SCHEMA)
  assert reply == answers.Reply(GOOD, "m-1", {"prompt_tokens": 5, "completion_tokens": 7})


def test_text_without_a_schema():
  assert answers.read(completion(" A cup.\n"), None).value == "A cup."


@pytest.mark.parametrize(
  ("payload", "kind", "message"),
  [
    (completion("", "length", reasoning_content="long thoughts"), "answer_empty", "13 characters of thinking up to"),
    (completion(None, thinking="thoughts"), "answer_empty", "8 characters of thinking"),
    (completion("  "), "answer_empty", "no text"),
    (completion("<think>and so on", "stop"), "answer_empty", "no text"),
    (completion("<think>and so on", "length"), "answer_cut", "thought"),
    (completion(" \n" * 500, "length"), "answer_cut", "1000 characters of white space"),
    (completion(json.dumps(GOOD), "length"), "answer_cut", "limit"),
    (completion('{"long": "a red', "stop"), "answer_cut", "breaks off"),
    (completion('{"long": "a red"', "stop"), "answer_cut", "breaks off"),
    (completion("A red cup stands on a table."), "answer_not_json", "no JSON object"),
    (completion('{"long": "a", }'), "answer_not_json", "cannot be read"),
    (completion('{"long": NaN}'), "answer_not_json", "NaN is no JSON"),
    (completion('{"long": "\\ud800", "short": "", "unusable": true}'), "answer_not_json", "surrogate"),
    (completion('{"a":' * 5000 + "1" + "}" * 5000), "answer_not_json", "cannot be read"),
    (completion('{"caption": "a cup"}'), "answer_schema", "answer has no 'long' but 'caption'"),
    (completion(json.dumps(GOOD | {"unusable": "no"})), "answer_schema", "answer.unusable is of type str"),
    (completion("I'm sorry, but I cannot help with that."), "answer_refusal", "apology"),
    (completion("抱歉,我无法描述这张图片。"), "answer_refusal", "apology"),
    (completion("", refusal="I can't"), "answer_refusal", "refused"),
    (completion("A", "content_filter"), "answer_refusal", "content_filter"),
    ({"error": {"message": "overloaded"}}, "answer_malformed", "overloaded"),
    ({"choices": []}, "answer_malformed", "no choices"),
    ({"choices": [{"text": "A"}]}, "answer_malformed", "no message"),
    ("<html>", "answer_malformed", "no JSON object"),
  ],
)  # fmt: skip
def test_what_is_wrong_has_a_class(payload, kind, message):
  with pytest.raises(answers.AnswerError, match=message) as caught:
    answers.read(payload, CAPTION_SCHEMA)
  assert caught.value.kind == kind
  assert len(caught.value.raw) <= 500


def test_the_raw_beginning_is_kept():
  with pytest.raises(answers.AnswerError) as caught:
    answers.read(completion('{"long": "' + "a red cup " * 100, "length"), CAPTION_SCHEMA)
  assert caught.value.raw == ('{"long": "' + "a red cup " * 100)[:500]


def test_many_braces_take_no_time():
  for text in ("{" * 200_000, '{"' * 100_000, "{}x" * 100_000):
    with pytest.raises(answers.AnswerError):
      answers.parse(text, CAPTION_SCHEMA)
