"""Batch files: their limits, and answers in any order, missing, failed and twice."""

import collections
import json
import random

import pytest

from fgclip_jax.annotate.servers import batch_files
from fgclip_jax.annotate.servers.requests import Answer, Failure, Request
from fgclip_jax.storage.errors import RecordError

SCHEMA = {
  "type": "object",
  "properties": {"text": {"type": "string"}},
  "required": ["text"],
  "additionalProperties": False,
}


def ask(number: int) -> Request:
  return Request(f"key-{number}", [{"role": "user", "content": f"Describe {number}."}], SCHEMA)


def respond(key: str, content: str = '{"text": "a cup"}', status: int = 200) -> dict:
  body = {"model": "m", "choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
  return {"id": "r", "custom_id": key, "response": {"status_code": status, "body": body}, "error": None}


def write_lines(path, lines) -> str:
  path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
  return str(path)


def write(requests, folder) -> collections.Counter[str]:
  requests = list(requests)
  for first in range(0, len(requests), 7):
    batch_files.write(requests[first : first + 7], str(folder), f"part-{first:05d}", "m")
  return batch_files.gather(str(folder))


def test_files_have_limits_across_parts(tmp_path, monkeypatch):
  folder = tmp_path / "requests"
  with monkeypatch.context() as patched:
    patched.setattr(batch_files, "MAX_LINES", 10)
    counts = write(map(ask, range(25)), folder)
  assert counts["requests"] == 25 and counts["files"] == 3
  files = sorted(folder.iterdir())
  assert [path.name for path in files] == [f"requests-0000{n}.jsonl" for n in range(3)]
  assert [len(path.read_text().splitlines()) for path in files] == [10, 10, 5]
  lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
  assert [line["custom_id"] for line in lines] == [f"key-{n}" for n in range(25)]
  assert (lines[0]["method"], lines[0]["url"]) == ("POST", "/v1/chat/completions")
  assert lines[0]["body"] == ask(0).body("m")

  size = max(len(batch_files.make_line(ask(n), "m")) for n in range(25))
  with monkeypatch.context() as patched:
    patched.setattr(batch_files, "MAX_BYTES", 4 * size)
    counts = write(map(ask, range(25)), folder)
  assert all(path.stat().st_size <= 4 * size for path in folder.iterdir())
  assert sum(path.stat().st_size for path in folder.iterdir()) == counts["bytes"]
  assert write(map(ask, range(2)), folder)["files"] == 1
  assert len(list(folder.iterdir())) == 1  # those of the earlier calls are gone
  assert write([], folder)["files"] == 0 and not list(folder.iterdir())


def test_equal_requests_of_two_parts_are_one(tmp_path):
  counts = write([*map(ask, range(9)), *map(ask, range(9))], tmp_path)
  keys = [json.loads(line)["custom_id"] for line in (tmp_path / "requests-00000.jsonl").read_text().splitlines()]
  assert keys == [f"key-{n}" for n in range(9)] and counts["requests"] == 9


def test_parts_of_a_run_that_ended_early_are_cleared(tmp_path):
  batch_files.write([ask(1)], str(tmp_path), "part", "m")
  batch_files.clear(str(tmp_path))
  assert batch_files.gather(str(tmp_path))["requests"] == 0


def test_a_request_that_fits_no_file(tmp_path, monkeypatch):
  monkeypatch.setattr(batch_files, "MAX_BYTES", 100)
  with pytest.raises(RecordError, match="request key-7: has .* at most 100"):
    batch_files.write([ask(7)], str(tmp_path), "part", "m")
  with pytest.raises(RecordError, match="more than 64 characters"):
    batch_files.write([Request("k" * 65, [])], str(tmp_path), "part", "m")
  assert batch_files.gather(str(tmp_path))["requests"] == 0


def test_answers_in_any_order_account_for_all(tmp_path):
  keys = [f"key-{n}" for n in range(300)]
  random.Random(0).shuffle(keys)
  missing, failed, good = keys[:50], keys[50:70], keys[70:]
  lines = [respond(key) for key in good] + [respond(key) for key in good[:10]]
  lines += [respond(key, status=500) for key in failed[:10]]
  lines += [respond(key, "sorry") for key in failed[10:15]]
  lines += [
    {"custom_id": key, "response": None, "error": {"code": "batch_expired", "message": "late"}} for key in failed[15:]
  ]
  lines += [respond(key, status=500) for key in good[10:15]]  # which another attempt has mended
  random.Random(1).shuffle(lines)
  write_lines(tmp_path / "one.jsonl", lines[:200])
  write_lines(tmp_path / "two.jsonl", lines[200:])

  table = batch_files.make_table([str(tmp_path / "*.jsonl")], str(tmp_path / "table"))
  assert (table.entries, table.skipped[0]) == (len(lines), 0)
  asked = {f"key-{n}": ask(n) for n in range(300)}
  results = list(batch_files.find(table, asked.values()))
  answered = [result.key for result in results if isinstance(result, Answer)]
  assert sorted(answered) == sorted(good)
  kinds: dict[str, list[str]] = {}
  for result in results:
    if isinstance(result, Failure):
      kinds.setdefault(result.kind, []).append(result.key)
  assert {kind: sorted(found) for kind, found in kinds.items()} == {
    "server_error": sorted(failed[:10]),
    "answer_refusal": sorted(failed[10:15]),
    "batch_expired": sorted(failed[15:]),
  }
  left = set(asked) - set(answered)
  assert left == {*missing, *failed}
  assert write((asked[key] for key in sorted(left)), tmp_path / "again")["requests"] == 70


def test_answers_are_read_once_as_long_as_they_are_the_same(tmp_path, monkeypatch):
  path = tmp_path / "answers.jsonl"
  write_lines(path, [respond("key-1")])
  folder = str(tmp_path / "table")
  table = batch_files.make_table([str(path)], folder)
  with monkeypatch.context() as patched:
    patched.setattr(batch_files.streams, "scan", None)
    assert batch_files.make_table([str(path)], folder) == table
  write_lines(path, [respond("key-1", '{"text": "a dog"}'), respond("key-2")])
  (first, second) = batch_files.find(batch_files.make_table([str(path)], folder), [ask(1), ask(2), ask(3)])
  assert isinstance(first, Answer) and first.value == {"text": "a dog"} and second.key == "key-2"


def test_lines_at_fault(tmp_path):
  path = write_lines(
    tmp_path / "a.jsonl",
    [
      respond("key-1", '{"text": "a cup"}'),
      "no JSON",
      [1],
      {"custom_id": 5},
      respond("other"),
      respond("key-2", '{"a": 1}'),
      {"custom_id": "key-3"},
      respond("key-4") | {"response": {"status_code": "bad"}},
      respond("key-5", '{"text": "bad"}'),
    ],
  )
  (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
  check = lambda request, value: "some_rule" if value["text"] == "bad" else None  # noqa: E731
  table = batch_files.make_table([path, str(tmp_path / "b.*")], str(tmp_path / "table"))
  lines, first = table.skipped
  assert lines == 4 and f"{path}, byte" in first
  results = list(batch_files.find(table, map(ask, range(9)), check))
  assert isinstance(results[0], Answer) and results[0].value == {"text": "a cup"}
  assert [(result.key, result.kind) for result in results[1:] if isinstance(result, Failure)] == [
    ("key-2", "answer_schema"), ("key-3", "batch_error"), ("key-4", "server_error"), ("key-5", "some_rule"),
  ]  # fmt: skip
  with pytest.raises(FileNotFoundError):
    batch_files.make_table([str(tmp_path / "*.txt")], str(tmp_path / "table"))
