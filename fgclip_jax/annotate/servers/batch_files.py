"""Requests and answers as files, in OpenAI's batch form.

OpenAI's Batch API, `vllm run-batch` and Ray Data read and write it: one JSON object a line, joined by `custom_id`,
answers in any order, failures in the same file or in one of their own.

Tasks write the requests of a part each, `gather` makes files of them that keep the limits. Answers are read once, into
a table on disk, in which every task finds those to its requests.
"""

import collections
import email.message
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from fgclip_jax.annotate.servers import answers, faults
from fgclip_jax.annotate.servers.requests import Answer, Check, Failure, Request
from fgclip_jax.storage import atomic, lookup_table, paths, streams
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.lookup_table import Table

# Limits of OpenAI's files. A picture of 60 KB is 80 KB in a request: about 2,500 of them fill a file.
MAX_LINES = 50_000
MAX_BYTES = 200_000_000
MAX_KEY = 64  # characters of a `custom_id`
URL = "/v1/chat/completions"
PATTERN = "requests-*.jsonl"
_PARTS = ".parts"  # the folder of what `write` has written, until `gather`


def write(requests: Iterable[Request], folder: str, name: str, model: str) -> None:
  """Writes the requests of a part for `gather`.

  Args:
    requests: with different keys of at most 64 characters.
    folder: where `gather` makes files; may be a URL.
    name: of the part.
    model: its name on the server.

  Raises:
    RecordError: a request that cannot stand in a file (`request_too_large`, `key_too_long`).
    OSError: the file cannot be written.
  """
  parts = paths.join(folder, _PARTS)
  paths.make_folder(parts)
  with atomic.file(paths.join(parts, f"{name}.jsonl")) as path, open(path, "wb") as file:
    for request in requests:
      line = make_line(request, model)
      if len(line) > MAX_BYTES:
        message = f"has {len(line):,} bytes, and a file at most {MAX_BYTES:,}: send smaller pictures"
        raise RecordError("request_too_large", f"request {request.key}", message)
      file.write(line)


def clear(folder: str) -> None:
  """Removes the parts that a call which did not come to `gather` has left."""
  paths.remove(paths.join(folder, _PARTS))


def gather(folder: str) -> collections.Counter[str]:
  """Makes `FOLDER/requests-00000.jsonl` and so on of all parts; they replace those of an earlier call.

  Of equal requests of several parts there is one, for a batch may have a `custom_id` only once.

  Returns:
    How many `requests` there are in how many `files`, and their `bytes`.

  Raises:
    OSError: the files cannot be written; the earlier ones are as they were.
  """
  counts: collections.Counter[str] = collections.Counter(requests=0, files=0, bytes=0)
  parts = paths.join(folder, _PARTS)
  names = paths.list_folder(parts) if paths.is_folder(parts) else []
  seen: set[int] = set()  # hashes of keys: a million are not to fill the memory
  with atomic.folder(folder, owned=(PATTERN,)) as made:
    file: IO[bytes] | None = None
    lines = size = 0
    try:
      for line in _lines([paths.join(parts, name) for name in names]):
        key = hash(line.partition(b'", "method": ')[0])  # as `make_line` begins
        if key in seen:
          continue
        seen.add(key)
        if file is None or lines == MAX_LINES or size + len(line) > MAX_BYTES:
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
  clear(folder)
  return counts


def _lines(files: Iterable[str]) -> Iterator[bytes]:
  for path in files:
    with paths.open(path) as file:
      yield from file


def make_line(request: Request, model: str) -> bytes:
  """A request as a line of a batch file.

  Raises:
    RecordError: its key is longer than a `custom_id` may be (`key_too_long`).
  """
  if len(request.key) > MAX_KEY:
    raise RecordError("key_too_long", f"request {request.key!r}", f"has a key of more than {MAX_KEY} characters")
  whole = {"custom_id": request.key, "method": "POST", "url": URL, "body": request.body(model)}
  return json.dumps(whole).encode() + b"\n"


def make_table(files: Sequence[str], folder: str) -> Table:
  """Reads answers, in any order, from any number of files; a table of the same files is used as it is.

  Args:
    files: files or patterns of names; JSON lines, also as `.gz`.
    folder: where the table is kept; may be a URL.

  Returns:
    The table. `skipped` are lines of no batch file, and files that break off; `repeated` is 0, for all lines are kept.

  Raises:
    FileNotFoundError: no file has such a name.
    OSError: a file cannot be read.
  """
  found = _list(files)
  arguments = {"files": [[paths.absolute(path), paths.fingerprint(path)] for path in found]}
  return lookup_table.make(folder, _read_lines, [("answers", found)], arguments, 1, label="reading answers")


def _read_lines(files: Sequence[str]) -> Iterator[tuple[str, str] | RecordError]:
  """Key and text of each line; of a further line of a key the name has a number."""
  met: collections.Counter[int] = collections.Counter()  # by hashes: a million keys are not to fill the memory
  for path in files:
    try:
      for offset, raw in streams.scan(path):
        place = f"{path}, byte {offset}"
        try:
          line = streams.load(raw)
        except RecordError as error:
          yield RecordError("answer_line", place, str(error))
          continue
        if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
          yield RecordError("answer_line", place, "needs an object with a custom_id")
          continue
        key = line["custom_id"]
        number = met[hash(key)]
        met[hash(key)] += 1
        yield _name(key, number), json.dumps(line)
    except RecordError as error:
      yield RecordError("answer_line", path, str(error))


def _name(key: str, number: int) -> str:
  return f"{key}\n{number}" if number else key


def find(table: Table, requests: Iterable[Request], check: Check | None = None) -> Iterator[Answer | Failure]:
  """The answers of a table to requests; each is validated as that of a server.

  Args:
    table: as `make_table` makes it.
    requests: what was asked; what has no answer yet is passed over.
    check: returns the name of the rule that a value breaks, or None.

  Yields:
    Of each request the first good answer, or else the last failure. What a batch left out has its error's code as its
    kind, such as `batch_expired`.
  """
  for request in requests:
    result: Answer | Failure | None = None
    number = 0
    while not isinstance(result, Answer) and (line := table.get(_name(request.key, number))) is not None:
      result = _read_line(request, json.loads(line), check)
      number += 1
    if result is not None:
      yield result


def _list(given: Sequence[str]) -> list[str]:
  found: list[str] = []
  for path in given:
    names = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    if not names:
      raise FileNotFoundError(2, "no file has such a name", path)
    found += names
  return list(dict.fromkeys(found))


def _read_line(request: Request, line: dict[str, Any], check: Check | None) -> Answer | Failure:
  key = request.key
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
