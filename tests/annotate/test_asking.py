"""The chain with a model server, by HTTP and by batch files; the server is a stub that fails as real ones do."""

import json
import shlex
import sys

import pytest
from PIL import Image

from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.annotate import asking, items
from fgclip_jax.annotate.rules import negatives as rules
from fgclip_jax.annotate.rules.phrases import find_attributes
from fgclip_jax.annotate.servers import batch_files
from tests.helpers import model_server

LONG = (
  "A brown dog with a red leather collar lies on the green grass beside a white wooden fence and looks at a small blue "
  "ball that lies in front of it, number {number} of all."
)
DETECTOR = """
import json, sys
for line in sys.stdin:
  asked = json.loads(line)
  boxes = [{"box": [n * 10, 0, n * 10 + 9, 60], "phrase": n, "score": 0.9} for n in range(len(asked["phrases"]))]
  print(json.dumps({"id": asked["id"], "boxes": boxes}), flush=True)
"""
PICTURES = 6


def answer(body: dict):
  """Answers each kind of request well, as its schema tells it."""
  wanted = body["response_format"]["json_schema"]["schema"]["properties"]
  if "unusable" in wanted:
    url = body["messages"][-1]["content"][0]["image_url"]["url"]
    number = sum(url.encode()) % 1000
    return {"long": LONG.format(number=number), "short": f"A dog, number {number}.", "unusable": False}
  if "fits" in wanted:
    return {"object": "thing", "short": "a plain thing", "long": "a plain thing in a picture", "fits": "yes"}
  if "boxes" in wanted:
    phrases = body["messages"][-1]["content"][1]["text"].split("«")[1].split("»")[0].split("; ")
    boxes = [[n * 10, 0, n * 10 + 90, 900] for n in range(0, 10 * len(phrases), 10)]
    return {"boxes": [{"phrase": n, "box": box, "score": 0.9} for n, box in enumerate(boxes)]}
  text = body["messages"][-1]["content"].split("«")[1].split("»")[0]
  made = [
    {"attribute": each.attribute, "old": each.old, "new": each.new, "text": each.text} for each in rules.draw(text, 14)
  ]
  return {"negatives": (made * 14)[:14]}


@pytest.fixture(autouse=True)
def connections():
  yield
  asking.close_clients()


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  for number in range(PICTURES):
    Image.new("RGB", (96, 64), (40 * number, 90, 30)).save(folder / f"{number}.png")
  (tmp_path / "detect.py").write_text(DETECTOR)
  return folder


def run(photos, output: str, *options: str) -> int:
  detector = "command:" + shlex.join([sys.executable, str(photos.parent / "detect.py")])
  given = ["--images", str(photos), "--output", str(photos.parent / output), "--workers", "1", "--boxes", detector]
  return annotate.main([*given, "--captions", "http", "--negatives", "http", "--model", "stub", *options])


def counts(photos, output: str) -> dict[str, int]:
  return json.loads((photos.parent / output / "report-annotate.json").read_text())["counts"]


def annotations(photos, output: str) -> list[dict]:
  paths = sorted((photos.parent / output / "annotations").iterdir())
  return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_captions_and_negatives_by_a_server_that_fails(photos):
  faults = {"busy": 0.05, "loading": 0.05, "reset": 0.05, "cut": 0.1, "refusal": 0.05, "empty": 0.05, "schema": 0.05}
  with model_server.serve(answer=answer, faults=faults, retry_after=0.05) as server:
    for _ in range(8):  # an item whose three attempts all fail is tried again on request
      assert run(photos, "out", "--endpoint", server.url, "--timeout", "20", "--retry", "all") == 0
      told = counts(photos, "out")
      if not told.get("captions.failed") and not told.get("negatives.failed"):
        break
    sent = server.log.total()
    found = annotations(photos, "out")
    assert len(found) == PICTURES
    assert run(photos, "out", "--endpoint", server.url) == 0
    assert server.log.total() == sent  # all is answered
  told = counts(photos, "out")
  assert told["captions.answered"] == PICTURES and not told.get("captions.failed")
  assert told["negatives.answers"] == told["negatives.kept"] + sum(
    count for name, count in told.items() if name.startswith("negatives.broken.")
  )
  regions = [region for each in found for region in each["regions"]]
  described = [region for region in regions if find_attributes(region["short"])]
  assert len(described) >= 3 * PICTURES and all(len(region["negatives"]) >= 9 for region in described)
  assert not any(region.get("negatives") for region in regions if region not in described)
  (provenance,) = (photos.parent / "out" / "provenance").iterdir()
  made = [json.loads(line) for line in provenance.read_text().splitlines()]
  assert all(line["captions"].startswith("stub-1; ") and line["negatives"].startswith("stub-1; ") for line in made)


def respond(line: dict, status: int = 200) -> str:
  message = {"message": {"content": json.dumps(answer(line["body"]))}, "finish_reason": "stop"}
  response = {"status_code": status, "body": {"choices": [message], "model": "stub", "usage": {}}}
  return json.dumps({"custom_id": line["custom_id"], "response": response, "error": None}) + "\n"


