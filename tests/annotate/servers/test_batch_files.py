"""Batch files: their limits, and answers in any order, missing, failed and twice."""

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


def test_files_have_limits(tmp_path):
  folder = tmp_path / "requests"
  counts = batch_files.write(map(ask, range(25)), str(folder), "m", max_lines=10)
  assert counts["requests"] == 25 and counts["files"] == 3
  files = sorted(folder.iterdir())
  assert [path.name for path in files] == [f"requests-0000{n}.jsonl" for n in range(3)]
  assert [len(path.read_text().splitlines()) for path in files] == [10, 10, 5]
  line = json.loads(files[0].read_text().splitlines()[0])
  assert (line["custom_id"], line["method"], line["url"]) == ("key-0", "POST", "/v1/chat/completions")
  assert line["body"] == ask(0).body("m")

  size = max(len(batch_files.make_line(ask(n), "m")) for n in range(25))
  counts = batch_files.write(map(ask, range(25)), str(folder), "m", max_bytes=4 * size)
  assert all(path.stat().st_size <= 4 * size for path in folder.iterdir())
  assert sum(path.stat().st_size for path in folder.iterdir()) == counts["bytes"]
  assert batch_files.write(map(ask, range(2)), str(folder), "m")["files"] == 1
  assert len(list(folder.iterdir())) == 1  # those of the earlier calls are gone


def test_a_request_that_fits_no_file(tmp_path):
  with pytest.raises(RecordError, match="request key-7: has .* at most 100"):
    batch_files.write([ask(7)], str(tmp_path / "out"), "m", max_bytes=100)
  with pytest.raises(RecordError, match="more than 64 characters"):
    batch_files.write([Request("k" * 65, [])], str(tmp_path / "out"), "m")
  assert not (tmp_path / "out").exists()


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
  random.Random(1).shuffle(lines)
  paths = [write_lines(tmp_path / "one.jsonl", lines[:500]), write_lines(tmp_path / "two.jsonl", lines[500:])]

  asked = {f"key-{n}": ask(n) for n in range(300)}
  results = list(batch_files.read([str(tmp_path / "*.jsonl")], asked.get))
  assert len(results) == len(lines)
  assert results == list(batch_files.read(paths, asked.get))
  answered = [result.key for result in results if isinstance(result, Answer)]
  assert sorted(answered) == sorted(good)
  kinds: dict[str, list[str]] = {}
  for result in results:
    if isinstance(result, Failure):
      kinds.setdefault(result.kind, []).append(result.key)
  assert {kind: sorted(found) for kind, found in kinds.items()} == {
    "answer_twice": sorted(good[:10]),
    "server_error": sorted(failed[:10]),
    "answer_refusal": sorted(failed[10:15]),
    "batch_expired": sorted(failed[15:]),
  }
  left = set(asked) - set(answered)
  assert left == {*missing, *failed}
  assert batch_files.write((asked[key] for key in sorted(left)), str(tmp_path / "again"), "m")["requests"] == 70


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
  check = lambda request, value: "some_rule" if value["text"] == "bad" else None  # noqa: E731
  results = list(batch_files.read([path], {f"key-{n}": ask(n) for n in range(9)}.get, check))
  assert isinstance(results[0], Answer) and results[0].value == {"text": "a cup"}
  assert [result.kind for result in results[1:] if isinstance(result, Failure)] == [
    "answer_line", "answer_line", "answer_line", "answer_unknown", "answer_schema", "batch_error", "server_error",
    "some_rule",
  ]  # fmt: skip
  assert f"{path}, byte" in results[1].detail
  with pytest.raises(FileNotFoundError):
    list(batch_files.read([str(tmp_path / "*.txt")], {}.get))
