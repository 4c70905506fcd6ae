"""The client of model servers: requests/s beside the ideal, processor time, and what faults cost.

The server is that of the tests, in a process of its own on the same machine. The ideal is the number of requests in
flight over the server's delay; where one of two servers is killed after a tenth of the requests, that of one. With
faults, the client's counts by class must be those of the server's log. Batch files are written, answered in any order
with 5 % missing, 2 % failed and 1 % twice, and read back.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.machine import machine
from fgclip_jax.annotate.servers import batch_files, prompts
from fgclip_jax.annotate.servers.client import Client
from fgclip_jax.annotate.servers.requests import Answer, Request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAULTS = {
  "busy": 0.05, "loading": 0.03, "reset": 0.02, "hang": 0.01, "cut": 0.02, "refusal": 0.01, "empty": 0.01,
  "schema": 0.01,
}  # fmt: skip
# The client's class for what the server did.
CLASSES = {
  "answered": "answered", "busy": "server_busy", "loading": "server_busy", "reset": "connection_lost",
  "hang": "timeout", "cut": "answer_cut", "refusal": "answer_refusal", "empty": "answer_empty",
  "schema": "answer_schema",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options."""
  parser.add_argument("--requests", type=int, default=4000, help="requests of each row")
  parser.add_argument("--in_flight", type=int, default=64)
  parser.add_argument("--delay", type=float, default=0.2, help="seconds before the server answers")
  parser.add_argument("--body_kib", type=int, default=85, help="size of the bodies of the second row")
  parser.add_argument("--batch", type=int, default=120_000, help="requests that are written to batch files")
  parser.add_argument("--timeout", type=float, default=2.0, help="of the rows with faults, in seconds")


def run(options: argparse.Namespace) -> int:
  """Prints the tables; returns 1 if a count does not agree."""
  print(machine("numpy", "pillow"), end="\n\n")
  ideal = options.in_flight / options.delay
  print(
    f"{options.requests:,} requests, {options.in_flight} in flight, a server that answers after {options.delay:g} s:"
  )
  print(f"ideal {ideal:.0f} requests/s.\n")
  print("| requests | requests/s | of the ideal | CPU ms each | most open | failed |\n|---|---:|---:|---:|---:|---:|")
  faultless = measure("text", options, ideal)
  measure(f"{options.body_kib} KiB", options, ideal, size=options.body_kib << 10)
  measure("text, two endpoints, one killed", options, ideal, killed=True)
  print(f"\nFaults, timeout {options.timeout:g} s:\n")
  failed = compare(options, faultless)
  print("\nBatch files:\n")
  return exchange_files(options.batch) or failed


def measure(name: str, options: argparse.Namespace, ideal: float, size: int = 0, killed: bool = False) -> float:
  """Prints a row; returns the seconds that all requests took."""
  with contextlib.ExitStack() as stack:
    servers = [stack.enter_context(serve(options.delay)) for _ in range(1 + killed)]
    urls = [url for url, _ in servers]
    client = stack.enter_context(Client(urls, "stub", in_flight=options.in_flight, log=log))
    started, used = time.monotonic(), time.process_time()
    failed = done = 0
    for result in client.ask(make_requests(options.requests, size)):
      failed += not isinstance(result, Answer)
      done += 1
      if killed and done == options.requests // 10:
        servers[1][1].kill()
    seconds, used = time.monotonic() - started, time.process_time() - used
    most = read_log(servers[0][0])["most"]
  rate = done / seconds
  print(f"| {name} | {rate:.0f} | {rate / ideal:.0%} | {1000 * used / done:.2f} | {most} | {failed} |", flush=True)
  return seconds


def compare(options: argparse.Namespace, faultless: float) -> int:
  """Prints the table of a run with faults; returns 1 if the client's counts are not the server's."""
  with serve(options.delay, FAULTS) as (url, _):
    with Client([url], "stub", in_flight=options.in_flight, timeout=options.timeout, log=log) as client:
      started = time.monotonic()
      results = list(client.ask(make_requests(options.requests)))
      seconds = time.monotonic() - started
    seen: dict[str, int] = read_log(url)["log"]
  expected = collections.Counter()
  for kind, count in seen.items():
    expected[CLASSES[kind]] += count
  failed = collections.Counter(result.kind for result in results if not isinstance(result, Answer))
  print("| class | server | client | requests given up |\n|---|---:|---:|---:|")
  for kind in dict.fromkeys(CLASSES.values()):
    print(f"| {kind} | {expected[kind]:,} | {client.counts[kind]:,} | {failed[kind]} |")
  keys = {result.key for result in results}
  retries = sum(len(result.retried) for result in results)
  print(
    f"\n{len(keys):,} of {options.requests:,} requests answered or given up, {retries:,} sent again; "
    f"{seconds:.1f} s, {seconds / faultless:.2f}x the time without faults."
  )
  agree = client.counts == expected and len(keys) == len(results) == options.requests
  agree = agree and sum(client.counts.values()) == options.requests + retries
  print("The counts agree." if agree else f"The counts differ: {dict(client.counts)}")
  return 0 if agree else 1


