"""What responses without an answer mean: whether the endpoint, the item, the attempt or the whole run is at fault."""

import dataclasses
import email.message
import email.utils
import enum
import json
import math
import re
import time
from typing import Any

from fgclip_jax.annotate.servers.requests import RAW


class ServerError(OSError):
  """Model servers with which a run cannot go on; the message says what to do."""


class Scope(enum.Enum):
  """What a fault is the fault of, which decides what follows."""

  ENDPOINT = "endpoint"  # it is busy or away: the request waits, and loses no attempt
  LOST = "lost"  # the connection broke: another one is made, a few times
  ATTEMPT = "attempt"  # this answer: another one is asked for, `attempts` times in all
  ITEM = "item"  # this request, for good
  RUN = "run"  # every request: the run ends


@dataclasses.dataclass(frozen=True)
class Fault:
  """A request without an answer.

  Attributes:
    scope: what is at fault.
    kind: its class in snake_case.
    detail: what the server said, in one line.
    raw: the beginning of an answer that was thrown away.
    wait: seconds that the server asks to wait; None: it does not.
  """

  scope: Scope
  kind: str
  detail: str
  raw: str = ""
  wait: float | None = None


_BUSY = {408, 425, 429, 502, 503, 504, 529}
_TOO_LONG = re.compile(
  r"exceed_context_size|context_length_exceeded|context (length|size|window)|maximum (context|input|prompt|sequence)"
  r"|(prompt|input|request)s? (is|are|was) too (long|large)|too many (input )?tokens|max_model_len",
  re.IGNORECASE,
)
_IMAGE = re.compile(r"\b(image|picture|multi-?modal|mmproj|media)", re.IGNORECASE)
_QUOTA = re.compile(r"insufficient_quota|billing|exceeded your current quota", re.IGNORECASE)
_ADVICE = {
  401: "set OPENAI_API_KEY, or give --api_key_file",
  402: "the account has no credit",
  403: "the key does not allow it",
  404: "check that the address ends as the server documents it (mostly /v1), and the model's name",
  405: "check that the address ends as the server documents it (mostly /v1)",
}


def classify(status: int, headers: email.message.Message, data: bytes) -> Fault:
  """The fault that a response with another status than 200 means.

  Args:
    status: its HTTP status.
    headers: its headers.
    data: its body.
  """
  said = describe(data)
  detail = f"HTTP {status}: {said}" if said else f"HTTP {status}"
  if status == 429 and _QUOTA.search(said):
    return Fault(Scope.RUN, "quota_used_up", detail)
  if status in _BUSY:
    return Fault(Scope.ENDPOINT, "server_busy", detail, wait=read_wait(headers))
  if status in _ADVICE:
    return Fault(Scope.RUN, "access_refused" if status < 404 else "address_wrong", f"{detail}; {_ADVICE[status]}")
  if 300 <= status < 400:
    return Fault(
      Scope.RUN, "address_wrong", f"{detail}; it redirects to {headers.get('Location')!r}: give that address"
    )
  if status >= 500:
    return Fault(Scope.ATTEMPT, "server_error", detail)
  if status == 413:
    return Fault(Scope.ITEM, "request_too_large", detail)
  if _TOO_LONG.search(said):
    return Fault(Scope.ITEM, "answer_too_long", detail)
  return Fault(Scope.ITEM, "image_refused" if _IMAGE.search(said) else "request_refused", detail)


def describe(data: bytes) -> str:
  """What an error's body says, in one line: the message, type and code of the forms that servers use."""
  text = data[: 16 * RAW].decode("utf-8", "replace")
  try:
    found: Any = json.loads(text)
  except (ValueError, RecursionError):
    found = text
  if isinstance(found, dict):
    found = found.get("error", found)
  if isinstance(found, dict):
    parts = [found.get(name) for name in ("message", "detail", "type", "code")]
    found = ", ".join(dict.fromkeys(str(part) for part in parts if part)) or json.dumps(found)
  return " ".join(str(found).split())[:300].encode(errors="replace").decode()


def read_wait(headers: email.message.Message) -> float | None:
  """The seconds of a `Retry-After` header, which are given as a number or as a date; None: there is none."""
  found = headers.get("Retry-After", "").strip()
  if not found:
    return None
  try:
    seconds = float(found)
  except ValueError:
    try:
      seconds = email.utils.parsedate_to_datetime(found).timestamp() - time.time()
    except (ValueError, TypeError):
      return None
  return max(seconds, 0.0) if math.isfinite(seconds) else None
