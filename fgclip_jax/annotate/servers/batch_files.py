"""Requests and answers as files, in OpenAI's batch form.

OpenAI's Batch API, `vllm run-batch` and Ray Data read and write it: one JSON object a line, joined by `custom_id`,
answers in any order, failures in the same file or in one of their own.
"""

import collections
import email.message
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from fgclip_jax.annotate.servers import answers, faults
from fgclip_jax.annotate.servers.requests import RAW, Answer, Check, Failure, Request
from fgclip_jax.storage import atomic, streams
from fgclip_jax.storage.errors import RecordError

# Limits of OpenAI's files. A picture of 60 KB is 80 KB in a request: about 2,500 of them fill a file.
MAX_LINES = 50_000
MAX_BYTES = 200_000_000
MAX_KEY = 64  # characters of a `custom_id`
URL = "/v1/chat/completions"
PATTERN = "requests-*.jsonl"

Find = Callable[[str], Request | None]


def write(
  requests: Iterable[Request], folder: str, model: str, max_lines: int = MAX_LINES, max_bytes: int = MAX_BYTES
) -> collections.Counter[str]:
  """Writes requests to `FOLDER/requests-00000.jsonl` and so on, which replace those of an earlier call.

  Args:
    requests: with different keys of at most 64 characters.
    folder: made if it is not there; may be a URL.
    model: its name on the server.
    max_lines: requests in a file, at most.
    max_bytes: size of a file, at most.

  Returns:
    How many `requests` there are in how many `files`, and their `bytes`.

  Raises:
    RecordError: a request that cannot stand in a file (`request_too_large`, `key_too_long`).
    OSError: the files cannot be written; the earlier ones are as they were.
  """
  counts: collections.Counter[str] = collections.Counter(requests=0, files=0, bytes=0)
  with atomic.folder(folder, owned=(PATTERN,)) as made:
    file: IO[bytes] | None = None
    lines = size = 0
    try:
      for request in requests:
        line = make_line(request, model)
        if len(line) > max_bytes:
          message = f"has {len(line):,} bytes, and a file at most {max_bytes:,}: send smaller pictures"
          raise RecordError("request_too_large", f"request {request.key}", message)
        if file is None or lines == max_lines or size + len(line) > max_bytes:
          if file is not None:
            file.close()
          file = open(os.path.join(made, PATTERN.replace("*", f"{counts['files']:05d}")), "xb")
          counts["files"] += 1
          lines = size = 0
        file.write(line)
        lines, size = lines + 1, size + len(line)
        counts["requests"] += 1
        counts["bytes"] += len(line)
    finally:
      if file is not None:
        file.close()
  return counts


def make_line(request: Request, model: str) -> bytes:
  """A request as a line of a batch file.

  Raises:
    RecordError: its key is longer than a `custom_id` may be (`key_too_long`).
  """
  if len(request.key) > MAX_KEY:
    raise RecordError("key_too_long", f"request {request.key!r}", f"has a key of more than {MAX_KEY} characters")
  whole = {"custom_id": request.key, "method": "POST", "url": URL, "body": request.body(model)}
  return json.dumps(whole).encode() + b"\n"


def read(paths: Sequence[str], find: Find, check: Check | None = None) -> Iterator[Answer | Failure]:
  """Reads answers, in any order, from any number of files; each is validated as that of a server.

  Args:
    paths: files or patterns of names; JSON lines, also as `.gz`.
    find: gives the request of a key; None: it was never made.
    check: returns the name of the rule that a value breaks, or None.

  Yields:
    What came of each line. Lines that belong to no request have the kinds `answer_unknown`, `answer_twice` (after a
    good answer with the same key) and, with the key "", `answer_line` (no line of a batch file, or a file that breaks
    off). What a batch left out has its error's code as its kind, such as `batch_expired`.

  Raises:
    FileNotFoundError: no file has such a name.
    OSError: a file cannot be read.
  """
  seen: set[int] = set()  # hashes of keys: a million answers are not to fill the memory
  for path in _list(paths):
    try:
      for offset, raw in streams.scan(path):
        result = _read_line(f"{path}, byte {offset}", raw, find, check)
        if isinstance(result, Answer) or result.kind not in ("answer_line", "answer_unknown"):
          key = hash(result.key)
          if key in seen:
            result = Failure(result.key, "answer_twice", f"{path}, byte {offset}: it has a good answer already")
          elif isinstance(result, Answer):
            seen.add(key)
        yield result
    except RecordError as error:
      yield Failure("", "answer_line", f"{path}: {error}")


def _list(paths: Sequence[str]) -> list[str]:
  found: list[str] = []
  for path in paths:
    names = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    if not names:
      raise FileNotFoundError(2, "no file has such a name", path)
    found += names
  return list(dict.fromkeys(found))


def _read_line(place: str, raw: Any, find: Find, check: Check | None) -> Answer | Failure:
  try:
    line = streams.load(raw)
  except RecordError as error:
    return Failure("", "answer_line", f"{place}: {error}")
  if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
    return Failure("", "answer_line", f"{place}: needs an object with a custom_id", raw=str(line)[:RAW])
  key = line["custom_id"]
  request = find(key)
  if request is None:
    return Failure(key, "answer_unknown", f"{place}: custom_id {key[:80]!r} was not asked")
  response, error = line.get("response"), line.get("error")
  if not isinstance(response, dict):
    code = error.get("code") if isinstance(error, dict) else None
    kind = re.sub(r"[^a-z0-9]+", "_", str(code or "batch_error").lower())[:MAX_KEY]
    return Failure(key, kind, faults.describe(json.dumps(error or "there is no response").encode()))
  status, payload = response.get("status_code", 200), response.get("body")
  if status != 200:
    status = status if isinstance(status, int) else 500
    fault = faults.classify(status, email.message.Message(), json.dumps(payload).encode())
    return Failure(key, fault.kind, fault.detail)
  try:
    reply = answers.read_checked(request, payload, check)
  except answers.AnswerError as error:
    return Failure(key, error.kind, error.message, raw=error.raw)
  return Answer(key, reply.value, reply.model, reply.usage)
