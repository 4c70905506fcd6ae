"""The caption in a conversation: which question asks for one, and which does not."""

import pytest

from fgclip_jax.prepare.sources import conversations
from fgclip_jax.storage.errors import RecordError

CAPTION = "A cat sleeps on a red mat. A dog looks at it."


def talk(*turns):
  """Turns of a human and of GPT, alternating."""
  return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]


@pytest.mark.parametrize(
  "question",
  [
    "<image>\nWhat do you see happening in this image?",  # ShareGPT4V
    "Can you describe the main features of this image for me?\n<image>",
    "Describe the following image.",  # LLaVA's detailed and brief descriptions
    "Walk through the important details of the image",
    "Render a clear and concise summary of the photo.\n<image>",
    "Write a terse but informative summary of the picture.",
    "<image>",
  ],
)
def test_an_answer_to_a_question_for_a_caption_is_taken(question):
  assert conversations.asks_for_caption(conversations._MARK.sub("", question).strip())
  assert conversations.find_caption(talk(question, CAPTION)) == CAPTION


@pytest.mark.parametrize(
  "question",
  [
    "<image>\nWhat color is the cat?",
    "What is in the image?\nAnswer the question using a single word or phrase.",
    "Is the dog in the picture asleep?",
    "Write a story about a king.",
  ],
)
def test_other_questions_are_passed_over(question):
  detailed = "Write a detailed description of the given image"
  assert conversations.find_caption(talk(question, "red", detailed, CAPTION, "And now?", "No.")) == CAPTION
  with pytest.raises(RecordError, match="no question asks for a caption"):
    conversations.find_caption(talk(question, "red"))


def test_turns_in_other_spellings_are_read_and_broken_ones_refused():
  turns = [{"role": "user", "content": "Describe this image"}, {"role": "assistant", "content": CAPTION}]
  assert conversations.find_caption(turns) == CAPTION
  assert (
    conversations.find_caption([{"from": "human", "value": "<image>"}, {"from": "gpt", "text": CAPTION}]) == CAPTION
  )
  for value, kind in (
    ("text", "conversations_wrong_type"),
    (None, "conversations_wrong_type"),
    ([], "caption_question_none"),
    (["a"], "turn_not_object"),
    ([{"from": "gpt", "value": None}], "turn_wrong_type"),
    ([{"from": "gpt", "value": CAPTION}], "caption_question_none"),
  ):
    with pytest.raises(RecordError) as caught:
      conversations.find_caption(value)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (CAPTION, "A cat sleeps on a red mat."),
    ("Mr. Smith has a dog. It barks.", "Mr. Smith has a dog."),
    ("one line\nand another", "one line and another"),
    ("Is it 3.5 m long? Yes.", "Is it 3.5 m long?"),
  ],
)
def test_the_first_sentence_stands_for_a_missing_short_caption(text, expected):
  assert conversations.first_sentence(text) == expected
