"""Notices that a server, and not a request, is at fault: the same failure again and again, with no answer between."""

import re
import threading
from typing import Any

from PIL import Image

from fgclip_jax.annotate.servers import images

IN_A_ROW = 10  # different requests
_PROBE_AFTER = 3  # different requests
_HINTS = {
  "answer_not_json": "the server ignores the schema that it is sent: use a version that follows `json_schema`, or "
  "another model",
  "answer_empty": "a model that thinks may use up all tokens before it answers: allow more, or turn thinking off",
  "answer_cut": "allow longer answers, or use a model that is briefer",
  "answer_malformed": "is this an endpoint with OpenAI's API? Its address mostly ends in /v1",
  "request_refused": "the server refuses every request: see what it says",
  "image_refused": "does the model take pictures? They can all be decoded here",
}
_HINTS["answer_schema"] = _HINTS["answer_not_json"]


class Health:
  """What has failed since the last good answer."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._failed: set[str] = set()
    self._errors: dict[str, set[str]] = {}
    self._probe_after = _PROBE_AFTER

  def record_answer(self) -> None:
    """After a good answer."""
    with self._lock:
      self._failed.clear()
      self._errors.clear()

  def record_fault(self, key: str, kind: str) -> str:
    """After a failure; returns a hint where `IN_A_ROW` requests have failed so, "" before."""
    if kind not in _HINTS:
      return ""
    with self._lock:
      self._failed.add(key)
      count = len(self._failed)
    return f"; {count} requests in a row have failed like this; {_HINTS[kind]}" if count >= IN_A_ROW else ""

  def needs_probe(self, key: str, detail: str) -> bool:
    """After a response with status 500: whether enough requests have had the same one to suspect the server."""
    same = re.sub(r"\d+", "#", detail)
    with self._lock:
      failed = self._errors.setdefault(same, set())
      failed.add(key)
      return len(failed) >= self._probe_after

  def record_probe(self, good: bool) -> None:
    """After a probe; a good one raises the number of requests that is enough for the next."""
    with self._lock:
      self._errors.clear()
      self._probe_after *= 4 if good else 1


def make_probe(model: str, picture: bool) -> dict[str, Any]:
  """The body of a request that any server answers, without or with a picture."""
  content: str | list[dict[str, Any]] = "Say yes."
  if picture:
    url = images.data_url(images.encode(Image.new("RGB", (64, 64), (128, 128, 128))))
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
  return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4}
