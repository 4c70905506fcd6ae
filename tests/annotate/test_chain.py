"""The whole chain without a model server: from pictures and captions to what `prepare` reads."""

import collections
import importlib.util
import json
import pathlib
import shlex
import sys

import pytest
from PIL import Image

from fgclip_jax.annotate import __main__ as annotate
from fgclip_jax.annotate import chain
from fgclip_jax.annotate.journal import Journal
from fgclip_jax.data import record
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.data.shards import Records
from fgclip_jax.prepare import __main__ as prepare

CAPTIONS = {
  "a.png": "A brown dog with a red leather collar lies beside a white wooden fence. It sleeps.",
  "b.png": "A small blue car stands under a tall green tree.",
  "sub/c.png": "Two striped cups on a round wooden table",
}
DETECTOR = """
import json, sys
for line in sys.stdin:
  asked = json.loads(line)
  print("asked", len(asked["phrases"]), file=sys.stderr)
  width, height, count = asked["width"], asked["height"], len(asked["phrases"])
  boxes = [
    {"box": [width * n / count, 0, width * (n + 1) / count, height], "phrase": n, "score": 0.9 - n / 10}
    for n in range(count)
  ]
  print(json.dumps({"id": asked["id"], "boxes": boxes}), flush=True)
"""


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  (folder / "sub").mkdir(parents=True)
  for number, name in enumerate(CAPTIONS):
    Image.new("RGB", (96, 64), (60 * number, 90, 30)).save(folder / name)
  with open(tmp_path / "known.jsonl", "w") as file:
    file.writelines(json.dumps({"image": name, "long": long}) + "\n" for name, long in CAPTIONS.items())
  (tmp_path / "detect.py").write_text(DETECTOR)
  return folder


def run(photos, output: str, *options: str) -> int:
  base = photos.parent
  given = [
    "--images",
    str(photos),
    "--known",
    str(base / "known.jsonl"),
    "--output",
    str(base / output),
    "--workers",
    "1",
  ]
  return annotate.main([*given, *options])


def detector(photos) -> str:
  return "command:" + shlex.join([sys.executable, str(photos.parent / "detect.py")])


def annotations(folder: pathlib.Path) -> dict[str, dict]:
  lines = [line for path in sorted((folder / "annotations").iterdir()) for line in path.read_bytes().splitlines()]
  return {value["image"]: value for value in map(json.loads, lines)}


def test_from_captions_to_a_data_set(photos, capsys):
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  out = capsys.readouterr().out
  found = annotations(photos.parent / "out")
  assert found.keys() == CAPTIONS.keys()
  first = found["a.png"]
  assert first["short"] == "A brown dog with a red leather collar lies beside a white wooden fence."
  shorts = [region["short"] for region in first["regions"]]
  assert "A brown dog" in shorts and "a red leather collar" in shorts
  for annotation in found.values():
    for region in annotation["regions"]:
      assert len(set(region["negatives"])) == len(region["negatives"]) == 10
      assert region["short"] not in region["negatives"]
  command = next(line for line in out.splitlines() if line.startswith("next: "))
  arguments = shlex.split(command)[4:]
  files = [str(path) for path in sorted((photos.parent / "out" / "annotations").iterdir())]
  at = arguments.index("--captions") + 1
  arguments[at : at + 1] = files
  arguments[arguments.index("--output") + 1] = str(photos.parent / "data")
  assert prepare.main([*arguments, "--workers", "1"]) == 0
  report = json.loads((photos.parent / "data" / "report-train.json").read_text())
  counts = json.loads((photos.parent / "out" / "report-annotate.json").read_text())["counts"]
  assert report["records"] == counts["items.written"] == 3
  assert report["regions"] == counts["boxes.regions"] == sum(len(each["regions"]) for each in found.values())
  assert {finding["loss"] for finding in report["findings"].values()} <= {"note"}, report["findings"]


def test_the_same_bytes_by_any_number_of_processes_and_in_pieces(photos, monkeypatch, capfd):
  monkeypatch.setattr("fgclip_jax.annotate.items.PART", 1)
  assert run(photos, "one", "--boxes", detector(photos)) == 0
  assert capfd.readouterr().err.count("asked") == 3
  assert run(photos, "one", "--boxes", detector(photos)) == 0  # all is answered
  assert capfd.readouterr().err.count("asked") == 0
  assert run(photos, "two", "--stages", "captions,phrases") == 0
  assert run(photos, "two", "--boxes", detector(photos), "--workers", "2") == 0
  one, two = (photos.parent / name / "annotations" for name in ("one", "two"))
  contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, two)]
  assert contents[0] == contents[1] and len(contents[0]) == 3


