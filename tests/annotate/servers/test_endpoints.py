"""Addresses, keys, and one exchange over HTTP."""

import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from fgclip_jax.annotate.servers import endpoints
from fgclip_jax.annotate.servers.faults import ServerError
from tests.helpers import buckets, model_server


@pytest.mark.parametrize(
  ("url", "shown"),
  [
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    (" https://api.example.com/v1/ ", "https://api.example.com/v1"),
    ("http://[::1]:80/v1/chat/completions", "http://[::1]/v1"),
    ("https://h:8443", "https://h:8443"),
  ],
)
def test_addresses(url, shown):
  assert str(endpoints.parse_address(url)) == shown


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("localhost:8000/v1", "needs the form"),
    ("ftp://h/v1", "needs the form"),
    ("file:///etc/passwd", "needs the form"),
    ("http:///v1", "needs the form"),
    ("http://user:secret@h/v1", "holds a password"),
    ("http://h/v1?key=1", "ends in a query"),
    ("http://h:port/v1", "Port could not be cast"),
    ("http://a..b/v1", "label"),
    ("http://a b/v1", "needs the form"),
  ],
)
def test_addresses_that_cannot_be_used(url, message):
  with pytest.raises(ValueError, match=message) as caught:
    endpoints.parse_address(url)
  assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_keys(tmp_path, monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  assert endpoints.read_key() == ""
  monkeypatch.setenv("OPENAI_API_KEY", " sk-1\n")
  assert endpoints.read_key() == "sk-1"
  path = tmp_path / "key"
  path.write_text("sk-2\nanother line\n")
  assert endpoints.read_key(str(path)) == "sk-2"
  for text in ("", "sk secret", "sk-sécret", "sk-\x00secret"):
    path.write_text(text)
    with pytest.raises(ValueError, match="must be printable ASCII") as caught:
      endpoints.read_key(str(path))
    assert "cret" not in str(caught.value)


@pytest.fixture
def deadlines():
  made = endpoints.Deadlines(0.4)
  yield made
  made.end()


def make(url, timeout=5.0, key="") -> endpoints.Endpoint:
  return endpoints.Endpoint(endpoints.parse_address(url), timeout, key, connect_timeout=1.0)


def test_a_connection_is_kept_and_a_dead_one_is_not_used(deadlines):
  with model_server.serve(key="sk-1") as server:
    endpoint = make(server.url, key="sk-1")
    for _ in range(3):
      assert endpoint.exchange("GET", "/models", None, deadlines).status == 200
    assert server.connections == 1
    for transport in list(server.transports):  # as servers do with connections that are idle
      server.loop.call_soon_threadsafe(transport.close)
    time.sleep(0.1)
    assert endpoint.exchange("GET", "/models", None, deadlines).status == 200
    stranger = make(server.url)
    assert stranger.exchange("GET", "/models", None, deadlines).status == 401
    stranger.close()
    assert "sk-1" not in repr(endpoint)
    endpoint.close()


def test_a_server_that_is_not_there(deadlines):
  with pytest.raises(endpoints.OffError, match="cannot be reached"):
    make(f"http://127.0.0.1:{buckets.free_port()}/v1").exchange("GET", "/models", None, deadlines)


@pytest.mark.parametrize("kind", ["hang", "trickle"])
def test_there_is_always_an_end(deadlines, kind):
  with model_server.serve(decide=lambda body, number: kind) as server:
    started = time.monotonic()
    with pytest.raises(endpoints.LateError, match=r"no answer within 0.4 s"):
      make(server.url, timeout=0.4).exchange("POST", "/chat/completions", b'{"messages": []}', deadlines)
    assert 0.3 < time.monotonic() - started < 3


def serve_once(data: bytes) -> str:
  """The address of a server that sends some bytes and closes."""
  listener = socket.create_server(("127.0.0.1", 0))

  def answer() -> None:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(data)
    connection.close()
    listener.close()

  threading.Thread(target=answer, daemon=True).start()
  return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    b"garbage\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"x" * 99999,
  ],
)
def test_a_response_that_is_not_whole(deadlines, data):
  with pytest.raises(endpoints.LostError):
    make(serve_once(data)).exchange("GET", "/models", None, deadlines)


def test_a_response_without_a_length(deadlines):
  response = make(serve_once(b"HTTP/1.0 200 OK\r\n\r\n{}")).exchange("GET", "/models", None, deadlines)
  assert response.data == b"{}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
  """The paths of a key and a certificate for `localhost` that signs itself."""
  if shutil.which("openssl") is None:
    pytest.skip("needs the openssl command")
  folder = tmp_path_factory.mktemp("certificate")
  paths = str(folder / "key.pem"), str(folder / "certificate.pem")
  command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
  command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", paths[0], "-out", paths[1]]
  subprocess.run(command, check=True, capture_output=True)
  return paths


def test_https(deadlines, certificate, monkeypatch):
  tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
  tls.load_cert_chain(certificate[1], certificate[0])
  with model_server.serve(tls=tls, decide=lambda body, number: "hang" if number else None) as server:
    with pytest.raises(ServerError, match="its certificate is not trusted .self-signed certificate.; name"):
      make(server.url).exchange("GET", "/models", None, deadlines)
    monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
    endpoint = make(server.url, timeout=0.5)
    assert endpoint.exchange("GET", "/models", None, deadlines).status == 200
    assert endpoint.exchange("POST", "/chat/completions", b'{"messages": []}', deadlines).status == 200
    with pytest.raises(endpoints.LateError):
      endpoint.exchange("POST", "/chat/completions", b'{"messages": []}', deadlines)
    endpoint.close()
