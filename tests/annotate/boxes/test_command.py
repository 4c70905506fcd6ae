"""Boxes by a program: JSON lines in, JSON lines out."""

import io
import json
import shlex
import sys

import pytest
from PIL import Image

from fgclip_jax.annotate.boxes.backend import Question, read_boxes
from fgclip_jax.annotate.boxes.command import Command
from fgclip_jax.annotate.boxes.conventions import Convention

PROGRAM = """
import json, sys
waiting = []
for line in sys.stdin:
  asked = json.loads(line)
  boxes = [
    {"box": [0, 0, asked["width"] / 2, asked["height"]], "phrase": 0, "score": 0.9},
    {"box": [0, 0, asked["width"] / 2, asked["height"]], "label": asked["phrases"][1].upper(), "score": 0.5},
    {"box": [0, 0, 1, 1], "label": "##hy", "score": 0.9},
    {"box": [9, 0, 1, 1], "phrase": 0, "score": 0.9},
  ]
  waiting.append(json.dumps({"id": asked["id"], "boxes": boxes}))
  if len(waiting) == 2:  # in another order than asked
    print("detecting ...\\n" + waiting.pop() + "\\n" + waiting.pop(), flush=True)
print("\\n".join(waiting))
"""


def picture(width: int = 40, height: int = 20) -> bytes:
  file = io.BytesIO()
  Image.new("RGB", (width, height), "red").save(file, "PNG")
  return file.getvalue()


def questions(count: int) -> list[Question]:
  return [Question(f"key{number}", picture(), (40, 20), ("a dog", "a cat")) for number in range(count)]


def command(tmp_path, code: str, **options) -> Command:
  path = tmp_path / "detect.py"
  path.write_text(code)
  return Command(shlex.join([sys.executable, str(path)]), **options)


def test_answers_in_any_order(tmp_path):
  found = {each.key: each for each in command(tmp_path, PROGRAM).locate(questions(11))}
  assert found.keys() == {f"key{number}" for number in range(11)}
  for each in found.values():
    assert [(one.phrase, one.score) for one in each.found] == [(0, 0.9), (1, 0.5)]
    assert {one.box for one in each.found} == {(0.0, 0.0, 0.5, 1.0)}
    assert {kind: each.bad[kind] for kind in ("label_unknown", "box_swapped")} == {"label_unknown": 1, "box_swapped": 1}
  assert sum(each.bad.get("line_unknown", 0) for each in found.values()) >= 5


def test_a_missing_answer_shifts_no_neighbour(tmp_path):
  code = """
import json, sys
for line in sys.stdin:
  asked = json.loads(line)
  if asked["id"] != "key1":
    score = int(asked["id"][3:]) / 10
    print(json.dumps({"id": asked["id"], "boxes": [{"box": [0, 0, 9, 9], "phrase": 1, "score": score}]}), flush=True)
"""
  found = {each.key: each for each in command(tmp_path, code).locate(questions(4))}
  assert found["key1"].failure == "answer_missing"
  assert [found[f"key{number}"].found[0].score for number in (0, 2, 3)] == [0.0, 0.2, 0.3]


def test_a_program_that_never_answers(tmp_path):
  detector = command(tmp_path, "import time\ntime.sleep(4)", timeout=0.2)
  found = list(detector.locate(questions(2)))
  assert [(each.key, each.failure) for each in found] == [("key0", "answer_late"), ("key1", "answer_late")]


def test_a_program_that_ends_or_is_not_there(tmp_path):
  with pytest.raises(ValueError, match="ended with 3 before it had answered"):
    list(command(tmp_path, "raise SystemExit(3)").locate(questions(1)))
  with pytest.raises(ValueError, match="cannot be started"):
    list(Command("/nowhere/detect").locate(questions(1)))


@pytest.mark.parametrize(
  ("boxes", "bad"),
  [
    (None, {"boxes_not_list": 1}),
    ([3], {"box_not_object": 1}),
    ([{"box": [0, 0, 1, 1], "phrase": 2}], {"label_unknown": 1}),
    ([{"box": [0, 0, 1, 1], "phrase": True}], {"label_unknown": 1}),
    ([{"box": [0, 0, 1, 1], "phrase": 0, "score": float("nan")}], {"score_impossible": 1}),
    ([{"box": "0011", "phrase": 0}], {"box_not_four_numbers": 1}),
    (json.loads('[{"box": [0, 0, 2, 1], "phrase": 0}]'), {"box_outside": 1}),
  ],
)
def test_what_is_no_box_is_counted(boxes, bad):
  assert read_boxes(boxes, questions(1)[0], Convention()) == ((), bad)
