"""What is asked of a model server, and what comes of it: `Request`, `Answer`, `Failure`."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fgclip_jax.annotate.servers import schemas

Value = dict[str, Any] | str  # an object that fits the request's schema, or text where there is none
# Names the rule that the value of an answer breaks; None: none.
Check = Callable[["Request", Any], str | None]
RAW = 500  # characters of an answer that a failure keeps


@dataclasses.dataclass(frozen=True)
class Request:
  """One request for a chat completion.

  Attributes:
    key: its name, by which the answer is found again; at most 64 characters, as batch files allow.
    messages: in OpenAI's form; pictures are data URLs.
    schema: the JSON schema of the answer (see `schemas`); None: text is wanted.
    max_tokens: the longest answer.
    temperature: of the sampling.
    seed: of the sampling; each further attempt adds one.
    language: `en` or `zh`; the one in which a further attempt is told what was wrong.
  """

  key: str
  messages: list[dict[str, Any]]
  schema: dict[str, Any] | None = None
  max_tokens: int = 512
  temperature: float = 0.2
  seed: int = 0
  language: str = "en"

  def body(self, model: str, attempt: int = 0, note: str = "") -> dict[str, Any]:
    """The JSON body of the HTTP request.

    Args:
      model: the model's name on the server.
      attempt: how many answers were thrown away before; it changes the seed.
      note: what was wrong with the last one. It is added to the last message, because the chat templates of many models
        allow no two messages of one role in a row.
    """
    body = {
      "model": model,
      "messages": _with_note(self.messages, note) if note else self.messages,
      "max_tokens": self.max_tokens,
      "temperature": self.temperature,
      "seed": self.seed + attempt,
    }
    if self.schema is not None:
      form = {"name": "answer", "strict": True, "schema": schemas.simplify(self.schema)}
      body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


@dataclasses.dataclass(frozen=True)
class Answer:
  """A valid answer.

  Attributes:
    key: the request's.
    value: an object that fits the schema, or text.
    model: the model's name as the server gives it.
    usage: the server's count of tokens: `prompt_tokens`, `completion_tokens`.
    attempts: how many answers were asked for, this one included.
    retried: why each request before was sent again: a class of failure for each, endpoints that were busy included.
  """

  key: str
  value: Value
  model: str = ""
  usage: dict[str, int] = dataclasses.field(default_factory=dict)
  attempts: int = 1
  retried: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
  """A request that brought no valid answer.

  Attributes:
    key: the request's.
    kind: the class of the last failure in snake_case, e.g. `answer_cut`.
    detail: what was wrong, in one line.
    attempts: how many answers were asked for.
    retried: as `Answer.retried`, the last failure left out.
    raw: the beginning of the last answer, at most `RAW` characters.
  """

  key: str
  kind: str
  detail: str
  attempts: int = 1
  retried: tuple[str, ...] = ()
  raw: str = ""


def _with_note(messages: list[dict[str, Any]], note: str) -> list[dict[str, Any]]:
  last = messages[-1]
  content = last["content"]
  longer = f"{content}\n\n{note}" if isinstance(content, str) else [*content, {"type": "text", "text": note}]
  return [*messages[:-1], last | {"content": longer}]
