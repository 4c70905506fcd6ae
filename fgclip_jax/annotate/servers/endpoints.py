"""An endpoint of a model server: its address, its kept connections, and one exchange over HTTP.

The standard library's client: at 64 requests in flight it needs a tenth of the processor time of httpx, on which the
`openai` package is built (https://github.com/encode/httpx/issues/3215).
"""

import dataclasses
import email.message
import http.client
import os
import re
import select
import socket
import ssl
import threading
import time
import urllib.parse

from fgclip_jax.annotate.servers.faults import ServerError
from fgclip_jax.storage import text as texts

CONNECT_TIMEOUT = 5.0  # seconds
MAX_RESPONSE = 16 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Address:
  """Where an endpoint is: `http://host:port/path`, without the last slash."""

  secure: bool
  host: str
  port: int
  path: str

  def __str__(self) -> str:
    host = f"[{self.host}]" if ":" in self.host else self.host
    usual = self.port == (443 if self.secure else 80)
    return f"{'https' if self.secure else 'http'}://{host}{'' if usual else f':{self.port}'}{self.path}"


class LostError(ConnectionError):
  """A connection that broke before the whole response was there."""


class OffError(ConnectionError):
  """An endpoint to which no connection can be made."""


class LateError(TimeoutError):
  """A response that was not there at its deadline."""


@dataclasses.dataclass(frozen=True)
class Response:
  """The status, headers and body of a response."""

  status: int
  headers: email.message.Message
  data: bytes


def parse_address(url: str) -> Address:
  """Takes an endpoint's address apart, e.g. `http://localhost:8000/v1`.

  Raises:
    ValueError: it is none. A password in it is not repeated in the message.
  """
  parts = urllib.parse.urlsplit(url.strip())
  shown = repr(url) if "@" not in url else f"an address at {parts.hostname!r}"
  host = parts.hostname or ""
  if parts.scheme not in ("http", "https") or not re.fullmatch(r"[^\s/]+", host):
    raise ValueError(f"endpoint {shown} needs the form http://HOST:PORT/v1 or https://HOST/v1")
  if "@" in parts.netloc:
    raise ValueError(f"endpoint {shown} holds a password: leave it out and set OPENAI_API_KEY or --api_key_file")
  if parts.query or parts.fragment:
    raise ValueError(f"endpoint {shown} ends in a query: leave it out")
  try:
    port = parts.port
    host.encode("idna")
  except ValueError as error:
    raise ValueError(f"endpoint {shown}: {error}") from error
  path = urllib.parse.quote(parts.path.rstrip("/").removesuffix("/chat/completions"), safe="/%")
  secure = parts.scheme == "https"
  return Address(secure, host, port or (443 if secure else 80), path)


def read_key(path: str | None = None) -> str:
  """The API key: the first line of a file, or else the variable OPENAI_API_KEY; "": there is none.

  Raises:
    ValueError: it is empty, or cannot stand in a header; the key is not repeated in the message.
    RecordError, OSError: the file cannot be read.
  """
  if path is None:
    place, key = "the key in OPENAI_API_KEY", os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
      return ""
  else:
    place, key = f"the key in the first line of {path!r}", next(texts.lines(path), "").strip()
  return check_key(key, place)


def check_key(key: str, place: str = "the API key") -> str:
  """Returns an API key that can stand in a header.

  Raises:
    ValueError: it cannot; the key is not repeated in the message.
  """
  if not key or not key.isascii() or not key.isprintable() or " " in key:
    raise ValueError(f"{place} must be printable ASCII characters without spaces")
  return key


class Deadlines:
  """Breaks connections that are past their deadline, however slowly bytes arrive on them.

  A socket's own timeout begins anew with each byte.
  """

  def __init__(self, timeout: float) -> None:
    """Begins to look, every so often that a timeout of that length is kept; `end` is to follow."""
    self._lock = threading.Lock()
    self._open: dict[http.client.HTTPConnection, float] = {}
    self._ended = threading.Event()
    self._every = min(max(timeout / 20, 0.02), 1.0)
    threading.Thread(target=self._look, daemon=True).start()

  def add(self, connection: http.client.HTTPConnection, deadline: float) -> None:
    """Watches a connection from now on."""
    with self._lock:
      self._open[connection] = deadline
      if self._ended.is_set():
        _break(connection)

  def remove(self, connection: http.client.HTTPConnection) -> None:
    """Watches it no longer."""
    with self._lock:
      self._open.pop(connection, None)

  def end(self) -> None:
    """Breaks all connections that are watched, now or later."""
    self._ended.set()
    with self._lock:
      for connection in self._open:
        _break(connection)

  def _look(self) -> None:
    while not self._ended.wait(self._every):
      now = time.monotonic()
      with self._lock:
        for connection, deadline in self._open.items():
          if now >= deadline:
            _break(connection)


