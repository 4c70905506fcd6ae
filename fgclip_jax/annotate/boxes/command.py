"""Boxes by a program of the user's: JSON lines in, JSON lines out.

The program is started once for a part of the pictures, reads a line for each picture,
`{"id": ID, "image": PATH, "width": W, "height": H, "phrases": [...]}`, and writes a line for each,
`{"id": ID, "boxes": [{"box": [a, b, c, d], "phrase": NUMBER, "score": S}, ...]}`, in any order; it may hold back seven
answers until its input ends. In place of the number of a phrase it may give a `label`, the phrase itself. So a detector
whose licence or libraries must stay outside can be used. PATH is a JPEG file that is gone when the answer is there; its
pixels are as they lie in the file, not turned by EXIF.
"""

import contextlib
import dataclasses
import json
import os
import queue
import shlex
import subprocess
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from fgclip_jax.annotate.boxes.backend import Located, Question, read_boxes
from fgclip_jax.annotate.boxes.conventions import Convention
from fgclip_jax.data import image as images
from fgclip_jax.storage import atomic
from fgclip_jax.storage.errors import first_line
from fgclip_jax.storage.skip_report import printable

IN_FLIGHT = 8  # pictures that the program has and has not answered
PIXELS = Convention("xyxy", "pixels")
_END = object()


@dataclasses.dataclass(frozen=True)
class Command:
  """A program.

  Attributes:
    program: its command line.
    convention: of its boxes.
    threshold: the least score of a box that is kept.
    timeout: seconds in which an answer must come.
  """

  program: str
  convention: Convention = PIXELS
  threshold: float = 0.4
  timeout: float = 120.0

  def signature(self) -> dict[str, Any]:
    return {"detector": "command", "program": self.program, "convention": str(self.convention)}

  def locate(self, questions: Iterable[Question], part: int = 0) -> Iterator[Located]:
    """Answers each question once.

    Raises:
      ValueError: the program cannot be started, or ends before it has answered.
    """
    del part
    with atomic.scratch() as folder, _running(self.program) as (process, lines):
      asked: dict[str, tuple[Question, str]] = {}
      for number, question in enumerate(questions):
        path = os.path.join(folder, f"{number}.jpg")
        images.open_image(question.image).save(path, quality=95)
        width, height = question.size
        line = {"id": question.key, "image": path, "width": width, "height": height, "phrases": [*question.phrases]}
        asked[question.key] = question, path
        self._send(process, line)
        if len(asked) >= IN_FLIGHT:
          yield self._take(process, lines, asked)
      assert process.stdin is not None
      with contextlib.suppress(OSError):
        process.stdin.close()  # a program may answer the last ones when it knows that they are the last
      while asked:
        yield self._take(process, lines, asked)

  def _send(self, process: subprocess.Popen, line: dict) -> None:
    assert process.stdin is not None
    try:
      process.stdin.write(json.dumps(line) + "\n")
      process.stdin.flush()
    except (BrokenPipeError, OSError) as error:
      raise ValueError(self._ended(process)) from error

  def _take(self, process: subprocess.Popen, lines: queue.Queue, asked: dict[str, tuple[Question, str]]) -> Located:
    """The next answer to one of the questions; lines that are none are passed over, and counted with it."""
    strange: dict[str, int] = {}
    while True:
      try:
        line = lines.get(timeout=self.timeout)
      except queue.Empty:
        return _give_up(asked, "answer_late", f"no answer within {self.timeout:g} s")
      if line is _END:
        assert process.stdin is not None
        if not process.stdin.closed or process.wait(timeout=10):
          raise ValueError(self._ended(process))
        lines.put(_END)
        return _give_up(asked, "answer_missing", "the program has ended without an answer")
      try:
        value = json.loads(line)
        key = value["id"]
        question, path = asked.pop(key)
      except (ValueError, KeyError, TypeError):
        strange["line_unknown"] = strange.get("line_unknown", 0) + 1
        continue
      os.remove(path)
      found, bad = read_boxes(value.get("boxes"), question, self.convention)
      for kind, count in strange.items():
        bad[kind] = bad.get(kind, 0) + count
      return Located(key, found, bad)

  def _ended(self, process: subprocess.Popen) -> str:
    code = process.wait(timeout=10)
    return (
      f"--boxes command: {printable(self.program)} ended with {code} before it had answered; what it wrote is above"
    )


def _give_up(asked: dict[str, tuple[Question, str]], failure: str, detail: str) -> Located:
  """The oldest question, which has no answer."""
  key, (_, path) = next(iter(asked.items()))
  del asked[key]
  os.remove(path)
  return Located(key, failure=failure, detail=detail)


@contextlib.contextmanager
def _running(program: str) -> Iterator[tuple[subprocess.Popen, queue.Queue]]:
  """A program, and the lines that it writes."""
  arguments = shlex.split(program)
  try:
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  except (OSError, IndexError) as error:
    raise ValueError(f"--boxes command: {program!r} cannot be started: {first_line(error)}") from error
  lines: queue.Queue = queue.Queue()

  def follow() -> None:
    assert process.stdout is not None
    for line in process.stdout:
      lines.put(line)
    lines.put(_END)

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield process, lines
  finally:
    if process.stdin is not None:
      with contextlib.suppress(OSError):
        process.stdin.close()
    try:
      process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      process.kill()
    thread.join()
    assert process.stdout is not None
    process.stdout.close()
