"""A small key-value store that process 0 of a run serves to the others, over TCP.

JAX's own coordination service has such a store, but no public way to it (jax 0.10): `jax.distributed` starts and stops
the service, and every other public function exchanges values through the devices, behind the step under way. Like the
collectives of Gloo and NCCL, the store takes any free port. Every connection begins with a random token that only the
run's processes know.
"""

import contextlib
import hmac
import json
import secrets
import socket
import threading
from collections import defaultdict
from typing import Any, TextIO

_CONNECT_SECONDS = 20.0


class KeyValueStore:
  """The store itself: text by key, for any number of threads; keys look like paths."""

  def __init__(self):
    self._values: dict[str, str] = {}
    self._lock = threading.Lock()
    # one condition for each key: a set wakes only those that wait for its key, not every process of a large run
    self._changed: dict[str, threading.Condition] = defaultdict(lambda: threading.Condition(self._lock))

  def set(self, key: str, value: str, overwrite: bool = True) -> None:
    """Stores a value. Without `overwrite`, a key that has a value keeps it."""
    with self._lock:
      if overwrite or key not in self._values:
        self._values[key] = value
      if key in self._changed:
        self._changed[key].notify_all()

  def get(self, key: str, seconds: float) -> str:
    """The value of a key, once it has one.

    Raises:
      TimeoutError: it has none within `seconds`.
    """
    with self._lock:
      if not self._changed[key].wait_for(lambda: key in self._values, seconds):
        raise TimeoutError(f"{key} was not set within {seconds:g} s")
      return self._values[key]

  def list(self, folder: str) -> dict[str, str]:
    """Every key under `folder/` with its value."""
    with self._lock:
      return {key: value for key, value in self._values.items() if key.startswith(f"{folder}/")}

  def delete(self, folder: str) -> None:
    """Removes every key under `folder/`."""
    with self._lock:
      for key in [key for key in {*self._values, *self._changed} if key.startswith(f"{folder}/")]:
        self._values.pop(key, None)
        self._changed.pop(key, None)


class KeyValueServer:
  """Serves a store from daemon threads, for as long as the process lives.

  Args:
    store: what is served.
    host: a name under which the others reach this machine, if one is known; tried first.

  Attributes:
    address: for `RemoteStore`; JSON text, which holds the token.
  """

  def __init__(self, store: KeyValueStore, host: str | None = None):
    self._store, self._token = store, secrets.token_hex(16)
    if socket.has_dualstack_ipv6():
      self._server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    else:
      self._server = socket.create_server(("", 0), backlog=1024)
    hosts = [host, *_own_addresses(), socket.gethostname()]
    self.address = json.dumps([list(dict.fromkeys(filter(None, hosts))), self._server.getsockname()[1], self._token])
    threading.Thread(target=self._accept, name="key-value server", daemon=True).start()

  def _accept(self) -> None:
    while True:
      connection, _ = self._server.accept()
      threading.Thread(target=self._answer, args=(connection,), name="key-value client", daemon=True).start()

  def _answer(self, connection: socket.socket) -> None:
    calls = {"set": self._store.set, "get": self._store.get}
    with contextlib.suppress(OSError, ValueError, KeyError), connection, connection.makefile() as lines:
      if not hmac.compare_digest(lines.readline(len(self._token) + 2).strip(), self._token):
        return
      _send(connection, True)
      for line in lines:
        method, *arguments = json.loads(line)
        try:
          _send(connection, {"value": calls[method](*arguments)})
        except TimeoutError as error:
          _send(connection, {"timeout": str(error)})


class RemoteStore:
  """The store of process 0, as the other processes use it; the methods are those of `KeyValueStore`.

  Each thread has a connection of its own, so that one which waits holds up no other.

  Args:
    address: of the server.

  Raises:
    ConnectionError: process 0 does not answer; from every method, as soon as the connection breaks.
  """

  def __init__(self, address: str):
    self._hosts, self._port, self._token = json.loads(address)
    self._local = threading.local()
    self._local.connection = self._connect()

  def set(self, key: str, value: str, overwrite: bool = True) -> None:
    """See `KeyValueStore.set`."""
    self._ask("set", key, value, overwrite)

  def get(self, key: str, seconds: float) -> str:
    """See `KeyValueStore.get`."""
    return self._ask("get", key, seconds)

  def _ask(self, *request: str | float | bool) -> Any:
    if not hasattr(self._local, "connection"):
      self._local.connection = self._connect()
    connection, lines = self._local.connection
    _send(connection, request)
    line = lines.readline()
    if not line:
      raise ConnectionError("the connection to process 0 was closed")
    answer = json.loads(line)
    if "timeout" in answer:
      raise TimeoutError(answer["timeout"])
    return answer["value"]

  def _connect(self) -> tuple[socket.socket, TextIO]:
    """Tries one address after the other; on some of them another machine or program may answer."""
    reasons = []
    for host in self._hosts:
      try:
        connection = socket.create_connection((host, self._port), timeout=_CONNECT_SECONDS)
        lines = connection.makefile()
        connection.sendall(f"{self._token}\n".encode())
        if lines.readline() == "true\n":
          connection.settimeout(None)
          self._hosts = [host]
          return connection, lines
        reasons.append(f"{host}: another program answers")
      except (OSError, ValueError) as error:
        reasons.append(f"{host}: {error}")
    raise ConnectionError(f"process 0 does not answer on port {self._port} ({'; '.join(reasons)})")


def _send(connection: socket.socket, message: object) -> None:
  connection.sendall(f"{json.dumps(message)}\n".encode())


def _own_addresses() -> list[str]:
  """This machine's addresses on the networks that lead outside; connecting UDP sends nothing."""
  found = []
  for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # documentation addresses
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
      probe.connect((outside, 9))
      found.append(probe.getsockname()[0])
  return found