def test_the_form_of_finehard(photos):
  assert run(photos, "out", "--boxes", detector(photos), "--form", "finehard") == 0
  files, data = photos.parent / "out" / "annotations", photos.parent / "data"
  given = ["--annotations", str(files), "--images", str(photos), "--output", str(data), "--workers", "1"]
  assert prepare.main(["finehard", *given]) == 0
  report = json.loads((data / "report-train.json").read_text())
  assert report["records"] == 3 and {finding["loss"] for finding in report["findings"].values()} <= {"note"}
  assert report["regions_with_negatives"] == report["regions"] == 7


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs requirements-beam.txt")
def test_beam_writes_what_processes_write(photos, monkeypatch):
  monkeypatch.setattr("fgclip_jax.annotate.items.PART", 1)
  assert run(photos, "alone") == 0
  assert run(photos, "beam", "--engine", "beam") == 0
  alone, beam = (photos.parent / name / "annotations" for name in ("alone", "beam"))
  assert {path.name: path.read_bytes() for path in alone.iterdir()} == {
    path.name: path.read_bytes() for path in beam.iterdir()
  }


def test_flags_of_no_engine_are_refused(photos, capsys):
  with pytest.raises(SystemExit):
    run(photos, "out", "--runner=DirectRunner")
  assert "unrecognized arguments: --runner" in capsys.readouterr().err


def test_what_is_given_is_kept(photos):
  given = {"box": [0.1, 0.1, 0.5, 0.9], "short": "a dog that is given", "negatives": ["a cat that is given"]}
  line = {"image": "a.png", "short": "short", "long": CAPTIONS["a.png"], "regions": [given, {"box": [0, 0, 0.5, 0.5]}]}
  (photos.parent / "known.jsonl").write_text(json.dumps(line) + "\n")
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  assert annotations(photos.parent / "out") == {"a.png": line | {"regions": [given]}}
  counts = json.loads((photos.parent / "out" / "report-annotate.json").read_text())["counts"]
  assert counts["region_captions.left_out"] == 1


def test_all_captions_that_are_known_reach_the_data_set(photos):
  further = {"text": "ein Hund", "language": "de", "source": "alt_text", "weight": 0.5}
  line = {"image": "a.png", "captions": ["a dog", "an animal", further], "long": [CAPTIONS["a.png"], "Another."]}
  (photos.parent / "known.jsonl").write_text(json.dumps(line) + "\n")
  assert run(photos, "out") == 0
  (file,) = (photos.parent / "out" / "annotations").iterdir()
  data = str(photos.parent / "data")
  assert (
    prepare.main(["pairs", "--captions", str(file), "--images", str(photos), "--output", data, "--workers", "1"]) == 0
  )
  found = record.decode(Records(data, "train")[0])
  assert (found.short, found.long) == ("a dog", CAPTIONS["a.png"])
  assert set(found.captions) == {
    Caption("a dog"), Caption("an animal"), Caption("ein Hund", "short", "de", "alt_text", 0.5),
    Caption(CAPTIONS["a.png"], "long"), Caption("Another.", "long"),
  }  # fmt: skip


def test_pictures_that_cannot_be_used(photos, capsys):
  (photos / "a.png").write_bytes(b"no picture")
  (photos.parent / "known.jsonl").write_text(
    "".join(json.dumps({"image": name}) + "\n" for name in (*CAPTIONS, "gone.png"))
    + json.dumps({"image": "d.png", "long": "A red ball."}) + "\n"
  )  # fmt: skip
  Image.new("RGB", (96, 64)).save(photos / "d.png")
  assert run(photos, "out") == 0
  counts = json.loads((photos.parent / "out" / "report-annotate.json").read_text())["counts"]
  assert {key: counts[f"items.{key}"] for key in ("read", "written", "rejected", "failed")} == {
    "read": 5, "written": 1, "rejected": 2, "failed": 2,
  }  # fmt: skip
  out = capsys.readouterr().out
  assert "caption_missing 2" in out and "image_missing 1" in out and "image_unreadable 1" in out


def test_failures_are_kept_and_tried_again_on_request(photos, capfd):
  program = photos.parent / "detect.py"
  program.write_text("import sys\nsys.stdin.read()\n")
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  counts = json.loads((photos.parent / "out" / "report-annotate.json").read_text())["counts"]
  assert counts["boxes.failed.answer_missing"] == 3 and "boxes.regions" not in counts
  program.write_text(DETECTOR)
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  assert "asked" not in capfd.readouterr().err
  assert run(photos, "out", "--boxes", detector(photos), "--retry", "answer_missing") == 0
  assert capfd.readouterr().err.count("asked") == 3
  assert all(each["regions"] for each in annotations(photos.parent / "out").values())


