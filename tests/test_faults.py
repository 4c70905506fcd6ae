"""The network that `benchmarks/faults.py` puts before a bucket: what passes is unchanged, and each fault is met."""

import http.client
import http.server
import pathlib
import sys
import threading
import urllib.error
import urllib.request
from typing import ClassVar

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))

from faulting.proxy import Conditions, Proxy


class Echo(http.server.BaseHTTPRequestHandler):
  """Answers with the request's body; `seen` has those that came whole."""

  seen: ClassVar[list[bytes]] = []

  def do_POST(self):
    size = int(self.headers["Content-Length"])
    body = self.rfile.read(size)
    if len(body) == size:
      self.seen.append(body)
      self.send_response(200)
      self.send_header("Content-Length", str(size))
      self.end_headers()
      self.wfile.write(body)

  def do_GET(self):
    self.send_response(200)
    self.send_header("Content-Length", "1000")
    self.end_headers()
    self.wfile.write(bytes(1000))

  def log_message(self, *_):
    pass


@pytest.fixture(scope="module")
def proxy():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.close()
    server.shutdown()


@pytest.fixture(autouse=True)
def calm(proxy):
  proxy.conditions = Conditions()
  proxy.met.clear()
  Echo.seen.clear()


def ask(proxy: Proxy, body: bytes | None = b"hello " * 5000) -> bytes:
  request = urllib.request.Request(proxy.url, body, {"Expect": "100-continue"} if body else {})
  with urllib.request.urlopen(request, timeout=10) as answer:
    return answer.read()


def test_what_passes_is_unchanged(proxy):
  assert ask(proxy, b"\0" * 100_000) == b"\0" * 100_000
  assert ask(proxy, None) == bytes(1000)
  connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
  connection.request("POST", "/", iter([b"one ", b"two"]), encode_chunked=True)
  assert connection.getresponse().read() == b"one two"
  connection.close()
  assert proxy.met == {"passed": 3}


@pytest.mark.parametrize("fault, seen", [("reset", 0), ("reset_after", 1), ("cut", 0)])
def test_connections_are_lost(proxy, fault, seen):
  proxy.conditions = Conditions(**{fault: 1.0})
  with pytest.raises(OSError):
    ask(proxy)
  assert len(Echo.seen) == seen and proxy.met == {fault: 1}


def test_an_answer_is_cut(proxy):
  proxy.conditions = Conditions(cut=1.0)
  with pytest.raises(http.client.IncompleteRead, match="500 bytes read, 500 more expected"):
    ask(proxy, None)


def test_a_busy_server(proxy):
  proxy.conditions = Conditions(busy=1.0)
  with pytest.raises(urllib.error.HTTPError) as error:
    ask(proxy)
  assert error.value.code in (429, 503) and not Echo.seen


@pytest.mark.parametrize("kind", ["silent", "refused"])
def test_nothing_passes(proxy, kind):
  proxy.conditions = Conditions(dark=kind)
  lost = threading.Timer(0.2, lambda: setattr(proxy, "conditions", Conditions()))
  lost.start()
  with pytest.raises(OSError):
    ask(proxy)
  lost.join()
  assert not Echo.seen and proxy.met == {"dark": 1}
  assert ask(proxy)
