"""An HTTP/1.1 proxy in front of a storage server on this machine, with the faults of networks and of busy servers."""

import asyncio
import dataclasses
import random
import socket
import struct
import threading
from collections import Counter

HEAD_END = b"\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends RST


@dataclasses.dataclass(frozen=True)
class Conditions:
  """What happens to requests. Shares are of all requests, and at most one of the faults meets each.

  Attributes:
    delay: seconds that every request waits, drawn uniformly between the two.
    reset: share whose connection is reset before the server has seen them.
    reset_after: share that the server carries out, and whose connection is reset in place of the answer.
    busy: share that is answered with 429 or 503.
    cut: share whose body ends halfway: that of the request, or where it has none that of the answer.
    dark: nothing passes: `silent`, nobody answers; `refused`, each connection is reset; empty: it is not.
  """

  delay: tuple[float, float] = (0.0, 0.0)
  reset: float = 0.0
  reset_after: float = 0.0
  busy: float = 0.0
  cut: float = 0.0
  dark: str = ""


class Proxy:
  """Passes requests on to a server, from a thread, until `close`.

  Args:
    port: the server's, on the loopback device.
    own_port: the proxy's; 0: any that is free.
    seed: of the faults.

  Attributes:
    url: the proxy's.
    conditions: what happens to requests from now on; may be set at any time.
    met: how many requests have met which fault so far; `passed` are those without one.
    answered: bytes of the server's answers so far.
  """

  def __init__(self, port: int, own_port: int = 0, seed: int = 0):
    self.conditions, self.met, self.answered = Conditions(), Counter[str](), 0
    self._port, self._rng = port, random.Random(seed)
    self._uploaded: dict[bytes, bytes] = {}  # answers to uploads that clients have not got, by path
    self._tasks: set[asyncio.Task | None] = set()  # asyncio itself would let one that waits be collected
    self._loop, self._began = asyncio.new_event_loop(), threading.Event()
    self._thread = threading.Thread(target=self._serve, args=(own_port,), name="proxy", daemon=True)
    self._thread.start()
    self._began.wait()
    self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

  def close(self) -> None:
    """Ends the proxy, and with it all connections."""
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()

  def _serve(self, port: int) -> None:
    asyncio.set_event_loop(self._loop)
    start = asyncio.start_server(self._answer, "127.0.0.1", port, limit=1 << 20)
    self._server = self._loop.run_until_complete(start)
    self._began.set()
    self._loop.run_forever()
    self._server.close()
    tasks = [task for task in self._tasks if task]
    for task in tasks:
      task.cancel()
    self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    self._loop.close()

  async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a connection's first request and closes it; the server's answers say that they do so, too."""
    task = asyncio.current_task()
    self._tasks.add(task)
    try:
      head = await reader.readuntil(HEAD_END)
      if _field(head, b"expect"):  # the client waits for this before it sends the body
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
      body = await _read_body(head, reader)
      await self._pass_on(head, body, writer)
      await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):  # the client has gone
      pass
    finally:
      self._tasks.discard(task)
      writer.close()

  async def _pass_on(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    now, fault = self.conditions, self._draw()
    if now.dark:
      self.met["dark"] += 1
      while now.dark == "silent" and self.conditions.dark:
        await asyncio.sleep(0.05)
      return _reset(writer)
    if now.delay[1]:
      await asyncio.sleep(self._rng.uniform(*now.delay))
    self.met[fault] += 1
    if fault == "reset":
      return _reset(writer)
    if fault == "busy":
      status = self._rng.choice((b"429 Too Many Requests", b"503 Service Unavailable"))
      writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
      return None
    half = fault == "cut" and len(body) > 1
    # a put whose answer was lost is sent again: the real server then answers as before, the one for tests with 404
    upload = head.split(b" ", 2)[1] if b"upload_id=" in head.partition(b"\r\n")[0] else b""
    answer = self._uploaded.pop(upload, b"") or await self._ask(head, body, half)
    if upload and fault in ("reset_after", "cut") and not half:
      self._uploaded[upload] = answer
    if half or fault == "reset_after":
      return _reset(writer)
    begin = answer.find(HEAD_END) + len(HEAD_END)
    if fault == "cut":
      answer = answer[: begin + (len(answer) - begin) // 2]
    writer.write(answer)
    self.answered += len(answer)
    return None

  async def _ask(self, head: bytes, body: bytes, half: bool) -> bytes:
    """The server's whole answer; where it is to get half of the body only, the connection ends there without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
    try:
      lines = [line for line in head.removesuffix(HEAD_END).split(b"\r\n") if _name(line) not in _OWN]
      lines += [f"Content-Length: {len(body)}".encode(), b"Connection: close"]
      writer.write(b"\r\n".join(lines) + HEAD_END + (body[: len(body) // 2] if half else body))
      await writer.drain()
      return b"" if half else await reader.read()
    finally:
      writer.close()

  def _draw(self) -> str:
    chance = self._rng.random()
    for name in ("reset", "reset_after", "busy", "cut"):
      chance -= getattr(self.conditions, name)
      if chance < 0:
        return name
    return "passed"


_OWN = (
  b"connection",
  b"content-length",
  b"expect",
  b"transfer-encoding",
)  # lines of a request that the proxy writes by itself


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
  """The body of a request, its chunks joined."""
  if b"chunked" not in _field(head, b"transfer-encoding"):
    return await reader.readexactly(int(_field(head, b"content-length") or 0))
  body = b""
  while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
    body += (await reader.readexactly(size + 2))[:size]
  await reader.readuntil(b"\r\n")
  return body


def _field(head: bytes, name: bytes) -> bytes:
  """A line's value, in lower case; empty: there is no such line."""
  lines = head.lower().split(b"\r\n")[1:]
  return next((line.partition(b":")[2].strip() for line in lines if _name(line) == name), b"")


def _name(line: bytes) -> bytes:
  return line.partition(b":")[0].strip().lower()


def _reset(writer: asyncio.StreamWriter) -> None:
  """Has the connection end with RST, as that of a host which has lost it."""
  connection = writer.get_extra_info("socket")
  if connection is not None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