def read_requests(folder) -> list[dict]:
  return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def test_batch_files_in_place_of_a_server(photos, monkeypatch, capsys):
  monkeypatch.setattr(items, "PART", 2)
  monkeypatch.setattr(batch_files, "MAX_LINES", 4)
  given = ("--boxes", "http")
  for stage in ("captions", "boxes", "negatives"):
    requests = photos.parent / f"requests-{stage}"
    assert run(photos, "out", "--requests", str(requests), *given) == 0
    lines = read_requests(requests)
    asked = {line["custom_id"] for line in lines}
    assert len(list(requests.iterdir())) == -(-len(lines) // 4)
    path = photos.parent / f"answers-{stage}.jsonl"
    # the first is missing, the second has failed, the last comes twice, and one line is none
    answers = [*map(respond, lines[2:]), respond(lines[-1]), respond(lines[1], 500), "no JSON\n"]
    path.write_text("".join(reversed(answers)))
    capsys.readouterr()
    assert run(photos, "out", "--answers", str(path), *given) == 0
    assert f"{len(lines)} answers; 1 lines or files are none, the first: " in capsys.readouterr().out
    told = counts(photos, "out")
    assert told[f"{stage}.pending"] >= 1 and told[f"{stage}.failed.server_error"] >= 1
    for retry, left in (("", lines[:1]), ("server_error", lines[:2])):
      assert run(photos, "out", "--requests", str(requests), "--retry", retry, *given) == 0
      found = [line for line in read_requests(requests) if line["custom_id"] in asked]  # others are of the next stage
      assert sorted(map(str, found)) == sorted(map(str, left))
    path.write_text("".join(map(respond, left)))
    assert run(photos, "out", "--answers", str(path), "--retry", "server_error", *given) == 0
  told = counts(photos, "out")
  assert told["items.written"] == PICTURES and told["captions.answered"] == PICTURES
  for each in annotations(photos, "out"):
    assert all(bool(region.get("negatives")) == bool(find_attributes(region["short"])) for region in each["regions"])


def test_a_changed_prompt_asks_its_stage_alone(photos):
  with model_server.serve(answer=answer, keep=True) as server:
    assert run(photos, "out", "--endpoint", server.url) == 0
    asked = len(server.bodies)
    prompt = photos.parent / "prompt.txt"
    prompt.write_text("Other phrases for «{phrase}», whose thing is {object} with {attributes}: {count} of them.")
    assert run(photos, "out", "--endpoint", server.url, "--negatives_prompt", str(prompt)) == 0
    new = server.bodies[asked:]
  assert new and all("Other phrases" in body["messages"][-1]["content"] for body in new)


def test_a_picture_that_no_model_can_describe(photos):
  def blind(body: dict):
    value = answer(body)
    return value | {"unusable": True, "long": "", "short": ""} if "unusable" in value else value

  with model_server.serve(answer=blind) as server:
    assert run(photos, "out", "--endpoint", server.url) == 2  # nothing is written
  assert counts(photos, "out")["captions.unusable"] == PICTURES


def test_one_caption_for_all_pictures_stops_the_run(photos, capsys):
  for number in range(PICTURES, 3 * PICTURES):
    Image.new("RGB", (96, 64), (10 * number, 9, 30)).save(photos / f"{number}.png")
  caption = {"long": LONG.format(number=1), "short": "A dog.", "unusable": False}
  with model_server.serve(answer=lambda body: caption) as server:
    assert run(photos, "out", "--endpoint", server.url) == 2
  assert "are the same caption" in capsys.readouterr().err


def test_boxes_by_a_server_that_fails(photos):
  faults = {"busy": 0.1, "reset": 0.05, "cut": 0.1, "empty": 0.05, "prose": 0.05}
  given = ["--boxes", "http", "--negatives", "rules"]
  with model_server.serve(answer=answer, faults=faults, retry_after=0.05) as server:
    for _ in range(8):
      assert run(photos, "out", "--endpoint", server.url, "--timeout", "20", "--retry", "all", *given) == 0
      if not any(counts(photos, "out").get(f"{stage}.failed") for stage in ("captions", "boxes")):
        break
    sent = server.log.total()
    assert run(photos, "out", "--endpoint", server.url, *given) == 0
    assert server.log.total() == sent  # all is answered
  told = counts(photos, "out")
  assert told["boxes.regions"] == told["boxes.phrases"] >= 5 * PICTURES
  for each in annotations(photos, "out"):
    assert [region["box"] for region in each["regions"]][:2] == [[0, 0, 0.09, 0.9], [0.1, 0, 0.19, 0.9]]
  (provenance,) = (photos.parent / "out" / "provenance").iterdir()
  assert all(json.loads(line)["boxes"].startswith("stub-1; ") for line in provenance.read_text().splitlines())


def test_a_wrong_convention_of_a_server_stops_the_run(photos, capsys):
  def pixels(body: dict):
    value = answer(body)
    return {"boxes": [each | {"box": [0, 0, 1800, 1000]} for each in value["boxes"] * 5]} if "boxes" in value else value

  with model_server.serve(answer=pixels) as server:
    assert run(photos, "out", "--endpoint", server.url, "--boxes", "http") == 2
  error = capsys.readouterr().err
  assert "xyxy,thousandths,original" in error and "--convention" in error


def test_regions_that_a_model_has_seen(photos):
  with model_server.serve(answer=answer) as server:
    assert run(photos, "out", "--endpoint", server.url, "--region_captions", "http", "--negatives", "rules") == 0
  for each in annotations(photos, "out"):
    assert {region["short"] for region in each["regions"]} == {"a plain thing"}


def test_a_plan_is_near_what_is_asked(photos, capsys):
  with model_server.serve(answer=answer) as server:
    given = ["--endpoint", server.url, "--boxes", "http"]
    assert run(photos, "out", *given, "--plan", "--price", "1,2") == 0
    assert not server.log
    printed = capsys.readouterr().out
    assert run(photos, "out", *given) == 0
    asked = server.log["answered"]
  rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split()[1:]}
  assert rows["captions"][0] == rows["boxes"][0] == str(PICTURES)
  # its negatives are for the phrases of the captions that it assumes, which are the same for each picture
  assert PICTURES < int(rows["together"][0]) <= asked + 10
  assert float(rows["together"][-1]) > 0
