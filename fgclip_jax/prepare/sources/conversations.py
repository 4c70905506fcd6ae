"""Finds the caption in a conversation about an image: the form of ShareGPT4V and LLaVA.

```
{"id": "000000000009", "image": "coco/train2017/000000000009.jpg", "conversations": [
  {"from": "human", "value": "<image>\\nWhat do you see happening in this image?"}, {"from": "gpt", "value": CAPTION}]}
```
"""

import re

from fgclip_jax.data import annotation_fields
from fgclip_jax.storage.errors import RecordError

FIELD = "conversations"
_MARK = re.compile(r"<image>|<im_start>|<im_end>|<ImageHere>")
_ANSWERS = ("gpt", "assistant", "model")
# A question asks for a caption if it is about the whole picture and asks for a description of it. The words are those
# of LLaVA's lists of such questions and of ShareGPT4V's.
_PICTURE = re.compile(r"\b(image|picture|photo(graph)?|snapshot|scene|visual|illustration|painting|here)s?\b", re.I)
_DESCRIBE = re.compile(
  r"\b(descri\w+|caption\w*|summar\w+|explain\w*|explanation|elaborat\w+|analy\w+|narrat\w+|detail\w*|depict\w*|"
  r"portray\w*|clarif\w+|characteri\w+|illustrat(e|ing)|rundown|interpret\w*|account|break down|walk (me )?through|"
  r"examine|what do you (see|think|notice|observe)|what( is|'s| are)( going on| happening| in (this|the)| visible)|"
  r"going on|shed (some )?light|key elements|main (features|elements)|contents?)\b",
  re.I,
)
_SHORT_ANSWER = re.compile(r"\b(single word|word or phrase|option's letter|yes or no|one sentence each)\b", re.I)


def find_caption(value: object, field: str = FIELD) -> str:
  """Returns the first answer to a question for a caption.

  Args:
    value: the list of turns.
    field: its name in messages.

  Raises:
    RecordError: kinds `conversations_wrong_type`; `caption_question_none`: no question asks for a caption.
  """
  if not isinstance(value, list):
    raise RecordError("conversations_wrong_type", field, "must be a list of turns with `from` and `value`")
  question = first = None
  for index, entry in enumerate(value):
    turn = annotation_fields.get_mapping(entry, f"{field}[{index}]", "turn")
    speaker = turn.get("from", turn.get("role"))
    text = next((turn[key] for key in ("value", "text", "content") if isinstance(turn.get(key), str)), None)
    if text is None:
      raise RecordError("turn_wrong_type", f"{field}[{index}]", "needs the text `value`")
    text = _MARK.sub("", text).strip()
    if speaker not in _ANSWERS:
      question = text
      first = text if first is None else first
    elif question is not None and asks_for_caption(question):
      return text
    else:
      question = None
  shown = f"{first[:80]!r} is the first" if first else "there is no question"
  raise RecordError("caption_question_none", field, f"no question asks for a caption of the image: {shown}")


def asks_for_caption(question: str) -> bool:
  """Whether a question asks for a description of the whole image; so does an image without any question."""
  if not question:
    return True
  return bool(_PICTURE.search(question) and _DESCRIBE.search(question) and not _SHORT_ANSWER.search(question))


def first_sentence(text: str) -> str:
  """The beginning of a text to the end of its first sentence of three words or more."""
  text = " ".join(text.split())
  for match in re.finditer(r"[.!?](?=\s)", text):
    if len(text[: match.end()].split()) >= 3:
      return text[: match.end()]
  return text
