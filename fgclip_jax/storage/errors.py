"""The error that every reader raises for a record that cannot be used; errors of networks and credentials; retries."""

import errno
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class RecordError(ValueError):
  """A record that cannot be used.

  Attributes:
    kind: the class of the fault in snake_case, e.g. `box_outside`; reports count by it.
    field: the field at fault, e.g. `bbox_info[2].bbox`.
    message: what is wrong with it.
  """

  def __init__(self, kind: str, field: str, message: str):
    super().__init__(f"{field}: {message}")
    self.kind, self.field, self.message = kind, field, message

  def __reduce__(self):
    return type(self), (self.kind, self.field, self.message)


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or its type where it has none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


class UnreachableError(OSError):
  """Storage that could not be reached, though it was tried again and again; nothing there is damaged by that."""


class AccessRefusedError(PermissionError):
  """Storage that refuses access: credentials are missing, have expired, or do not suffice."""


# By name, so that no storage's package has to be there: fsspec's file systems raise errors of their libraries.
_REFUSED = {
  "DefaultCredentialsError", "MalformedError",  # google-auth
  "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",  # botocore
  "SSOTokenLoadError", "UnauthorizedSSOTokenError", "ClientAuthenticationError",  # and azure-core
}  # fmt: skip
_REFUSED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
_REFUSED_TEXT = re.compile(
  r"^Forbidden: |\b(PERMISSION_DENIED|UNAUTHENTICATED)\b|HTTP (response )?(code|status):? 40[13]\b"
)
_UNREACHABLE = {
  "ClientError", "ClientConnectionError", "ClientPayloadError",  # aiohttp
  "RequestException", "TransportError", "RefreshError", "ChecksumError",  # requests, google-auth, gcsfs
  "HTTPClientError", "IncompleteReadError", "ResponseStreamingError", "ConnectionClosedError",  # botocore
  "ServiceRequestError", "ServiceResponseError",  # azure-core
}  # fmt: skip
_UNREACHABLE_TEXT = re.compile(
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b|HTTP (response )?(code|status):? (429|5\d\d)\b"
)
_UNREACHABLE_NUMBERS = {
  getattr(errno, name, None)
  for name in ("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET",
               "ENOTCONN", "ESTALE", "EBUSY", "EREMOTEIO")
} - {None}  # fmt: skip


def storage_fault(error: BaseException) -> type[UnreachableError] | type[AccessRefusedError] | None:
  """Tells errors of a network and of credentials from all others, such as damaged files and full disks.

  Libraries wrap each other's errors, so those that caused an error are looked at, too.

  Args:
    error: what a file system, Orbax or TensorStore has raised.

  Returns:
    The kind of fault; None: another one.
  """
  seen: list[BaseException] = []
  left: list[BaseException | None] = [error]
  while left:
    each = left.pop(0)
    if each is None or each in seen:
      continue
    seen.append(each)
    if isinstance(each, UnreachableError | AccessRefusedError):
      return type(each)
    left += [each.__cause__, None if each.__suppress_context__ else each.__context__, *getattr(each, "exceptions", ())]
  if any(map(_is_refused, seen)):
    return AccessRefusedError
  return UnreachableError if any(map(_is_unreachable, seen)) else None


def _is_refused(error: BaseException) -> bool:
  names = {kind.__name__ for kind in type(error).__mro__}
  if "RefreshError" in names:  # google-auth's: of credentials, or of the server that renews them
    return not getattr(error, "retryable", False)
  response = getattr(error, "response", None)
  code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
  return bool(
    isinstance(error, PermissionError)
    or names & _REFUSED
    or code in _REFUSED_CODES
    or _status(error) in (401, 403)
    or _REFUSED_TEXT.search(str(error))
  )


def _is_unreachable(error: BaseException) -> bool:
  status, text = _status(error), str(error)
  if "No space left" in text:  # TensorStore's word for it is that of too many requests
    return False
  if status is not None:
    return status in (408, 429) or status >= 500
  return bool(
    isinstance(error, ConnectionError | TimeoutError | ssl.SSLError | socket.gaierror)
    or {kind.__name__ for kind in type(error).__mro__} & _UNREACHABLE
    or getattr(error, "errno", None) in _UNREACHABLE_NUMBERS
    or _UNREACHABLE_TEXT.search(text)
  )


def _status(error: BaseException) -> int | None:
  """The HTTP status of a storage library's error; None: it has none."""
  response = getattr(error, "response", None)
  found = getattr(error, "status", getattr(error, "code", None))
  if isinstance(response, dict):  # botocore
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode", found)
  return int(found) if isinstance(found, int | str) and str(found).isdecimal() and 100 <= int(found) < 600 else None


def describe_fault(kind: type[OSError], place: str, error: BaseException | None) -> OSError:
  """The error to raise for a fault of `storage_fault`: it names the place and says what to do."""
  reason = first_line(error)[:200] if error else "on another process"
  if kind is AccessRefusedError:
    return AccessRefusedError(
      f"{place!r} refuses access ({reason}): the credentials are missing, have expired or do not suffice; renew them "
      f"({_RENEW.get(place.partition('://')[0], 'as its file system says')}), then the same command goes on"
    )
  return UnreachableError(
    f"{place!r} could not be reached ({reason}); what is stored there is as it was: see to the network, then the same "
    "command goes on"
  )


_RENEW = {
  **dict.fromkeys(("gs", "gcs"), "`gcloud auth application-default login`, or the service account of the machine"),
  **dict.fromkeys(("s3", "s3a"), "`aws sso login`, AWS_ACCESS_KEY_ID and so on, or the role of the machine"),
}


def back_off(seconds: float, first: float = 1.0, most: float = 30.0) -> Iterator[float]:
  """Waits before each further try, ever longer, for `seconds` in all; gives the seconds that are left.

  The waits are random: many processes that lost the same place do not come back to it at the same moment.
  """
  end = time.monotonic() + seconds
  pause = first
  while (left := end - time.monotonic()) > 0:
    time.sleep(min(pause * random.uniform(0.5, 1.0), left))
    pause = min(2 * pause, most)
    yield max(end - time.monotonic(), 0.0)


def retry(action: Callable[[], T], place: str, log: Callable[[str], object] = print, seconds: float = 120.0) -> T:
  """Calls `action` until it does not fail for want of the network.

  Args:
    action: what reads or writes; may be called several times.
    place: where, for messages.
    log: prints a line, once.
    seconds: for how long it is tried again.

  Raises:
    UnreachableError: the place could not be reached.
    AccessRefusedError: it refuses access.
    Exception: any other error of `action`.
  """
  waits = back_off(seconds)
  said = False
  while True:
    try:
      return action()
    except Exception as error:  # each storage has error types of its own
      kind = storage_fault(error)
      if kind is None:
        raise
      if kind is AccessRefusedError or next(waits, None) is None:
        raise describe_fault(kind, place, error) from error
      if not said:
        log(f"{place} cannot be reached ({first_line(error)[:200]}); trying again for up to {seconds:.0f} s")
      said = True
