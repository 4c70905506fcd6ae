"""What responses without an answer mean."""

import email.message
import json
import time
from email.utils import formatdate

import pytest

from fgclip_jax.annotate.servers import faults
from fgclip_jax.annotate.servers.faults import Scope


def classify(status, error="", **headers):
  made = email.message.Message()
  for name, value in headers.items():
    made[name.replace("_", "-")] = value
  return faults.classify(status, made, json.dumps({"error": error}).encode() if error else b"")


@pytest.mark.parametrize(
  ("status", "error", "scope", "kind"),
  [
    (429, {"message": "Rate limit reached"}, Scope.ENDPOINT, "server_busy"),
    (503, {"message": "Loading model", "code": 503}, Scope.ENDPOINT, "server_busy"),
    (502, "", Scope.ENDPOINT, "server_busy"),
    (429, {"message": "Quota", "code": "insufficient_quota"}, Scope.RUN, "quota_used_up"),
    (401, {"message": "Incorrect API key"}, Scope.RUN, "access_refused"),
    (404, "model 'x' not found", Scope.RUN, "address_wrong"),
    (307, "", Scope.RUN, "address_wrong"),
    (500, {"message": "image input is not supported"}, Scope.ATTEMPT, "server_error"),
    (400, {"message": "too big", "type": "exceed_context_size_error"}, Scope.ITEM, "answer_too_long"),
    (400, {"message": "This model's maximum context length is 4096 tokens"}, Scope.ITEM, "answer_too_long"),
    (400, {"message": "cannot identify image file"}, Scope.ITEM, "image_refused"),
    (422, "response_format is not supported", Scope.ITEM, "request_refused"),
    (413, "", Scope.ITEM, "request_too_large"),
  ],
)
def test_what_a_status_means(status, error, scope, kind):
  found = classify(status, error)
  assert (found.scope, found.kind) == (scope, kind)
  assert f"HTTP {status}" in found.detail


@pytest.mark.parametrize(
  ("value", "low", "high"),
  [("7", 7, 7), ("0.5", 0.5, 0.5), ("-3", 0, 0), ("date", 90, 101)],
)
def test_how_long_to_wait(value, low, high):
  value = formatdate(time.time() + 100, usegmt=True) if value == "date" else value
  wait = classify(429, Retry_After=value).wait
  assert wait is not None and low <= wait <= high


@pytest.mark.parametrize("value", ["soon", "nan", "inf", ""])
def test_a_wait_that_says_nothing(value):
  assert classify(429, Retry_After=value).wait is None


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b'{"error": {"message": "a\\nb", "type": "t", "code": 5}}', "a b, t, 5"),
    (b'{"error": "text"}', "text"),
    (b'{"detail": "not found"}', "not found"),
    (b"<html>\n<b>Bad</b>", "<html> <b>Bad</b>"),
    (b'{"error": "\\ud800"}', "?"),
    (b"\xff\xfe", "\ufffd\ufffd"),
    (b"", ""),
  ],
)
def test_what_an_error_says_fits_a_line(data, said):
  assert faults.describe(data) == said
