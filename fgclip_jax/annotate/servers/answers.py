"""From the response of a model server to a value, or to the class of what is wrong with it.

Servers accept a schema and ignore it, stop in the middle of a string, or put all text where a model thinks, each with
status 200. Nothing is repaired here: a broken answer is counted and asked for again.
"""

import dataclasses
import json
import re
from typing import Any

from fgclip_jax.annotate.rules import caption_checks
from fgclip_jax.annotate.servers import schemas
from fgclip_jax.annotate.servers.requests import RAW, Check, Request, Value
from fgclip_jax.storage import text as texts
from fgclip_jax.storage.errors import RecordError


class AnswerError(RecordError):
  """An answer that cannot be used. Kinds:

  `answer_malformed` (the response is no chat completion), `answer_empty` (no text, or text only where the model
  thinks), `answer_cut` (it ends at the limit of tokens, or in the middle), `answer_refusal` (the server's filter or the
  model refuses), `answer_not_json`, `answer_schema` (JSON that differs from the schema).

  Attributes:
    raw: the beginning of the answer.
  """

  def __init__(self, kind: str, message: str, raw: str = ""):
    super().__init__(kind, "answer", message)
    self.raw = raw[:RAW].encode(errors="replace").decode()  # half of a surrogate pair could not be stored

  def __reduce__(self):
    return type(self), (self.kind, self.message, self.raw)


@dataclasses.dataclass(frozen=True)
class Reply:
  """A valid answer: its value, the model's name as the server gives it, and its count of tokens."""

  value: Value
  model: str
  usage: dict[str, int]


_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|"', re.DOTALL)
_TRIES = 16  # candidates for the object that are looked at


def read(payload: Any, schema: dict[str, Any] | None) -> Reply:
  """Takes the value out of a chat completion.

  Args:
    payload: the response's JSON.
    schema: what the value must fit; None: it is text.

  Raises:
    AnswerError: it cannot be used.
  """
  choice = _take_choice(payload)
  message = choice.get("message")
  if not isinstance(message, dict):
    raise AnswerError("answer_malformed", "the response has no message", _dump(payload))
  content = _take_text(message.get("content"))
  finish = choice.get("finish_reason")
  if message.get("refusal") or finish == "content_filter":
    raise AnswerError("answer_refusal", f"refused (finish reason {finish!r})", str(message.get("refusal") or content))
  model, usage = payload.get("model"), payload.get("usage")
  return Reply(
    parse(content, schema, finish == "length", _count_thoughts(message)),
    model if isinstance(model, str) and texts.is_unicode(model) else "",
    {name: count for name, count in usage.items() if type(count) is int} if isinstance(usage, dict) else {},
  )


def read_checked(request: Request, payload: Any, check: Check | None) -> Reply:
  """Takes the value out of the chat completion for a request, and checks it by rules too.

  Raises:
    AnswerError: as `read`; or its kind is the name of the rule that `check` says is broken.
  """
  reply = read(payload, request.schema)
  rule = check(request, reply.value) if check else None
  if rule is not None:
    raw = reply.value if isinstance(reply.value, str) else json.dumps(reply.value, ensure_ascii=False)
    raise AnswerError(rule, f"breaks the rule {rule}", raw)
  return reply


def parse(content: str, schema: dict[str, Any] | None, cut: bool = False, thoughts: int = 0) -> Value:
  """Takes the value out of an answer's text.

  Args:
    content: the text.
    schema: what the value must fit; None: it is text.
    cut: whether the server says that the text ended at the limit of tokens. Such an answer is a failure even if it can
      be parsed: a list may have lost its end.
    thoughts: characters of thinking that the server gave beside the text, for the message.

  Raises:
    AnswerError: it cannot be used.
  """
  text = _THOUGHT.sub("", content, count=1) if content.lstrip().startswith("<think>") else content
  if not text.strip() or text.lstrip().startswith("<think>"):
    if cut and text and not thoughts:
      raise AnswerError("answer_cut", f"has {len(text)} characters of white space or thought up to the limit", text)
    beside = f"; {thoughts} characters of thinking" if thoughts else ""
    raise AnswerError("answer_empty", f"has no text{beside}{' up to the limit of tokens' if cut else ''}", content)
  if cut:
    raise AnswerError("answer_cut", "ends at the limit of tokens", text)
  if not texts.is_unicode(text):
    raise AnswerError("answer_not_json", "holds half a surrogate pair", text)
  if schema is None:
    return text.strip()
  value = _take_object(text)
  if fault := schemas.find_fault(value, schema):
    raise AnswerError("answer_schema", fault, text)
  return value


def _take_choice(payload: Any) -> dict[str, Any]:
  if not isinstance(payload, dict):
    raise AnswerError("answer_malformed", "the response is no JSON object", _dump(payload))
  choices = payload.get("choices")
  if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
    said = f"the response has an error: {_dump(payload['error'])[:200]}" if payload.get("error") else "has no choices"
    raise AnswerError("answer_malformed", said, _dump(payload))
  return choices[0]


def _take_text(content: Any) -> str:
  """The text of a message; some servers give a list of parts."""
  if isinstance(content, list):
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(part for part in parts if isinstance(part, str))
  return content if isinstance(content, str) else ""


def _count_thoughts(message: dict[str, Any]) -> int:
  """The length of what a model thought, under the names that servers have for it; it is never read as content."""
  found = (message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
  return max((len(each) for each in found if isinstance(each, str)), default=0)


def _take_object(text: str) -> dict[str, Any]:
  """The first balanced JSON object of a text, which may stand in a fence or in prose."""
  fenced = _FENCE.search(text)
  body = fenced[1] if fenced else text
  start, fault = body.find("{"), ""
  for _ in range(_TRIES):
    if start < 0:
      break
    end = _find_end(body, start)
    if end is None:
      raise AnswerError("answer_cut", "its JSON breaks off", text)
    try:
      value = json.loads(body[start:end], parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
      fault = fault or f"its JSON cannot be read ({error})"
      start = body.find("{", end)
      continue
    if not texts.is_unicode(json.dumps(value, ensure_ascii=False)):  # JSON can spell codes that are no characters
      raise AnswerError("answer_not_json", "holds half a surrogate pair", text)
    return value
  if caption_checks.refuses(text.strip()):  # an apology is the model's doing, other prose that of the server
    raise AnswerError("answer_refusal", "is an apology in place of JSON", text)
  raise AnswerError("answer_not_json", fault or "has no JSON object", text)


def _find_end(body: str, start: int) -> int | None:
  """Where the object that begins at `start` ends; None: the text ends first."""
  depth = 0
  for token in _TOKENS.finditer(body, start):
    if token[0] == "{":
      depth += 1
    elif token[0] == "}":
      depth -= 1
      if not depth:
        return token.end()
    elif token[0] == '"':  # a string without an end
      return None
  return None


def _refuse_constant(name: str) -> Any:
  raise ValueError(f"{name} is no JSON")


def _dump(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)[:RAW]