def exchange_files(count: int) -> int:
  """Prints the table of batch files; returns 1 if a request is not accounted for."""
  with tempfile.TemporaryDirectory() as folder:
    started = time.monotonic()
    batch_files.write(make_requests(count), os.path.join(folder, "requests"), "stub")
    wrote = time.monotonic() - started
    files = sorted(pathlib.Path(folder, "requests").iterdir())
    size = max(file.stat().st_size for file in files)
    lines = max(sum(1 for _ in file.open("rb")) for file in files)
    keys = [str(number) for number in range(count)]
    random.Random(0).shuffle(keys)
    missing, failed = keys[: count // 20], keys[count // 20 : count * 7 // 100]
    answered = keys[len(missing) + len(failed) :]
    answers = answered + answered[: count // 100] + failed
    random.Random(1).shuffle(answers)
    bad = set(failed)
    with open(os.path.join(folder, "answers.jsonl"), "w", encoding="utf-8") as file:
      file.writelines(make_answer(key, key in bad) for key in answers)
    started = time.monotonic()
    found = collections.Counter()
    left = set(keys)
    for result in batch_files.read([os.path.join(folder, "answers.jsonl")], make_request):
      found["answered" if isinstance(result, Answer) else result.kind] += 1
      if isinstance(result, Answer):
        left.remove(result.key)
    read = time.monotonic() - started
    again = batch_files.write(map(make_request, sorted(left)), os.path.join(folder, "again"), "stub")["requests"]
  print("| requests | files | most lines | most MB | written in | read in | answered | twice | failed | asked again |")
  print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
  row = [f"{count:,}", len(files), f"{lines:,}", f"{size / 1e6:.0f}", f"{wrote:.1f} s", f"{read:.1f} s"]
  row += [f"{found[kind]:,}" for kind in ("answered", "answer_twice", "server_error")] + [f"{again:,}"]
  print(f"| {' | '.join(map(str, row))} |")
  expected = {"answered": len(answered), "answer_twice": count // 100, "server_error": len(failed)}
  return 0 if found == expected and again == len(missing) + len(failed) else 1


def make_answer(key: str, failed: bool) -> str:
  """A line of answers."""
  content = json.dumps({"long": f"A cup {key} stands on a table.", "short": "a cup", "unusable": False})
  body = {"model": "stub", "choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
  response = {"status_code": 500, "body": {"error": "overloaded"}} if failed else {"status_code": 200, "body": body}
  return json.dumps({"custom_id": key, "response": response, "error": None}) + "\n"


@contextlib.contextmanager
def serve(delay: float, faults: dict[str, float] | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
  """A server in a process of its own: its address and the process."""
  command = [sys.executable, "-m", "tests.helpers.model_server", "--delay", str(delay)]
  command += ["--faults", json.dumps(faults or {})]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout is not None
    try:
      yield process.stdout.readline().strip(), process
    finally:
      process.kill()


def make_requests(count: int, size: int = 0) -> Iterator[Request]:
  """Requests for captions, each with a picture of `size` bytes in base64."""
  picture = "data:image/jpeg;base64," + "A" * size
  return (make_request(str(number), picture if size else "") for number in range(count))


def make_request(key: str, picture: str = "") -> Request:
  """The request of a key."""
  prompt = prompts.make_caption_prompt()
  text = f"{prompt.text} ({key})"
  content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}] if picture else text
  return Request(key, [{"role": "user", "content": content}], prompt.schema)


def read_log(url: str) -> dict:
  """What a server did with the requests."""
  host, _, path = url.removeprefix("http://").partition("/")
  connection = http.client.HTTPConnection(host)
  connection.request("GET", f"/{path}/log")
  return json.load(connection.getresponse())


def log(line: str) -> None:
  """Prints a line of the client beside the tables."""
  print(line, file=sys.stderr)
