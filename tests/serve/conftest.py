"""A toy model that is served on loopback, and a caller of it."""

import asyncio
import base64
import http.client
import io
import json
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config
from tests.helpers.toy_models import init

TINY = config.preset("tiny")


@pytest.fixture(scope="package")
def model():
  return FGCLIP(TINY, init(TINY, 0))


def picture(seed, size=(40, 30)):
  """The bytes of a PNG file of coarse noise."""
  levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(levels).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
  return file.getvalue()


def base64_picture(seed):
  return base64.b64encode(picture(seed)).decode()


class Caller:
  """Asks a server, one connection for each question."""

  def __init__(self, port, token=""):
    self.port, self.token = port, token

  def __call__(self, path, body=None, headers=None, method=None):
    """The status and the JSON (or text) of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | (headers or {})
    if self.token:
      headers["authorization"] = f"Bearer {self.token}"
    try:
      connection.request(method or ("POST" if data is not None else "GET"), path, data, headers)
      answer = connection.getresponse()
      self.headers = dict(answer.getheaders())
      text = answer.read().decode()
      self.text = text
      return answer.status, json.loads(text) if "json" in answer.headers.get("content-type", "") else text
    finally:
      connection.close()


@pytest.fixture(scope="package")
def serve():
  """Starts servers: `serve(app)` gives a `Caller`."""
  uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn and fastapi, see requirements-serve.txt")
  pytest.importorskip("fastapi", reason="needs fastapi, see requirements-serve.txt")
  running = []

  def start(app, token=""):
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    running.append((server, thread, listener))
    return Caller(listener.getsockname()[1], token)

  yield start
  for server, thread, listener in running:
    server.should_exit = True
    thread.join(10)
    listener.close()
