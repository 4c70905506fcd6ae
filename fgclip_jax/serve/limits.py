"""What a request may cost: its size, its time, and who may ask. Pure ASGI, so that nothing is read before it counts."""

import asyncio
import dataclasses
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_OPEN = ("/health",)  # paths that no token is needed for


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one request.

  Attributes:
    bytes: of its body.
    seconds: in which its body must have arrived.
    pictures, texts, boxes: how many it may have.
    characters: of a text.
  """

  bytes: int = 32 << 20
  seconds: float = 20.0
  pictures: int = 64
  texts: int = 1024
  boxes: int = 512
  characters: int = 10_000


class Guard:
  """Refuses what is too large, too slow, from another site, or without the token.

  Args:
    app: what answers.
    limits: of a request.
    token: which `Authorization: Bearer` must have; empty: none is needed.
    hosts: what the `Host` header may name; empty: anything. A page of another site cannot reach a server on loopback
      under a name of its own then (DNS rebinding).
  """

  def __init__(self, app: App, limits: Limits, token: str = "", hosts: tuple[str, ...] = ()):
    self._app, self._limits, self._token, self._hosts = app, limits, token, hosts

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if self._hosts and _host(headers.get("host", "")) not in self._hosts:
      await refuse(send, 421, "host_unknown", "this server answers under its own address alone")
      return
    if self._token and scope["path"] not in _OPEN and not self._is_known(headers.get("authorization", "")):
      await refuse(send, 401, "token_wrong", "give the server's token: Authorization: Bearer TOKEN")
      return
    if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > self._limits.bytes:
      await refuse(send, 413, "body_too_large", f"a request may have {self._limits.bytes:,} bytes")
      return
    if scope["method"] not in ("POST", "PUT", "PATCH"):
      await self._app(scope, receive, send)
      return
    try:
      body = await asyncio.wait_for(self._read(receive), self._limits.seconds)
    except TimeoutError:
      await refuse(send, 408, "body_too_slow", f"the body did not arrive within {self._limits.seconds:g} s")
      return
    if body is None:
      await refuse(send, 413, "body_too_large", f"a request may have {self._limits.bytes:,} bytes")
      return
    sent = False

    async def replay() -> MutableMapping[str, Any]:
      nonlocal sent
      if not sent:
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}
      return await receive()  # tells when the client is gone

    await self._app(scope, replay, send)

  def _is_known(self, header: str) -> bool:
    kind, _, given = header.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode())

  async def _read(self, receive: Receive) -> bytes | None:
    """The body; None where it is too large."""
    parts, size = [], 0
    while True:
      message = await receive()
      if message["type"] == "http.disconnect":
        return b""
      parts.append(message.get("body", b""))
      size += len(parts[-1])
      if size > self._limits.bytes:
        return None
      if not message.get("more_body"):
        return b"".join(parts)


async def refuse(
  send: Send, status: int, kind: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
  """Answers with an error and closes the connection, of which the rest is not read."""
  body = json.dumps({"error": {"kind": kind, "message": message}}).encode()
  own = ((b"content-type", b"application/json"), (b"connection", b"close"), (b"x-content-type-options", b"nosniff"))
  length = ((b"content-length", str(len(body)).encode()),)
  await send({"type": "http.response.start", "status": status, "headers": [*own, *length, *headers]})
  await send({"type": "http.response.body", "body": body})


def _host(header: str) -> str:
  """The host of a `Host` header, without its port."""
  host, colon, port = header.rpartition(":")
  return host if colon and port.isdigit() else header
