"""A model server with OpenAI's API that fails as real ones do: for tests, and for benchmarks in a process of its own.

  python -m tests.helpers.model_server --delay 0.2 --faults '{"busy": 0.05}'

It prints its address and ends with its standard input. It answers every request with a value that fits the request's
schema, and logs what it did with each request by kind.
"""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import random
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# What a request may meet; `answered` is none of them. All but the first six have status 200.
FAULTS = (
  "busy",  # 429 with Retry-After
  "busy_unsaid",  # 429 without it
  "loading",  # 503
  "error",  # 500
  "too_long",  # 400: more tokens than the context has
  "refused",  # 400
  "reset",  # the connection is reset
  "hang",  # nothing is ever sent
  "trickle",  # a response that never ends
  "cut",  # JSON that stops in the middle of a string
  "blank",  # white space up to the limit of tokens
  "empty",  # no content, all text in the model's thinking
  "refusal",  # an apology in place of JSON
  "prose",  # the schema is ignored
  "schema",  # JSON with other keys
  "html",  # a page of a proxy
)
Decide = Callable[[dict[str, Any], int], str | None]


class ModelServer:
  """The server, in a thread.

  Attributes:
    log: how many requests met what; `answered` is the good answer.
    most: the most requests that were open at once.
    connections: the most connections that were open at once.
    bodies: the requests in the order of their arrival, where `keep` is given.
    url: the address that clients are given.
  """

  def __init__(
    self, delay: float = 0.0, faults: dict[str, float] | None = None, decide: Decide | None = None,
    answer: Callable[[dict[str, Any]], Any] | None = None, seed: int = 0, model: str = "stub", port: int = 0,
    limit: int | None = None, loading: float = 0.0, retry_after: float = 1.0, key: str = "", keep: bool = False,
    tls: ssl.SSLContext | None = None,
  ):  # fmt: skip
    """Starts it.

    Args:
      delay: seconds before an answer; faults of HTTP come at once.
      faults: shares of the requests that meet each fault, drawn at random.
      decide: says what a request meets, from its body and its number from 0; None: what is drawn.
      answer: makes the value of an answer from the request's body; it is sent as JSON, or as it is if it is text.
      seed: of what is drawn.
      model: the name of the one model that is served.
      port: where it listens; 0: anywhere.
      limit: requests that may be open; more are `busy_unsaid`.
      loading: seconds for which it is `loading`.
      retry_after: what `busy` says, in seconds.
      key: the API key that it wants.
      keep: whether to keep the requests' bodies.
      tls: makes it serve HTTPS, under the name `localhost`.
    """
    unknown = sorted(set(faults or {}) - set(FAULTS))
    if unknown:
      raise ValueError(f"no such fault: {unknown[0]}; there are {', '.join(FAULTS)}")
    self.delay, self.model, self.limit, self.retry_after, self.key = delay, model, limit, retry_after, key
    self.log: collections.Counter[str] = collections.Counter()
    self.most = self.connections = 0
    self.bodies: list[dict[str, Any]] = []
    self.transports: set[asyncio.Transport] = set()
    self._open = self._number = 0
    self._faults, self._decide, self._answer, self._keep = faults or {}, decide, answer or make_value, keep
    self._random = random.Random(seed)
    self._ready = time.monotonic() + loading
    self.loop = asyncio.new_event_loop()
    self._socket = socket.create_server(("127.0.0.1", port), backlog=1024, reuse_port=False)
    self.port = self._socket.getsockname()[1]
    self.url = f"https://localhost:{self.port}/v1" if tls else f"http://127.0.0.1:{self.port}/v1"
    self._tls = tls
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends it at once, as `kill -9` would: open connections are reset."""
    self.loop.call_soon_threadsafe(self._end)
    self._thread.join()

  def _run(self) -> None:
    self._server = self.loop.run_until_complete(
      self.loop.create_server(lambda: _Connection(self), sock=self._socket, ssl=self._tls)
    )
    self.loop.run_forever()
    self.loop.close()

  def _end(self) -> None:
    self._server.close()
    for transport in list(self.transports):
      reset(transport)
    self.loop.call_later(0.01, self.loop.stop)

  def handle(self, connection: "_Connection", method: str, path: str, headers: dict[str, str], data: bytes) -> None:
    """Answers one request, now or later."""
    if self.key and headers.get("authorization") != f"Bearer {self.key}":
      return connection.send(401, {"error": {"message": f"Incorrect API key: {headers.get('authorization')}"}})
    if method == "GET" and path == "/v1/models":
      return connection.send(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
    if method == "GET" and path == "/v1/log":
      return connection.send(200, {"log": self.log, "most": self.most, "connections": self.connections})
    if method != "POST" or path != "/v1/chat/completions":
      return connection.send(404, {"error": {"message": "File Not Found", "code": 404}})
    body = json.loads(data)
    self._open += 1
    self.most = max(self.most, self._open)
    if self._keep:
      self.bodies.append(body)
    kind = self._choose(body)
    self._number += 1
    self.log[kind] += 1
    late = 0.0 if kind in FAULTS[:7] else self.delay
    self.loop.call_later(late, self._answer_one, connection, kind, body)

  def _choose(self, body: dict[str, Any]) -> str:
    drawn, kind = self._random.random(), "answered"
    for name, share in self._faults.items():
      if 0 <= drawn < share:
        kind = name
      drawn -= share
    if self._decide is not None:
      kind = self._decide(body, self._number) or kind
    if self.limit is not None and self._open > self.limit:
      kind = "busy_unsaid"
    return "loading" if time.monotonic() < self._ready else kind

  def _answer_one(self, connection: "_Connection", kind: str, body: dict[str, Any]) -> None:
    self._open -= 1
    if kind == "reset":
      reset(connection.transport)
    elif kind == "trickle":
      connection.trickle()
    elif kind == "html":
      connection.send(200, b"<html><body>Welcome</body></html>")
    elif kind in _STATUS:
      status, error = _STATUS[kind]
      headers = f"Retry-After: {self.retry_after:g}\r\n" if kind == "busy" else ""
      connection.send(status, {"error": error}, headers)
    elif kind != "hang":
      connection.send(200, self._complete(kind, body))

  def _complete(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    value = self._answer(body)
    content = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    finish, thoughts = "stop", {}
    if kind == "cut":
      content = content[: max(content.rindex('"') - 3, 1)] if '"' in content else content[: len(content) // 2]
    elif kind == "blank":
      content, finish = "\n" * 200, "length"
    elif kind == "empty":
      content, finish, thoughts = "", "length", {"reasoning_content": content}
    elif kind == "refusal":
      content = "I'm sorry, but I can't help with that."
    elif kind == "prose":
      content = "A cup stands on a table."
    elif kind == "schema":
      content = '{"description": "A cup stands on a table."}'
    message = {"role": "assistant", "content": content} | thoughts
    usage = {"prompt_tokens": 10, "completion_tokens": max(len(content) // 4, 1)}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"object": "chat.completion", "model": f"{self.model}-1", "choices": [choice], "usage": usage}


_STATUS = {
  "busy": (429, {"message": "Rate limit reached", "code": "rate_limit_exceeded"}),
  "busy_unsaid": (429, {"message": "Too many requests"}),
  "loading": (503, {"message": "Loading model", "type": "unavailable_error", "code": 503}),
  "error": (500, {"message": "failed to decode image", "code": 500}),
  "too_long": (400, {"message": "the request exceeds the context size", "type": "exceed_context_size_error"}),
  "refused": (400, {"message": "response_format is not supported", "code": 400}),
}


class _Connection(asyncio.Protocol):
  """One connection: requests come in, one after another."""

  transport: asyncio.Transport

  def __init__(self, server: ModelServer):
    self._server, self._data = server, bytearray()

  def connection_made(self, transport) -> None:
    self.transport = transport
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._server.transports.add(transport)
    self._server.connections = max(self._server.connections, len(self._server.transports))

  def connection_lost(self, exc) -> None:
    self._server.transports.discard(self.transport)

  def data_received(self, data: bytes) -> None:
    self._data += data
    end = self._data.find(b"\r\n\r\n")
    if end < 0:
      return
    first, *lines = bytes(self._data[:end]).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    size = int(headers.get("content-length", 0))
    if len(self._data) < end + 4 + size:
      return
    body = bytes(self._data[end + 4 : end + 4 + size])
    self._data.clear()
    method, path, _ = first.split(" ")
    self._server.handle(self, method, path, headers, body)

  def send(self, status: int, body: dict[str, Any] | bytes, headers: str = "") -> None:
    """Sends a response, if the client is still there."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    if not self.transport.is_closing():
      self.transport.write(head.encode() + data)

  def trickle(self) -> None:
    """Sends a response byte by byte, without an end."""
    self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")

    def go_on() -> None:
      if not self.transport.is_closing():
        self.transport.write(b" ")
        self._server.loop.call_later(0.05, go_on)

    go_on()


