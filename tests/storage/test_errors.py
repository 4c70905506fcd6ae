"""Errors of networks and credentials are told from damage, whichever library raises them."""

import errno
import socket

import pytest

from fgclip_jax.storage import errors
from fgclip_jax.storage.errors import AccessRefusedError, UnreachableError, describe_fault, retry, storage_fault


def named(name: str, text: str = "", **attributes) -> Exception:
  """An error of a library's type, which is known by its name."""
  error = type(name, (Exception,), {})(text)
  for key, value in attributes.items():
    setattr(error, key, value)
  return error


def caused(outer: Exception, inner: Exception) -> Exception:
  outer.__cause__ = inner
  return outer


BOTO_403 = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
UNREACHABLE = [
  ConnectionResetError("reset"),
  TimeoutError(),
  socket.gaierror("no such name"),
  OSError(errno.ENETUNREACH, "Network is unreachable"),
  OSError(errno.EBUSY, "Please reduce your request rate"),  # s3fs' word for 503
  named("HttpError", "backend error", code=503),
  named("HttpError", "slow down", code="429"),
  named("HTTPClientError", "Could not connect"),  # what botocore's connection errors derive from
  named("TransportError", "metadata server"),
  named("RefreshError", "metadata server", retryable=True),
  ValueError("UNAVAILABLE: CURL error[7] Couldn't connect to server"),
  ValueError("read failed: HTTP response code: 503"),
  caused(ValueError("a save failed"), ConnectionRefusedError()),
  ExceptionGroup("two", [ValueError("x"), TimeoutError()]),
]
REFUSED = [
  PermissionError("Forbidden"),
  OSError("Forbidden: https://storage/b/x\nno rights"),
  named("HttpError", "Invalid Credentials", code=401),
  named("DefaultCredentialsError", "none found"),
  named("RefreshError", "invalid_grant: Token has been expired or revoked"),
  named("NoCredentialsError", "Unable to locate credentials"),
  named("ClientError", "Forbidden", response=BOTO_403),
  caused(OSError(errno.EINVAL, "expired"), named("ClientError", response={"Error": {"Code": "ExpiredToken"}})),
  ValueError("PERMISSION_DENIED: HTTP response code: 403 with body"),
]
OTHERS = [
  ValueError("DATA_LOSS: Error decoding manifest"),
  FileNotFoundError("gs://b/x"),
  OSError(errno.ENOSPC, "No space left on device"),
  ValueError("RESOURCE_EXHAUSTED: No space left on device"),
  OSError("1 arrays are not what was saved, e.g. params/a"),
  named("HttpError", "not found", code=404),
  KeyError("config"),
]


@pytest.mark.parametrize("error", UNREACHABLE, ids=repr)
def test_a_network_that_fails(error):
  assert storage_fault(error) is UnreachableError
  assert storage_fault(describe_fault(UnreachableError, "gs://b", error)) is UnreachableError


@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_credentials_that_do_not_do(error):
  assert storage_fault(error) is AccessRefusedError
  assert storage_fault(describe_fault(AccessRefusedError, "gs://b", error)) is AccessRefusedError


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_all_else(error):
  assert storage_fault(error) is None


def test_an_error_that_was_handled_before_says_nothing():
  try:
    try:
      raise ConnectionError
    except ConnectionError:
      raise ValueError("damaged") from None
  except ValueError as error:
    assert storage_fault(error) is None


class Place:
  """Raises these errors, one at each call, and then works."""

  def __init__(self, *faults: Exception):
    self.faults = list(faults)

  def __call__(self) -> str:
    if self.faults:
      raise self.faults.pop(0)
    return "here"


def test_a_network_that_comes_back(monkeypatch):
  pauses = []
  monkeypatch.setattr(errors.time, "sleep", pauses.append)
  said = []
  assert retry(Place(*[ConnectionError("down")] * 5), "gs://b", said.append, 1000.0) == "here"
  assert said == ["gs://b cannot be reached (down); trying again for up to 1000 s"]
  assert len(pauses) == 5 and all(
    half / 2 <= pause <= half for half, pause in zip((1, 2, 4, 8, 16), pauses, strict=True)
  )


def test_one_that_does_not_and_other_faults(monkeypatch):
  monkeypatch.setattr(errors.time, "sleep", lambda seconds: None)
  with pytest.raises(UnreachableError, match="^'gs://b' could not be reached .down.; .*see to the network"):
    retry(Place(*[ConnectionError("down")] * 100_000), "gs://b", lambda line: None, 0.01)
  with pytest.raises(AccessRefusedError, match="refuses access .*AWS_ACCESS_KEY_ID.*the same command goes on"):
    retry(Place(PermissionError("no")), "s3://b", lambda line: None)
  with pytest.raises(KeyError):
    retry(Place(KeyError("x")), "s3://b", lambda line: None)
