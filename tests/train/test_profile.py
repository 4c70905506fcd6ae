"""Profiles on demand: the server listens, and a port that is taken is an error."""

import socket
import subprocess
import sys

import pytest

from fgclip_jax.train.profile import start_server


def test_the_server_listens():
  """In a process of its own, for a process has one server."""
  with socket.create_server(("", 0)) as free:
    port = free.getsockname()[1]
  code = "import socket, sys; from fgclip_jax.train.profile import start_server; start_server(int(sys.argv[1])); "
  code += "socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10).close(); print('answered')"
  done = subprocess.run([sys.executable, "-c", code, str(port)], capture_output=True, text=True, timeout=120)
  assert done.stdout.endswith("answered\n"), done.stderr


@pytest.mark.parametrize("port", [-1, 70000])
def test_no_port(port):
  with pytest.raises(ValueError, match=f"--profiler_port {port} cannot be listened on"):
    start_server(port)


def test_a_port_that_is_taken():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=rf"--profiler_port {port} cannot be listened on: .*in use"):
      start_server(port)
