"""The model server of the tests in a process of its own, with answers that the stages take.

  python -m benchmarks.annotating.stub

It prints its address and ends with its standard input. Every question has an answer of its own, and always the same.
"""

import contextlib
import http.client
import json
import pathlib
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from fgclip_jax.annotate.rules import negatives
from tests.helpers import model_server

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONG = (
  "A brown dog with a red leather collar lies on the green grass beside a white wooden fence and looks at a small blue "
  "ball that lies in front of it, with the number {number} on its side."
)
ASKED = 14  # negatives of a phrase


def answer(body: dict[str, Any]) -> Any:
  """A good answer to each kind of question, which its schema tells."""
  wanted = body["response_format"]["json_schema"]["schema"]["properties"]
  if "negatives" not in wanted:
    number = zlib.crc32(json.dumps(body["messages"][-1]["content"]).encode())
    return {"long": LONG.format(number=number), "short": f"A dog and the ball {number}.", "unusable": False}
  phrase = body["messages"][-1]["content"].split("«")[1].split("»")[0]
  made = [
    {"attribute": each.attribute, "old": each.old, "new": each.new, "text": each.text}
    for each in negatives.draw(phrase, ASKED)
  ]
  return {"negatives": (made * ASKED)[:ASKED]}


@contextlib.contextmanager
def serve() -> Iterator[str]:
  """The server for the length of the block; its address."""
  command = [sys.executable, "-m", "benchmarks.annotating.stub"]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout is not None
    try:
      yield process.stdout.readline().strip()
    finally:
      process.kill()


def count_answers(url: str) -> int:
  """How many requests the server has answered, which are all that it had."""
  host, _, path = url.removeprefix("http://").partition("/")
  connection = http.client.HTTPConnection(host)
  connection.request("GET", f"/{path}/log")
  return json.load(connection.getresponse())["log"].get("answered", 0)


if __name__ == "__main__":
  with model_server.serve(answer=answer) as server:
    print(server.url, flush=True)
    sys.stdin.read()
