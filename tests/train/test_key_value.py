"""The store that the processes of a run talk through."""

import json
import socket
import threading
import time

import pytest

from fgclip_jax.train.key_value import KeyValueServer, KeyValueStore, RemoteStore


@pytest.fixture
def store():
  return KeyValueStore()


@pytest.fixture
def remote(store):
  return RemoteStore(KeyValueServer(store, "localhost").address)


def test_values_by_key(store, remote):
  remote.set("a/1", "one")
  store.set("a/2", "two")
  store.set("b/1", "three")
  assert remote.get("a/2", 0.0) == "two" and store.get("a/1", 0.0) == "one"
  assert store.list("a") == {"a/1": "one", "a/2": "two"}
  store.delete("a")
  assert store.list("a") == {} and store.list("b") == {"b/1": "three"}


def test_a_value_may_stay(remote):
  remote.set("reason", "the first")
  remote.set("reason", "the second", False)
  assert remote.get("reason", 1.0) == "the first"
  remote.set("reason", "the third")
  assert remote.get("reason", 1.0) == "the third"


def test_a_value_is_waited_for(store, remote):
  with pytest.raises(TimeoutError, match="late was not set within 0.01 s"):
    remote.get("late", 0.01)
  threading.Timer(0.1, lambda: store.set("late", "here")).start()
  assert remote.get("late", 10.0) == "here"


def test_a_thread_that_waits_holds_up_no_other(remote):
  found = []
  waiting = threading.Thread(target=lambda: found.append(remote.get("later", 10.0)))
  waiting.start()
  time.sleep(0.05)
  remote.set("later", "now")  # through the connection of this thread
  waiting.join(10.0)
  assert found == ["now"]


def test_only_those_who_know_the_token_are_answered(store):
  hosts, port, token = json.loads(KeyValueServer(store, "localhost").address)
  assert hosts[0] == "localhost"
  with pytest.raises(ConnectionError, match="process 0 does not answer on port"):
    RemoteStore(json.dumps([["localhost"], port, token[::-1]]))
  with socket.create_connection(("localhost", port), timeout=10.0) as connection:
    connection.sendall((token + "\n" + json.dumps(["delete", "a"]) + "\n").encode())
    stream = connection.makefile()
    assert stream.readline() == "true\n" and stream.readline() == ""


def test_the_next_address_is_tried(store):
  _, port, token = json.loads(KeyValueServer(store).address)
  remote = RemoteStore(json.dumps([["name.invalid", "localhost"], port, token]))
  remote.set("a", "b")
  assert store.get("a", 0.0) == "b"


def test_a_broken_connection_is_an_error():
  with socket.create_server(("localhost", 0)) as server:

    def serve():
      connection, _ = server.accept()
      with connection, connection.makefile("rw") as stream:
        stream.readline()
        stream.write("true\n")
        stream.flush()
        stream.readline()

    thread = threading.Thread(target=serve)
    thread.start()
    remote = RemoteStore(json.dumps([["localhost"], server.getsockname()[1], "token"]))
    with pytest.raises(ConnectionError):
      remote.get("a", 10.0)
    thread.join()