def reset(transport: asyncio.Transport) -> None:
  """Resets a connection: the other side gets an error, and not the end of a stream."""
  transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
  transport.abort()


def make_value(body: dict[str, Any]) -> Any:
  """A value that fits the schema of a request, made from its messages and seed; text where there is no schema."""
  digest = hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).hexdigest()
  form = body.get("response_format")
  return _fill(form["json_schema"]["schema"], digest) if form else f"a thing {digest[:12]}"


def _fill(schema: dict[str, Any], digest: str, name: str = "thing") -> Any:
  if "enum" in schema:
    return schema["enum"][int(digest[:8], 16) % len(schema["enum"])]
  match schema["type"]:
    case "object":
      return {each: _fill(part, digest, each) for each, part in schema.get("properties", {}).items()}
    case "array":
      return [_fill(schema["items"], digest[n:] + digest[:n], name) for n in range(schema.get("minItems", 1))]
    case "string":
      return f"a {name} of {digest[:12]}"
    case "boolean":
      return False
  return 0


@contextlib.contextmanager
def serve(**options: Any) -> Iterator[ModelServer]:
  """A `ModelServer` for the length of the block."""
  server = ModelServer(**options)
  try:
    yield server
  finally:
    server.stop()


def main() -> int:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
  parser.add_argument("--faults", type=json.loads, default={}, help="shares by kind, as JSON")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  with serve(**vars(options)) as server:
    print(server.url, flush=True)
    sys.stdin.read()
  return 0


if __name__ == "__main__":
  sys.exit(main())