def test_a_wrong_convention_stops_the_run(photos, capsys):
  lines = [{"image": "a.png", "long": " ".join(f"A brown dog and a cat number {n}." for n in range(1))}]
  (photos.parent / "known.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  program = DETECTOR.replace("for n in range(count)", "for n in [0] * 60").replace("width * n / count", "5000")
  (photos.parent / "detect.py").write_text(program)
  assert run(photos, "out", "--boxes", detector(photos)) == 2
  assert "--convention" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--stages", "captions,colours"], "--stages may hold"),
    (["--captions", "http"], "needs --model"),
    (["--captions", "http", "--model", "m"], "needs --endpoint"),
    (["--boxes", "yolo"], "--boxes must be"),
    (["--boxes", "own:nowhere/model"], "no model at"),
    (["--phrases", "nltk"], "--phrases must be"),
    (["--attributes", "colour,mood"], "--attributes may hold"),
    (["--boxes", "command:x", "--convention", "xxyy"], "the order of a box"),
    (["--images", "/nowhere"], "neither a folder nor a tar file"),
  ],
)
def test_wrong_options(photos, capsys, options, message):
  assert run(photos, "out", *options) == 2
  assert message in capsys.readouterr().err


def test_counts_that_do_not_add_up_are_an_error():
  chain.check_identities(collections.Counter({"items.read": 2, "items.written": 1, "items.failed": 1}))
  with pytest.raises(ValueError, match="items.read is 2"):
    chain.check_identities(collections.Counter({"items.read": 2, "items.written": 1}))


def test_a_run_that_was_killed_goes_on(photos, monkeypatch):
  added = Journal.add

  def add(self, outcome):
    added(self, outcome)
    raise KeyboardInterrupt

  monkeypatch.setattr(Journal, "add", add)
  assert run(photos, "out", "--boxes", detector(photos)) == 1
  monkeypatch.setattr(Journal, "add", added)
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  assert run(photos, "whole", "--boxes", detector(photos)) == 0
  assert annotations(photos.parent / "out") == annotations(photos.parent / "whole")


@pytest.mark.parametrize("parts", ["1000000000000", "-1", "0", "2.5", "Infinity", '"x"', "[" * 60_000])
def test_a_damaged_number_of_parts(photos, capsys, parts):
  state = photos.parent / "out" / chain.STATE
  state.mkdir(parents=True)
  (state / "parts.json").write_text(f'{{"parts": {parts}}}')
  assert run(photos, "out") != 0
  error = capsys.readouterr().err
  assert error.startswith("error: ") and "parts.json is damaged" in error and error.count("\n") == 1


def test_answers_in_a_journal_that_are_none(photos, capfd):
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  (journal,) = (photos.parent / "out" / chain.STATE).glob("boxes-*/*.jsonl")
  lines = [json.loads(line) for line in journal.read_text().splitlines()]
  capfd.readouterr()
  for value in (5, None, [1], {"a": 1}, {"found": [[1]], "bad": {}}, {"found": [], "bad": 5}):
    journal.write_text("".join(json.dumps(line | {"value": value}) + "\n" for line in lines))
    assert run(photos, "out", "--boxes", detector(photos)) != 0
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(journal) in error and "delete the file" in error
  journal.write_text("".join(json.dumps({"key": line["key"], "failure": "\x1b[2J"}) + "\n" for line in lines))
  assert run(photos, "out", "--boxes", detector(photos)) == 0
  assert "\x1b" not in capfd.readouterr().out


def test_a_caption_with_a_line_separator(photos):
  known = photos.parent / "known.jsonl"
  known.write_text(json.dumps({"image": "a.png", "short": "a red\u2028dog\x85sleeps"}) + "\n")
  assert run(photos, "out") == 0
  assert annotations(photos.parent / "out")["a.png"]["short"] == "a red\u2028dog\x85sleeps"


@pytest.mark.parametrize(
  "place",
  [
    ".annotate",
    ".annotate/drafts",
    ".annotate/finished/part-00000.jsonl",
    ".annotate/parts.json",
    "annotations/part-00000-of-00001.jsonl",
  ],
)
def test_links_in_the_place_of_what_is_written_are_not_followed(photos, capsys, place):
  output = photos.parent / "out"
  assert run(photos, "out") == 0
  elsewhere = photos.parent / "elsewhere"
  (output / place).rename(elsewhere)
  (output / place).symlink_to(elsewhere)
  before = {path: path.read_bytes() for path in photos.parent.rglob("*") if path.is_file()}
  capsys.readouterr()
  assert run(photos, "out") == 2
  assert f"{place}' is to be written, and is a link, which is not followed: remove it" in capsys.readouterr().err
  assert before == {path: path.read_bytes() for path in photos.parent.rglob("*") if path.is_file()}
