"""The client of model servers: requests/s beside the ideal, processor time, and what faults cost.

The server is that of the tests, in a process of its own on the same machine. The ideal is the number of requests in
flight over the server's delay; where one of two servers is killed after a tenth of the requests, that of one. With
faults, the client's counts by class must be those of the server's log.
"""

import argparse
import collections
import contextlib
import http.client
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.machine import machine
from fgclip_jax.annotate.servers import prompts
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
  return failed


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