class Endpoint:
  """One server, and the connections to it that are free.

  Attributes:
    address: where it is.
  """

  def __init__(self, address: Address, timeout: float, key: str = "", connect_timeout: float = CONNECT_TIMEOUT):
    """Makes it.

    Args:
      address: where it is.
      timeout: seconds from the start of an exchange to the whole response.
      key: the API key; "": none.
      connect_timeout: seconds to make a connection.
    """
    self.address = address
    self._timeout, self._connect_timeout, self._key = timeout, connect_timeout, key
    self._tls = ssl.create_default_context() if address.secure else None
    self._lock = threading.Lock()
    self._free: list[http.client.HTTPConnection] = []

  def __repr__(self) -> str:
    return f"Endpoint({self.address})"

  def exchange(self, method: str, path: str, body: bytes | None, deadlines: Deadlines) -> Response:
    """Sends a request and waits for the whole response.

    Raises:
      OffError: no connection could be made; nothing was sent.
      LostError: the connection broke.
      LateError: the response was not there in time.
      ServerError: its certificate is not trusted.
    """
    deadline = time.monotonic() + self._timeout
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
    connection, keep = self._take() or self._connect(), False
    deadlines.add(connection, deadline)
    try:
      connection.request(method, self.address.path + path, body, headers)
      response = connection.getresponse()
      data = response.read(MAX_RESPONSE)
      if response.length:  # `read` with a size does not say that the body ended too early
        raise LostError(f"the response ends or is cut {response.length:,} bytes before its end")
      keep = response.isclosed() and not response.will_close
      return Response(response.status, response.headers, data)
    except (OSError, http.client.HTTPException) as error:
      if time.monotonic() >= deadline or isinstance(error, TimeoutError):
        raise LateError(f"no answer within {self._timeout:g} s") from error
      raise LostError(str(error) or type(error).__name__) from error
    finally:
      deadlines.remove(connection)  # before others may have the connection
      if keep:
        with self._lock:
          self._free.append(connection)
      else:
        connection.close()

  def close(self) -> None:
    """Closes the connections that are free."""
    with self._lock:
      free, self._free = self._free, []
    for connection in free:
      connection.close()

  def _take(self) -> http.client.HTTPConnection | None:
    while True:
      with self._lock:
        if not self._free:
          return None
        connection = self._free.pop()
      if connection.sock is not None and not _is_readable(connection.sock):
        return connection
      connection.close()  # the server has closed it meanwhile

  def _connect(self) -> http.client.HTTPConnection:
    address = self.address
    if self._tls is None:
      connection = http.client.HTTPConnection(address.host, address.port, timeout=self._connect_timeout)
    else:
      connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=self._connect_timeout, context=self._tls
      )
    try:
      connection.connect()
    except ssl.SSLCertVerificationError as error:
      connection.close()
      raise ServerError(
        f"{address}: its certificate is not trusted ({error.verify_message}); name the authority's in SSL_CERT_FILE"
      ) from error
    except OSError as error:
      connection.close()
      raise OffError(f"cannot be reached ({error})") from error
    connection.sock.settimeout(self._timeout)
    return connection


def _is_readable(sock: socket.socket) -> bool:
  """Whether something has arrived: on a connection that is free, that is its end."""
  poll = select.poll()
  poll.register(sock, select.POLLIN)
  return bool(poll.poll(0))


def _break(connection: http.client.HTTPConnection) -> None:
  """Ends a connection under the thread that waits for it, which then gets an error."""
  sock = connection.sock
  if sock is not None:
    try:
      # the plain socket's: that of TLS would wait for the other side, or take the session from under the other thread
      socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
      return  # it is closed already
